"""Reading rows: every odd file has a defined result, or an error of one line that names file and line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen.dedup.job import Counts, dedup
from fastgen.errors import InputError
from fastgen.similarity.novelty import IndexKind
from fastgen.store import tables as jsonl
from fastgen.store.tables import open_table, read_texts
from fastgen.telemetry.progress import QuietReporter
from tests.dedup_data import make_rows, similarity


def run(folder: Path, content: bytes, index: IndexKind = "exhaustive", *, field: str = "instruction") -> Counts:
    """Dedup of a file with this content."""
    (folder / "in.jsonl").write_bytes(content)
    kept, rejected = folder / "kept.jsonl", folder / "rejected.jsonl"
    rule = similarity(index)
    return dedup(folder / "in.jsonl", kept, rejected, rule, QuietReporter(), field=field, overwrite=True)


def kept(folder: Path) -> bytes:
    return (folder / "kept.jsonl").read_bytes()


def rejected(folder: Path) -> bytes:
    return (folder / "rejected.jsonl").read_bytes()


GOOD = b'{"instruction": "Name a river."}\n'
BAD: dict[str, tuple[bytes, list[str]]] = {
    "a missing field": (b'{"prompt": "x", "id": 1}\n', [":2", "instruction: missing", "prompt, id"]),
    "an empty object": (b"{}\n", [":2", "instruction: missing", "no field"]),
    "a number for a text": (b'{"instruction": 7}\n', [":2", "instruction", "a number"]),
    "null for a text": (b'{"instruction": null}\n', [":2", "instruction", "null"]),
    "a list for a text": (b'{"instruction": ["x"]}\n', [":2", "instruction", "a list"]),
    "a broken line": (b'{"instruction": "x"\n', [":2", "broken JSON", "column"]),
    "two objects on a line": (b'{"instruction": "x"} {"instruction": "y"}\n', [":2", "broken JSON"]),
    "a list for a row": (b'["x"]\n', [":2", "a list", "one JSON object on each line"]),
    "a text for a row": (b'"instruction"\n', [":2", "text", "one JSON object on each line"]),
    "a NUL byte": (b'{"instruction": "x\0y"}\n', [":2", "NUL"]),
    "a raw tab in a text": (b'{"instruction": "x\ty"}\n', [":2", "broken JSON"]),
    "Latin-1": (b'{"instruction": "caf\xe9"}\n', [":2", "UTF-8"]),
    "UTF-16": ('{"instruction": "x"}\n'.encode("utf-16"), [":2", "NUL"]),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 9, [":2"]),
    "nesting without end": (b'{"instruction": ' + b"[" * 100_000 + b"\n", [":2"]),
    "a text beyond all reason": (b'{"instruction": "%b"}\n' % (b"a " * 2_000_001), [":2", "4,000,002 characters"]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line_and_nothing_stays_behind(
    tmp_path: Path, what: str
) -> None:
    content, words = BAD[what]
    with pytest.raises(InputError) as caught:
        run(tmp_path, GOOD + content + GOOD)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "in.jsonl"))
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    for word in words:
        assert word in message
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2 << 20)
    with pytest.raises(InputError, match=r"in\.jsonl:2: the line is longer than 2 MiB"):
        run(tmp_path, GOOD + b"x" * (5 << 20))


def test_missing_and_irregular_files_are_reported_in_one_line(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, word in (
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path, "a folder"),
        (fifo, "not a regular file"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            open_table(path, "instruction")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        open_table(path, "instruction")


def test_an_empty_file_gives_two_empty_files(tmp_path: Path) -> None:
    assert run(tmp_path, b"") == Counts(0, 0, 0, 0)
    assert (kept(tmp_path), rejected(tmp_path)) == (b"", b"")


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    assert run(tmp_path, b"\n  \r\n" + GOOD + b"\n" + GOOD) == Counts(2, 1, 1, 0)
    assert kept(tmp_path) == GOOD
    assert orjson.loads(rejected(tmp_path))["line"] == 5
    assert orjson.loads(rejected(tmp_path))["neighbour"]["line"] == 3


def test_texts_without_a_token_are_all_kept(tmp_path: Path) -> None:
    content = b'{"instruction": ""}\n{"instruction": "  "}\n{"instruction": ""}\n{"instruction": "?!"}\n'
    assert run(tmp_path, content) == Counts(4, 4, 0, 0)
    assert kept(tmp_path) == content


def test_a_byte_order_mark_is_left_out_and_a_missing_last_line_end_is_added(tmp_path: Path) -> None:
    assert run(tmp_path, b"\xef\xbb\xbf" + GOOD + b'{"instruction": "x y"}') == Counts(2, 2, 0, 0)
    assert kept(tmp_path) == GOOD + b'{"instruction": "x y"}\n'


def test_escaped_nul_and_lone_surrogates_separate_tokens_and_come_out_as_they_went_in(tmp_path: Path) -> None:
    lines = [
        b'{"instruction": "one two three four five six \\ud800"}\n',
        b'{"instruction": "one\\u0000two three four five six"}\n',
        b'{"instruction": "\\udc00"}\n',
        b'{"instruction": "seven eight", "score": NaN}\n',
    ]
    assert run(tmp_path, b"".join(lines)) == Counts(4, 3, 1, 0)
    assert kept(tmp_path) == lines[0] + lines[2] + lines[3]
    assert b'"row":%b,' % lines[1].strip() in rejected(tmp_path)
    assert json.loads(rejected(tmp_path))["neighbour"]["text"] == "one two three four five six \ud800"


def test_mixed_scripts_are_compared_in_all_of_them(tmp_path: Path) -> None:
    texts = [
        "写一首关于秋天的诗 in English",
        "写一首关于春天的诗 in English",
        "Напиши стих про осень",
        "напиши СТИХ про осень!",
    ]
    content = b"".join(orjson.dumps({"instruction": text}) + b"\n" for text in texts)
    assert run(tmp_path, content) == Counts(4, 2, 2, 0)
    assert [orjson.loads(line)["line"] for line in rejected(tmp_path).splitlines()] == [2, 4]


@pytest.mark.parametrize("index", ["lsh", "exact", "exhaustive"])
def test_a_text_of_a_megabyte_is_decided_like_any_other(tmp_path: Path, index: IndexKind) -> None:
    words = " ".join(f"w{i * 7919 % 50_000}" for i in range(150_000))
    assert len(words) > 900_000
    content = b"".join(
        orjson.dumps({"instruction": text}) + b"\n"
        for text in (words, "one two three", words + " end", "one two three")
    )
    assert run(tmp_path, content, index) == Counts(4, 2, 2, 0)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip in members": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "zstd": zstandard.compress,
    "zstd in frames": lambda data: zstandard.compress(data[:999]) + zstandard.compress(data[999:]),
    "zstd behind a skippable frame": lambda data: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(data),
}


@pytest.mark.parametrize("form", FORMS)
def test_compressed_input_gives_what_the_plain_file_gives(tmp_path: Path, form: str) -> None:
    content = b"".join(make_rows(700))
    counts = run(tmp_path, content)
    expected = kept(tmp_path), rejected(tmp_path)
    assert run(tmp_path, FORMS[form](content)) == counts
    assert (kept(tmp_path), rejected(tmp_path)) == expected


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("damage", ["cut off", "cut off between blocks", "flipped", "followed by something else"])
def test_damaged_compressed_input_is_reported_in_one_line(tmp_path: Path, compress: type, damage: str) -> None:
    content = bytearray(compress(b"".join(make_rows(400))))
    if damage == "cut off":
        del content[-20:]
    elif damage == "cut off between blocks":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[12] ^= 0xFF
        content[len(content) // 2] ^= 0xFF
    else:
        content += b"\0garbage"
    with pytest.raises(InputError) as caught:
        run(tmp_path, bytes(content))
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "in.jsonl") in str(caught.value)


@given(
    lines=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12),
    block_bytes=st.integers(1, 40),
    last_end=st.booleans(),
)
def test_lines_do_not_depend_on_where_blocks_end(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], block_bytes: int, last_end: bool
) -> None:
    content = b"\n".join(orjson.dumps({"instruction": text}) for text in lines) + b"\n" * (last_end and bool(lines))
    path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_BLOCK_BYTES", block_bytes)
        read = list(open_table(path, "instruction").batches())
    assert [text for rows in read for text in rows.texts] == lines
    assert b"".join(row for rows in read for row in rows.data) == content


def test_large_rows_make_small_batches(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b'{"instruction": "x", "blob": "%b"}\n' % (b"b" * 1_000_000) for _ in range(12)))
    assert [len(rows.texts) for rows in open_table(path, "instruction").batches()] == [5, 5, 2]


def test_a_json_file_that_is_no_task_is_read_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(GOOD * 2)
    assert [list(texts) for _, texts in read_texts(path, "instruction")] == [["Name a river."] * 2]


ARRAY_ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a river.", "input": 'a ] , } [ { \\ " b', "n": [1, {"x": [[]]}], "é": "汉\u2028"},
    {"instruction": "Sort these words by their length.", "output": "line\nbreak"},
    {"instruction": "Name a river."},
]


@pytest.mark.parametrize("form", ["a row a line", "compact", "indented", "with a mark", "compressed"])
@pytest.mark.parametrize("block", [1 << 20, 7])
def test_a_json_array_is_read_as_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, block: int
) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    content = {
        "a row a line": b"[\n" + b",\n".join(map(orjson.dumps, ARRAY_ROWS)) + b"\n]\n",
        "compact": orjson.dumps(ARRAY_ROWS),
        "indented": json.dumps(ARRAY_ROWS, indent=4).replace("\n", "\r\n").encode(),
        "with a mark": b"\xef\xbb\xbf \n" + orjson.dumps(ARRAY_ROWS),
        "compressed": gzip.compress(orjson.dumps(ARRAY_ROWS)),
    }[form]
    assert run(tmp_path, content) == Counts(3, 2, 1, 0)
    assert [orjson.loads(line) for line in kept(tmp_path).split(b"\n")[:-1]] == ARRAY_ROWS[:2]
    (why,) = map(orjson.loads, rejected(tmp_path).split(b"\n")[:-1])
    assert (why["line"], why["row"], why["neighbour"]["line"]) == (3, ARRAY_ROWS[2], 1)


ANY_JSON = st.recursive(
    st.none() | st.floats(allow_nan=False) | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_JSON)
def test_whatever_a_row_of_an_array_holds_it_comes_out_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    folder = tmp_path_factory.mktemp("array")
    rows = [{"instruction": "Name a river.", "v": value}, {"instruction": "Sort by length.", "v": value}]
    assert run(folder, json.dumps(rows, indent=1).encode()).kept == 2
    assert [json.loads(line) for line in kept(folder).split(b"\n")[:-1]] == rows


BAD_ARRAYS = {
    "a cut-off array": (b'[{"instruction": "x"}, {"instr', "row 2: the file ends within the JSON array"),
    "a missing comma": (b'[{"instruction": "x"} {"instruction": "y"}]', "row 1: broken JSON"),
    "a comma at the end": (b'[{"instruction": "x"},]', "row 2: broken JSON"),
    "a second array": (b'[{"instruction": "x"}]\n[]', "something follows the JSON array"),
    "a number for a row": (b"[1]", "row 1: found a number"),
    "a row without the field": (b'[{"instruction": "x"}, {}]', "row 2: instruction: missing"),
    "a break within a text": (b'[{"instruction": "x\ny"}]', "row 1: broken JSON"),
    "brackets that do not match": (b'[{"instruction": "x"]', "row 1: the file ends within"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_a_broken_array_is_reported_with_the_row(tmp_path: Path, what: str) -> None:
    content, named = BAD_ARRAYS[what]
    with pytest.raises(InputError) as caught:
        run(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'in.jsonl'}: {named}")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_empty_array_has_no_rows_and_a_row_beyond_all_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, b" [ ]\n") == Counts(0, 0, 0, 0)
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2 << 20)
    with pytest.raises(InputError, match="row 1: is longer than 2 MiB"):
        run(tmp_path, b'[{"instruction": "' + b"x" * (5 << 20))


CHATS = [
    {"id": n, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "An answer."}]}
    for n, text in enumerate(("Name a long river.", "Sort by length.", "Name a long river!"))
]


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_path_leads_to_a_text_within_a_row(tmp_path: Path, form: str) -> None:
    content = orjson.dumps(CHATS) if form == "array" else b"".join(orjson.dumps(row) + b"\n" for row in CHATS)
    assert run(tmp_path, content, field="messages.0.content") == Counts(3, 2, 1, 0)
    assert [orjson.loads(line)["id"] for line in kept(tmp_path).splitlines()] == [0, 1]
    assert orjson.loads(rejected(tmp_path))["neighbour"]["text"] == "Name a long river."
    assert run(tmp_path, content, field="messages.-1.content").kept == 1


def test_a_key_with_a_dot_comes_before_a_path(tmp_path: Path) -> None:
    rows = [{"a.b": text, "a": {"b": "always the same"}} for text in ("Name a river.", "Sort by length.")]
    assert run(tmp_path, b"".join(orjson.dumps(row) + b"\n" for row in rows), field="a.b").kept == 2


@pytest.mark.parametrize(
    "field", ["messages.2.content", "messages.-3.content", "messages.x", "messages.0.text", "id.0"]
)
def test_a_path_that_leads_nowhere_names_those_that_do(tmp_path: Path, field: str) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, orjson.dumps(CHATS[0]) + b"\n", field=field)
    assert f":1: {field}: missing;" in str(caught.value)
    assert "(there: id, messages.0.role, messages.0.content, messages.1.role" in str(caught.value)


def test_a_path_to_something_else_than_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"messages\.0: found an object; make it text"):
        run(tmp_path, orjson.dumps(CHATS[0]) + b"\n", field="messages.0")


def test_an_array_is_a_pool_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text(json.dumps(ARRAY_ROWS, indent=2))
    texts = [text for _, batch in read_texts(tmp_path / "pool.json", "instruction") for text in batch]
    assert texts == [row["instruction"] for row in ARRAY_ROWS]
