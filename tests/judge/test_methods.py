"""Runs of every method are judged, compared with evaluation data and tuned on."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from fastgen.evaluate.leakage import leakage
from fastgen.evaluate.tasks import EvaluationInstance, EvaluationTask
from fastgen.tune.data import prepare
from fastgen.tune.options import DataOptions
from tests.export_help import call
from tests.judge_help import figures, judge, judging_server
from tests.method_runs import CHAT, OTHER_METHODS, make_method_run


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_each_complete_instruction_is_judged_once(tmp_path: Path, name: str) -> None:
    run = make_method_run(tmp_path / "run", name)
    with judging_server() as server:
        assert judge(run, server).code == 0
    (one,) = figures(run)["judges"]
    assert (one["judged"], one["instances"]) == (2, 2)
    assert call(run, tmp_path / "out", "--min-judge-score", "4").line.startswith("2 rows")


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_every_method_can_be_tuned_on_as_chats(tmp_path: Path, name: str) -> None:
    run = make_method_run(tmp_path / "run", name)
    (tmp_path / "data").mkdir()
    options = DataOptions(run_dir=run, format="messages", eval_share=0.0)
    found = prepare(options, 0, tmp_path / "data")
    rows = [orjson.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_bytes().splitlines()]
    assert found.train_rows == len(rows) == (4 if name == "magpie" else 2)
    if name == "magpie":
        learned = [row["completion"][0]["content"] for row in rows[1:]]
        assert learned == [turn.assistant for turn in CHAT]
        assert [len(row["prompt"]) for row in rows[1:]] == [1, 3, 5]
        assert all({*message} == {"role", "content"} for row in rows for message in row["prompt"])


def test_a_tuning_on_first_turns_says_so(tmp_path: Path) -> None:
    run = make_method_run(tmp_path / "run", "magpie")
    (tmp_path / "data").mkdir()
    found = prepare(DataOptions(run_dir=run, eval_share=0.0), 0, tmp_path / "data")
    assert found.train_rows == 2
    assert "of its conversations the first turns, with --format messages all" in found.source


def test_overlap_is_with_every_turn(tmp_path: Path) -> None:
    run = make_method_run(tmp_path / "run", "magpie")
    inputs = (EvaluationInstance("late", CHAT[2].assistant, ("x",)),)
    for form in ("a run", "raw", "messages", "parquet"):
        source = run if form == "a run" else tmp_path / form
        if source != run:
            assert call(run, source, "--format", form).code == 0
        found = leakage(source, [EvaluationTask("task", "", "Say why.", inputs)])
        assert found.instructions == 2
        assert all(one.shared for one in found.ngrams if one.long_enough), form
