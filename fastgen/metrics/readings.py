"""Two readings of the same run and what lies between them: `Reading` is everything as it stands, `between` a `Sample`.

Pure arithmetic on counters that only grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastgen.metrics.instruments import quantile
from fastgen.metrics.sample import Sample, ServerSample, StageSample
from fastgen.metrics.yields import Yield

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
