"""A run with everything put to work: what only shows when plan, scheduler and servers are together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastgen.generate.options import JobOptions, Options, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.simulator.engine import SlotEngine
from fastgen.simulator.faults import Event, Fault, FaultPlan
from fastgen.simulator.server import FaultServer
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
