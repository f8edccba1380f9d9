"""A run with everything put to work: what only shows when plan, scheduler and servers are together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastgen.generate import audit
from fastgen.generate.options import JobOptions, Options, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import Commit
from fastgen.simulator.engine import SlotEngine
from fastgen.simulator.faults import Event, Fault, FaultPlan
from fastgen.simulator.server import FaultServer
from fastgen.store.run_folder import RunFolder, Store
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.progress import QuietReporter

GUARD_S = 60.0


class Looking(FaultPlan):
    """Refuses the first six requests; sees how many sequences the engine decodes whenever another comes."""

    def __init__(self, engine: SlotEngine) -> None:
        super().__init__([Fault.OVERLOADED] * 6)
        self.most = 0
        self._engine = engine

    def next(self) -> Event:
        event = super().next()
        self.most = max(self.most, self._engine.load().running + (event is None))
        return event


def test_a_stage_s_own_server_never_gets_more_than_its_share_also_of_what_is_asked_again(tmp_path: Path) -> None:
    """Of 8 at once each of the two servers has 4; the slow one's refused requests come back while it is full."""

    async def main() -> None:
        engine = SlotEngine(latency_s=0.1)
        looking = Looking(engine)
        async with FaultServer() as everybody, FaultServer(faults=looking, engine=engine) as own:
            options = Options(
                job=JobOptions(num_instructions=20),
                server=ServerOptions(base_url=(everybody.base_url,), instance_base_url=(own.base_url,)),
                speed=SpeedOptions(concurrency=8),
            )
            reporter = QuietReporter()
            async with asyncio.timeout(GUARD_S):
                outcome = await generate(Place(tmp_path / "run", tmp_path), options, reporter, Stopper(reporter))
        assert outcome.complete == 20
        assert own.counters.injected["503"] == 6
        assert looking.most == 4

    asyncio.run(main())


def test_what_was_appended_when_the_run_is_cancelled_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = 0

    async def main() -> None:
        loop, append = asyncio.get_running_loop(), Store.append

        def cancelled_meanwhile(store: Store, commits: Sequence[Commit]) -> None:
            nonlocal batches
            batches += 1
            append(store, commits)
            if batches == 3:
                loop.call_soon_threadsafe(running.cancel)
                time.sleep(0.1)

        monkeypatch.setattr(Store, "append", cancelled_meanwhile)
        async with FaultServer() as server:
            options = Options(
                job=JobOptions(num_instructions=2000),
                server=ServerOptions(base_url=(server.base_url,)),
                speed=SpeedOptions(concurrency=4),
            )
            reporter = QuietReporter()
            place = Place(tmp_path / "run", tmp_path)
            running = asyncio.create_task(generate(place, options, reporter, Stopper(reporter)))
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(GUARD_S):
                    await running

    asyncio.run(main())
    assert batches == 3
    folder = RunFolder(tmp_path / "run")
    assert folder.saved_counts().ledger.commits == sum(1 for _ in folder.whole_commits()) > 0


def test_a_sessions_figures_begin_when_its_audit_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = audit.audit_of

    def slow(*arguments: Any, **more: Any) -> audit.BackgroundAudit:
        time.sleep(0.5)
        return made(*arguments, **more)

    monkeypatch.setattr(audit, "audit_of", slow)
    hub, began_s = MetricsHub(), time.monotonic()

    async def main() -> None:
        async with FaultServer() as server:
            options = Options(
                job=JobOptions(num_instructions=5),
                server=ServerOptions(base_url=(server.base_url,)),
                speed=SpeedOptions(concurrency=4, audit_rate=1.0),
            )
            reporter = QuietReporter()
            place = Place(tmp_path / "run", tmp_path)
            async with asyncio.timeout(GUARD_S):
                await generate(place, options, reporter, Stopper(reporter), hub)

    asyncio.run(main())
    assert hub.latest is not None
    assert hub.latest.session_s < time.monotonic() - began_s - 0.5
