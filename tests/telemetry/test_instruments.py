"""The instruments: what they pass on they do not change, and what they count adds up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.engine.backend import BackendStatistics
from fastgen.errors import TransientError
from fastgen.telemetry.figures import Sample, ServerSample
from fastgen.telemetry.instruments import (
    BOUNDS_S,
    CommitTimes,
    Histogram,
    LoopProbe,
    TimedBackend,
    WatchedSource,
    cores,
    quantile,
    rss_mb,
)
from fastgen.telemetry.monitor import MetricsHub, Reading, between
from fastgen.types import Completion, Request, Sampling, Stage

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=8)


def request(number: int, stage: Stage) -> Request:
    return Request(number, stage, "Write.", GREEDY)


class Listed:
    """A source that gives a list of requests, in order, and takes them back."""

    def __init__(self, *requests: Request) -> None:
        self.ready = list(requests)
        self.given_back: list[Request] = []

    def next(self) -> Request | None:
        return self.ready.pop(0) if self.ready else None

    def give_back(self, request: Request) -> None:
        self.given_back.append(request)

    def shrink(self, request: Request) -> Request | None:
        return replace(request, prompt="W")


def test_a_source_that_may_begin_nothing_new_still_finishes_what_is_on_its_way() -> None:
    asked = [request(0, Stage.INSTRUCTION), request(1, Stage.INSTANCE), request(2, Stage.INSTRUCTION)]
    listed = Listed(*asked)
    source = WatchedSource(listed)
    assert source.next() is asked[0]
    assert not source.asked_for_nothing
    source.begin_nothing_new()
    assert source.next() is asked[1]
    assert source.next() is None
    assert source.asked_for_nothing
    assert listed.given_back == [asked[2]]
    shorter = source.shrink(asked[0])
    assert shorter is not None
    assert shorter.prompt == "W"


class Answering:
    """A backend that answers odd numbers and fails even ones."""

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        if request.number % 2:
            return (Completion("text", "stop"),)
        raise TransientError("no", kind="http_500")

    async def close(self) -> None:
        """Nothing to close."""

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(())


def test_good_answers_are_timed_by_stage_and_faults_pass_through_untimed() -> None:
    timed = TimedBackend(Answering())

    async def ask() -> None:
        assert await timed.complete(request(1, Stage.INSTANCE)) == (Completion("text", "stop"),)
        with pytest.raises(TransientError):
            await timed.complete(request(2, Stage.INSTANCE))

    asyncio.run(ask())
    assert sum(timed.latencies[Stage.INSTANCE].counts) == 1
    assert sum(timed.latencies[Stage.INSTRUCTION].counts) == 0
    assert timed.statistics() == BackendStatistics(())


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
    times = CommitTimes()
    times.begin(3)
    assert times.busy_until(times._began_s + 2.0) == pytest.approx(2.0)
    with times.judging() as judged:
        sum(range(20_000))
        judged()
        sum(range(20_000))
    times.syncing(lambda: None)
    times.end()
    assert (times.batches, times.answers) == (1, 3)
    assert times.judge_s > 0
    assert times.append_s > 0
    assert times.judge_s + times.append_s <= times.busy_s
    assert times.busy_until(1e12) == times.busy_s


def test_a_probe_keeps_sums_and_gives_maxima_once() -> None:
    probe = LoopProbe(lambda: (0, 0, 0))
    probe.see(0.004, 10, 16, 2)
    probe.see(-0.001, 14, 16, 8)
    assert (probe.looks, probe.in_flight, probe.concurrency, probe.queued) == (2, 24, 32, 10)
    assert probe.lag_s == pytest.approx(0.004)
    assert probe.take_maxima() == (0.004, 8)
    assert probe.take_maxima() == (0.0, 0)


def test_the_machine_tells_its_cores_and_memory() -> None:
    assert cores() >= 1
    assert 5 < rss_mb() < 100_000


THEN = Reading(at_s=100.0, time_s=1e9, kept=50, rejected={"similar": 10}, completions=200, generated_tokens=9000)
NOW = replace(
    THEN,
    at_s=110.0,
    time_s=1e9 + 10,
    kept=80,
    complete=20,
    rejected={"similar": 20},
    completions=300,
    generated_tokens=14_000,
    server_s=20.0,
    rate_limited_s=4.0,
    looks=100,
    lag_s=0.2,
    in_flight_seen=6400,
    concurrency_seen=6400,
    queued_seen=300,
    process_cpu_s=5.0,
    loop_cpu_s=3.0,
    busy_s=2.0,
    judge_s=1.5,
    batches=10,
    answers=100,
    faults={"http_429": 2, "timeout": 1},
    latencies={"instance": ((0, 4) + (0,) * (len(BOUNDS_S) - 1), 0.032)},
    servers=(ServerSample("http://a/v1"),),
)


def test_a_sample_is_what_lies_between_two_readings() -> None:
    seen = between(THEN, NOW, maxima=(0.05, 12), set_by="--concurrency 64")
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
    assert seen.concurrency_set_by == "--concurrency 64"


def test_a_window_without_looks_or_instructions_has_the_gauges_and_no_acceptance() -> None:
    idle = between(THEN, replace(THEN, at_s=101.0, in_flight=5, concurrency=8))
    assert (idle.in_flight, idle.concurrency, idle.acceptance) == (5, 8, None)
    assert idle.stages == {}


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
