"""One session of asking, as `judge` and `evaluate` both have it: log, scheduler, steering, figures, Ctrl-C.

Brings `fastgen.asking.asker` and servers that answer together. Guarantees: what is logged stays, whatever ends the
session; nothing is asked twice. Knows nothing of what the questions are about.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastgen.asking.asker import Again, AnswerLog, Asking, Question, Reply, Shorten, read_meaning, read_replies
from fastgen.beside import beside
from fastgen.errors import StoppedError
from fastgen.health import Kind, Raw, Step, StepHealth, unread_kind
from fastgen.options import SpeedOptions
from fastgen.progress import Reporter, ReporterHandler, duration
from fastgen.scheduling.pace import governor_of, limits_of, rates_of
from fastgen.scheduling.scheduler import SchedulerStatistics
from fastgen.serving import Serving
from fastgen.stopping import Stopper, until_stopped

T = TypeVar("T")
_SHOW_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask and where the answers go.

    ``meaning`` says what is asked and of whom; ``questions`` gives those that still matter, told the numbers that have
    an answer; ``expected`` is about how many answers there will be in the end. ``is_unreadable`` marks answers that
    count for nothing; it is asked about every answer. ``step`` names the questions and what helps where answers are
    unreadable. ``shorten`` and ``again`` are as in `fastgen.asking.asker.Asking`.
    """

    folder: Path
    meaning: Mapping[str, Any]
    questions: Callable[[set[int]], Iterable[Question]]
    expected: int
    step: Step
    is_unreadable: Callable[[Reply], bool] = lambda _: False
    shorten: Shorten = lambda _: None
    again: Again = lambda *_: None


@dataclass(frozen=True, slots=True)
class AskProgress:
    """One look at a session: answers so far and about how many there will be; the rest is of this session alone."""

    complete: int
    target: int
    in_flight: int
    waiting_retries: int
    unreadable: int
    failed: int
    per_s: float
    tokens_per_s: float

    @property
    def eta(self) -> str:
        """Time to the last answer, or a dash."""
        return duration(max(0, self.target - self.complete) / self.per_s) if self.per_s > 0 else "-"

    def details(self) -> str:
        """Rates since the session began, and what went wrong."""
        wrong = (("unreadable", self.unreadable), ("failed", self.failed), ("retrying", self.waiting_retries))
        counts = "".join(f" · {name} {count}" for name, count in wrong if count)
        return (
            f"{60 * self.per_s:,.1f} answers/min · {self.tokens_per_s:,.0f} tokens/s · in flight {self.in_flight}"
            f"{counts}"
        )

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.complete}/{self.target} answered · {self.details()} · ETA {self.eta}"


class AskMeter:
    """Counts what comes: ``answered`` were there before, ``expected`` is about what all of them will be."""

    def __init__(self, answered: int, expected: int, is_unreadable: Callable[[Reply], bool]) -> None:
        self._began_s = time.monotonic()
        self._before, self._expected, self._is_unreadable = answered, expected, is_unreadable
        self._answered = self._unreadable = self._failed = self._tokens = 0

    def count(self, replies: Sequence[Reply]) -> None:
        """Some more replies."""
        answers = [reply for reply in replies if reply.failure is None]
        self._failed += len(replies) - len(answers)
        self._answered += len(answers)
        self._unreadable += sum(map(self._is_unreadable, answers))
        self._tokens += sum(reply.completion_tokens for reply in answers)

    def look(self, now: SchedulerStatistics) -> AskProgress:
        """The figures now."""
        elapsed_s = max(time.monotonic() - self._began_s, 1e-9)
        complete = self._before + self._answered
        return AskProgress(
            *(complete, max(self._expected, complete), now.in_flight, now.waiting_retries),
            *(self._unreadable, self._failed, self._answered / elapsed_s, self._tokens / elapsed_s),
        )


class _Watch:
    """Shows every logged answer to the meter and to the step's health; ``stop`` ends a session that is void."""

    def __init__(self, meter: AskMeter, job: Job, reporter: Reporter, stop: Callable[[], None]) -> None:
        self._meter, self._job, self._reporter, self._stop = meter, job, reporter, stop
        self._health = StepHealth(job.step)
        self.ended_by: str | None = None

    def __call__(self, replies: Sequence[Reply]) -> None:
        """Take in some more replies."""
        self._meter.count(replies)
        _show_all(self._health, self._job, replies)
        if (warning := self._health.warning()) is not None:
            self._reporter.say(warning)
        if self.ended_by is None and (verdict := self._health.verdict()) is not None:
            self.ended_by = verdict
            self._stop()


def _show_all(health: StepHealth, job: Job, replies: Iterable[Reply]) -> None:
    for reply in replies:
        if reply.failure is None:
            kind = unread_kind(reply.text, reply.finish_reason) if job.is_unreadable(reply) else Kind.READ
            health.see(kind, Raw(reply.text, reply.finish_reason, reply.completion_tokens))


def require_readable(job: Job) -> None:
    """Check that there is a readable answer, in any session.

    :raises StoppedError: there are answers, and none of them can be read; says what helps.
    """
    health = StepHealth(job.step)
    for reply in read_replies(job.folder):
        if reply.failure is None and not job.is_unreadable(reply):
            return
        _show_all(health, job, [reply])
    if (told := health.warning(at_the_end=True)) is not None:
        raise StoppedError(f"{told.removeprefix('warning: ')}. The answers are kept in {job.folder}")


def run_until_stopped(work: Callable[[Stopper], Awaitable[T]], reporter: Reporter) -> T | None:
    """`fastgen.stopping.until_stopped` in an event loop of its own, with warnings told through the reporter."""
    import uvloop

    logging.basicConfig(level=logging.WARNING, handlers=[ReporterHandler(reporter)], force=True)
    return uvloop.run(until_stopped(work, reporter))


def is_answered(job: Job) -> bool:
    """Whether nothing of the job is left to ask, told without any server; false where nothing was asked before.

    :raises InputError: the folder has answers to other questions, or another process is writing there.
    """
    if read_meaning(job.folder) is None:
        return False
    with AnswerLog(job.folder, dict(job.meaning)) as log:
        return not any(question.number not in log.answered for question in job.questions(log.answered))


async def ask(job: Job, serving: Serving, speed: SpeedOptions, reporter: Reporter, stopper: Stopper) -> None:
    """Ask what has no answer yet until all is asked or the user stops it.

    :raises InputError: the folder has answers to other questions, or another process is writing there.
    :raises StoppedError: no server answers, the disk is full, or nothing that comes can be read; the same call asks the
        rest.
    """
    with AnswerLog(job.folder, dict(job.meaning)) as log:
        if log.answered:
            reporter.say(f"{job.folder}: going on with {len(log.answered)} answers")
        meter = AskMeter(len(log.answered), job.expected, job.is_unreadable)
        watch = _Watch(meter, job, reporter, stop=lambda: asking.stop())  # noqa: PLW0108 - made in the next line
        asking = Asking(
            *(job.questions(log.answered), log, serving.backend, limits_of(speed, serving)),
            observe=watch,
            shorten=job.shorten,
            again=job.again,
            rates=rates_of(speed),
        )
        stopper.scheduler = asking.scheduler
        governor = governor_of(speed, serving, asking.scheduler)
        steering = [] if governor is None else [governor.run()]
        async with beside(asking.run(), serving.watch(), _show(meter, asking, reporter), *steering) as running:
            await running
        reporter.show(meter.look(asking.scheduler.statistics()))
    if watch.ended_by is not None and not stopper.stopped:
        raise StoppedError(f"{watch.ended_by}. The answers so far are kept in {job.folder}")


async def _show(meter: AskMeter, asking: Asking, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(_SHOW_EVERY_S)
        reporter.show(meter.look(asking.scheduler.statistics()))
