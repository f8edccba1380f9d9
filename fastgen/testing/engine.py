"""How long a test server takes: a model of time behind one small contract, so that a better one can take its place.

`SlotEngine` is the simplest that has an occupancy: a fixed number of sequences run at the same time, each for a time
that does not depend on the others; the rest wait in order of arrival. Knows nothing of HTTP or of text.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastgen.testing.histogram import Histogram


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
