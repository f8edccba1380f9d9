"""The instruments: what they count adds up, and what lies between two samples of a moment."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.engine.backend import ServerMetrics, ServerState
from fastgen.errors import TransientError
from fastgen.store.ledger import Ledger
from fastgen.telemetry.figures import Sample, ServerSample
from fastgen.telemetry.instruments import BOUNDS_S, Histogram, Instruments, cores, quantile, rss_mb
from fastgen.telemetry.monitor import MetricsHub, Monitor, between, server_sample
from fastgen.telemetry.series import MetricsFile, read_metrics
from fastgen.telemetry.yields import YieldWatch
from fastgen.types import Completion, Request
from tests.scripted import OK, QUICK, ListSource, ScriptedBackend, Sink, SinkScheduler, answer_ok, at, run


def test_good_answers_are_timed_by_stage_and_faults_are_not() -> None:
    async def every_other(_request: Request, attempt: int) -> tuple[Completion, ...]:
        await asyncio.sleep(0.002)
        if attempt % 2:
            raise TransientError("no", kind="http_503")
        return OK

    instruments, hub = Instruments(), MetricsHub()
    scheduler = SinkScheduler(
        ListSource([at("instance", number) for number in range(3)]),
        *(ScriptedBackend(every_other), Sink(), QUICK),
        jitter=random.Random(1),
        observe=instruments.observe_latency,
    )
    assert hub.mean_latencies_s() == {}
    run(scheduler.run)
    assert sum(instruments.latencies["instance"].counts) == 3
    assert [*instruments.latencies] == ["instance"]
    hub.reading = Sample(counters=instruments)
    assert [*hub.mean_latencies_s()] == ["instance"]
    assert 0.002 <= hub.mean_latencies_s()["instance"] < 1.0


@given(st.lists(st.floats(0.0005, 490.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_has_this_rank(seconds: list[float], share: float) -> None:
    histogram = Histogram()
    for one in seconds:
        histogram.observe(one)
    rank = max(1, -(-share * len(seconds) // 1))
    true = sorted(seconds)[int(rank) - 1]
    place = next(i for i, bound in enumerate(BOUNDS_S) if true <= bound)
    low = BOUNDS_S[place - 1] if place else 0.0
    assert low <= quantile(tuple(histogram.counts), share) <= BOUNDS_S[place]
    assert histogram.total_s == pytest.approx(sum(seconds))


def test_what_is_slower_than_every_bucket_is_counted_and_bounded() -> None:
    histogram = Histogram()
    histogram.observe(10_000.0)
    assert quantile(tuple(histogram.counts), 0.5) == BOUNDS_S[-1]
    assert quantile((0,) * (len(BOUNDS_S) + 1), 0.5) == 0.0


def test_commit_times_cover_the_batch_and_its_parts() -> None:
    times = Instruments()
    times.begin_batch(3)
    assert 0 < times.copy().busy_s < times.copy().busy_s
    assert times.busy_s == 0
    with times.judging() as judged:
        sum(range(20_000))
        judged()
        sum(range(20_000))
    times.syncing(lambda: None)
    times.end_batch()
    assert (times.batches, times.answers) == (1, 3)
    assert times.judge_s > 0
    assert times.append_s > 0
    assert times.judge_s + times.append_s <= times.busy_s
    assert times.copy().busy_s == times.busy_s


def test_a_probe_keeps_sums_and_gives_maxima_once() -> None:
    seen = Instruments()
    seen.probe(0.004, 10, 16, 2)
    seen.probe(-0.001, 14, 16, 8)
    assert (seen.probes, seen.in_flight, seen.concurrency, seen.queued) == (2, 24, 32, 10)
    assert seen.lag_s == pytest.approx(0.004)
    assert seen.take_maxima() == (0.004, 8)
    assert seen.take_maxima() == (0.0, 0)


def test_a_copy_stays_as_it_is() -> None:
    seen = Instruments()
    before = seen.copy()
    seen.observe_latency("instance", 1.0)
    seen.probe(0.1, 1, 1, 1)
    assert before == Instruments()
    assert seen.copy() == seen


def test_the_machine_tells_its_cores_and_memory() -> None:
    assert cores() >= 1
    assert 5 < rss_mb() < 100_000


THEN = Sample(
    session_s=100.0,
    time_s=1e9,
    kept=50,
    rejected={"similar": 10},
    completions=200,
    generated_tokens=9000,
    concurrency_set_by="--concurrency 64",
    counters=Instruments(),
)
NOW = replace(
    THEN,
    session_s=110.0,
    time_s=1e9 + 10,
    kept=80,
    complete=20,
    rejected={"similar": 20},
    completions=300,
    generated_tokens=14_000,
    faults={"http_429": 2, "timeout": 1},
    servers=(ServerSample("http://a/v1"),),
    counters=Instruments(
        latencies={stage: Histogram() for stage in ("instruction", "classification", "instance")}
        | {"instance": Histogram([0, 4] + [0] * (len(BOUNDS_S) - 1), 0.032)},
        server_s=20.0,
        rate_limited_s=4.0,
        probes=100,
        lag_s=0.2,
        in_flight=6400,
        concurrency=6400,
        queued=300,
        process_cpu_s=5.0,
        loop_cpu_s=3.0,
        busy_s=2.0,
        judge_s=1.5,
        batches=10,
        answers=100,
    ),
)


def test_a_sample_is_what_lies_between_two_moments() -> None:
    seen = between(THEN, NOW, maxima=(0.05, 12))
    assert (seen.window_s, seen.kept, seen.complete) == (10.0, 80, 20)
    assert seen.completions_per_s == pytest.approx(10.0)
    assert seen.generated_tokens_per_s == pytest.approx(500.0)
    assert seen.acceptance == pytest.approx(0.75)
    assert seen.kept_per_server_s == pytest.approx(1.5)
    assert (seen.in_flight, seen.concurrency, seen.queued_answers) == (64.0, 64.0, 3.0)
    assert [seen.loop_lag_mean_ms, seen.loop_lag_max_ms, seen.queued_answers_max] == pytest.approx([2.0, 50.0, 12])
    assert [seen.process_cores, seen.loop_cpu_share] == pytest.approx([0.5, 0.3])
    assert [seen.commits_share, seen.judge_share, seen.batch_answers] == pytest.approx([0.2, 0.15, 10.0])
    assert (seen.faults_in_window, seen.refusals_in_window) == (3, 2)
    assert seen.rate_limited_share == pytest.approx(0.4)
    stage = seen.stages["instance"]
    assert [stage.requests, stage.mean_s] == pytest.approx([4, 0.008])
    assert 0.005 <= stage.p50_s <= stage.p99_s <= 0.01
    assert (seen.concurrency_set_by, seen.counters) == ("--concurrency 64", None)


def test_a_window_without_probes_or_instructions_has_the_gauges_and_no_acceptance() -> None:
    idle = between(THEN, replace(THEN, session_s=101.0, in_flight=5, concurrency=8))
    assert (idle.in_flight, idle.concurrency, idle.acceptance) == (5, 8, None)
    assert idle.stages == {}


def test_a_controlled_server_shows_its_newest_figures_and_another_the_shortest_queue_of_its_last_polls() -> None:
    state = ServerState("http://a/v1", sequences=9, completed=4)
    polled = (ServerMetrics(running=5, waiting=1, preemptions=2), None, ServerMetrics(running=6, waiting=3))
    assert server_sample(state) == ServerSample("http://a/v1", in_flight=9, completed=4)
    seen = server_sample(state, polled)
    assert (seen.running, seen.waiting, seen.preemptions, seen.limit) == (6, 1, 0, None)
    assert server_sample(replace(state, healthy=False), polled).running is None
    steered = server_sample(replace(state, metrics=polled[0], limit=8, reason="the server is full"))
    assert (steered.running, steered.waiting, steered.preemptions, steered.limit) == (5, 1, None, 8)


def test_a_written_sample_has_the_maxima_of_those_that_were_not_written(tmp_path: Path) -> None:
    instruments, hub, ledger = Instruments(), MetricsHub(), Ledger()
    scheduler = SinkScheduler(ListSource([]), ScriptedBackend(answer_ok), Sink(), QUICK, jitter=random.Random(1))

    async def main() -> None:
        monitor = Monitor(
            *(instruments, scheduler),
            YieldWatch(ledger, window=10, stop_below=0.0, say=print, stop_asking=print),
            ledger=ledger,
            target=5,
            hub=hub,
            file=MetricsFile(tmp_path),
            servers=lambda: [ServerState("http://a/v1", sequences=2), ServerState("http://b/v1", healthy=False)],
            poll=None,
            set_by="--concurrency 4",
            is_stopping=lambda: False,
            trouble=str,
            pauses=lambda: 0,
        )
        for lag_s, queued in ((0.001, 5), (0.09, 2)):
            instruments.probe(lag_s, 1, 4, queued)
            monitor._publish(monitor.read())
        instruments.probe(0.003, 1, 4, 9)
        await monitor.finish()
        await monitor.finish()

    run(main)
    first, second = read_metrics(tmp_path)
    assert (first.loop_lag_max_ms, first.queued_answers_max) == (90.0, 9)
    assert (second.loop_lag_max_ms, second.queued_answers_max) == (0.0, 0)
    assert [one.in_flight for one in first.servers] == [2, 0]
    assert (first.target, first.concurrency_set_by, first.concurrency) == (5, "--concurrency 4", 4)
    assert hub.latest is not None
    assert hub.latest.queued_answers_max == 0


def test_subscribers_get_every_sample_until_they_leave_or_fail() -> None:
    hub = MetricsHub()
    seen: list[float] = []

    def breaks(sample: Sample) -> None:
        raise ValueError("a broken display")

    hub.subscribe(breaks)
    leave = hub.subscribe(lambda sample: seen.append(sample.time_s))
    hub.publish(Sample(time_s=1.0))
    hub.publish(Sample(time_s=2.0))
    leave()
    leave()
    hub.publish(Sample(time_s=3.0))
    assert seen == [1.0, 2.0]
    assert hub.latest == Sample(time_s=3.0)
