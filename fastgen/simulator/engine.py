"""How long the test server takes: engines that turn a request's tokens into time, and the clocks that they run on.

`SlotEngine` has a fixed number of slots, and each sequence takes a time that does not depend on the others.
`SimulatedEngine` batches continuously like vLLM on a GPU (see `fastgen.simulator.batching`).

An engine has two methods. ``submit(work, done)`` starts the work of one request, calls ``done`` once when its last
sequence ends (at once or later), and returns a function that cancels the work and frees what it holds. ``load()``
returns the present `Load`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import Histogram

from fastgen.simulator.api import CHARACTERS_PER_TOKEN, count_tokens
from fastgen.simulator.batching import ENGINES, Batch, Counts, EngineModel, EngineSequence, Lengths, block_hashes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastgen.simulator.batching import Timeline

KEPT_LENGTHS: Final = 200_000
_TICK_S: Final = 0.001  # uvloop counts milliseconds and may call one early
_FIRST_TOKEN_BOUNDS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_REQUEST_BOUNDS_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks of an engine.

    ``prompt_tokens`` is the sum over its prompts. ``output_tokens`` has one entry for each sequence. Those of one
    prompt follow each other, and each prompt has the same number. ``prompts`` are the texts, for prefix caching.
    """

    prompt_tokens: int
    output_tokens: tuple[int, ...]
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """An engine now: sequences running and waiting, cache usage in 0..1, preemptions so far.

    ``busy_s`` is the sum over all sequences of the time they ran so far. Its growth over a span, divided by the span
    and the slots, is the occupancy.
    """

    running: int
    waiting: int
    kv_cache_usage: float
    preemptions: int
    busy_s: float


@dataclass(slots=True, eq=False)
class _Job:
    """The work of one request. ``timers`` and ``cancelled`` are `SlotEngine`'s."""

    done: Callable[[], None]
    unfinished: int  # sequences
    timers: set[Callable[[], None]] = field(default_factory=set)
    cancelled: bool = False


def _nothing() -> None:
    """Cancel nothing."""


class SlotEngine:
    """``slots`` sequences at a time (``None``: no limit), ``latency_s + output tokens * seconds_per_token`` each."""

    def __init__(
        self,
        slots: int | None = None,
        latency_s: float = 0.0,
        seconds_per_token: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self.slots = slots
        self.latency_s = latency_s
        self.seconds_per_token = seconds_per_token
        self._clock: Clock = clock or LoopClock(tick_s=0.0)
        self._running = 0
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._busy_s = 0.0
        self._changed_s = 0.0

    def submit(self, work: Work, done: Callable[[], None]) -> Callable[[], None]:
        """Start the work. See the module's docstring."""
        if self.slots is None and not self.latency_s and not self.seconds_per_token:
            done()
            return _nothing
        job = _Job(done, len(work.output_tokens))
        self._waiting.extend((job, tokens) for tokens in work.output_tokens)
        self._start()
        return lambda: self._cancel(job)

    def load(self) -> Load:
        """Return the state now. The cache counts as full when the slots are."""
        if self._running:
            self._account(0)
        waiting = sum(not job.cancelled for job, _ in self._waiting)
        return Load(self._running, waiting, self._running / self.slots if self.slots else 0.0, 0, self._busy_s)

    def _account(self, change: int) -> None:
        now_s = self._clock.now_s()
        self._busy_s += self._running * (now_s - self._changed_s)
        self._changed_s = now_s
        self._running += change

    def _start(self) -> None:
        while self._waiting and (self.slots is None or self._running < self.slots):
            job, tokens = self._waiting.popleft()
            if not job.cancelled:
                self._account(+1)
                self._time(job, self.latency_s + tokens * self.seconds_per_token)

    def _time(self, job: _Job, seconds: float) -> None:
        def finish() -> None:
            job.timers.discard(timer)
            self._account(-1)
            job.unfinished -= 1
            if not job.unfinished:
                job.done()
            self._start()

        timer = self._clock.call_at(self._clock.now_s() + seconds, finish)
        job.timers.add(timer)

    def _cancel(self, job: _Job) -> None:
        job.cancelled = True
        for timer in job.timers:
            timer()
            self._account(-1)
        job.timers.clear()
        self._start()


class SimulatedEngine:
    """Continuous batching on a clock. See `fastgen.simulator.batching` for what its model means.

    A callback that the clock calls late (on a busy machine) delivers late, but the engine's time does not slip.
    ``lateness`` has the number of calls, and their total and worst delay in simulated seconds. ``on_start``, if set, is
    called with the time of the first request. The seconds of `timeline` and `lengths` count from there.
    """

    def __init__(self, model: EngineModel = ENGINES["h100-8b"], clock: Clock | None = None) -> None:
        self.model = model
        self.clock: Clock = clock or LoopClock()
        self.on_start: Callable[[float], None] | None = None
        self.started_s: float | None = None
        self.lateness = {"calls": 0, "total_s": 0.0, "worst_s": 0.0}
        self.histograms = _new_histograms()
        self._batch: Batch | None = None
        self._timeline: Timeline | None = None
        self._jobs: dict[EngineSequence, _Job] = {}
        self._ended: deque[_Job] = deque()
        self._lengths: deque[tuple[float, Lengths]] = deque(maxlen=KEPT_LENGTHS)
        self._wake_s: float | None = None
        self._cancel_wake: Callable[[], None] = _nothing

    def submit(self, work: Work, done: Callable[[], None]) -> Callable[[], None]:
        """Start the work. See the module.

        :raises ValueError: when a sequence is longer than the model's ``max_model_len``.
        """
        sequences = list(self._sequences(work))
        job = _Job(done, len(sequences))
        now_s = self.clock.now_s()
        self._started_batch(now_s).add(sequences, now_s)
        self._jobs.update(dict.fromkeys(sequences, job))
        self._deliver()
        return lambda: self._cancel(sequences)

    # -- what it did ---------------------------------------------------------------------------------------------------

    def load(self) -> Load:
        """Return the state now."""
        batch = self._current_batch()
        if batch is None:
            return Load(0, 0, 0.0, 0, 0.0)
        counts = batch.counts
        return Load(batch.running, batch.waiting, batch.kv_cache_usage, counts.preemptions, counts.busy_s)

    def counts(self) -> Counts:
        """Return the totals since the start or the last `reset`."""
        batch = self._current_batch()
        return Counts() if batch is None else batch.counts

    def timeline(self) -> Timeline | None:
        """Return what it did in each second since the first request, resets included."""
        self._current_batch()
        return self._timeline

    def now_s(self) -> float:
        """Return the seconds since the first request. 0 before it."""
        return 0.0 if self.started_s is None else self.clock.now_s() - self.started_s

    def lengths(self, from_s: float = 0.0, to_s: float = float("inf")) -> list[Lengths]:
        """Return those of the sequences that ended between two times (seconds since the first request), in order."""
        return [lengths for ended_s, lengths in self._lengths if from_s <= ended_s <= to_s]

    # -- what happens to it --------------------------------------------------------------------------------------------

    def change(self, model: EngineModel) -> None:
        """Use another model from the next step on (see `Batch.change`)."""
        self.model = model
        if self._batch is not None:
            self._batch.change(model, self.clock.now_s())
            self._deliver()

    def reset(self) -> None:
        """Lose all state, as a killed process does: work is dropped, caches are empty, counts restart at 0."""
        if self._batch is not None:
            self._batch.settle(self.clock.now_s())
        self._cancel_wake()
        self._batch, self._wake_s, self.histograms = None, None, _new_histograms()
        self._jobs.clear()
        self._ended.clear()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _sequences(self, work: Work) -> Iterator[EngineSequence]:
        """Sequences of one prompt share its blocks. Without texts every prompt has the same length."""
        if not work.prompts:
            each = -(-work.prompt_tokens // len(work.output_tokens))
            yield from (EngineSequence(each, tokens) for tokens in work.output_tokens)
            return
        choices = len(work.output_tokens) // len(work.prompts)
        block_characters = self.model.block_tokens * CHARACTERS_PER_TOKEN
        for number, prompt in enumerate(work.prompts):
            hashes = block_hashes(prompt, block_characters) if self.model.prefix_caching else ()
            for output in work.output_tokens[number * choices : (number + 1) * choices]:
                yield EngineSequence(count_tokens(prompt), output, hashes)

    def _started_batch(self, now_s: float) -> Batch:
        if self._batch is None:
            self._batch = Batch(self.model, self._sequence_ended, now_s=now_s, timeline=self._timeline)
            self._timeline = self._batch.timeline
            if self.started_s is None:
                self.started_s = now_s
                if self.on_start is not None:
                    self.on_start(now_s)
        return self._batch

    def _current_batch(self) -> Batch | None:
        if self._batch is not None:
            self._batch.settle(self.clock.now_s())
            self._deliver()
        return self._batch

    def _sequence_ended(self, sequence: EngineSequence) -> None:
        arrived_s, ended_s = sequence.arrived_s, sequence.ended_s or 0.0
        times_s = (sequence.admitted_s, sequence.first_token_s, ended_s)
        for histogram, at_s in zip(self.histograms, times_s, strict=True):
            histogram.observe((at_s or 0.0) - arrived_s)
        lengths = Lengths(sequence.prompt_tokens, sequence.hit_tokens, sequence.output_tokens)
        self._lengths.append((ended_s - (self.started_s or 0.0), lengths))
        job = self._jobs.pop(sequence)
        job.unfinished -= 1
        if not job.unfinished:
            self._ended.append(job)

    def _deliver(self) -> None:
        """Call ``done`` for work that has ended, and ask the clock for a call at the next change."""
        while self._ended:
            self._ended.popleft().done()
        due_s = None if self._batch is None else self._batch.next_change_s()
        if due_s is not None and (self._wake_s is None or due_s < self._wake_s):
            self._cancel_wake()
            self._wake_s, self._cancel_wake = due_s, self.clock.call_at(due_s, self._wake)

    def _wake(self) -> None:
        now_s, due_s, self._wake_s = self.clock.now_s(), self._wake_s, None
        if self._batch is not None and due_s is not None:
            late_s = max(0.0, now_s - due_s)
            self.lateness["calls"] += 1
            self.lateness["total_s"] += late_s
            self.lateness["worst_s"] = max(self.lateness["worst_s"], late_s)
            self._batch.advance(now_s)
            self._deliver()

    def _cancel(self, sequences: list[EngineSequence]) -> None:
        for sequence in sequences:
            if self._jobs.pop(sequence, None) is not None and self._batch is not None:
                self._batch.remove(sequence, self.clock.now_s())
        self._deliver()


def _new_histograms() -> tuple[Histogram, Histogram, Histogram]:
    """Return vLLM's histograms of sequences that have ended: until admission, first token and last token."""
    bounds_s = {
        "request_queue_time": _REQUEST_BOUNDS_S,
        "time_to_first_token": _FIRST_TOKEN_BOUNDS_S,
        "e2e_request_latency": _REQUEST_BOUNDS_S,
    }
    queue, first_token, request = (
        Histogram(f"vllm:{name}_seconds", "As vLLM's.", registry=None, buckets=bounds)
        for name, bounds in bounds_s.items()
    )
    return queue, first_token, request


# -- clocks ------------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Simulated seconds, and calls at a given time."""

    def now_s(self) -> float:
        """Return the time. It never goes back."""

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call once at ``when_s`` or a little later. The returned function cancels."""


class LoopClock:
    """The running event loop's time, at ``speed`` simulated seconds a real second. Calls are ``tick_s`` late."""

    def __init__(self, speed: float = 1.0, tick_s: float = _TICK_S) -> None:
        self.speed = speed
        self._tick_s = tick_s

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return asyncio.get_running_loop().time() * self.speed

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Clock.call_at`."""
        return asyncio.get_running_loop().call_at(when_s / self.speed + self._tick_s, callback).cancel


class VirtualClock:
    """Time that passes only in `run_until` and `run`: deterministic, as fast as the callbacks, without an event loop.

    Callbacks for the same moment are called in the order in which they were requested.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._asked = 0
        self._calls: list[tuple[float, int]] = []
        self._callbacks: dict[int, Callable[[], None]] = {}

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return self._now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Clock.call_at`."""
        number = self._asked
        self._asked += 1
        self._callbacks[number] = callback
        heapq.heappush(self._calls, (when_s, number))

        def cancel() -> None:
            self._callbacks.pop(number, None)

        return cancel

    def run_until(self, when_s: float) -> None:
        """Let time pass up to ``when_s``, with the calls that are due."""
        while self._calls and self._calls[0][0] <= when_s:
            self._step()
        self._now_s = max(self._now_s, when_s)

    def run(self) -> None:
        """Let time pass until no call is left."""
        while self._calls:
            self._step()

    def _step(self) -> None:
        due_s, number = heapq.heappop(self._calls)
        callback = self._callbacks.pop(number, None)
        if callback is not None:
            self._now_s = max(self._now_s, due_s)
            callback()
