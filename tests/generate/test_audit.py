"""The audit finds what an index missed, and bounds what it may have missed elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from fastgen.cli import app as cli
from fastgen.generate.audit import (
    BACKLOG,
    BUDGET,
    FEWEST,
    Auditor,
    BackgroundAudit,
    Disagreement,
    ItemText,
    _share,
    audit,
    upper_bound,
)
from fastgen.generate.options import JobOptions, Options, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import Commit, Created, Kept, trimmed
from fastgen.simulator.answers import Writer
from fastgen.simulator.server import FaultServer
from fastgen.store.run_folder import RunFolder, Store
from fastgen.telemetry.progress import QuietReporter
from fastgen.types import Completion


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"

    async def main() -> None:
        async with FaultServer(write=Writer(1, 0.3).answer) as server:
            options = Options(job=JobOptions(num_instructions=40), server=ServerOptions(base_url=(server.base_url,)))
            await generate(Place(folder, folder), options, QuietReporter(), Stopper(QuietReporter()))

    asyncio.run(main())
    return folder


def test_a_sound_run_has_no_disagreement_and_a_stated_bound(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = RunFolder(run).ledger()
    found = audit(run, rate=1.0)
    assert (found.kept_checked, found.rejected_checked) == (ledger.kept, ledger.rejected["similar"])
    assert found.disagreements == ()
    assert found.miss_rate_bound == 0
    assert f"all {ledger.kept} kept were checked" in str(found)
    assert cli.run(["audit", "--run-dir", str(run), "--rate", "0.5"]) == 0
    assert "with 95 % confidence" in capsys.readouterr().out


def test_a_duplicate_that_was_kept_is_found(run: Path) -> None:
    kept = [
        (commit, k)
        for commit in RunFolder(run).whole_commits()
        if isinstance(commit.outcome, Created)
        for k in commit.outcome.kept
    ]
    commit, first = kept[3]
    text = commit.completion.text[first.span[0] : first.span[1]]
    store = Store(RunFolder(run))
    list(store.replay())
    double = Created((Kept((0, len(text)), len(kept), None, ()),), ())
    store.append([Commit(10**6, 0, "instruction", None, (), Completion(text, "stop"), double, 0.0)])
    store.close()
    found = audit(run, rate=1.0)
    assert [(d.kind, d.rouge_l) for d in found.disagreements] == [("missed", 1.0)]
    assert "missed (ROUGE-L 1.000)" in str(found)


def test_a_live_audit_follows_the_run_over_a_resume_and_says_what_it_found(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []

    class Listener(QuietReporter):
        def say(self, text: str) -> None:
            said.append(text)

    async def main(target: int) -> None:
        async with FaultServer(write=Writer(1, 0.3).answer) as server:
            options = Options(
                job=JobOptions(num_instructions=target),
                server=ServerOptions(base_url=(server.base_url,)),
                speed=SpeedOptions(audit_rate=1.0),
            )
            await generate(Place(folder, folder), options, Listener(), Stopper(QuietReporter()))

    asyncio.run(main(20))
    first = RunFolder(folder).ledger()
    asyncio.run(main(40))
    second = RunFolder(folder).ledger()
    reports = [text for text in said if text.startswith("checked ")]
    assert reports[0].startswith(f"checked {first.kept} kept and {first.rejected['similar']} rejected")
    assert reports[1].startswith(f"checked {second.kept - first.kept} kept")
    assert all("missed neighbours: 0" in text and "wrong rejections: 0" in text for text in reports)


def test_without_a_rate_a_small_run_is_checked_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = RunFolder(run).ledger()
    assert cli.run(["audit", "--run-dir", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"checked {ledger.kept} kept and {ledger.rejected['similar']} rejected")
    assert f"all {ledger.kept} kept were checked" in out


def test_a_large_run_is_checked_as_far_as_the_budget_goes_but_never_too_thinly() -> None:
    assert _share(10_000, 2_000, 175, BUDGET) == 1.0
    assert _share(100_000, 60_000, 175, BUDGET) == 1.0
    assert 0.005 < _share(1_000_000, 800_000, 175, BUDGET) < 0.02
    assert _share(10_000_000, 20_000_000, 175, BUDGET) == FEWEST / 30_000_000
    assert _share(0, 0, 175, BUDGET) == 1.0


@pytest.mark.parametrize(
    ("events", "trials", "expected"),
    [
        (0, 100, 0.0295),
        (1, 100, 0.0466),
        (5, 1000, 0.01048),
        (800, 10_000, 0.08463),
        (2000, 100_000, 0.02074),
    ],
)
def test_the_bound_in_a_large_population_is_clopper_and_pearsons(events: int, trials: int, expected: float) -> None:
    assert upper_bound(events, trials, 10**9) == pytest.approx(expected, rel=0.003)


def test_the_bound_is_exact_in_a_small_population() -> None:
    """By counting every draw of 6 from 14."""
    draws = list(combinations(range(14), 6))
    for events in range(7):
        possible = range(events, 14 - (6 - events) + 1)
        likely = [
            marked
            for marked in possible
            if sum(sum(member < marked for member in draw) <= events for draw in draws) / len(draws) > 0.05
        ]
        assert upper_bound(events, 6, 14) == max(likely) / 14
    assert upper_bound(3, 14, 14) == 3 / 14
    assert upper_bound(0, 0, 14) == upper_bound(0, 0, 0) == 1.0


def test_a_rate_out_of_range_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", "--run-dir", str(run), "--rate", "0"]) == 2
    assert "--rate" in capsys.readouterr().err


class _Blocked(Auditor):
    """Checks nothing until it is let; then it fails, if it is to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__({"threshold": 0.7, "reject_at": "gt", "tokenizer": "unicode"}, [], rate=1.0)
        self.go_on = threading.Event()
        self.is_in = threading.Event()
        self._error = error

    def see(self, commit: Commit, item_text: ItemText) -> list[Disagreement]:
        self.is_in.set()
        self.go_on.wait()
        if self._error is not None:
            raise self._error
        return super().see(commit, item_text)


def _commit(number: int) -> Commit:
    return Commit(number, 0, "instruction", None, (), Completion("x", "stop"), Created((), ()), 0.0)


def _is_done_within(call: Callable[[], object], seconds: float) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_an_audit_that_fails_delays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    auditor = _Blocked(OSError("out of cheese"))
    audit = BackgroundAudit(auditor, trimmed, print)

    def follow() -> None:
        with audit:
            audit.observe(_commit(0))
            auditor.is_in.wait()
            for number in range(BACKLOG):  # as many as it takes, while it is busy
                audit.observe(_commit(number))
            auditor.go_on.set()
            assert audit.finish() is None

    assert _is_done_within(follow, 60.0)
    assert "the audit ended (OSError: out of cheese); the run continues without it" in caplog.text


def test_an_audit_that_falls_behind_ends_and_delays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    auditor = _Blocked()
    audit = BackgroundAudit(auditor, trimmed, print, backlog=3)
    with audit:
        for number in range(9):
            audit.observe(_commit(number))
        auditor.go_on.set()
        audit.finish()
    (record,) = caplog.records
    assert "the audit is 3 answers behind and ends here" in record.message


def test_an_audit_ends_with_its_block() -> None:
    auditor = _Blocked()
    auditor.go_on.set()
    with BackgroundAudit(auditor, trimmed, print) as audit:
        thread = audit._thread
    assert not thread.is_alive()
