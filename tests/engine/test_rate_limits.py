"""Requests and tokens a minute, with a scheduler on a clock that jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from fastgen.engine.rate_limits import RateLimits
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler
from fastgen.errors import TransientError
from fastgen.types import Completion, Request
from tests.scripted import (
    OK,
    QUICK,
    Behaviour,
    ListSource,
    ScriptedBackend,
    Sink,
    SinkScheduler,
    answer_ok,
    request,
    run,
)


class Clock:
    """The loop's time, which jumps to the next timer whenever nothing else can run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self._timers: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._monkeypatch = monkeypatch

    async def run(self, main: Awaitable[None]) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main)
        with self._monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: self.now_s)
            patch.setattr(loop, "call_later", self._call_later)
            while not task.done():
                for _ in range(20):
                    await asyncio.sleep(0)
                if self._timers and not task.done():
                    self._timers.sort(key=lambda timer: timer[:2])
                    at_s, _, callback, arguments = self._timers.pop(0)
                    self.now_s = max(self.now_s, at_s)
                    callback(*arguments)
        await task

    def _call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> _Handle:
        timer = (self.now_s + delay_s, len(self._timers), callback, arguments)
        self._timers.append(timer)
        return _Handle(lambda: self._timers.remove(timer) if timer in self._timers else None)


class _Handle:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


def rated(
    monkeypatch: pytest.MonkeyPatch, count: int, rates: RateLimits, behaviour: Behaviour = answer_ok
) -> tuple[list[float], Scheduler, Sink]:
    """Run ``count`` requests on a clock that jumps; when each attempt began, from 0."""
    began_s: list[float] = []

    async def noting(request: Request, attempt: int) -> tuple[Completion, ...]:
        began_s.append(clock.now_s - 1000.0)
        return await behaviour(request, attempt)

    clock, sink = Clock(monkeypatch), Sink()
    source, backend = ListSource([request(n) for n in range(count)]), ScriptedBackend(noting)
    limits = Limits(concurrency=8, max_attempts=10**6)
    scheduler = SinkScheduler(source, backend, sink, limits, jitter=random.Random(1), rates=rates)

    async def main() -> None:
        await clock.run(scheduler.run())

    run(main)
    return began_s, scheduler, sink


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600, 6000])
def test_no_minute_holds_more_requests_than_allowed_and_they_are_evenly_spread(
    monkeypatch: pytest.MonkeyPatch, per_minute: int
) -> None:
    count = min(3 * per_minute, 1500)
    began_s, _, sink = rated(monkeypatch, count, RateLimits(per_minute))
    assert len(sink.answers) == len(began_s) == count
    for first, start_s in enumerate(began_s):
        assert sum(start_s <= later_s < start_s + 60.0 - 1e-6 for later_s in began_s[first:]) <= per_minute
    assert began_s[-1] <= 1.01 * (count - 1) * 60.0 / per_minute + 1e-6
    gaps = [later - earlier for earlier, later in pairwise(began_s[10:])]
    assert all(gap <= 2.5 * 60.0 / per_minute for gap in gaps)


def test_another_attempt_counts_as_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(_request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt == 1:
            raise TransientError("busy", kind="http_503")
        return OK

    began_s, _, sink = rated(monkeypatch, 30, RateLimits(60), twice)
    assert len(began_s) == 60
    assert len(sink.answers) == 30
    assert began_s[-1] >= 58.0


def test_tokens_are_charged_by_what_was_used_and_the_estimate_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each uses 50 tokens, not the 18 that prompt and max_tokens of these requests promise: 10 a second fit 30,000."""

    async def fifty(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        return (Completion("ok", "stop", 40, 10),)

    began_s, _, _ = rated(monkeypatch, 400, RateLimits(tokens_per_minute=30_000), fifty)
    assert 0.9 * 40.0 <= began_s[-1] <= 1.1 * 40.0
    late = [at_s for at_s in began_s if at_s >= 10.0]
    for start_s in range(10, 35):
        assert 8 <= sum(start_s <= at_s < start_s + 1 for at_s in late) <= 12


def test_a_refused_request_costs_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused_at_first(_request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt <= 3:
            raise TransientError("busy", kind="http_429")
        return (Completion("ok", "stop", 30, 20),)

    began_s, _, sink = rated(monkeypatch, 60, RateLimits(tokens_per_minute=3000), refused_at_first)
    assert len(sink.answers) == 60
    assert began_s[-1] <= 75.0, "60 times 50 tokens are one minute's"


def test_the_rate_limit_that_binds_is_named_and_its_time_counted() -> None:
    rates = RateLimits(60, 1_000_000)
    assert rates.held(0.0) == (None, 0.0)
    rates.began(0.0, request(0))
    assert rates.wait_s(0.5) == pytest.approx(0.5)
    assert rates.held(0.75) == ("--requests-per-minute", 0.25)
    assert rates.wait_s(1.0) == 0.0
    assert rates.held(5.0) == (None, 0.5)


def test_stop_does_not_wait_for_a_rate_limit() -> None:
    rates = RateLimits(1)
    source, sink = ListSource([request(n) for n in range(3)]), Sink()
    scheduler = SinkScheduler(source, ScriptedBackend(answer_ok), sink, QUICK, jitter=random.Random(1), rates=rates)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        while not sink.answers:
            await asyncio.sleep(0)
        assert not task.done()
        assert scheduler.statistics().rate_limit == "--requests-per-minute"
        scheduler.stop()
        await task

    run(main)
    assert len(sink.answers) == 1
    assert len(source.requests) == 2
