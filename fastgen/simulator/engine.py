"""Two clocks behind one contract: the event loop's, and one that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_TICK_S: Final = 0.001  # uvloop counts milliseconds and may call one early, which would not be "or a little later"


class Clock(Protocol):
    """Simulated seconds, and a way to be called when they have come."""

    def now_s(self) -> float:
        """Return the time; it never goes back."""

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call once at ``when_s`` or a little later; the returned function cancels."""


class LoopClock:
    """The running event loop's time, ``speed`` simulated seconds in a real one."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return asyncio.get_running_loop().time() * self.speed

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Clock.call_at`."""
        return asyncio.get_running_loop().call_at(when_s / self.speed + _TICK_S, callback).cancel


class VirtualClock:
    """Time that passes only in `run_until`: deterministic, as fast as the callbacks are, without an event loop.

    Callbacks for the same moment are called in the order in which they were asked for.
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
        return lambda: self._cancel(number)

    def run_until(self, when_s: float) -> None:
        """Let time pass up to ``when_s``, calling what falls due."""
        while self._calls and self._calls[0][0] <= when_s:
            self._step()
        self._now_s = max(self._now_s, when_s)

    def run(self) -> None:
        """Let time pass until nobody waits to be called."""
        while self._calls:
            self._step()

    def _cancel(self, number: int) -> None:
        self._callbacks.pop(number, None)

    def _step(self) -> None:
        due_s, number = heapq.heappop(self._calls)
        callback = self._callbacks.pop(number, None)
        if callback is not None:
            self._now_s = max(self._now_s, due_s)
            callback()


FIRST_TOKEN_BOUNDS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
REQUEST_BOUNDS_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Histogram:
    """Counts observations (seconds) up to each bound."""

    __slots__ = ("_counts", "bounds", "total_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.total_s = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(self.bounds, value_s)] += 1
        self.total_s += value_s

    def cumulative(self) -> list[tuple[str, int]]:
        """Return (bound as text, observations at or below it); the last is ``+Inf`` and all of them."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True))


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks of an engine.

    The tokens of its prompts together, the output tokens of each of its sequences (a prompt's are next to each other,
    as many for each), and, for engines that look at them, the prompts' texts.
    """

    prompt_tokens: int
    output_tokens: tuple[int, ...]
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """An engine now: sequences running and waiting, cache usage in 0..1, preemptions so far.

    ``busy_s`` is the sum over all sequences of the time they ran so far: its growth over a span, divided by the span
    and the slots, is the occupancy.
    """

    running: int
    waiting: int
    kv_cache_usage: float
    preemptions: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine counts itself, under vLLM's names without ``vllm:`` and ``_total``, for the page of metrics."""

    counters: Mapping[str, float]
    histograms: Mapping[str, Histogram]
    cache_config: Mapping[str, str]


class Engine(Protocol):
    """A model of time. `submit` calls ``done`` once, at once or later in the event loop, unless cancelled before."""

    def submit(self, work: Work, done: Callable[[], None]) -> Callable[[], None]:
        """Begin; the returned function cancels and frees what the work held."""

    def load(self) -> Load:
        """Return the state now."""

    def figures(self) -> EngineFigures | None:
        """Return what it has counted since its start; ``None`` where it counts nothing."""


@dataclass(slots=True, eq=False)
class _Job:
    done: Callable[[], None]
    unfinished: int
    timers: set[asyncio.TimerHandle]
    cancelled: bool = False


class SlotEngine:
    """``slots`` sequences at a time (``None``: no limit), ``latency_s + output tokens * seconds_per_token`` each."""

    def __init__(self, slots: int | None = None, latency_s: float = 0.0, seconds_per_token: float = 0.0) -> None:
        self.slots = slots
        self.latency_s = latency_s
        self.seconds_per_token = seconds_per_token
        self._running = 0
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._busy_s = 0.0
        self._changed_s = time.monotonic()

    def submit(self, work: Work, done: Callable[[], None]) -> Callable[[], None]:
        """See `Engine.submit`."""
        if self.slots is None and not self.latency_s and not self.seconds_per_token:
            done()
            return _nothing
        job = _Job(done, len(work.output_tokens), set())
        self._waiting.extend((job, tokens) for tokens in work.output_tokens)
        self._start()
        return lambda: self._cancel(job)

    def load(self) -> Load:
        """See `Engine.load`; the cache counts as full when the slots are."""
        self._account(0)
        waiting = sum(not job.cancelled for job, _ in self._waiting)
        return Load(self._running, waiting, self._running / self.slots if self.slots else 0.0, 0, self._busy_s)

    def figures(self) -> EngineFigures | None:
        """See `Engine.figures`."""
        return None

    def _account(self, change: int) -> None:
        now_s = time.monotonic()
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

        timer = asyncio.get_running_loop().call_later(seconds, finish)
        job.timers.add(timer)

    def _cancel(self, job: _Job) -> None:
        job.cancelled = True
        for timer in job.timers:
            timer.cancel()
            self._account(-1)
        job.timers.clear()
        self._start()


def _nothing() -> None:
    """Cancel work that is done: nothing is left to do."""
