"""A test server around a simulated engine: its script, and the routes that tell what it did.

``GET /sim/stats`` gives, as JSON, the present figures, the CPU time of the process, and what happened in each
simulated second since the first request (see `Timeline`). ``POST /sim/ideal`` with ``{"from_s": 10, "to_s": 60}``
computes what the engine as it is now would write if its queue were never empty, from the lengths of the sequences that
ended in that time. ``POST /sim/change`` with ``{"change": "slow=3"}`` does at once what a script does at its time.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import orjson

from fastgen.errors import InputError
from fastgen.testing import api
from fastgen.testing.faults import FaultPlan
from fastgen.testing.ideal import ideal_tokens_per_s
from fastgen.testing.script import Change, Timed, read_change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.testing.protocol import Exchange
    from fastgen.testing.server import FaultServer
    from fastgen.testing.simulated import SimulatedEngine


class Simulation:
    """Runs a script on a server and its engine, from the first request on, and adds the routes above."""

    def __init__(
        self, server: FaultServer, engine: SimulatedEngine, script: Sequence[Timed] = (), *, seed: int = 0
    ) -> None:
        self._server = server
        self._engine = engine
        self._seed = seed
        self._restarts: set[asyncio.Task[None]] = set()
        self._log: list[tuple[float, str]] = []
        engine.on_start = lambda started_s: self._plan(script, started_s)
        server.add_route("GET", "/sim/stats", self._stats)
        server.add_route("POST", "/sim/ideal", self._ideal)
        server.add_route("POST", "/sim/change", self._change)

    def apply(self, change: Change) -> None:
        """Do it now.

        :raises InputError: the engine cannot have such limits.
        """
        engine, model = self._engine, self._engine.model
        resized = model.resized(max_num_seqs=change.max_num_seqs, kv_blocks=change.kv_blocks)
        changed = replace(resized, slowdown=model.slowdown if change.slow is None else change.slow)
        if changed != model:
            engine.change(changed)
        if change.fault_rate is not None:
            self._server.faults = FaultPlan(rate=change.fault_rate, kinds=change.faults, seed=self._seed)
        if change.stop_s is not None:
            restart = asyncio.get_running_loop().create_task(self._restart(change.stop_s))
            self._restarts.add(restart)
            restart.add_done_callback(self._restarts.discard)
        self._log.append((engine.now_s(), str(change)))

    def stats(self) -> dict[str, Any]:
        """See ``GET /sim/stats``."""
        engine = self._engine
        timeline, load = engine.timeline(), engine.load()
        return {
            "now_s": engine.now_s(),
            "load": asdict(load),
            "model": asdict(engine.model),
            "counters": dict(engine.figures().counters),
            "lateness": asdict(engine.lateness),
            "changes": self._log,
            "cpu_s": time.process_time(),
            "monotonic_s": time.monotonic(),
            "requests": self._server.counters.requests,
            "sequences": self._server.counters.finished.total(),
            "seconds": None if timeline is None else timeline.as_dict(),
        }

    def _plan(self, script: Sequence[Timed], started_s: float) -> None:
        for timed in script:
            self._engine.clock.call_at(started_s + timed.at_s, lambda change=timed.change: self.apply(change))  # type: ignore[misc]  # bound now

    async def _restart(self, seconds: float) -> None:
        """Die and come back."""
        engine, over = self._engine, asyncio.Event()
        back_s = engine.clock.now_s() + seconds
        engine.reset()
        await self._server.refuse()
        engine.clock.call_at(back_s, over.set)
        await over.wait()
        await self._server.listen()

    def _stats(self, exchange: Exchange) -> None:
        exchange.respond_json(orjson.dumps(self.stats()))

    def _ideal(self, exchange: Exchange) -> None:
        try:
            asked = orjson.loads(exchange.body or b"{}")
            lengths = self._engine.lengths(float(asked.get("from_s", 0.0)), float(asked.get("to_s", math.inf)))
            ideal = ideal_tokens_per_s(self._engine.model, lengths)
        except (ValueError, TypeError, AttributeError) as error:
            exchange.respond(400, api.error_body(400, f"no ideal: {error}", "BadRequestError"))
            return
        mean_tokens = sum(one.output_tokens for one in lengths) / len(lengths)
        exchange.respond_json(
            orjson.dumps({"tokens_per_s": ideal, "sequences": len(lengths), "mean_output_tokens": mean_tokens})
        )

    def _change(self, exchange: Exchange) -> None:
        try:
            self.apply(read_change(str(orjson.loads(exchange.body)["change"])))
        except (InputError, ValueError, TypeError, KeyError) as error:
            exchange.respond(400, api.error_body(400, f"no change: {error}", "BadRequestError"))
            return
        exchange.respond_json(b"{}")
