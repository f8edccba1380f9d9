"""What measures a run while it goes: cheap counters that are changed in place and read once a second.

Everything counts up from 0, so that any two readings give the figures of the time between them. Costs well below 1 % of
what a completion costs: two clock calls and a bisection a request, six clock calls a batch of commits, ten timer
callbacks a second. Knows nothing of what is done with the figures.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastgen.types import Completion, Request, Stage

if TYPE_CHECKING:
    from fastgen.engine.backend import Backend, BackendStatistics
    from fastgen.engine.requests import Source


BOUNDS_S = (
    *(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 20.0, 35.0, 50.0, 75.0, 100.0, 200.0, 500.0),
)
"""Upper bounds of the latency histograms' buckets, in seconds; one more bucket has the rest."""
PROBE_EVERY_S = 0.1


@dataclass(slots=True)
class Histogram:
    """Counts by bucket; ``counts`` has one more than `BOUNDS_S`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


def quantile(counts: tuple[int, ...], share: float) -> float:
    """The ``share`` quantile (0..1) in seconds, linear within its bucket as Prometheus has it; 0 of nothing."""
    rank, seen = share * sum(counts), 0
    for place, count in enumerate(counts):
        if count and seen + count >= rank:
            low = BOUNDS_S[place - 1] if place else 0.0
            high = BOUNDS_S[place] if place < len(BOUNDS_S) else low
            return low + (high - low) * (rank - seen) / count
        seen += count
    return 0.0


class TimedBackend:
    """A `Backend` that passes everything on and keeps the time that good answers took, by stage."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.latencies = {stage: Histogram() for stage in Stage}

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Backend.complete`."""
        began_s = time.perf_counter()
        completions = await self._backend.complete(request)
        self.latencies[request.stage].observe(time.perf_counter() - began_s)
        return completions

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._backend.close()

    def statistics(self) -> BackendStatistics:
        """See `Backend.statistics`."""
        return self._backend.statistics()


class WatchedSource:
    """A scheduler's `Source` that tells when it had nothing to ask, and can be told to begin nothing new.

    After `begin_nothing_new` no more instructions are asked for; those that are on their way are finished, and then the
    run ends by itself. With more stages than that, what waits for them stays as it is.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._closed: set[Stage] = set()
        self.asked_for_nothing = False

    def begin_nothing_new(self, stages: Collection[Stage] = (Stage.INSTRUCTION,)) -> None:
        """From now on no more requests of these stages."""
        self._closed.update(stages)

    def next(self) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        request = self._source.next()
        if request is not None and request.stage in self._closed:
            self._source.give_back(request)
            request = None
        self.asked_for_nothing = request is None
        return request

    def give_back(self, request: Request) -> None:
        """See `fastgen.engine.requests.Source`."""
        self._source.give_back(request)

    def shrink(self, request: Request) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        return self._source.shrink(request)


@dataclass(slots=True)
class CommitTimes:
    """Seconds that committing took so far, by part; ``busy_s`` is from a batch's arrival to its end.

    Changed by the committer and its thread; read from the loop.
    """

    batches: int = 0
    answers: int = 0
    busy_s: float = 0.0
    judge_s: float = 0.0
    append_s: float = 0.0
    apply_s: float = 0.0
    sync_s: float = 0.0
    judge_cpu_s: float = 0.0
    _began_s: float = 0.0

    def begin(self, answers: int) -> None:
        """A batch has come."""
        self._began_s = time.perf_counter()
        self.batches += 1
        self.answers += answers

    def end(self) -> None:
        """The batch is done with."""
        self.busy_s += time.perf_counter() - self._began_s
        self._began_s = 0.0

    @contextmanager
    def judging(self) -> Iterator[Callable[[], None]]:
        """In the judge's thread; the function given is to be called when judging ends and appending begins."""
        began_s, cpu_s = time.perf_counter(), time.thread_time()

        def judged() -> None:
            nonlocal began_s
            now_s = time.perf_counter()
            self.judge_s += now_s - began_s
            self.judge_cpu_s += time.thread_time() - cpu_s
            began_s = now_s

        yield judged
        self.append_s += time.perf_counter() - began_s

    def syncing(self, sync: Callable[[], None]) -> None:
        """Carry out ``sync`` and count its time; in any thread, one call at a time."""
        began_s = time.perf_counter()
        try:
            sync()
        finally:
            self.sync_s += time.perf_counter() - began_s

    def busy_until(self, now_s: float) -> float:
        """``busy_s`` with the batch that is in hand now."""
        return self.busy_s + (now_s - self._began_s if self._began_s else 0.0)


@dataclass(slots=True)
class LoopProbe:
    """Looks at the loop ten times a second: how late its timers are, and what stands in its queues.

    ``look`` gives (completions in flight, limit in flight, answers queued). Sums are over ``looks``.
    """

    look: Callable[[], tuple[int, int, int]]
    looks: int = 0
    lag_s: float = 0.0
    in_flight: int = 0
    concurrency: int = 0
    queued: int = 0
    lag_max_s: float = 0.0
    queued_max: int = 0

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            due_s = time.perf_counter() + PROBE_EVERY_S
            await asyncio.sleep(PROBE_EVERY_S)
            self.see(time.perf_counter() - due_s, *self.look())

    def see(self, lag_s: float, in_flight: int, concurrency: int, queued: int) -> None:
        """Take in one look."""
        lag_s = max(0.0, lag_s)
        self.looks += 1
        self.lag_s += lag_s
        self.in_flight += in_flight
        self.concurrency += concurrency
        self.queued += queued
        self.lag_max_s = max(self.lag_max_s, lag_s)
        self.queued_max = max(self.queued_max, queued)

    def take_maxima(self) -> tuple[float, int]:
        """The longest lag in seconds and the longest queue since the last call."""
        maxima = self.lag_max_s, self.queued_max
        self.lag_max_s, self.queued_max = 0.0, 0
        return maxima


@dataclass(frozen=True, slots=True)
class Instruments:
    """All that is built into a run so that it can be read."""

    source: WatchedSource
    backend: TimedBackend
    times: CommitTimes = field(default_factory=CommitTimes)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rss_mb() -> float:
    """Memory that this process has in RAM now, in MB; its highest so far where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as source:  # noqa: PTH123 - once a beat
            return int(source.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
