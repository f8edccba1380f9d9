"""The shipped seed tasks keep their promises, and a bad seed file is refused with one line that says where and what."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastgen.methods.self_instruct.seeds
from fastgen.cli import app as cli
from fastgen.errors import InputError
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.self_instruct.seeds import (
    NEAR,
    check_seed_tasks,
    default_seed_path,
    load_seed_tasks,
    seed_fingerprint,
)
from fastgen.similarity.rouge import rouge_l_f1, tokenise
from fastgen.types import Instance, SeedTask

SHIPPED = load_seed_tasks(default_seed_path())
LINE: dict[str, Any] = {
    "id": "a",
    "name": "first",
    "instruction": "Name the capital of the given country.",
    "instances": [{"input": "Peru", "output": "Lima"}],
    "is_classification": False,
}


def line(**changes: Any) -> dict[str, Any]:
    """A good line with some fields changed; ``...`` removes a field."""
    return {key: value for key, value in {**LINE, **changes}.items() if value is not ...}


def with_instance(**changes: Any) -> dict[str, Any]:
    instance = {**LINE["instances"][0], **changes}
    return line(instances=[{key: value for key, value in instance.items() if value is not ...}])


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "seeds.jsonl"
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The message for a file that does not load, which must be one line that starts with the file."""
    with pytest.raises(InputError) as caught:
        load_seed_tasks(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable(), "one line, and nothing that a terminal would interpret"
    assert "; " in message, "a remedy"
    return message.removeprefix(str(path))


# What the shipped file promises.


def test_there_are_150_generation_and_25_classification_tasks_with_one_instance_each() -> None:
    assert len(SHIPPED) == 175
    assert sum(task.is_classification for task in SHIPPED) == 25
    assert {len(task.instances) for task in SHIPPED} == {1}


def test_ids_count_up_and_names_are_unique_snake_case() -> None:
    assert [task.id for task in SHIPPED] == [f"seed_task_{number}" for number in range(175)]
    assert len({task.name for task in SHIPPED}) == 175
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", task.name) for task in SHIPPED)


def test_lines_have_the_keys_of_the_schema_in_order_and_nothing_else() -> None:
    for text in default_seed_path().read_text(encoding="utf-8").splitlines():
        fields = json.loads(text)
        assert list(fields) == ["id", "name", "instruction", "instances", "is_classification"]
        assert [list(instance) for instance in fields["instances"]] == [["input", "output"]]


def test_about_three_tenths_of_the_tasks_have_an_empty_input() -> None:
    assert 0.25 <= sum(not task.instances[0].input for task in SHIPPED) / len(SHIPPED) <= 0.35


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_no_instruction_would_be_rejected_by_the_filters(preset: str) -> None:
    assert {task.id: check_instruction(task.instruction, PRESETS[preset]) for task in SHIPPED} == dict.fromkeys(
        (task.id for task in SHIPPED), None
    )


def test_instructions_are_one_line_start_with_a_letter_and_do_not_end_in_a_colon() -> None:
    for task in SHIPPED:
        text = task.instruction
        assert text == " ".join(text.split())
        assert re.match("[A-Za-z]", text)
        assert not text.endswith(":")


def test_instances_would_pass_the_rules_for_instances() -> None:
    markers = re.compile(r"^(input|output|task|class label|example \d+)\s*:", re.IGNORECASE | re.MULTILINE)
    for task in SHIPPED:
        for instance in task.instances:
            assert instance.input != instance.output
            for text in (instance.input, instance.output):
                assert text == text.strip("\n")
                assert not text.endswith(":")
                assert not markers.search(text), f"{task.id} would break a few-shot prompt"


@pytest.mark.parametrize("tokenizer", ["unicode", "rouge"])
def test_no_two_instructions_reach_a_rouge_l_of_a_half(tokenizer: Any) -> None:
    tokens = [tokenise(task.instruction, tokenizer) for task in SHIPPED]
    assert max(rouge_l_f1(a, b) for a, b in combinations(tokens, 2)) < 0.5


def test_no_word_opens_more_than_six_sentences_and_openings_are_varied() -> None:
    first = Counter(task.instruction.split()[0].lower() for task in SHIPPED)
    sentences = [text for task in SHIPPED for text in re.split(r"[.?!;] ", task.instruction)]
    assert max(Counter(text.split()[0].lower().strip(",") for text in sentences).values()) <= 6
    assert len(first) > 120


def test_lengths_spread_from_short_to_long_instructions() -> None:
    words = sorted(len(task.instruction.split()) for task in SHIPPED)
    assert words[0] <= 5
    assert 14 <= words[87] <= 22
    assert 80 <= words[-1] <= 90


def test_some_tasks_are_long_and_most_are_short() -> None:
    inputs = [len(task.instances[0].input.split()) for task in SHIPPED]
    outputs = [len(task.instances[0].output.split()) for task in SHIPPED]
    assert 14 <= sum(count >= 200 for count in outputs) <= 20
    assert 6 <= sum(count >= 100 for count in inputs) <= 12
    assert max(inputs) <= 350, "several of them share a prompt of self-instruct-chat"
    assert max(outputs) <= 500
    assert sorted(outputs)[87] <= 60


def test_few_instructions_ask_for_a_length() -> None:
    number = r"(?:\d+|one|two|three|four|five|six|ten|fifteen)"
    limit = re.compile(rf"\b{number}(?: or {number})?(?: complete)? (?:words|sentences?|characters)\b")
    assert sum(limit.search(task.instruction) is not None for task in SHIPPED) <= 15


def test_classification_tasks_are_spread_through_the_file_and_answer_with_a_stated_label() -> None:
    places = [number for number, task in enumerate(SHIPPED) if task.is_classification]
    assert max(b - a for a, b in zip([0, *places], [*places, 175], strict=True)) <= 10
    for task in SHIPPED:
        if task.is_classification and task.name != "physics_multiple_choice":  # its options A to D are in the input
            assert task.instances[0].output.lower() in task.instruction.lower()


def test_neither_yes_nor_no_is_the_usual_answer() -> None:
    answers = Counter(task.instances[0].output for task in SHIPPED if task.is_classification)
    assert answers["yes"] == answers["no"]


def test_the_shipped_file_is_checked_without_a_warning() -> None:
    report = check_seed_tasks(default_seed_path())
    assert report.warnings == ()
    assert (report.tasks, report.classification, report.instances) == (175, 25, 175)
    assert report.closest is not None
    assert report.closest.rouge_l < NEAR


def test_worked_instances_that_a_machine_can_check_are_right() -> None:
    task = {task.name: task.instances[0] for task in SHIPPED}
    assert json.loads(task["repair_json"].output)["wattage"] == 2200
    assert [row["price"] for row in json.loads(task["csv_to_typed_json"].output)] == [4.5, 19.0]
    shifted = "".join(chr((ord(c) - 68) % 26 + 65) if c.isalpha() else c for c in task["caesar_decode"].input)
    assert task["caesar_decode"].output == shifted
    vowels = task["count_vowels"].input.lower()
    assert task["count_vowels"].output == ", ".join(f"{vowel}={vowels.count(vowel)}" for vowel in "aeiou")
    pattern = re.compile(task["regex_24_hour_clock"].output.split("\n")[0])
    clock = [f"{hour:02}:{minute:02}" for hour in range(100) for minute in range(100)]
    assert not pattern.fullmatch("12:30\n")
    assert [time for time in clock if pattern.fullmatch(time)] == [
        time for time in clock if time[:2] < "24" and time[3:] < "60"
    ]
    for pair in task["anagrams_of_words"].output.splitlines():
        given_word, found = pair.split(": ")
        assert sorted(given_word) == sorted(found)
        assert given_word != found


def test_worked_documents_close_what_they_open() -> None:
    task = {task.name: task.instances[0] for task in SHIPPED}
    opened: list[str] = []
    page = task["html_css_pricing_cards"].output
    for slash, tag in re.findall(r"<(/?)(?!meta|!)(\w+)", page):
        if slash:
            assert opened.pop() == tag
        else:
            opened.append(tag)
    document = task["latex_lecture_notes"].output
    assert document.count("{") == document.count("}")
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", document):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []


def test_the_worked_query_finds_the_customers_without_orders() -> None:
    task = {task.name: task.instances[0] for task in SHIPPED}["sql_customers_without_orders"]
    with closing(sqlite3.connect(":memory:")) as database:
        for table in task.input.splitlines():
            database.execute(f"CREATE TABLE {table}")
        database.execute("INSERT INTO customers VALUES (1, 'Zoe'), (2, 'Ann'), (3, 'Max'), (4, 'Eve')")
        database.execute("INSERT INTO orders VALUES (1, 1, '2022-12-31'), (2, 3, '2023-12-31'), (3, 4, '2023-01-01')")
        names = database.execute(task.output.replace("DATE '", "'")).fetchall()  # SQLite has no literals of dates
    assert names == [("Ann",), ("Zoe",)]


# What the loader accepts.


def test_a_task_is_read_with_all_its_instances(tmp_path: Path) -> None:
    two = [{"input": "", "output": "x"}, {"input": "Chile", "output": "Santiago"}]
    assert load_seed_tasks(write(tmp_path, line(instances=two, is_classification=True))) == (
        SeedTask("a", "first", LINE["instruction"], (Instance("", "x"), Instance("Chile", "Santiago")), True),
    )


def test_unknown_keys_are_ignored_and_a_missing_name_is_the_id(tmp_path: Path) -> None:
    (task,) = load_seed_tasks(write(tmp_path, line(name=..., motivation="none", source=None)))
    assert task.name == task.id == "a"


def test_blank_lines_crlf_a_byte_order_mark_and_a_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(line()).encode() + b"\r\n\r\n  \n" + json.dumps(line(id="b")).encode()
    )
    assert [task.id for task in load_seed_tasks(path)] == ["a", "b"]


def test_text_of_any_script_and_unicode_line_separators_stay_as_they_are(tmp_path: Path) -> None:
    text = "列出三种水果\u2028そして 😀"
    path = write(tmp_path, json.dumps(line(instruction=text), ensure_ascii=False))
    assert load_seed_tasks(path)[0].instruction == text


# What it refuses, and how.


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (line(id=...), ": id: missing"),
        (line(id=7), ": id: found a number"),
        (line(id=" "), ": id: blank"),
        (line(id="machine_12"), ': id: "machine_12" is a machine instruction\'s name'),
        (line(name=None), ": name: found null"),
        (line(name=""), ": name: blank"),
        (line(instruction=...), ": instruction: missing"),
        (line(instruction=["a"]), ": instruction: found a list"),
        (line(instruction=" \n\t"), ": instruction: blank"),
        (line(instances=...), ": instances: missing"),
        (line(instances={}), ": instances: found an object"),
        (line(instances=[]), ": instances: empty"),
        (line(instances=["x"]), ": instances[0]: found text"),
        (line(instances=[*LINE["instances"], {"input": "x"}]), ": instances[1].output: missing"),
        (with_instance(input=...), ": instances[0].input: missing"),
        (with_instance(input=None), ": instances[0].input: found null"),
        (with_instance(output=3.5), ": instances[0].output: found a number"),
        (with_instance(output=True), ": instances[0].output: found true or false"),
        (with_instance(output=" \n"), ": instances[0].output: blank"),
        (line(is_classification=...), ": is_classification: missing"),
        (line(is_classification=1), ": is_classification: found a number"),
        (line(is_classification="false"), ": is_classification: found text"),
        (line(is_classification=None), ": is_classification: found null"),
        (line(instruction="Say \0 now please"), ": instruction: holds \\u0000, a NUL"),
        (with_instance(output="\ud800"), ": instances[0].output: holds \\ud800, a lone surrogate"),
        (with_instance(input="x\udfff"), ": instances[0].input: holds \\udfff, a lone surrogate"),
        ('{"id": "a", "id": "b"}', ": id: appears twice"),
        ("[1, 2]", ": found a list"),
        ('"text"', ": found text"),
        ("null", ": found null"),
        ('{"id": "a",', ": broken JSON ("),
        ("not json", ": broken JSON (Expecting value at column 1)"),
        ('{"id": "a\tb"}', ": broken JSON (Invalid control character at column 10)"),
        ("[" * 100_000, ": JSON beyond what can be read"),
        ('{"id": ' + "9" * 5000 + "}", ": JSON beyond what can be read"),
    ],
)
def test_a_defect_is_named_with_its_line_and_field(tmp_path: Path, bad: dict[str, Any] | str, expected: str) -> None:
    assert refusal(write(tmp_path, line(id="good"), "", bad)).startswith(f":3{expected}")


def test_a_repeated_id_names_the_line_where_it_was_first(tmp_path: Path) -> None:
    path = write(tmp_path, line(), "", line(id="b"), line(id="a"))
    assert refusal(path) == ':4: id: "a" is also on line 1; choose another id'


def test_a_control_character_in_an_id_cannot_break_the_message(tmp_path: Path) -> None:
    twice = line(id="a\n\x1b[31mb")
    assert ':2: id: "a\\n\\u001b[31mb"' in refusal(write(tmp_path, twice, twice))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_a_task_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    assert refusal(path).startswith(": holds no seed task; ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\xff", ":1: byte 1 is not UTF-8"),
        (b'{"id": "caf\xe9"}', ":1: byte 12 is not UTF-8"),
        ('{"id": "a"}'.encode("utf-16"), ":1: holds a NUL byte"),
        (b'{"id": "a\0"}', ":1: holds a NUL byte"),
        (b"\x7fELF\x00\x01", ":1: holds a NUL byte"),
    ],
)
def test_what_is_not_utf_8_text_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "binary.jsonl"
    path.write_bytes(content)
    assert refusal(path).startswith(expected)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.jsonl")
    assert "directory" in refusal(tmp_path)


def test_a_path_with_a_line_break_still_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_seed_tasks(tmp_path / "a\nb")
    assert str(caught.value).isprintable()


def test_an_impossible_path_is_bad_input() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_seed_tasks(Path("a\0b"))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.jsonl"
    path.write_bytes(noise)
    assert refusal(path)


# Where the shipped file is found.


def test_an_installed_module_prefers_the_file_next_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "fastgen" / "methods" / "self_instruct"
    package.mkdir(parents=True)
    monkeypatch.setattr(fastgen.methods.self_instruct.seeds, "__file__", str(package / "seeds.py"))
    with pytest.raises(InputError, match="not part of this installation; reinstall fastgen or name a file"):
        default_seed_path()
    in_checkout = tmp_path / "site-packages" / "seeds" / "seed_tasks.jsonl"
    in_checkout.parent.mkdir()
    in_checkout.touch()
    assert default_seed_path() == in_checkout
    (package / "seed_tasks.jsonl").touch()
    assert default_seed_path() == package / "seed_tasks.jsonl"


# The fingerprint.


def test_the_fingerprint_ignores_formatting(tmp_path: Path) -> None:
    plain = write(tmp_path, line(instruction="Sag etwas Schönes bitte"), line(id="b"))
    expected = seed_fingerprint(load_seed_tasks(plain))
    other = {key: line(instruction="Sag etwas Schönes bitte")[key] for key in reversed(LINE)}
    rewritten = write(
        tmp_path, json.dumps(other, ensure_ascii=False, separators=(" ,", " : ")), "", line(id="b", extra=1)
    )
    assert seed_fingerprint(load_seed_tasks(rewritten)) == expected
    assert re.fullmatch("[0-9a-f]{64}", expected)


@pytest.mark.parametrize(
    "changed",
    [
        [line(id="c"), line(id="b")],
        [line(name="other"), line(id="b")],
        [line(instruction="Name the capital of the given country!"), line(id="b")],
        [with_instance(input="Peru "), line(id="b")],
        [with_instance(output="lima"), line(id="b")],
        [line(instances=LINE["instances"] * 2), line(id="b")],
        [line(is_classification=True), line(id="b")],
        [line(id="b"), line()],
        [line()],
    ],
)
def test_the_fingerprint_changes_with_any_content(tmp_path: Path, changed: list[dict[str, Any]]) -> None:
    original = seed_fingerprint(load_seed_tasks(write(tmp_path, line(), line(id="b"))))
    assert seed_fingerprint(load_seed_tasks(write(tmp_path, *changed))) != original


# The report.


def test_the_report_counts_what_the_file_holds(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        line(instances=[{"input": " ", "output": "x"}, {"input": "", "output": "y"}]),
        line(id="b", instruction="Is this sentence true or false?", is_classification=True),
        line(id="c", instruction="one two three four five six seven eight nine"),
    )
    report = check_seed_tasks(path)
    assert (report.path, report.tasks, report.classification, report.instances) == (path, 3, 1, 4)
    assert report.empty_input_share == 0.5
    assert (report.words_min, report.words_median, report.words_max) == (6, 7, 9)
    text = str(report)
    assert text.startswith(f"{path}: 3 seed tasks, 4 instances\n")
    assert "50.0% of the instances" in text
    assert "6 to 9, median 7" in text
    assert "warning: only 3 seed tasks" in text


def test_a_single_seed_has_no_closest_pair(tmp_path: Path) -> None:
    report = check_seed_tasks(write(tmp_path, line()))
    assert report.closest is None
    assert "closest pair       none" in str(report)


def eight(**changes: Any) -> list[dict[str, Any]]:
    """Eight unlike tasks, one of them a classification, the first with changes."""
    words = ("apple", "brook", "cloud", "daisy", "ember", "flint", "grass", "heath")
    lines = [line(id=w, instruction=f"{w}1 {w}2 {w}3 {w}4", is_classification=w == "brook") for w in words]
    return [{**lines[0], **changes}, *lines[1:]]


def test_a_sound_file_has_no_warnings(tmp_path: Path) -> None:
    assert check_seed_tasks(write(tmp_path, *eight())).warnings == ()


def test_fewer_than_eight_seeds_and_no_classification_seed_are_warned_about(tmp_path: Path) -> None:
    few, no_classification = check_seed_tasks(write(tmp_path, *(eight()[:1] + eight()[2:]))).warnings
    assert few.startswith("only 7 seed tasks")
    assert no_classification.startswith("no classification seed")


@pytest.mark.parametrize(
    ("instruction", "preset", "rule"),
    [
        ("Describe the given picture in words.", "default", "media_request"),
        ("Sum it up.", "default", "too_short"),
        ("Write a program that sorts numbers.", "default", "banned_start"),
        ("写出三个常见水果的名称", "paper", "too_short"),
        ("Übersetze den Satz ins Deutsche.", "paper", "non_ascii_start"),
    ],
)
def test_an_instruction_that_the_filters_reject_is_warned_about(
    tmp_path: Path, instruction: str, preset: Any, rule: str
) -> None:
    path = write(tmp_path, *eight(instruction=instruction))
    (warning,) = check_seed_tasks(path, preset).warnings
    assert warning.startswith(f"{path}:1: instruction: --preset {preset} rejects")
    assert f"({rule})" in warning


def test_seeds_without_spaces_are_counted_in_words_and_only_the_preset_in_use_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, *eight(instruction="写出三个常见水果的名称"))
    report = check_seed_tasks(path)
    assert (report.words_min, report.warnings) == (4, ())
    assert cli.run(["seeds", "check", str(path)]) == 0
    assert "warning" not in capsys.readouterr().out
    assert cli.run(["seeds", "check", str(path), "--preset", "paper"]) == 0
    out = capsys.readouterr().out
    assert "instruction words  1 to 4" in out
    assert "--preset paper rejects" in out


def test_pairs_at_or_above_a_half_are_warned_about_closest_first(tmp_path: Path) -> None:
    lines = eight()
    lines[3]["instruction"] = "apple1 apple2 apple3 daisy4"  # 3 of 4 tokens with apple
    lines[5]["instruction"] = "apple1 apple2 flint3 flint4"  # 2 of 4 with apple and with daisy: exactly a half
    report = check_seed_tasks(write(tmp_path, *lines))
    assert [warning.split(":")[0] for warning in report.warnings] == [
        "apple and daisy (ROUGE-L 0.750)",
        "apple and flint (ROUGE-L 0.500)",
        "daisy and flint (ROUGE-L 0.500)",
    ]


def test_a_long_list_of_near_duplicates_is_cut(tmp_path: Path) -> None:
    lines = [line(id=f"t{n}", is_classification=True) for n in range(10)]
    warnings = check_seed_tasks(write(tmp_path, *lines)).warnings
    assert len(warnings) == 21
    assert warnings[-1] == "25 more pairs are nearly the same"


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8).map(" ".join), min_size=2, max_size=12))
def test_the_closest_pair_is_that_of_the_full_comparison(
    tmp_path_factory: pytest.TempPathFactory, instructions: list[str]
) -> None:
    lines = [line(id=f"t{n}", instruction=text) for n, text in enumerate(instructions)]
    report = check_seed_tasks(write(tmp_path_factory.getbasetemp(), *lines))
    scores = {
        (f"t{i}", f"t{j}"): rouge_l_f1(instructions[i].split(), instructions[j].split())
        for i, j in combinations(range(len(instructions)), 2)
    }
    closest = report.closest
    assert closest is not None
    assert closest.rouge_l == scores[closest.first, closest.second] == max(scores.values())
    warned = sum(score >= NEAR for score in scores.values())
    assert sum("nearly the same instruction" in warning for warning in report.warnings) == min(warned, 20)
