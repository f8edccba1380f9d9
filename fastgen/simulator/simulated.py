"""The simulated engine: `batching` on a clock, as an `Engine` of the test server.

Everything happens at simulated times; a callback that the clock brings late (a busy machine) is delivered late, but the
engine's own time does not slip by it. ``lateness`` says how late. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastgen.errors import InputError
from fastgen.simulator import api
from fastgen.simulator.api import CHARACTERS_PER_TOKEN, count_tokens
from fastgen.simulator.batching import (
    ENGINES,
    Batch,
    Counts,
    EngineModel,
    Lengths,
    ServedSequence,
    block_hashes,
    ideal_tokens_per_s,
)
from fastgen.simulator.engine import (
    FIRST_TOKEN_BOUNDS_S,
    REQUEST_BOUNDS_S,
    Clock,
    EngineFigures,
    Histogram,
    Load,
    LoopClock,
    Work,
)
from fastgen.simulator.faults import Change, FaultPlan, Timed, read_change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastgen.simulator.batching import Timeline
    from fastgen.simulator.protocol import Exchange
    from fastgen.simulator.server import FaultServer


KEPT_LENGTHS: Final = 200_000


@dataclass(slots=True, eq=False)
class _Job:
    done: Callable[[], None]
    unfinished: int


@dataclass(slots=True)
class Lateness:
    """How much later than asked the clock called, in simulated seconds."""

    calls: int = 0
    total_s: float = 0.0
    worst_s: float = 0.0

    def saw(self, late_s: float) -> None:
        """Count one call."""
        self.calls += 1
        self.total_s += late_s
        self.worst_s = max(self.worst_s, late_s)


@dataclass(slots=True)
class Histograms:
    """Of requests that have ended: until they were admitted, until the first token, and until the last."""

    queue: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))
    request: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))

    def observe(self, sequence: ServedSequence) -> None:
        """Count one that has ended."""
        admitted_s, first_token_s, ended_s = sequence.admitted_s, sequence.first_token_s, sequence.ended_s
        if admitted_s is not None and first_token_s is not None and ended_s is not None:
            self.queue.observe(admitted_s - sequence.arrived_s)
            self.first_token.observe(first_token_s - sequence.arrived_s)
            self.request.observe(ended_s - sequence.arrived_s)


class SimulatedEngine:
    """An `Engine` that batches continuously; see `fastgen.simulator.batching` for what its model means.

    ``on_start``, if set, is called at the first request with its time: seconds in `stats` count from there.
    """

    def __init__(self, model: EngineModel = ENGINES["h100-8b"], clock: Clock | None = None) -> None:
        self.model = model
        self.clock: Clock = clock or LoopClock()
        self.on_start: Callable[[float], None] | None = None
        self.started_s: float | None = None
        self.lateness = Lateness()
        self.histograms = Histograms()
        self._batch: Batch | None = None
        self._timeline: Timeline | None = None
        self._jobs: dict[ServedSequence, _Job] = {}
        self._ended: deque[_Job] = deque()
        self._lengths: deque[tuple[float, Lengths]] = deque(maxlen=KEPT_LENGTHS)
        self._armed_s: float | None = None
        self._disarm: Callable[[], None] = _nothing

    # -- an engine -----------------------------------------------------------------------------------------------------

    def submit(self, work: Work, done: Callable[[], None]) -> Callable[[], None]:
        """See `Engine.submit`.

        :raises ValueError: a sequence longer than the model's ``max_model_len``.
        """
        sequences = list(self._sequences(work))
        job = _Job(done, len(sequences))
        now_s = self.clock.now_s()
        self._running_batch(now_s).add(sequences, now_s)
        self._jobs.update(dict.fromkeys(sequences, job))
        self._deliver()
        return lambda: self._cancel(sequences)

    def load(self) -> Load:
        """See `Engine.load`."""
        batch = self._settled()
        if batch is None:
            return Load(0, 0, 0.0, 0, 0.0)
        counts = batch.counts
        return Load(batch.running, batch.waiting, batch.kv_cache_usage, counts.preemptions, counts.busy_s)

    def figures(self) -> EngineFigures:
        """See `Engine.figures`."""
        batch, model = self._settled(), self.model
        counts = Counts() if batch is None else batch.counts
        return EngineFigures(
            counters={
                "prefix_cache_queries": counts.prefix_queries_tokens,
                "prefix_cache_hits": counts.prefix_hits_tokens,
                "prompt_tokens": counts.prompt_tokens,
                "generation_tokens": counts.generation_tokens,
            },
            histograms={
                "time_to_first_token_seconds": self.histograms.first_token,
                "e2e_request_latency_seconds": self.histograms.request,
                "request_queue_time_seconds": self.histograms.queue,
            },
            cache_config={
                "block_size": str(model.block_tokens),
                "enable_prefix_caching": str(model.prefix_caching),
                "num_gpu_blocks": str(model.kv_blocks),
            },
        )

    # -- what a script does to it --------------------------------------------------------------------------------------

    def change(self, model: EngineModel) -> None:
        """Go on with another model from the next step on (see `Batch.change`)."""
        self.model = model
        if self._batch is not None:
            self._batch.change(model, self.clock.now_s())
            self._deliver()

    def reset(self) -> None:
        """Lose all state, as a killed process does: work is dropped, caches are empty, counters begin again at 0."""
        if self._batch is not None:
            self._batch.settle(self.clock.now_s())
        self._disarm()
        self._batch, self._armed_s, self.histograms = None, None, Histograms()
        self._jobs.clear()
        self._ended.clear()

    # -- what it did ---------------------------------------------------------------------------------------------------

    def timeline(self) -> Timeline | None:
        """Return what it did in each second since the first request, restarts included."""
        self._settled()
        return self._timeline

    def now_s(self) -> float:
        """Return the seconds since the first request; 0 before it."""
        return 0.0 if self.started_s is None else self.clock.now_s() - self.started_s

    def lengths(self, from_s: float = 0.0, to_s: float = float("inf")) -> list[Lengths]:
        """Return those of the sequences that ended between two times (seconds since the first request), in order."""
        return [lengths for ended_s, lengths in self._lengths if from_s <= ended_s <= to_s]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _sequences(self, work: Work) -> Iterator[ServedSequence]:
        """One for each text asked for; sequences of the same prompt share its blocks."""
        if not work.prompts:  # only their sum is known
            each = -(-work.prompt_tokens // len(work.output_tokens))
            yield from (ServedSequence(each, tokens) for tokens in work.output_tokens)
            return
        choices = len(work.output_tokens) // len(work.prompts)
        for number, prompt in enumerate(work.prompts):
            hashes, tokens = self._hashes(prompt), count_tokens(prompt)
            for output in work.output_tokens[number * choices : (number + 1) * choices]:
                yield ServedSequence(tokens, output, hashes)

    def _hashes(self, prompt: str) -> tuple[int, ...]:
        if not self.model.prefix_caching:
            return ()
        return block_hashes(prompt, self.model.block_tokens * CHARACTERS_PER_TOKEN)

    def _running_batch(self, now_s: float) -> Batch:
        if self._batch is None:
            self._batch = Batch(self.model, self._saw_end, now_s=now_s, timeline=self._timeline)
            self._timeline = self._batch.timeline
            if self.started_s is None:
                self.started_s = now_s
                if self.on_start is not None:
                    self.on_start(now_s)
        return self._batch

    def _settled(self) -> Batch | None:
        if self._batch is not None:
            self._batch.settle(self.clock.now_s())
            self._deliver()
        return self._batch

    def _saw_end(self, sequence: ServedSequence) -> None:
        self.histograms.observe(sequence)
        ended_s = (sequence.ended_s or 0.0) - (self.started_s or 0.0)
        lengths = Lengths(sequence.prompt_tokens, sequence.hit_tokens, sequence.output_tokens)
        self._lengths.append((ended_s, lengths))
        job = self._jobs.pop(sequence)
        job.unfinished -= 1
        if not job.unfinished:
            self._ended.append(job)

    def _deliver(self) -> None:
        """Tell whoever waits for work that has ended, and ask to be called at the next change."""
        while self._ended:
            self._ended.popleft().done()
        due_s = None if self._batch is None else self._batch.next_change_s()
        if due_s is not None and (self._armed_s is None or due_s < self._armed_s):
            self._disarm()
            self._armed_s, self._disarm = due_s, self.clock.call_at(due_s, self._wake)

    def _wake(self) -> None:
        now_s, due_s, self._armed_s = self.clock.now_s(), self._armed_s, None
        if self._batch is not None and due_s is not None:
            self.lateness.saw(max(0.0, now_s - due_s))
            self._batch.advance(now_s)
            self._deliver()

    def _cancel(self, sequences: list[ServedSequence]) -> None:
        for sequence in sequences:
            if self._jobs.pop(sequence, None) is not None and self._batch is not None:
                self._batch.remove(sequence, self.clock.now_s())
        self._deliver()


def _nothing() -> None:
    """Nobody is to be called: nothing to cancel."""


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
