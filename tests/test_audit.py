"""The audit finds what an index missed, and bounds what it may have missed elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fastgen import cli
from fastgen.audit import audit, upper_bound
from fastgen.commits import Commit, InstructionOutcome, Kept
from fastgen.generation.pipeline import Place, generate
from fastgen.options import JobOptions, Options, ServerOptions, SpeedOptions
from fastgen.progress import QuietReporter
from fastgen.records import Completion, Stage
from fastgen.stopping import Stopper
from fastgen.storage.log.format import TornTail
from fastgen.storage.store import RunFolder, Store
from fastgen.testing import FaultServer, Writer


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
    assert 0 < found.miss_rate_bound < 0.1
    assert cli.run(["audit", "--run-dir", str(run), "--rate", "0.5"]) == 0
    assert "with 95 % confidence" in capsys.readouterr().out


def test_a_double_that_was_let_through_is_found(run: Path) -> None:
    kept = [
        (item[0], k)
        for item in RunFolder(run).commits()
        if not isinstance(item, TornTail) and isinstance(item[0].outcome, InstructionOutcome)
        for k in item[0].outcome.kept
    ]
    commit, first = kept[3]
    text = commit.completion.text[first.span[0] : first.span[1]]
    store = Store(RunFolder(run))
    list(store.replay())
    double = InstructionOutcome((Kept((0, len(text)), len(kept), None, ()),), ())
    store.append([Commit(10**6, 0, Stage.INSTRUCTION, None, (), Completion(text, "stop"), double, 0.0)])
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


@pytest.mark.parametrize(
    ("events", "trials", "expected"),
    [(0, 100, 0.0295), (1, 100, 0.0466), (5, 1000, 0.01048), (0, 0, 1.0), (10, 10, 1.0), (2000, 100_000, 0.02074)],
)
def test_the_bound_is_clopper_and_pearsons(events: int, trials: int, expected: float) -> None:
    assert upper_bound(events, trials) == pytest.approx(expected, rel=0.01)


def test_a_rate_out_of_range_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", "--run-dir", str(run), "--rate", "0"]) == 2
    assert "--rate" in capsys.readouterr().err
