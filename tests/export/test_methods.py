"""What exports have of runs of every method: turns, parents, documents, labels and the card."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.export.entries import Entry, ScoredInstance
from fastgen.export.export import export
from fastgen.export.method import method_facts, used_settings
from fastgen.export.options import CardOptions, ChoiceOptions
from fastgen.export.rows import INSTRUCTION_FORMATS, MORE_PARQUET_COLUMNS, PARQUET_COLUMNS, _thinking_rows
from fastgen.methods.base import Turn
from fastgen.store.output import json_line
from fastgen.store.reader import FinishedInstruction, OpenRun, open_run
from fastgen.types import Instance
from tests.export.test_export import _LOAD, python
from tests.export_help import call, make_run, numbered, rows
from tests.method_runs import CHAT, CODE, DOCUMENTS, INPUT, OTHER_METHODS, make_method_run


def parquet(run: Path, output: Path, **choice: Any) -> list[dict[str, Any]]:
    """The rows of a Parquet export."""
    export(run, "parquet", output, ChoiceOptions(**choice))
    found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return found


def card(run: Path, output: Path, *flags: str) -> str:
    assert call(run, output, "--card", *flags).code == 0
    return (output / "README.md").read_text(encoding="utf-8")


def test_messages_have_all_turns_of_a_conversation(tmp_path: Path) -> None:
    short, long = rows(make_method_run(tmp_path / "run", "magpie"), "--format", "messages")
    assert [m["content"] for m in long["messages"]] == [text for turn in CHAT for text in turn[:2]]
    assert [m["role"] for m in long["messages"]] == ["user", "assistant"] * 3
    assert [m["content"] for m in short["messages"]] == ["Name a river in Spain.", "The Ebro."]


def test_sharegpt_has_all_turns_of_a_conversation(tmp_path: Path) -> None:
    said = call(make_method_run(tmp_path / "run", "magpie"), "-", "--format", "sharegpt")
    short, long = orjson.loads(said.out)
    assert [turn["value"] for turn in long["conversations"]] == [text for turn in CHAT for text in turn[:2]]
    assert [turn["from"] for turn in long["conversations"]] == ["human", "gpt"] * 3
    assert [turn["value"] for turn in short["conversations"]] == ["Name a river in Spain.", "The Ebro."]


def test_every_turn_has_its_reasoning(tmp_path: Path) -> None:
    run = make_method_run(tmp_path / "run", "magpie")
    _, said = rows(run, "--format", "messages", "--with-reasoning")
    answers = [message for message in said["messages"] if message["role"] == "assistant"]
    assert [answer["thinking"] for answer in answers] == [turn.reasoning or None for turn in CHAT]
    _, raw = rows(run, "--with-reasoning")
    assert [turn["reasoning"] for turn in raw["turns"]] == [turn.reasoning or None for turn in CHAT]
    assert raw["reasoning"] == CHAT[0].reasoning


@pytest.mark.parametrize("form", ["alpaca", "instances", "prompt-completion", "csv"])
def test_a_flat_format_takes_the_first_turn_and_says_so(tmp_path: Path, form: str) -> None:
    said = call(make_method_run(tmp_path / "run", "magpie"), tmp_path / "out", "--format", form)
    assert "(1 of them are the first turn of a conversation; --format messages has all turns)" in said.line
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert CHAT[0].assistant in text
    assert CHAT[1].assistant not in text


@pytest.mark.parametrize("name", OTHER_METHODS)
@pytest.mark.parametrize("form", ["raw", "messages", "sharegpt", "parquet"])
def test_formats_with_turns_say_nothing_of_first_ones(tmp_path: Path, name: str, form: str) -> None:
    said = call(make_method_run(tmp_path / "run", name), tmp_path / "out", "--format", form)
    assert said.line == f"2 rows written to {tmp_path / 'out'}"


def test_parents_are_pool_ids_with_operation_and_round(tmp_path: Path) -> None:
    first, second = rows(make_method_run(tmp_path / "run", "evol"))
    assert first["provenance"]["parents"] == ["seed_task_3"]
    assert second["provenance"]["parents"] == ["machine_0"]
    assert second["provenance"]["drawn"] == {"operation": "deepen", "round": "2"}
    assert second["provenance"]["labels"] == {"compare": "different"}
    assert second["provenance"]["document"] is None


def test_a_rejected_instruction_keeps_its_label_among_the_empty_ones(tmp_path: Path) -> None:
    *_, empty = rows(make_method_run(tmp_path / "run", "evol"), "--include-empty")
    assert (empty["instances"], empty["turns"]) == ([], [])
    assert empty["provenance"]["labels"] == {"compare": "equal"}


def test_a_document_is_the_output_and_has_its_number_in_any_pass(tmp_path: Path) -> None:
    found = rows(make_method_run(tmp_path / "run", "backtranslate"))
    assert [row["instances"][0]["output"] for row in found] == [*DOCUMENTS]
    assert [row["provenance"]["document"] for row in found] == [0, 1]
    assert [row["provenance"]["labels"] for row in found] == [{"score": 5}, {"score": 4}]
    assert [row["provenance"]["demonstration_ids"] for row in found] == [[], []]


def test_no_model_is_named_for_the_text_of_a_document(tmp_path: Path) -> None:
    for row in parquet(make_method_run(tmp_path / "run", "backtranslate"), tmp_path / "out"):
        assert (row["model"], row["instance_model"]) == ("some-model", None)


def test_an_input_is_exported_with_the_instruction_that_was_created_with_it(tmp_path: Path) -> None:
    run = make_method_run(tmp_path / "run", "self-instruct-chat")
    flat, _ = rows(run, "--format", "instances")
    assert flat == {"instruction": "Count the words.", "input": INPUT, "output": "Four words."}
    said, _ = rows(run, "--format", "messages")
    assert said["messages"][0]["content"] == f"Count the words.\n\n{INPUT}"


@pytest.mark.parametrize("name", ["self-instruct-chat", "magpie", "evol"])
@pytest.mark.parametrize("form", ["raw", "instances", "messages", "prompt-completion", "parquet"])
def test_an_instruction_of_several_lines_survives_in_every_format(tmp_path: Path, name: str, form: str) -> None:
    run = make_method_run(tmp_path / "run", name)
    if form == "parquet":
        found = [row["instruction"] for row in parquet(run, tmp_path / "out")]
    else:
        found = [str(text) for row in rows(run, "--format", form) for text in _texts(row)]
    assert any(CODE in text for text in found)


def _texts(row: dict[str, Any]) -> list[str]:
    if "messages" in row:
        return [message["content"] for message in row["messages"]]
    return [row.get("instruction") or row["prompt"]]


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_parquet_has_the_same_columns_for_every_other_method(tmp_path: Path, name: str) -> None:
    run = make_method_run(tmp_path / "run", name)
    found = parquet(run, tmp_path / "out", include_seeds=True)
    assert list(found[0]) == [*PARQUET_COLUMNS, *MORE_PARQUET_COLUMNS]
    machine = [row for row in found if row["model"]]
    assert {row["method"] for row in machine} == {name}
    for row, raw in zip(machine, rows(run), strict=True):
        origin = raw["provenance"]
        assert (row["parents"], row["document"]) == (origin["parents"], origin["document"])
        for column in ("labels", "drawn"):
            assert (orjson.loads(row[column]) if row[column] else None) == origin.get(column)
        assert row["messages"][1]["content"] == row["output"]


def test_parquet_of_self_instruct_has_its_own_columns_only(tmp_path: Path) -> None:
    assert list(parquet(make_run(tmp_path / "run", numbered(3)), tmp_path / "out")[0]) == [*PARQUET_COLUMNS]


def test_rejected_instructions_are_exported_of_any_method(tmp_path: Path) -> None:
    (row,) = rows(make_method_run(tmp_path / "run", "evol"), "--format", "rejected")
    assert (row["instruction"], row["rule"]) == ("Too short.", "too_short")


def test_roles_with_models_of_their_own_are_named(tmp_path: Path) -> None:
    run = make_method_run(tmp_path / "run", "evol", {"answer_model": "big-model"})
    assert rows(run)[0]["provenance"]["answer_model"] == "big-model"
    assert {row["instance_model"] for row in parquet(run, tmp_path / "out")} == {"big-model"}
    text = card(run, tmp_path / "card")
    assert "| answer | `big-model` | 1 | 0.9 | 2048 |" in text
    assert "--role answer=URL,big-model" in text


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("self-instruct-chat", ("# self-instruct-chat data", "Instructions with answers", "arXiv:2212.10560")),
        ("magpie", ("Conversations", "turns 3", "2 topics, 1 persona.", "| mean turns | 2.00 |", "--topics FILE")),
        (
            "evol",
            ("rounds 4", "| compare | `some-model` | 0 | 1 | 16 |", "no information gain: 1", "arXiv:2304.12244"),
        ),
        ("backtranslate", ("min score 4", "2 documents", "mean words of a document", "--documents FILE", "low score")),
    ],
)
def test_a_card_describes_its_method(tmp_path: Path, name: str, facts: tuple[str, ...]) -> None:
    text = card(make_method_run(tmp_path / "run", name), tmp_path / "card")
    for fact in (*facts, f"--method {name}", f"- {name}\n"):
        assert fact in text, fact
    for foreign in ("the original", "classification task", "instance input first", "--list-style", "--chat-template"):
        assert foreign not in text, foreign


def test_a_card_of_a_users_method_does_not_run_its_file(tmp_path: Path) -> None:
    run = make_method_run(tmp_path / "run", "evol", {"method": "mine", "method_file": "ab" * 32})
    text = card(run, tmp_path / "card")
    assert "a method of the user's, `mine` (fingerprint `abababababababab`)" in text
    assert "--method mine" in text
    assert "--rounds 4" not in text
    assert method_facts(open_run(run)).steps == ()
    assert rows(run)[0]["provenance"]["method"] == "mine"


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_the_settings_of_a_run_are_those_that_its_method_uses(tmp_path: Path, name: str) -> None:
    settings = used_settings(open_run(make_method_run(tmp_path / "run", name)))
    assert {"method", "model", "threshold", "max_words"} <= {*settings}
    assert not {"list_style", "max_instances", "prompts", "instance_input_first.top_p"} & {*settings}
    assert ("rounds" in settings, "turns" in settings) == (name == "evol", name == "magpie")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_load_dataset_reads_every_format_of_every_method(tmp_path: Path) -> None:
    arguments: list[str | Path] = []
    for name in OTHER_METHODS:
        run = make_method_run(tmp_path / name, name)
        for form, spec in INSTRUCTION_FORMATS.items():
            output = tmp_path / f"{name} {form}"
            with_reasoning = form not in ("prompt-completion", "sharegpt")
            export(run, form, output, ChoiceOptions(with_reasoning=with_reasoning), CardOptions(card=True))
            arguments += [output, spec.ending[1:]]
    found = python(_LOAD, tmp_path, *arguments)
    assert len(found) == 2 * len(OTHER_METHODS) * len(INSTRUCTION_FORMATS)
    assert all(line.startswith("2 ") for line in found)


@given(st.lists(st.tuples(st.text(), st.text(min_size=1), st.text()), min_size=2, max_size=5))
@settings(max_examples=50, deadline=None)
def test_any_conversation_is_written_turn_by_turn_and_read_back(turns: list[tuple[str, str, str]]) -> None:
    spoken = tuple(Turn(*turn) for turn in turns)
    first = Instance("", spoken[0].assistant)
    finished = FinishedInstruction(0, spoken[0].user, False, (first,), None, (), 0, (), turns=spoken)
    entry = Entry("machine_0", spoken[0].user, False, (ScoredInstance(0, first, None),), finished)
    (row,) = _thinking_rows(entry, cast("OpenRun", None), 0)
    messages = orjson.loads(json_line(row))["messages"]
    assert [message["content"] for message in messages] == [text for turn in turns for text in turn[:2]]
    assert [message["thinking"] for message in messages[1::2]] == [thought or None for *_, thought in turns]
