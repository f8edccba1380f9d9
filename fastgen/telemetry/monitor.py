"""Reads a run once a second and hands what it sees to the hub and to ``metrics.jsonl``.

`Monitor.read` gives a `Sample` of a moment, `between` the sample of the time between two moments, and `MetricsHub` has
the newest of both for readers in the same process. Guarantees: nothing here slows or ends a run; what fails is logged
once and left out. The lines of the file cover all of the time, each what has passed since the one before, except for
time in which the process was stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final

from fastgen.engine.backend import ServerMetrics, ServerState
from fastgen.engine.scheduler import Scheduler
from fastgen.store.ledger import Ledger
from fastgen.telemetry.figures import (
    RAMP_UP_S,
    Counts,
    RateMeter,
    Rates,
    Sample,
    ServerSample,
    StageSample,
    limit_of,
)
from fastgen.telemetry.instruments import Histogram, Instruments, cores, quantile, rss_mb
from fastgen.telemetry.series import MetricsFile, every_s
from fastgen.telemetry.yields import YieldWatch

log = logging.getLogger(__name__)
BEAT_S: Final = 1.0
SAMPLE_EVERY_S: Final = 5.0
_PROBE_EVERY_S: Final = 0.1
_POLL_EVERY_S: Final = 1.0
_POLLS: Final = (
    5  # a queue that is empty in one of them is none: what has just arrived waits for the server's next step
)
_SIGNAL_FIRST_S: Final = 0.01  # a loop that wakes from a pause runs its timers before it handles SIGCONT
_SETTLE_S: Final = 3 * _PROBE_EVERY_S  # after a pause, until the probe has seen its late timer


class MetricsHub:
    """Holds the newest figures of a run and hands each new sample to the subscribers, in the order of subscription.

    ``latest`` is the newest sample of a window, ``reading`` that of the last second's moment, with its counters, and
    ``rates`` the rates that people see. ``latest`` and ``reading`` are ``None`` until a run has servers. They may be
    read from any thread. Callbacks run in the run's event loop and must be quick. A callback that raises is dropped
    with a warning.
    """

    def __init__(self) -> None:
        self.latest: Sample | None = None
        self.reading: Sample | None = None
        self.rates = Rates()
        self._callbacks: list[Callable[[Sample], None]] = []

    def subscribe(self, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Call ``callback`` with every new sample. The returned function ends this. It may be called twice."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def publish(self, sample: Sample) -> None:
        """Make ``sample`` the newest."""
        self.latest = sample
        for callback in tuple(self._callbacks):
            try:
                callback(sample)
            except Exception:  # whatever a display does wrong
                log.warning("a reader of the metrics failed and is left out from now on", exc_info=True)
                self._callbacks.remove(callback)

    def mean_latencies_s(self) -> dict[str, float]:
        """Mean seconds of a good answer, by step, so far in this session. Empty before the first."""
        counters = None if self.reading is None else self.reading.counters
        latencies = {} if counters is None else counters.latencies
        return {step: one.total_s / sum(one.counts) for step, one in latencies.items() if any(one.counts)}


class Monitor:
    """Reads one run. See the module's docstring. Make it in the run's event loop. Run its `tasks` during the run.

    ``servers`` gives the state of each server, always in the same order. ``poll`` asks each for its own figures. Pass
    ``None`` if something steers the servers, whose states then hold them. ``set_by`` is the flag that fixed the
    concurrency, if one did. ``trouble`` says in one clause which step is unhealthy. ``pauses`` counts how often
    this process was stopped and continued.
    """

    def __init__(
        self,
        instruments: Instruments,
        scheduler: Scheduler,
        yields: YieldWatch,
        *,
        ledger: Ledger,
        target: int,
        method: str = "",
        hub: MetricsHub,
        file: MetricsFile,
        servers: Callable[[], Sequence[ServerState]],
        poll: Callable[[], Awaitable[tuple[ServerMetrics | None, ...]]] | None,
        set_by: str,
        is_stopping: Callable[[], bool],
        trouble: Callable[[], str],
        pauses: Callable[[], int],
    ) -> None:
        self._instruments = instruments
        self._scheduler = scheduler
        self._yields = yields
        self._ledger = ledger
        self._target = target
        self._method = method
        self._hub = hub
        self._file = file
        self._states = servers
        self._ask_pages = poll
        self._set_by = set_by
        self._is_stopping = is_stopping
        self._trouble = trouble
        self._pauses = pauses
        self._pauses_seen = pauses()
        self._pages: deque[tuple[ServerMetrics | None, ...]] = deque(maxlen=_POLLS)
        self._began_s = self._counted_s = time.monotonic()
        self._loop_began_cpu_s = time.thread_time()
        self._has_failed = False
        self._unwritten: list[Sample] = []
        self._sampled = self._written = now = self.read()
        self._rates = RateMeter(_counts(now))

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """The tasks that must run in parallel to the run until they are cancelled."""
        return [self._probe(), self._beat(), *([] if self._ask_pages is None else [self._poll(self._ask_pages)])]

    async def finish(self) -> None:
        """Take the last sample. Call it after the last commit."""

        async def take_last() -> None:
            now = self._read_and_rate()
            await self._write(now, self._publish(now))

        await self._safely(take_last)

    # -- the beat ------------------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        while True:
            due_s = time.perf_counter() + _PROBE_EVERY_S
            await asyncio.sleep(_PROBE_EVERY_S)
            lag_s, now = time.perf_counter() - due_s, self._scheduler.statistics()
            self._instruments.probe(lag_s, now.in_flight, now.concurrency, now.queued_answers)

    async def _poll(self, ask: Callable[[], Awaitable[tuple[ServerMetrics | None, ...]]]) -> None:
        while True:
            self._pages.append(await ask())
            await asyncio.sleep(_POLL_EVERY_S)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await asyncio.sleep(_SIGNAL_FIRST_S)
            await self._safely(self._take)

    async def _safely(self, take: Callable[[], Awaitable[None]]) -> None:
        try:
            await take()
        except Exception:  # its display must not end a run
            if not self._has_failed:
                log.warning("the metrics of this run are incomplete", exc_info=True)
            self._has_failed = True

    async def _take(self) -> None:
        if self._pauses() != self._pauses_seen:
            await self._restart()
            return
        now = self._read_and_rate()
        often = BEAT_S if now.session_s < RAMP_UP_S else SAMPLE_EVERY_S
        is_due = now.session_s - self._written.session_s >= every_s(now.session_s) - BEAT_S / 2
        if not is_due and now.session_s - self._sampled.session_s < often - BEAT_S / 2:
            return
        sample = self._publish(now)
        if is_due:
            await self._write(now, sample)

    async def _restart(self) -> None:
        """Leave out the time in which the process was stopped: it says nothing about what limits the run."""
        self._pauses_seen = self._pauses()
        await asyncio.sleep(_SETTLE_S)
        self._instruments.take_maxima()
        self._sampled = self._written = now = self.read()
        self._rates.restart(_counts(now))

    def _read_and_rate(self) -> Sample:
        self._hub.reading = now = self.read()
        self._hub.rates = self._rates.update(_counts(now), now.target - now.complete)
        return now

    def _publish(self, now: Sample) -> Sample:
        sample = self._explained(between(self._sampled, now, maxima=self._instruments.take_maxima()))
        self._sampled = now
        self._unwritten.append(sample)
        self._hub.publish(sample)
        return sample

    async def _write(self, now: Sample, newest: Sample) -> None:
        sample = newest
        if now.session_s - self._written.session_s > newest.window_s:
            sample = self._explained(between(self._written, now))
        sample = replace(
            sample,
            loop_lag_max_ms=max(one.loop_lag_max_ms for one in self._unwritten),
            queued_answers_max=max(one.queued_answers_max for one in self._unwritten),
        )
        self._written, self._unwritten = now, []
        await asyncio.to_thread(self._file.append, sample)

    def _explained(self, sample: Sample) -> Sample:
        sample = replace(sample, recent=self._hub.rates)
        limit, reason = limit_of(sample)
        return replace(sample, limit=limit, limit_reason=reason)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self) -> Sample:
        """The run at this moment, with its counters. Call it in the loop's thread."""
        ledger, yields, scheduler = self._ledger, self._yields, self._scheduler.statistics()
        now_s, states = time.monotonic(), self._states()
        counters = self._instruments
        counters.server_s += (now_s - self._counted_s) * sum(state.healthy for state in states)
        counters.rate_limited_s = scheduler.rate_limited_s
        counters.process_cpu_s = time.process_time()
        counters.loop_cpu_s = time.thread_time() - self._loop_began_cpu_s
        self._counted_s = now_s
        polled = zip(*self._pages, strict=True) if self._pages else [()] * len(states)
        return Sample(
            time_s=time.time(),
            session_s=now_s - self._began_s,
            method=self._method,
            target=self._target,
            complete=ledger.complete,
            kept=ledger.kept,
            pending=ledger.pending,
            completions=ledger.completions.total(),
            prompt_tokens=ledger.prompt_tokens.total(),
            generated_tokens=ledger.generated_tokens,
            rejected=dict(ledger.rejected),
            kept_per_1000_tokens=yields.kept_per_1000_tokens,
            complete_per_1000_tokens=yields.complete_per_1000_tokens,
            novelty=yields.novelty,
            best_novelty=yields.best_novelty,
            yield_window_full=yields.is_full,
            trouble=self._trouble(),
            in_flight=scheduler.in_flight,
            concurrency=scheduler.concurrency,
            concurrency_set_by=self._set_by,
            rate_limit=scheduler.rate_limit or "",
            waiting_retries=scheduler.waiting_retries,
            faults=scheduler.faults,
            asked_for_nothing=scheduler.asked_for_nothing,
            stopping=self._is_stopping() or yields.ended_by is not None,
            queued_answers=scheduler.queued_answers,
            cores=cores(),
            rss_mb=rss_mb(),
            servers=tuple(map(server_sample, states, polled)),
            counters=counters.copy(),
        )


def _counts(now: Sample) -> Counts:
    server_s = 0.0 if now.counters is None else now.counters.server_s
    return Counts(now.session_s, server_s, now.complete, now.kept, now.generated_tokens)


def between(then: Sample, now: Sample, *, maxima: tuple[float, int] = (0.0, 0)) -> Sample:
    """The figures of the time from ``then`` to ``now``, two samples of a moment with their counters.

    ``maxima`` are the longest lag in seconds and the longest queue meanwhile.
    """
    before, after = then.counters or Instruments(), now.counters or Instruments()
    window_s = now.session_s - then.session_s
    elapsed_s = max(window_s, 1e-9)
    kept, rejected = now.kept - then.kept, sum(now.rejected.values()) - sum(then.rejected.values())
    server_s, probes = after.server_s - before.server_s, after.probes - before.probes

    def per_s(name: str) -> float:
        change: float = getattr(now, name) - getattr(then, name)
        return change / elapsed_s

    def share(name: str) -> float:
        change: float = getattr(after, name) - getattr(before, name)
        return change / elapsed_s

    def mean(name: str, gauge: float) -> float:
        change: float = getattr(after, name) - getattr(before, name)
        return change / probes if probes else gauge

    return replace(
        now,
        window_s=window_s,
        completions_per_s=per_s("completions"),
        generated_tokens_per_s=per_s("generated_tokens"),
        prompt_tokens_per_s=per_s("prompt_tokens"),
        kept_per_s=per_s("kept"),
        complete_per_s=per_s("complete"),
        acceptance=kept / (kept + rejected) if kept + rejected > 0 else None,
        kept_per_server_s=kept / server_s if server_s > 0 else 0.0,
        in_flight=mean("in_flight", now.in_flight),
        concurrency=mean("concurrency", now.concurrency),
        rate_limited_share=share("rate_limited_s"),
        faults_in_window=sum(now.faults.values()) - sum(then.faults.values()),
        refusals_in_window=now.faults.get("http_429", 0) - then.faults.get("http_429", 0),
        queued_answers=mean("queued", now.queued_answers),
        queued_answers_max=maxima[1],
        loop_lag_mean_ms=1000 * mean("lag_s", 0.0),
        loop_lag_max_ms=1000 * maxima[0],
        process_cores=share("process_cpu_s"),
        loop_cpu_share=share("loop_cpu_s"),
        judge_cpu_share=share("judge_cpu_s"),
        commits_share=share("busy_s"),
        judge_share=share("judge_s"),
        append_share=share("append_s"),
        apply_share=share("apply_s"),
        sync_share=share("sync_s"),
        batch_answers=(after.answers - before.answers) / max(after.batches - before.batches, 1),
        stages=_stages(before, after),
        counters=None,
    )


def _stages(before: Instruments, after: Instruments) -> dict[str, StageSample]:
    """The steps that were answered meanwhile."""
    stages: dict[str, StageSample] = {}
    for step, latency in after.latencies.items():
        earlier = before.latencies.get(step, Histogram())
        counts = [a - b for a, b in zip(latency.counts, earlier.counts, strict=True)]
        if requests := sum(counts):
            mean_s = (latency.total_s - earlier.total_s) / requests
            stages[step] = StageSample(requests, mean_s, quantile(counts, 0.5), quantile(counts, 0.99))
    return stages


def server_sample(state: ServerState, polled: Sequence[ServerMetrics | None] = ()) -> ServerSample:
    """What is written of a server. ``polled`` are the last figures of one without concurrency control."""
    is_steered = state.limit is not None
    page = state.metrics
    if not is_steered and state.healthy and polled:
        page = polled[-1]
    sample = ServerSample(
        url=state.url,
        healthy=state.healthy,
        in_flight=state.sequences,
        completed=state.completed,
        failed=state.failed,
        limit=state.limit,
        reason=state.reason,
    )
    if page is None:
        return sample
    return replace(
        sample,
        running=page.running,
        waiting=page.waiting if is_steered else min(one.waiting for one in polled if one is not None),
        kv_cache_usage=page.kv_cache_usage,
        preemptions=None if is_steered else page.preemptions,
    )
