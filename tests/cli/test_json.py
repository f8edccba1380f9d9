"""Commands that print figures print them as one JSON object too, with nothing else on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastgen.dedup.job import Counts
from fastgen.report.status import status
from fastgen.simulator import FaultServer, in_a_thread
from tests.command_help import fastgen
from tests.evaluation_help import TASKS, superni, write_lines
from tests.export_help import SEEDS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the simulator's answers: 20 instructions."""
    folder = tmp_path_factory.mktemp("json") / "run"
    with in_a_thread(FaultServer()) as server:
        said = fastgen(
            *("generate", "--run-dir", folder, "--base-url", server.base_url, "--num-instructions", "20", "--quiet")
        )
    assert said.code == 0, said.err
    return folder


def figures(*arguments: str | Path) -> dict[str, Any]:
    said = fastgen(*arguments, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert isinstance(found, dict)
    return found


def test_status(run: Path) -> None:
    assert figures("status", "--run-dir", run)["complete"] == 20


def test_audit(run: Path) -> None:
    found = figures("audit", "--run-dir", run)
    assert found["kept"] == found["kept_checked"] >= 20
    assert (found["misses"], found["miss_rate_bound"], found["disagreements"]) == (0, 0.0, [])


def test_refilter(run: Path, tmp_path: Path) -> None:
    found = figures("refilter", "--run-dir", run, "--output", tmp_path / "strict", "--threshold", "0.2")
    assert found["output"] == str(tmp_path / "strict")
    assert found["before"]["complete"] == 20
    assert found["after"]["kept"] < found["before"]["kept"]
    assert status(tmp_path / "strict")["kept"] == found["after"]["kept"]


def test_export(run: Path, tmp_path: Path) -> None:
    found = figures("export", "--run-dir", run, "--format", "raw", "--output", tmp_path / "rows.jsonl")
    assert found["rows"] == {"train": 20}
    assert (found["complete"], found["target"], found["format"]) == (20, 20, "raw")


def test_export_does_not_mix_rows_and_figures(run: Path) -> None:
    said = fastgen("export", "--run-dir", run, "--output", "-", "--json")
    assert (said.code, said.out) == (2, "")
    assert said.last.startswith("fastgen: --json: ")


def test_dedup(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "in.jsonl", [{"instruction": text} for text in ("Name a river.", "Name a river.")])
    found = figures("dedup", rows, "--output", tmp_path / "kept.jsonl", "--rejected", tmp_path / "rejected.jsonl")
    assert Counts(**found) == Counts(rows=2, kept=1, rejected=1, against=0)


def test_seeds_check(tmp_path: Path) -> None:
    seeds = write_lines(tmp_path / "seeds.jsonl", SEEDS)
    found = figures("seeds", "check", seeds)
    assert (found["path"], found["tasks"], found["instances"]) == (str(seeds), 4, 4)
    assert len(found["closest"]) == 3
    assert all(isinstance(warning, str) for warning in found["warnings"])


def test_methods_are_one_object_a_line() -> None:
    lines = fastgen("methods", "--json").out.splitlines()
    assert {json.loads(line)["name"] for line in lines} >= {"self-instruct", "magpie"}


def test_evaluate_and_the_comparison_of_two(tmp_path: Path) -> None:
    right = [{"id": i["id"], "prediction": i["output"][0]} for task in TASKS for i in task["Instances"]]
    wrong = [{**row, "prediction": "\x9b\u202e nothing"} for row in right]
    data = superni(tmp_path)
    for name, rows in (("right", right), ("wrong", wrong)):
        given = write_lines(tmp_path / f"{name}.jsonl", rows)
        said = ("evaluate", "--data", data, "--predictions", given, "--output", tmp_path / name)
        found = figures(*said)
        assert found == json.loads((tmp_path / name / "scores.json").read_bytes())
        assert found["instances"] == len(rows)
    found = figures("evaluate", "--compare", tmp_path / "wrong", tmp_path / "right")
    overall = next(one for one in found["differences"] if one["group"] == "all" and one["measure"] == "rouge_l")
    assert overall["difference"]["mean"] > 50


def test_embedded_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGEN_CACHE_DIR", str(tmp_path))
    found = figures("embedded", "status")
    assert found == {"path": str(tmp_path / "embedded"), "ready": False, "size_bytes": 0, "versions": {}}


def test_a_dry_run_with_a_log_in_json(tmp_path: Path) -> None:
    with in_a_thread(FaultServer()) as server:
        said = fastgen(
            *("generate", "--run-dir", tmp_path / "run", "--base-url", server.base_url, "--dry-run", "--log-json"),
            *("--num-instructions", "1000", "--price-in", "1", "--price-out", "2"),
        )
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["target"], found["probed"]) == (1000, 16)
    assert found["money"] > 0
    assert found["in_flight"] > 0
