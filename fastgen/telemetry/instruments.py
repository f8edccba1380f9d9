"""The counters of a session, changed in place while a run is active and copied once a second.

Every counter begins at 0 and only grows, so the difference of two copies gives the figures of the time between them.
The cost is well below 1 % of a completion's: a bisection a request, six clock calls a batch of commits, and ten timer
callbacks a second.

These are plain fields, not ``prometheus_client``'s counters and histograms. Those take a lock for every change and look
a bucket up one by one: 1.3 µs for an observation instead of 0.25 µs, and their import is paid for by runs without a
metrics page. `fastgen.telemetry.prometheus` exposes the fields through a collector.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

BOUNDS_S: Final = (
    *(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 20.0, 35.0, 50.0, 75.0, 100.0, 200.0, 500.0),
)
"""Upper bounds of the latency histograms' buckets, in seconds; one more bucket has the rest."""


@dataclass(slots=True)
class Histogram:
    """Counts by bucket. ``counts`` has one more than `BOUNDS_S`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


def quantile(counts: Sequence[int], share: float) -> float:
    """The ``share`` quantile (0..1) in seconds, linear within its bucket as in Prometheus. 0 if nothing was counted."""
    rank, seen = share * sum(counts), 0
    for bucket, count in enumerate(counts):
        if count and seen + count >= rank:
            low = BOUNDS_S[bucket - 1] if bucket else 0.0
            high = BOUNDS_S[bucket] if bucket < len(BOUNDS_S) else low
            return low + (high - low) * (rank - seen) / count
        seen += count
    return 0.0


@dataclass(slots=True)
class Instruments:
    """The counters of one session: of commits, of the event loop and of requests."""

    latencies: dict[str, Histogram] = field(default_factory=dict)
    """Seconds of one attempt, from sending a request to the last byte of a good answer."""

    batches: int = 0
    answers: int = 0
    busy_s: float = 0.0
    """From the beginning of a batch to its end. The following are parts of it, except for `sync_s`."""
    judge_s: float = 0.0
    append_s: float = 0.0
    apply_s: float = 0.0
    sync_s: float = 0.0
    judge_cpu_s: float = 0.0

    probes: int = 0
    """How often the event loop was probed; the following are sums over the probes."""
    lag_s: float = 0.0
    in_flight: int = 0
    concurrency: int = 0
    queued: int = 0

    rate_limited_s: float = 0.0
    server_s: float = 0.0
    """Seconds of servers in use, together."""
    process_cpu_s: float = 0.0
    loop_cpu_s: float = 0.0

    _lag_max_s: float = 0.0
    _queued_max: int = 0
    _batch_began_s: float = 0.0

    def observe_latency(self, step: str, seconds: float) -> None:
        """Count a good answer."""
        if (latency := self.latencies.get(step)) is None:
            latency = self.latencies[step] = Histogram()
        latency.observe(seconds)

    def begin_batch(self, answers: int) -> None:
        """A batch of answers begins."""
        self._batch_began_s = time.perf_counter()
        self.batches += 1
        self.answers += answers

    def end_batch(self) -> None:
        """The batch is judged, logged and applied."""
        self.busy_s += time.perf_counter() - self._batch_began_s
        self._batch_began_s = 0.0

    @contextmanager
    def judging(self) -> Iterator[Callable[[], None]]:
        """Time the judge's thread. Call the function that is yielded when judging ends and appending begins."""
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
        """Call ``sync`` and count its time. In any thread, one call at a time."""
        began_s = time.perf_counter()
        try:
            sync()
        finally:
            self.sync_s += time.perf_counter() - began_s

    def probe(self, lag_s: float, in_flight: int, concurrency: int, queued: int) -> None:
        """Count one probe of the event loop: how late its timer was, and what is in flight and queued."""
        lag_s = max(0.0, lag_s)
        self.probes += 1
        self.lag_s += lag_s
        self.in_flight += in_flight
        self.concurrency += concurrency
        self.queued += queued
        self._lag_max_s = max(self._lag_max_s, lag_s)
        self._queued_max = max(self._queued_max, queued)

    def take_maxima(self) -> tuple[float, int]:
        """The longest lag in seconds and the longest queue since the last call."""
        maxima = self._lag_max_s, self._queued_max
        self._lag_max_s, self._queued_max = 0.0, 0
        return maxima

    def copy(self) -> Instruments:
        """A copy, in which the batch that is being committed counts up to now."""
        began_s = self._batch_began_s
        latencies = {stage: replace(one, counts=one.counts.copy()) for stage, one in self.latencies.items()}
        busy_s = self.busy_s + (time.perf_counter() - began_s if began_s else 0.0)
        return replace(self, latencies=latencies, busy_s=busy_s, _batch_began_s=0.0)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rss_mb() -> float:
    """Memory of this process in RAM, in MB. Its highest so far on systems without ``/proc``."""
    try:
        with open("/proc/self/statm", "rb") as source:  # noqa: PTH123 - once a second
            return int(source.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
