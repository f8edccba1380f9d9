"""Asks many independent questions through the scheduler and logs every answer: what `judge` and `evaluate` share.

The answers are in a job folder (`fastgen.store.job_folder`)::

    FOLDER/answers/     the log; its first line is {"meaning": CONFIGURATION}, then a line per reply
    FOLDER/lock         names the process that writes

Guarantees: an answer that was logged is never asked for again, over any number of interruptions. A folder with answers
to other questions is refused. One process writes at a time. Memory holds the numbers of the answered questions and the
requests in flight, never texts of logged answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fastgen.engine.backend import Backend
from fastgen.engine.health import Raw, Step, StepHealth
from fastgen.engine.rate_limits import RateLimits
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler, SchedulerStatistics
from fastgen.errors import DiskError, InputError, StoppedError
from fastgen.generate.options import SpeedOptions
from fastgen.generate.runtime import Stopper, background_tasks, governor_of, limits_of, rates_of, until_stopped
from fastgen.generate.serving import Serving
from fastgen.store.job_folder import JobFolder, check_configuration
from fastgen.store.log import TornTail, read_log
from fastgen.telemetry.progress import Reporter, ReporterHandler, duration
from fastgen.text import AnswerKind, unread_kind
from fastgen.types import Answer, Failure, Message, Request, Sampling, token_count

T = TypeVar("T")
_LOG_NAME = "answers"
_SHOW_EVERY_S = 1.0
Prompt = str | tuple[Message, ...]
Shorten = Callable[[int], Prompt | None]
Again = Callable[["Question", "Reply"], "Question | None"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question. ``number`` is its place in the whole set (0 or more), the same in every session."""

    number: int
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one question: a text, or the reason why there is none (``failure``, one line)."""

    number: int
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str | None = None
    shortened: bool = False
    """Whether the prompt was too long for the model, so that a shorter form of it was asked."""
    reasoning: str = ""
    """What the model thought before, where the server sent that apart from the text."""


class AnswerLog(JobFolder):
    """The answers to one set of questions: open it once, `add` from one thread, close it.

    ``configuration`` says what is asked and of which model, as JSON values. ``answered`` are the numbers that have an
    answer.

    :raises InputError: the folder has answers to other questions, or another process writes there.
    :raises DamagedLogError: the log is damaged. :raises DiskError: the folder cannot be written.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        super().__init__(folder, named=str(folder), instead="use another name or folder", log=_LOG_NAME)
        self.answered: set[int] = set()
        try:
            self._resume(configuration)
        except BaseException:
            with contextlib.suppress(DiskError):
                self.close()
            raise

    def _resume(self, configuration: dict[str, Any]) -> None:
        saved: dict[str, Any] | None = None
        for body in self.replay(_LOG_NAME):
            if saved is None:
                saved = body.get("meaning", {})
                holds = f"{self.path}: holds answers to other questions, with"
                remedy = "name another folder, or remove this one"
                check_configuration(saved, configuration, holds=holds, remedy=remedy)
            elif "failure" not in body:
                self.answered.add(body["number"])
        if saved is None:
            self.append([{"meaning": configuration}])

    def add(self, replies: Sequence[Reply]) -> None:
        """Write replies and make them durable.

        :raises DiskError: none of them was kept, or the lock or the log was removed.
        """
        self.append(map(_encode, replies))
        self.sync()
        self.answered.update(reply.number for reply in replies if reply.failure is None)


def read_replies(folder: Path) -> Iterator[Reply]:
    """Every logged reply, in the order of arrival. A question that failed may have an answer later.

    :raises InputError: there are no answers in the folder. :raises DamagedLogError: the log is damaged.
    """
    lines = _lines(folder)
    if next(lines, None) is None:
        raise InputError(f"{folder}: there are no answers here")
    yield from map(_decode, lines)


def read_configuration(folder: Path) -> dict[str, Any] | None:
    """What was asked and of which model, or ``None`` where nothing was asked yet."""
    first = next(_lines(folder), None)
    return None if first is None else dict(first.get("meaning", {}))


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for item in read_log(folder / _LOG_NAME, run_id=_LOG_NAME):
        if not isinstance(item, TornTail):
            yield item[0]


def _encode(reply: Reply) -> dict[str, Any]:
    if reply.failure is not None:
        return {"number": reply.number, "failure": reply.failure}
    tokens = (reply.prompt_tokens, reply.completion_tokens)
    body = {"number": reply.number, "text": reply.text, "reason": reply.finish_reason, "tokens": tokens}
    body |= {"shortened": True} if reply.shortened else {}
    return body | ({"reasoning": reply.reasoning} if reply.reasoning else {})


def _decode(body: dict[str, Any]) -> Reply:
    if "failure" in body:
        return Reply(body["number"], "", failure=body["failure"])
    prompt_tokens, completion_tokens = body["tokens"]
    return Reply(
        *(body["number"], body["text"], body["reason"], token_count(prompt_tokens), token_count(completion_tokens)),
        shortened=body.get("shortened", False),
        reasoning=body.get("reasoning", ""),
    )


class BatchSession:
    """One session, which asks all unanswered questions as fast as the servers allow. It is the scheduler's `Source`.

    :param observe: called with every batch of replies once it is logged. :param shorten: returns the next shorter
        prompt of a question (by number) whose prompt was too long, or ``None``. :param again: called with every logged
        reply; may return one more question, of another number, to ask next. :param rates: what the servers allow.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        log: AnswerLog,
        backend: Backend,
        limits: Limits,
        observe: Callable[[Sequence[Reply]], None] = lambda _: None,
        shorten: Shorten = lambda _: None,
        *,
        again: Again = lambda *_: None,
        rates: RateLimits | None = None,
    ) -> None:
        self._log = log
        self._questions = (question for question in questions if question.number not in log.answered)
        self._more: deque[Question] = deque()  # asked first
        self._shortened: set[int] = set()
        self._observe, self._shorten, self._again = observe, shorten, again
        self.scheduler = Scheduler(self, backend, limits, jitter=random.Random(), rates=rates)

    def stop(self) -> None:
        """Begin no more requests. `run` returns when the answers in flight are logged. ``observe`` may call it."""
        self.scheduler.stop()

    async def run(self) -> None:
        """Ask until every question is answered or has failed, or `stop` was called.

        :raises StoppedError: no server answers, or the disk is full; what was logged stays.
        """
        async with aclosing(self.scheduler.answers()) as batches:
            async for answers in batches:
                self._keep(answers)

    def next(self) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        question = self._more.popleft() if self._more else next(self._questions, None)
        if question is None:
            return None
        return Request(question.number, "question", question.prompt, question.sampling)

    def give_back(self, request: Request) -> None:
        """Does nothing: the next session asks the question."""

    def shrink(self, request: Request) -> Request | None:
        """The same question with a shorter prompt, if there is one."""
        shorter = self._shorten(request.number)
        if shorter is None:
            return None
        self._shortened.add(request.number)
        return replace(request, prompt=shorter)

    def _keep(self, answers: Sequence[Answer]) -> None:
        replies = [_reply(answer, shortened=answer.request.number in self._shortened) for answer in answers]
        self._log.add(replies)
        self._observe(replies)
        for answer, reply in zip(answers, replies, strict=True):
            if (more := self._again(_question(answer.request), reply)) is not None:
                self._more.append(more)


def _question(request: Request) -> Question:
    """The question of a request, with its shortest prompt so far."""
    prompt: Any = request.prompt  # a `Prompt`, as it was when the request was made
    return Question(request.number, prompt, request.sampling)


def _reply(answer: Answer, *, shortened: bool) -> Reply:
    number, result = answer.request.number, answer.result
    if isinstance(result, Failure):
        return Reply(number, "", failure=f"{result.kind}: {' '.join(result.detail.split())}")
    tokens = result.prompt_tokens, result.completion_tokens
    return Reply(*(number, result.text, result.finish_reason), *tokens, shortened=shortened, reasoning=result.reasoning)


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask and where the answers go.

    ``configuration`` says what is asked and of which model. ``questions`` returns those still to ask, given the numbers
    that have an answer. ``expected`` is about how many answers there will be in the end. ``is_unreadable`` marks
    answers that count for nothing. It is called for every answer. ``step`` names the questions and what helps where
    answers are unreadable. ``shorten`` and ``again`` are as in `BatchSession`.
    """

    folder: Path
    configuration: Mapping[str, Any]
    questions: Callable[[set[int]], Iterable[Question]]
    expected: int
    step: Step
    is_unreadable: Callable[[Reply], bool] = lambda _: False
    shorten: Shorten = lambda _: None
    again: Again = lambda *_: None


@dataclass(frozen=True, slots=True)
class AskProgress:
    """Progress of a session: answers so far and about how many there will be. The other figures are this session's."""

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
        """Rates since the session began, and counts of faults."""
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
    """Counts replies. ``answered`` were there before. ``expected`` is about how many there will be in the end."""

    def __init__(self, answered: int, expected: int, is_unreadable: Callable[[Reply], bool]) -> None:
        self._began_s = time.monotonic()
        self._before, self._expected, self._is_unreadable = answered, expected, is_unreadable
        self._answered = self._unreadable = self._failed = self._tokens = 0

    def count(self, replies: Sequence[Reply]) -> None:
        """Count more replies."""
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


def _observe_health(health: StepHealth, job: Job, replies: Iterable[Reply]) -> None:
    for reply in replies:
        if reply.failure is None:
            kind = AnswerKind.READ
            if job.is_unreadable(reply):
                kind = unread_kind(reply.text, reply.finish_reason, reply.reasoning)
            shown = reply.text if reply.text.strip() else reply.reasoning
            health.see(kind, Raw(shown, reply.finish_reason, reply.completion_tokens))


def require_readable(job: Job) -> None:
    """Check that the folder has a readable answer.

    :raises StoppedError: there are answers, and none of them can be read; names the remedy.
    """
    health = StepHealth(job.step)
    for reply in read_replies(job.folder):
        if reply.failure is None and not job.is_unreadable(reply):
            return
        _observe_health(health, job, [reply])
    if (told := health.warning(at_the_end=True)) is not None:
        raise StoppedError(f"{told.removeprefix('warning: ')}. The answers are kept in {job.folder}")


def run_until_stopped(work: Callable[[Stopper], Awaitable[T]], reporter: Reporter) -> T | None:
    """`fastgen.generate.runtime.until_stopped` in a new event loop. Warnings go to the reporter."""
    import uvloop

    logging.basicConfig(level=logging.WARNING, handlers=[ReporterHandler(reporter)], force=True)
    return uvloop.run(until_stopped(work, reporter))


def is_answered(job: Job) -> bool:
    """Whether nothing is left to ask. False if nothing was asked before. Needs no server.

    :raises InputError: the folder has answers to other questions, or another process writes there.
    """
    if read_configuration(job.folder) is None:
        return False
    with AnswerLog(job.folder, dict(job.configuration)) as log:
        return not any(question.number not in log.answered for question in job.questions(log.answered))


async def ask(job: Job, serving: Serving, speed: SpeedOptions, reporter: Reporter, stopper: Stopper) -> None:
    """Ask what has no answer yet until everything is asked or the user stops it.

    :raises InputError: the folder has answers to other questions, or another process writes there.
    :raises StoppedError: no server answers, the disk is full, or no answer can be read. The same call asks the rest.
    """
    health = StepHealth(job.step)
    ended_by: str | None = None

    def observe(replies: Sequence[Reply]) -> None:
        nonlocal ended_by
        meter.count(replies)
        _observe_health(health, job, replies)
        if (warning := health.warning()) is not None:
            reporter.say(warning)
        if ended_by is None and (ended_by := health.verdict()) is not None:
            session.stop()

    with AnswerLog(job.folder, dict(job.configuration)) as log:
        if log.answered:
            reporter.say(f"{job.folder}: resuming with {len(log.answered)} answers")
        meter = AskMeter(len(log.answered), job.expected, job.is_unreadable)
        session = BatchSession(
            *(job.questions(log.answered), log, serving.backend, limits_of(speed, serving)),
            observe=observe,
            shorten=job.shorten,
            again=job.again,
            rates=rates_of(speed),
        )
        stopper.scheduler = session.scheduler
        governor = governor_of(speed, serving, session.scheduler)
        async with background_tasks() as start:
            start("servers", serving.watch())
            start("progress", _show(meter, session, reporter))
            if governor is not None:
                start("concurrency", governor.run())
            await session.run()
        reporter.show(meter.look(session.scheduler.statistics()))
    if ended_by is not None and not stopper.stopped:
        raise StoppedError(f"{ended_by}. The answers so far are kept in {job.folder}")


async def _show(meter: AskMeter, session: BatchSession, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(_SHOW_EVERY_S)
        reporter.show(meter.look(session.scheduler.statistics()))
