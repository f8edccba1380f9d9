"""`fastgen export`: what each format holds, which rows are chosen, and where they are put."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.export.entries import Entry, ScoredInstance, _sample, entries
from fastgen.export.export import export
from fastgen.export.options import FORMATS, CardOptions, ChoiceOptions, Format, parse_splits
from fastgen.export.rows import INSTRUCTION_FORMATS, PARQUET_COLUMNS, training_text
from fastgen.export.writers import Parquet
from fastgen.generate.options import JobOptions, MethodOptions, Options
from fastgen.methods.base import Answered, Commit, Created, Kept
from fastgen.store.reader import finished_instructions, open_run
from fastgen.types import Completion, Instance
from tests.export_help import INSTANCES, Task, call, extend_run, make_run, numbered, read_rows, rows

TRAINING: tuple[Format, ...] = ("alpaca", "messages", "sharegpt", "prompt-completion", "parquet", "csv")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", numbered(40))


def instructions(found: list[dict[str, Any]]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(row["instruction"] for row in found))


# what each format holds


def test_every_format_of_the_command_line_is_one_that_is_written() -> None:
    assert {*FORMATS} == {*INSTRUCTION_FORMATS, "rejected"}


def test_alpaca_is_one_json_array_of_the_flat_rows(run: Path, tmp_path: Path) -> None:
    said = call(run, tmp_path / "data.json", "--format", "alpaca")
    assert (said.code, said.line) == (0, f"80 rows written to {tmp_path / 'data.json'}")
    array = orjson.loads((tmp_path / "data.json").read_bytes())
    assert array == rows(run, "--format", "instances")
    assert array[1] == {
        "instruction": "Describe thing number 0 in plain words.",
        "input": "Text: some words",
        "output": "Another answer.",
    }


def test_messages_are_a_users_turn_and_an_assistants(run: Path) -> None:
    without, with_input = rows(run, "--format", "messages")[:2]
    assert without == {
        "messages": [
            {"role": "user", "content": "Describe thing number 0 in plain words."},
            {"role": "assistant", "content": "An answer."},
        ]
    }
    assert with_input["messages"][0]["content"] == "Describe thing number 0 in plain words.\n\nText: some words"


def test_sharegpt_is_one_json_array_of_conversations(run: Path) -> None:
    array = orjson.loads(call(run, "-", "--format", "sharegpt").out)
    assert len(array) == 80
    assert array[1] == {
        "conversations": [
            {"from": "human", "value": "Describe thing number 0 in plain words.\n\nText: some words"},
            {"from": "gpt", "value": "Another answer."},
        ]
    }


CELLS = (
    "=1+1",
    "+49 30 1",
    "-5",
    "@name",
    "\ttab",
    "\uff1dsum",
    'say "hi", then go',
    "two\nlines",
    "a\rb",
    " 3 ",
    "é·日本",
)


def test_csv_reads_back_as_the_same_texts(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [Task(f"Copy cell {n} as it is, please.", (("", c),)) for n, c in enumerate(CELLS)]
    )
    said = call(run, tmp_path / "data.csv", "--format", "csv")
    assert said.line.endswith("data.csv (6 cells begin like a formula; --for-spreadsheets guards them)")
    with (tmp_path / "data.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, strict=True))
    assert [row["output"] for row in found] == list(CELLS)
    assert [*found[0]] == ["instruction", "input", "output"]
    content = (tmp_path / "data.csv").read_bytes()
    assert content.startswith(b'instruction,input,output\r\n"Copy cell 0 as it is, please.",,=1+1\r\n')
    assert b',"say ""hi"", then go"\r\n' in content


def test_csv_for_spreadsheets_guards_what_would_be_run_as_a_formula(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [Task(f"Copy cell {n} as it is, please.", (("", c),)) for n, c in enumerate(CELLS)]
    )
    said = call(run, tmp_path / "data.csv", "--format", "csv", "--for-spreadsheets")
    assert said.line == f"11 rows written to {tmp_path / 'data.csv'}"
    with (tmp_path / "data.csv").open(newline="", encoding="utf-8-sig") as file:
        outputs = [row["output"] for row in csv.DictReader(file)]
    assert outputs == [f"'{cell}" for cell in CELLS[:6]] + list(CELLS[6:])
    assert (tmp_path / "data.csv").read_bytes().startswith(b"\xef\xbb\xbfinstruction,")
    said = call(run, "-", "--format", "alpaca", "--for-spreadsheets")
    assert (said.code, "is no spreadsheet" in said.line) == (2, True)


def test_csv_has_the_reasoning_as_a_column(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", THINKING_TASKS)
    lines = call(run, "-", "--format", "csv", "--with-reasoning", "--for-spreadsheets").out.decode("utf-8-sig")
    first = next(csv.DictReader(io.StringIO(lines, newline="")))
    assert first["reasoning"] == THINKING_TASKS[0].reasoning.strip()
    assert [*first] == ["instruction", "input", "output", "reasoning"]


def test_prompts_are_the_methods_shuffled_and_each_once(tmp_path: Path) -> None:
    doubled = Task("Say it twice, with care.", (("", "Yes."), ("", "Yes.")) * 20)
    run = make_run(tmp_path / "run", [*numbered(40), doubled])
    found = rows(run, "--format", "prompt-completion")
    pairs = {(row["prompt"], row["completion"]) for row in found}
    possible = {
        (text.prompt, text.completion)
        for task in [*numbered(40), doubled]
        for source, output in task.instances or ()
        for bits in range(2 * 42)
        for text in [training_text(task.instruction, Instance(source, output), bits)]
    }
    assert len(found) == len(pairs) < 120
    assert pairs <= possible
    assert sum("Say it twice" in prompt for prompt, _ in pairs) == 6, "what 40 equal instances leave are the templates"
    places = [int(match[1]) for row in found if (match := re.search(r"number (\d+)", row["prompt"]))]
    assert places != sorted(places)


def test_the_seed_decides_templates_and_order_and_nothing_else_does(run: Path) -> None:
    first = rows(run, "--format", "prompt-completion", "--seed", "5")
    assert first == rows(run, "--format", "prompt-completion", "--seed", "5")
    other = rows(run, "--format", "prompt-completion", "--seed", "6")
    assert {row["prompt"] for row in first} != {row["prompt"] for row in other}
    extend_run(run, numbered(60, 40), first=40)
    grown = [row for row in rows(run, "--format", "prompt-completion", "--seed", "5") if row in first]
    assert grown == first


def test_a_paper_run_is_written_with_the_papers_own_field_names(tmp_path: Path) -> None:
    tasks = [Task(f"Tell the hour of meeting {n} in words.", (("Meet at 12:30", "Half past."),)) for n in range(20)]
    paper = make_run(tmp_path / "paper", tasks, Options(method=MethodOptions(preset="paper")))
    cut = [row["prompt"] for row in rows(paper, "--format", "prompt-completion") if "Meet at 12" not in row["prompt"]]
    assert 4 <= len(cut) <= 16
    usual = make_run(tmp_path / "usual", tasks)
    assert all("Meet at 12:30" in row["prompt"] for row in rows(usual, "--format", "prompt-completion"))


def test_parquet_has_one_fixed_schema_with_and_without_seeds_and_scores(run: Path, tmp_path: Path) -> None:
    assert call(run, tmp_path / "a.parquet", "--format", "parquet").code == 0
    assert call(run, tmp_path / "b.parquet", "--format", "parquet", "--include-seeds").code == 0
    a, b = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert a.schema == b.schema
    assert a.to_pylist() == b.to_pylist()[4:]
    assert a.slice(1, 1).to_pylist() == [
        {
            "id": "machine_0",
            "instance": 1,
            "instruction": "Describe thing number 0 in plain words.",
            "input": "Text: some words",
            "output": "Another answer.",
            "is_classification": True,
            "nearest_seed": "seed_task_1",
            "nearest_seed_rouge_l": 0.25,
            "judge_score": None,
            "model": "some-model",
            "instance_model": "some-model",
            "request_id": 0,
        }
    ]
    assert b.slice(0, 1).to_pylist()[0]["model"] is None


THINKING_TASKS = [
    Task("Describe thing number 0 in plain words.", reasoning="First, what is it?\n"),
    Task("Describe thing number 1 in plain words."),
]


def test_reasoning_is_a_field_of_every_row_where_it_is_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", THINKING_TASKS)
    raw = rows(run, "--with-reasoning", "--include-seeds")
    assert [row["reasoning"] for row in raw] == [*[None] * 4, "First, what is it?", None]
    for form in ("raw", "instances"):
        plain = rows(run, "--format", form)
        assert all("reasoning" not in row for row in plain)
        with_it = rows(run, "--format", form, "--with-reasoning")
        assert [{name: row[name] for name in row if name != "reasoning"} for row in with_it] == plain
    assert call(run, tmp_path / "a.json", "--format", "alpaca", "--with-reasoning").code == 0
    found = [row["reasoning"] for row in orjson.loads((tmp_path / "a.json").read_bytes())]
    assert found == ["First, what is it?"] * 2 + [None] * 2
    assert call(run, tmp_path / "a.parquet", "--format", "parquet", "--with-reasoning").code == 0
    assert pq.read_table(tmp_path / "a.parquet").column("reasoning").to_pylist() == found


def test_messages_have_the_reasoning_as_the_assistants_thinking(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", THINKING_TASKS)
    first, *_, last = rows(run, "--format", "messages", "--with-reasoning")
    user = {"role": "user", "content": "Describe thing number 0 in plain words."}
    assistant = {"role": "assistant", "thinking": "First, what is it?", "content": "An answer."}
    assert first == {"messages": [user, assistant]}
    assert last["messages"][-1]["thinking"] is None


def test_reasoning_inside_the_text_is_exported_like_that_which_was_sent_apart(run: Path) -> None:
    instruction = "Describe thing number 0 in plain words."
    created = Created((Kept((0, len(instruction)), 0, None, ()),), ())
    text = "<think>First, what is it?</think>\nOutput: An answer."
    answered = Answered((((0, 0), (len(text) - 10, len(text))),))
    commits = [
        Commit(1, 0, "instruction", None, (), Completion(instruction, "stop"), created, 1.0),
        Commit(2, 0, "instance", 0, (), Completion(text, "stop"), answered, 1.0),
    ]
    (finished,) = finished_instructions(commits, open_run(run))
    assert finished.reasoning == "First, what is it?"
    assert finished.instances == (Instance("", "An answer."),)


@pytest.mark.parametrize("form", FORMATS)
def test_a_card_names_the_column_of_the_reasoning(tmp_path: Path, form: Format) -> None:
    run = make_run(tmp_path / "run", THINKING_TASKS)
    said = call(run, tmp_path / "out", "--format", form, "--with-reasoning", "--card")
    if form in ("prompt-completion", "rejected", "sharegpt"):
        assert said.code == 2
        assert "--with-reasoning" in said.line or form == "rejected"
    else:
        assert said.code == 0, said.line
        name = "thinking" if form == "messages" else "reasoning"
        assert f"- name: {name}\n" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_parquet_row_groups_are_written_as_they_fill(run: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    with (tmp_path / "a.parquet").open("wb") as sink:
        writer = Parquet(sink, PARQUET_COLUMNS, group_rows=24, batch_rows=8)
        for entry in entries(opened, ChoiceOptions(), None):
            for row in INSTRUCTION_FORMATS["parquet"].rows(entry, opened, 0):
                writer.write(row)
        assert writer.finish() == 80
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [24, 24, 24, 8]
    found = [(row["id"], row["instance"]) for row in file.read().to_pylist()]
    assert found == [(f"machine_{n}", i) for n in range(40) for i in (0, 1)]


def test_seed_tasks_come_first_and_name_no_model(run: Path) -> None:
    found = rows(run, "--include-seeds")
    assert [row["id"] for row in found[:5]] == [*(f"seed_task_{n}" for n in range(4)), "machine_0"]
    assert found[0]["provenance"] == {"request_id": None, "model": None, "demonstration_ids": [], "seed": None}
    assert list(found[0]) == list(found[4])
    assert len(rows(run, "--include-seeds", "--format", "instances")) == 84


def test_empty_instructions_are_raws_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [*numbered(3), Task("Nothing came of this one.", ())])
    assert [len(row["instances"]) for row in rows(run, "--include-empty")] == [2, 2, 2, 0]
    assert len(rows(run)) == 3
    for form in FORMATS[1:]:
        said = call(run, "-", "--format", form, "--include-empty")
        assert said.code == 2
        assert "--include-empty: " in said.line


# which instructions


def test_a_smaller_sample_is_part_of_a_larger_one_and_has_exactly_its_size(run: Path) -> None:
    before: set[str] = set()
    for size in (1, 2, 7, 20, 39, 40, 1000):
        found = instructions(rows(run, "--format", "instances", "--max-instructions", str(size)))
        assert len(found) == min(size, 40)
        assert before <= {*found}
        before = {*found}
    assert rows(run, "--max-instructions", "40") == rows(run)
    assert rows(run, "--max-instructions", "7") != rows(run, "--max-instructions", "7", "--seed", "1")


def test_a_sample_takes_the_seed_tasks_before_anything_else(run: Path) -> None:
    def taken(size: int) -> list[str]:
        return [row["id"] for row in rows(run, "--include-seeds", "--max-instructions", str(size))]

    assert len(taken(2)) == 2
    assert {*taken(2)} <= {*taken(4)} == {f"seed_task_{n}" for n in range(4)}
    assert taken(10)[:4] == taken(4)
    assert len(taken(10)) == 10


def test_every_instruction_is_as_likely_in_a_sample_as_the_others(run: Path) -> None:
    opened = open_run(run)
    samples = (ChoiceOptions(max_instructions=10, seed=seed) for seed in range(60))
    seen = Counter(entry.id for sample in samples for entry in entries(opened, sample, None))
    assert (seen.total(), len(seen)) == (600, 40)
    assert sum((count - 15) ** 2 / 15 for count in seen.values()) < 80, "chi-squared, 39 degrees of freedom"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 500))
def test_a_sample_is_exact_though_the_run_grows_between_its_two_readings(size: int, count: int, grown: int) -> None:
    lengths = iter([count, count + grown])

    def read() -> Iterator[Entry]:
        scored = (ScoredInstance(0, Instance("", "x"), None),)
        for number in range(next(lengths)):
            yield Entry(f"machine_{number}", "x", is_classification=False, instances=scored, finished=None)

    found = [entry.id for entry in _sample(read, size, 0)]
    assert len(found) == min(size, count)
    assert {*found} <= {f"machine_{n}" for n in range(count)}


class Scores:
    """Instance 1 is better than instance 0; instructions from 30 on were not judged."""

    def score(self, number: int, index: int) -> float | None:
        return None if number >= 30 else 2.5 + index


def test_a_least_score_leaves_out_what_is_below_it_and_what_was_not_judged(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = export(run, "parquet", output, ChoiceOptions(min_judge_score=3.5, include_seeds=True), scores=Scores())
    assert done.total == 4 + 30
    found = pq.read_table(output).to_pylist()
    assert {row["judge_score"] for row in found[:4]} == {None}
    assert {(row["judge_score"], row["instance"]) for row in found[4:]} == {(3.5, 1)}
    few = export(
        run, "instances", tmp_path / "few", ChoiceOptions(min_judge_score=3, max_instructions=25), scores=Scores()
    )
    assert few.total == 25
    with pytest.raises(InputError, match="--min-judge-score 9: leaves no instance; lower it"):
        export(run, "messages", tmp_path / "none", ChoiceOptions(min_judge_score=9), scores=Scores())


def test_a_least_score_without_judgements_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    said = call(run, tmp_path / "out", "--min-judge-score", "3")
    assert (said.code, said.line.startswith("fastgen: --min-judge-score: ")) == (2, True)
    assert "fastgen judge" in said.line
    assert not (tmp_path / "out").exists()


# splits


def test_splits_have_every_instruction_in_exactly_one_and_keep_it_while_the_run_grows(tmp_path: Path) -> None:
    run, flags = make_run(tmp_path / "run", numbered(300)), ("--format", "instances", "--split")
    output = tmp_path / "out"
    said = call(run, output, *flags, "train=0.8,dev=0.1,test=0.1")
    assert said.code == 0
    assert said.line.startswith("600 rows (train ")
    assert sorted(path.name for path in output.iterdir()) == ["dev.jsonl", "test.jsonl", "train.jsonl"]
    before = {name: {*instructions(read_rows(output / f"{name}.jsonl"))} for name in ("train", "dev", "test")}
    assert sum(map(len, before.values())) == len(set.union(*before.values())) == 300
    assert 210 < len(before["train"]) < 270
    extend_run(run, numbered(400, 300), first=300)
    assert call(run, output, *flags, "train=0.8,dev=0.1,test=0.1", "--overwrite").code == 0
    for name, known in before.items():
        assert known <= {*instructions(read_rows(output / f"{name}.jsonl"))}


def test_a_sample_of_a_split_is_a_part_of_the_split(run: Path, tmp_path: Path) -> None:
    for name, more in (("all", ()), ("some", ("--max-instructions", "20"))):
        assert call(run, tmp_path / name, "--format", "instances", "--split", "train=0.5,test=0.5", *more).code == 0
    for file in ("train.jsonl", "test.jsonl"):
        assert {*instructions(read_rows(tmp_path / "some" / file))} <= {
            *instructions(read_rows(tmp_path / "all" / file))
        }


@given(st.text(), st.integers())
def test_an_instruction_has_one_split_whatever_its_spaces(instruction: str, seed: int) -> None:
    splits = parse_splits("a=0.3,b=0.3,c=0.4")
    assert splits.of(instruction, seed) in {"a", "b", "c"}
    assert splits.of(f"  {instruction}\n", seed) == splits.of(instruction, seed)


@pytest.mark.parametrize(
    "text",
    ["", "train", "train=", "train=1.5", "train=0.5", "a=0.5,a=0.5", "a=0.9,b=x", "../a=1", "all=1", "a=nan", "a=1,"],
)
def test_an_invalid_split_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(InputError, match=r"^--split: .*train=0\.9,test=0\.1$"):
        ChoiceOptions(split=text)


def test_three_thirds_are_a_whole() -> None:
    assert parse_splits("a=0.1,b=0.2,c=0.7").ends[-1] == 1
    assert parse_splits(" a = 0.333333333 , b=0.333333333,c=0.333333334").names == ("a", "b", "c")


def test_a_split_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(1))
    said = call(run, tmp_path / "out", "--format", "messages", "--split", "train=0.999,test=0.001")
    assert (said.code, "test would be empty" in said.line) == (2, True)
    assert not (tmp_path / "out").exists()


# where it goes


def test_files_in_a_folder_are_replaced_only_when_that_was_asked_for(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert call(run, output, "--format", "messages", "--card").code == 0
    (output / "README.md").write_text("mine")
    said = call(run, output, "--format", "messages", "--card")
    assert said.code == 2
    assert "has train.jsonl and README.md already" in said.line
    assert (output / "README.md").read_text() == "mine"
    assert call(run, output, "--format", "messages", "--card", "--overwrite").code == 0
    assert (output / "README.md").read_text() != "mine"
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "train.jsonl"]


def test_an_invalid_folder_is_refused(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for output, named in ((file, "need a folder"), ("-", "need a folder"), (run, "folder of a run")):
        said = call(run, output, "--format", "messages", "--card")
        assert (said.code, named in said.line) == (2, True)
    assert file.read_text() == "x"


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_log_leaves_no_file_and_no_scratch_behind(run: Path, tmp_path: Path, form: str) -> None:
    log = run / "log" / "000000.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:60]) + lines[60].replace(b'"req"', b'"rex"') + b"".join(lines[61:]))
    (run / "ledger.json").unlink()
    folder = () if form == "rejected" else ("--card",)
    for output, flags in ((tmp_path / "file", ()), (tmp_path / "folder", folder)):
        said = call(run, output, "--format", form, *flags)
        assert (said.code, "log/000000.jsonl:61: " in said.line) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_reported_in_one_line(run: Path, form: str) -> None:
    said = call(run, "/dev/full", "--format", form)
    assert (said.code, said.line.startswith("fastgen: --output /dev/full: cannot be written (")) == (3, True)


def test_parquet_does_not_go_to_standard_output(run: Path) -> None:
    said = call(run, "-", "--format", "parquet")
    assert (said.code, said.line) == (2, "fastgen: --output -: Parquet is not written in one go; name a file")


@pytest.mark.parametrize("flag", ["--include-seeds", "--max-instructions=3", "--split=a=1", "--card"])
def test_what_is_about_kept_instructions_does_not_go_with_rejected_ones(run: Path, flag: str) -> None:
    said = call(run, "-", "--format", "rejected", flag)
    assert (said.code, flag.partition("=")[0] in said.line) == (2, True)


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in ({"max_instructions": 0}, {"min_judge_score": float("nan")}):
        with pytest.raises(InputError, match=f"--{next(iter(wrong)).replace('_', '-')}: "):
            ChoiceOptions(**wrong)
    with pytest.raises(InputError, match="--license: is for the card"):
        CardOptions(license="mit")
    with pytest.raises(InputError, match="is no licence identifier"):
        CardOptions(license="mit\nx: y", card=True)


# unfinished and empty runs


def test_an_unfinished_run_is_exported_as_far_as_it_is_and_says_so(tmp_path: Path) -> None:
    tasks = [*numbered(5), Task("This one is still on its way.", None)]
    run = make_run(tmp_path / "run", tasks, replace(Options(), job=JobOptions(num_instructions=8)))
    said = call(run, tmp_path / "out", "--format", "messages")
    assert (said.code, len(read_rows(tmp_path / "out"))) == (0, 10)
    assert said.line.endswith("out (the run is not finished: 5 of 8 instructions)")


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_run_is_reported_in_one_line(tmp_path: Path, form: Format) -> None:
    run = make_run(tmp_path / "run", [Task("This one is still on its way.", None)])
    said = call(run, tmp_path / "out", "--format", form)
    if form in TRAINING:
        assert (said.code, "no instruction has an instance yet" in said.line) == (2, True)
        assert not (tmp_path / "out").exists()
    else:
        assert said.code == 0
        assert ("the run has none yet" in said.line) == (form != "rejected")


# other people's readers

_LOAD = """
import sys, datasets
datasets.disable_progress_bars()
for folder, ending in zip(sys.argv[1::2], sys.argv[2::2]):
    for data in (
        datasets.load_dataset(folder, split="train"),
        datasets.load_dataset({"jsonl": "json"}.get(ending, ending), data_files=f"{folder}/train.{ending}")["train"],
    ):
        print(data.num_rows, sorted(data.column_names))
"""
_TRL = """
import json, sys
from trl.data_utils import is_conversational
chat, text = (json.loads(open(path).readline()) for path in sys.argv[1:])
print(is_conversational(chat), is_conversational(text), sorted(text))
"""


def python(script: str, tmp_path: Path, *arguments: str | Path) -> list[str]:
    """What a script prints that uses another library, without a network and with a separate cache."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ignoring" not in done.stderr, "a part of the card that the reader does not understand"
    return done.stdout.splitlines()


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_load_dataset_reads_every_format_as_a_folder_with_its_card_and_as_a_file(run: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = []
    expected: list[str] = []
    for form, spec in INSTRUCTION_FORMATS.items():
        output = tmp_path / form
        assert call(run, output, "--format", form, "--card", "--include-seeds").code == 0
        arguments += [output, next(path.suffix[1:] for path in output.iterdir() if path.stem == "train")]
        count = 44 if form == "raw" else 84
        expected += [f"{count} {sorted(spec.columns)}"] * 2
    thinking = make_run(tmp_path / "thinking", THINKING_TASKS)
    columns = {"instances": ["input", "instruction", "output", "reasoning"], "messages": ["messages"]}
    for name, found in columns.items():
        output = tmp_path / f"{name} with reasoning"
        assert call(thinking, output, "--format", name, "--card", "--with-reasoning").code == 0
        arguments += [output, "jsonl"]
        expected += [f"4 {found}"] * 2
    assert python(_LOAD, tmp_path, *arguments) == expected


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_distinguishes_the_chat_and_prompt_completion_formats(run: Path, tmp_path: Path) -> None:
    for form in ("messages", "prompt-completion"):
        assert call(run, tmp_path / form, "--format", form).code == 0
    found = python(_TRL, tmp_path, tmp_path / "messages", tmp_path / "prompt-completion")
    assert found == ["True False ['completion', 'prompt']"]


def test_every_instance_is_in_every_format(run: Path) -> None:
    assert len(rows(run, "--format", "messages")) == 40 * len(INSTANCES)
    assert len(rows(run, "--format", "prompt-completion")) == 40 * len(INSTANCES)
