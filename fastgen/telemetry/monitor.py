"""Two readings of the same run and what lies between them: `Reading` is everything as it stands, `between` a `Sample`.

Pure arithmetic on counters that only grow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastgen.engine.backend import ServerMetrics, ServerState
from fastgen.engine.scheduler import Scheduler
from fastgen.store.ledger import Ledger
from fastgen.telemetry.figures import RAMP_UP_S, Look, RateMeter, Rates, Sample, ServerSample, StageSample, limit_of
from fastgen.telemetry.instruments import PROBE_EVERY_S, Instruments, LoopProbe, cores, quantile, rss_mb
from fastgen.telemetry.series import MetricsFile, Peaks, every_s
from fastgen.telemetry.yields import Yield, YieldRule

_NO_YIELD = Yield()


@dataclass(frozen=True, slots=True)
class Reading:
    """All counters and gauges at one moment; ``at_s`` is of a steady clock, ``time_s`` Unix time."""

    at_s: float
    time_s: float
    session_s: float = 0.0
    target: int = 0
    complete: int = 0
    kept: int = 0
    pending: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    server_s: float = 0.0  # seconds of servers in use, together
    rate_limited_s: float = 0.0
    looks: int = 0
    lag_s: float = 0.0
    in_flight_seen: int = 0
    concurrency_seen: int = 0
    queued_seen: int = 0
    in_flight: int = 0
    concurrency: int = 0
    queued: int = 0
    waiting_retries: int = 0
    rate_limit: str = ""
    asked_for_nothing: bool = False
    stopping: bool = False
    process_cpu_s: float = 0.0
    loop_cpu_s: float = 0.0
    judge_cpu_s: float = 0.0
    rss_mb: float = 0.0
    cores: int = 1
    batches: int = 0
    answers: int = 0
    busy_s: float = 0.0
    judge_s: float = 0.0
    append_s: float = 0.0
    apply_s: float = 0.0
    sync_s: float = 0.0
    latencies: Mapping[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    """By stage: counts by bucket, and the sum in seconds."""
    yields: Yield = _NO_YIELD
    trouble: str = ""
    servers: tuple[ServerSample, ...] = ()


def between(then: Reading, now: Reading, *, maxima: tuple[float, int] = (0.0, 0), set_by: str = "") -> Sample:
    """The figures of the time from ``then`` to ``now``; ``maxima`` are the longest lag (s) and queue meanwhile."""
    elapsed_s = max(now.at_s - then.at_s, 1e-9)
    kept, written = now.kept - then.kept, _written(now) - _written(then)
    server_s = now.server_s - then.server_s
    faults = sum(now.faults.values()) - sum(then.faults.values())
    looks = now.looks - then.looks

    def per_s(name: str) -> float:
        change: float = getattr(now, name) - getattr(then, name)
        return change / elapsed_s

    def mean(seen: str, gauge: str) -> float:
        value: float = (getattr(now, seen) - getattr(then, seen)) / looks if looks else getattr(now, gauge)
        return value

    return Sample(
        time_s=now.time_s,
        window_s=now.at_s - then.at_s,
        session_s=now.session_s,
        **{name: getattr(now, name) for name in _AS_THEY_ARE},
        completions_per_s=per_s("completions"),
        generated_tokens_per_s=per_s("generated_tokens"),
        prompt_tokens_per_s=per_s("prompt_tokens"),
        kept_per_s=per_s("kept"),
        complete_per_s=per_s("complete"),
        acceptance=kept / written if written > 0 else None,
        kept_per_server_s=kept / server_s if server_s > 0 else 0.0,
        kept_per_1000_tokens=now.yields.kept_per_1000_tokens,
        complete_per_1000_tokens=now.yields.complete_per_1000_tokens,
        novelty=now.yields.novelty,
        best_novelty=now.yields.best_novelty,
        yield_window_full=now.yields.full,
        in_flight=mean("in_flight_seen", "in_flight"),
        concurrency=mean("concurrency_seen", "concurrency"),
        concurrency_set_by=set_by,
        rate_limited_share=per_s("rate_limited_s"),
        faults_in_window=faults,
        refusals_in_window=now.faults.get("http_429", 0) - then.faults.get("http_429", 0),
        queued_answers=mean("queued_seen", "queued"),
        queued_answers_max=maxima[1],
        loop_lag_mean_ms=1000 * (now.lag_s - then.lag_s) / looks if looks else 0.0,
        loop_lag_max_ms=1000 * maxima[0],
        process_cores=per_s("process_cpu_s"),
        loop_cpu_share=per_s("loop_cpu_s"),
        judge_cpu_share=per_s("judge_cpu_s"),
        commits_share=per_s("busy_s"),
        judge_share=per_s("judge_s"),
        append_share=per_s("append_s"),
        apply_share=per_s("apply_s"),
        sync_share=per_s("sync_s"),
        batch_answers=(now.answers - then.answers) / max(now.batches - then.batches, 1),
        stages=_stages(then, now),
    )


_AS_THEY_ARE = (
    *("target", "complete", "kept", "pending", "completions", "prompt_tokens", "generated_tokens", "rejected"),
    *("faults", "rate_limit", "waiting_retries", "asked_for_nothing", "stopping", "cores", "rss_mb", "servers"),
    "trouble",
)


def _written(reading: Reading) -> int:
    return reading.kept + sum(reading.rejected.values())


def _stages(then: Reading, now: Reading) -> dict[str, StageSample]:
    """The stages that were answered meanwhile."""
    stages: dict[str, StageSample] = {}
    for name, (counts, total_s) in now.latencies.items():
        before, before_s = then.latencies.get(name, ((0,) * len(counts), 0.0))
        new = tuple(a - b for a, b in zip(counts, before, strict=True))
        if requests := sum(new):
            stages[name] = StageSample(
                requests, (total_s - before_s) / requests, quantile(new, 0.5), quantile(new, 0.99)
            )
    return stages


log = logging.getLogger(__name__)


class MetricsHub:
    """Holds the newest `Sample` and hands each new one to the subscribers, in the order in which they came.

    ``reading`` are the counters as they stand and ``rates`` the rates that people see, both renewed once a second.
    ``latest`` and ``reading`` are ``None`` until a run has servers.
    """

    def __init__(self) -> None:
        self.latest: Sample | None = None
        self.reading: Reading | None = None
        self.rates = Rates()
        self._callbacks: list[Callable[[Sample], None]] = []

    def subscribe(self, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Call ``callback`` with every new sample; the returned function ends that and may be called twice."""
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


BEAT_S = 1.0
_SIGNAL_FIRST_S = 0.01  # a loop that wakes from a pause runs its timers before it handles SIGCONT
SAMPLE_EVERY_S = 5.0
_POLL_EVERY_S = 1.0
_SETTLE_S = 3 * PROBE_EVERY_S  # after a pause, until the probe's late look is over
_POLLS = 5  # a queue that is empty in one of so many is no queue: what has just arrived waits for the next step


@dataclass(frozen=True, slots=True)
class Steering:
    """Who decides how much is in flight: a flag (``set_by``), or a governor that tells what each server takes.

    What is told is in the order of the backend's endpoints.
    """

    set_by: str = ""
    servers: Callable[[], Sequence[ServerState]] | None = None


class Monitor:
    """See the module's docstring. Make it in the run's event loop; run its `helpers` beside the scheduler.

    ``pauses`` counts how often this process was stopped and continued.
    """

    def __init__(
        self,
        instruments: Instruments,
        scheduler: Scheduler,
        steering: Steering,
        rule: YieldRule,
        *,
        ledger: Ledger,
        target: int,
        hub: MetricsHub,
        file: MetricsFile,
        pages: Callable[[], Awaitable[tuple[ServerMetrics | None, ...]]],
        is_stopping: Callable[[], bool],
        trouble: Callable[[], str] = str,
        pauses: Callable[[], int] = lambda: 0,
    ) -> None:
        self._instruments = instruments
        self._scheduler = scheduler
        self._steering = steering
        self._rule = rule
        self._ledger = ledger
        self._target = target
        self._hub = hub
        self._file = file
        self._ask_pages = pages
        self._is_stopping = is_stopping
        self._trouble = trouble
        self._pauses = pauses
        self._paused = pauses()
        self._probe = LoopProbe(self._look)
        self._peaks = Peaks()
        self._pages: deque[tuple[ServerMetrics | None, ...]] = deque(maxlen=_POLLS)
        self._server_s = 0.0
        self._began_s = self._counted_s = time.monotonic()
        self._loop_cpu_s = time.thread_time()
        self._failed = False
        self._sampled = self._written = now = self.read()
        self._rates = RateMeter(_look(now))

    def helpers(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What runs until cancelled, beside the run."""
        return self._probe.run(), self._beat(), self._poll()

    async def finish(self) -> None:
        """The last sample, after the last commit."""
        await self._safely(self._take_last)

    # -- the beat ------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await asyncio.sleep(_SIGNAL_FIRST_S)
            await self._safely(self._take)

    async def _safely(self, take: Callable[[], Awaitable[None]]) -> None:
        try:
            await take()
        except Exception:  # a run must not end because of what looks at it
            if not self._failed:
                log.warning("the metrics of this run are incomplete", exc_info=True)
            self._failed = True

    async def _take_last(self) -> None:
        now = self._read_and_rate()
        await self._write(now, self._publish(now))

    def _read_and_rate(self) -> Reading:
        self._hub.reading = now = self.read()
        self._hub.rates = self._rates.see(_look(now), now.target - now.complete)
        return now

    async def _begin_anew(self) -> None:
        """Leave out the time in which the process was stopped: it says nothing about what limits the run."""
        self._paused = self._pauses()
        await asyncio.sleep(_SETTLE_S)
        self._probe.take_maxima()
        self._sampled = self._written = now = self.read()
        self._rates.restart(_look(now))

    async def _take(self) -> None:
        if self._pauses() != self._paused:
            await self._begin_anew()
            return
        now = self._read_and_rate()
        often = BEAT_S if now.session_s < RAMP_UP_S else SAMPLE_EVERY_S
        is_due = now.at_s - self._written.at_s >= every_s(now.session_s) - BEAT_S / 2
        if not is_due and now.at_s - self._sampled.at_s < often - BEAT_S / 2:
            return
        sample = self._publish(now)
        if is_due:
            await self._write(now, sample)

    def _publish(self, now: Reading) -> Sample:
        sample = self._judged(
            between(self._sampled, now, maxima=self._probe.take_maxima(), set_by=self._steering.set_by)
        )
        self._sampled = now
        self._peaks.see(sample)
        self._hub.publish(sample)
        return sample

    async def _write(self, now: Reading, newest: Sample) -> None:
        sample = newest
        if now.at_s - self._written.at_s > newest.window_s:
            sample = self._judged(between(self._written, now, set_by=self._steering.set_by))
        self._written = now
        await asyncio.to_thread(self._file.append, self._peaks.into(sample))

    def _judged(self, sample: Sample) -> Sample:
        sample = replace(sample, recent=self._hub.rates)
        limit, reason = limit_of(sample)
        return replace(sample, limit=limit, limit_reason=reason)

    async def _poll(self) -> None:
        """Ask the servers for their own figures, unless whoever steers them does."""
        while self._steering.servers is None:
            self._pages.append(await self._ask_pages())
            await asyncio.sleep(_POLL_EVERY_S)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[int, int, int]:
        now = self._scheduler.statistics()
        return now.in_flight, now.concurrency, now.queued_answers

    def read(self) -> Reading:
        """Everything as it stands; to be called in the loop's thread."""
        parts, probe, times, ledger = self._instruments, self._probe, self._instruments.times, self._ledger
        seen, now_s = self._scheduler.statistics(), time.monotonic()
        servers = self._servers()
        self._server_s += (now_s - self._counted_s) * sum(server.healthy for server in servers)
        self._counted_s = now_s
        return Reading(
            at_s=now_s,
            time_s=time.time(),
            session_s=now_s - self._began_s,
            target=self._target,
            complete=ledger.complete,
            kept=ledger.kept,
            pending=ledger.pending,
            completions=ledger.completions.total(),
            prompt_tokens=ledger.prompt_tokens.total(),
            generated_tokens=ledger.generated_tokens,
            rejected=dict(ledger.rejected),
            faults=seen.faults,
            server_s=self._server_s,
            rate_limited_s=seen.rate_limited_s,
            looks=probe.looks,
            lag_s=probe.lag_s,
            in_flight_seen=probe.in_flight,
            concurrency_seen=probe.concurrency,
            queued_seen=probe.queued,
            in_flight=seen.in_flight,
            concurrency=seen.concurrency,
            queued=seen.queued_answers,
            waiting_retries=seen.waiting_retries,
            rate_limit=seen.rate_limit or "",
            asked_for_nothing=parts.source.asked_for_nothing,
            stopping=self._is_stopping() or self._rule.ended_by is not None,
            process_cpu_s=time.process_time(),
            loop_cpu_s=time.thread_time() - self._loop_cpu_s,
            judge_cpu_s=times.judge_cpu_s,
            rss_mb=rss_mb(),
            cores=cores(),
            batches=times.batches,
            answers=times.answers,
            busy_s=times.busy_until(time.perf_counter()),
            judge_s=times.judge_s,
            append_s=times.append_s,
            apply_s=times.apply_s,
            sync_s=times.sync_s,
            latencies={
                stage.value: (tuple(one.counts), one.total_s)
                for stage, one in parts.backend.latencies.items()
                if any(one.counts)
            },
            yields=self._rule.figures(),
            trouble=self._trouble(),
            servers=servers,
        )

    def _servers(self) -> tuple[ServerSample, ...]:
        endpoints = self._instruments.backend.statistics().endpoints
        if self._steering.servers is not None:
            return tuple(map(_steered, self._steering.servers()))
        pages = zip(*self._pages, strict=True) if self._pages else [()] * len(endpoints)
        return tuple(map(_told, endpoints, pages))


def _look(now: Reading) -> Look:
    return Look(now.at_s, now.server_s, now.complete, now.kept, now.generated_tokens)


def _told(endpoint: ServerState, pages: Sequence[ServerMetrics | None]) -> ServerSample:
    sample = _plain(endpoint)
    page = pages[-1] if pages else None
    if page is None or not endpoint.healthy:
        return sample
    return replace(
        sample,
        running=page.running,
        waiting=min(one.waiting for one in pages if one is not None),
        kv_cache_usage=page.kv_cache_usage,
        preemptions=page.preemptions,
    )


def _steered(server: ServerState) -> ServerSample:
    page = server.metrics
    return replace(
        _plain(server),
        running=None if page is None else page.running,
        waiting=None if page is None else page.waiting,
        kv_cache_usage=None if page is None else page.kv_cache_usage,
        limit=server.limit,
        reason=server.reason,
    )


def _plain(endpoint: ServerState) -> ServerSample:
    in_flight = endpoint.sequences or endpoint.in_flight
    return ServerSample(endpoint.url, endpoint.healthy, in_flight, endpoint.completed, endpoint.failed)
