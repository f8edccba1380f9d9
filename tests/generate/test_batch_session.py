"""What every asking session shows and means by Ctrl-C, and the flags that it has in common with `generate`."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import fields
from typing import cast

import pytest

from fastgen.engine.scheduler import Scheduler, SchedulerStatistics
from fastgen.generate.batch import AskMeter, AskProgress, Reply, run_until_stopped
from fastgen.generate.options import AskSpeed, SpeedOptions
from fastgen.generate.runtime import Stopper
from fastgen.telemetry.progress import QuietReporter

NOW = SchedulerStatistics(in_flight=7, waiting_retries=2, queued_answers=0, faults={})


def test_its_speed_flags_are_those_of_generate_with_the_same_defaults() -> None:
    of_generate = {field.name: field.default for field in fields(SpeedOptions)}
    assert {field.name: field.default for field in fields(AskSpeed)}.items() <= of_generate.items()


def test_the_meter_counts_answers_failures_and_what_cannot_be_read() -> None:
    meter = AskMeter(10, 20, lambda reply: reply.text == "?")
    meter.count([Reply(1, "a", completion_tokens=5), Reply(2, "?", completion_tokens=3), Reply(3, "", failure="no")])
    seen = meter.look(NOW)
    assert (seen.complete, seen.target, seen.unreadable, seen.failed) == (12, 20, 1, 1)
    assert seen.tokens_per_s == pytest.approx(4 * seen.per_s)
    assert "in flight 7 · unreadable 1 · failed 1 · retrying 2" in seen.details()
    meter.count([Reply(number, "a") for number in range(4, 14)])
    assert (meter.look(NOW).complete, meter.look(NOW).target) == (22, 22), "the run has grown"


def test_what_did_not_go_wrong_is_not_shown() -> None:
    shown = AskProgress(30, 90, 4, 0, 0, 0, per_s=0.5, tokens_per_s=20.0)
    assert shown.line() == "30/90 answered · 30.0 answers/min · 20 tokens/s · in flight 4 · ETA 2:00"
    assert AskProgress(0, 90, 4, 0, 0, 0, per_s=0.0, tokens_per_s=0.0).eta == "-"


class Draining:
    """Replaces a scheduler. On request, a second signal comes when it is asked to stop."""

    def __init__(self, *, insists: bool) -> None:
        self.drained = asyncio.Event()
        self.stops = 0
        self._insists = insists

    def stop(self) -> None:
        self.stops += 1
        if self._insists:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.drained.set()


@pytest.mark.parametrize(("insists", "gives"), [(False, "what it has"), (True, None)])
def test_the_first_signal_drains_and_the_second_cancels(insists: bool, gives: str | None) -> None:
    seen: list[tuple[Stopper, Draining]] = []

    async def work(stopper: Stopper) -> str:
        scheduler = Draining(insists=insists)
        stopper.scheduler = cast("Scheduler", scheduler)
        seen.append((stopper, scheduler))
        signal.raise_signal(signal.SIGINT)
        await scheduler.drained.wait()
        return "what it has"

    assert run_until_stopped(work, QuietReporter()) == gives
    [(stopper, scheduler)] = seen
    assert (stopper.stopped, scheduler.stops) == (True, 1)


def test_a_signal_before_anything_is_asked_cancels_at_once() -> None:
    async def work(_: Stopper) -> str:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        return "never"

    assert run_until_stopped(work, QuietReporter()) is None


def test_a_cancellation_by_other_code_is_no_stop() -> None:
    async def work(_: Stopper) -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_until_stopped(work, QuietReporter())
