"""What a run says when it ends: what it made, what that took, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from fastgen.generate.dry_run import Prices
from fastgen.generate.run import Outcome
from fastgen.generate.session import render_summary, summary
from fastgen.store.ledger import Ledger
from tests.command_help import fastgen
from tests.generate.test_generate import shipped_server

LEDGER = Ledger(kept=110, complete=100, empty=3)
LEDGER.rejected.update(
    {"similar": 40, "too_short": 5, "too_long": 4, "punctuation": 3, "repeats": 2, "\x1b[2J": 6, "letters": 1}
)
LEDGER.completion_tokens.update({"instruction": 10_000, "instance": 5_000})
LEDGER.prompt_tokens["instruction"] = 200_000
OUTCOME = Outcome(100, 100, interrupted=False, ledger=LEDGER, elapsed_s=125.4)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with shipped_server() as base_url:
        yield base_url


def test_the_figures_are_those_of_the_ledger_and_each_row() -> None:
    figures = summary(OUTCOME, Prices(0.5, 2.0))
    assert (figures["complete"], figures["kept"], figures["empty"], figures["pending"]) == (100, 110, 3, 7)
    assert (figures["generated_tokens_per_row"], figures["prompt_tokens_per_row"]) == (150, 2000)
    assert figures["cost"] == pytest.approx(0.1 + 0.03)
    assert figures["cost_per_row"] == pytest.approx(0.0013)
    assert next(iter(figures["rejected"])) == "similar"
    assert summary(OUTCOME, None)["cost"] is None


def test_people_read_time_rows_rejections_tokens_cost_and_the_next_commands() -> None:
    assert render_summary(OUTCOME, Prices(0.5, 2.0), Path("runs/a")).split("\n") == [
        "  time       2:05",
        "  rows       100 complete, 3 without an answer, 7 not finished, of 110 kept and 171 written",
        "  rejected   61: similar 40, \\x1b[2J 6, too_short 5, too_long 4, 6 by 3 other rules",
        "  tokens     15,000 generated, 200,000 read (150 and 2,000 for each row)",
        "  cost       0.13, 0.0013 for each row, every token at full price",
        "  read it    fastgen report --run-dir runs/a --output report.html",
        "  export it  fastgen export --run-dir runs/a --output FILE",
    ]


def test_a_run_without_rows_has_no_figures_for_each() -> None:
    said = render_summary(Outcome(0, 5, interrupted=False, ledger=Ledger()), Prices(1.0, 1.0), Path("a"))
    assert "each row" not in said
    assert "time" not in said
    assert "rejected   none" in said
    assert summary(Outcome(0, 5, interrupted=False, ledger=Ledger()), None)["generated_tokens_per_row"] is None


def test_the_end_is_said_in_the_form_that_was_asked_for(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["generate", "--base-url", server, "--run-dir", str(run), "--price-in", "1", "--price-out", "2"]
    first = fastgen(*flags, "--num-instructions", "5")
    assert first.code == 0, first.err
    lines = first.err.splitlines()
    assert "MinHash" not in first.err
    assert [line for line in lines if line.startswith("making 5 instructions with test-model-base in ")]
    assert first.last == f"5 instructions complete in {run}"
    rows = {line.split()[0] for line in lines if line.startswith("  ")}
    assert rows == {"time", "rows", "rejected", "tokens", "cost", "read", "export"}

    told = fastgen(*flags, "--num-instructions", "6", "--log-json")
    events = [orjson.loads(line) for line in told.err.splitlines()]
    assert {event["event"] for event in events} == {"message", "progress", "summary"}
    assert (events[-1]["event"], events[-1]["complete"], events[-1]["run_dir"]) == ("summary", 6, str(run))
    assert events[-1]["cost"] > 0

    again = fastgen(*flags, "--num-instructions", "6", "--quiet")  # nothing is left to do
    assert again.err == f"6 instructions complete in {run}\n"
