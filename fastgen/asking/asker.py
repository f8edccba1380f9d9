"""Asks many independent questions through the scheduler and logs every answer: what `judge` and `evaluate` share.

An `AnswerLog` is a folder of its own with a checksummed log (:mod:`fastgen.storage.log`) whose first line says what is
asked and of whom. Guarantees: an answer that was logged once is never asked again, over any number of interruptions; a
folder with answers to other questions is refused; one process writes at a time; memory holds the numbers of the
answered questions and what is in flight, never texts. Knows nothing of what the questions are about.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from fastgen.backends import Backend
from fastgen.errors import DiskError, InputError
from fastgen.records import Answer, Failure, Message, Request, Sampling, Stage, token_count
from fastgen.scheduling.limits import Limits
from fastgen.scheduling.rate_limits import RateLimits
from fastgen.scheduling.scheduler import Scheduler
from fastgen.storage.locking import Lock
from fastgen.storage.log.format import Position, TornTail
from fastgen.storage.log.reader import read_log
from fastgen.storage.log.writer import LogWriter

_LOG_NAME = "answers"
Prompt = str | tuple[Message, ...]
Shorten = Callable[[int], Prompt | None]
Again = Callable[["Question", "Reply"], "Question | None"]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask. ``number`` is its place in the whole set (0 or more), the same in every session."""

    number: int
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question: a text, or the reason why there is none (``failure``, one line)."""

    number: int
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str | None = None
    shortened: bool = False
    """Whether the prompt was too long for the model, and a shorter form of it was asked."""


class AnswerLog:
    """The answers to one set of questions; open it once, append from one thread, close it.

    ``meaning`` says what is asked and of whom, as JSON values; ``answered`` are the numbers that have a good answer.

    :raises InputError: the folder has answers to other questions, or another process is writing there.
    :raises DamagedLogError: the log is damaged. :raises DiskError: the folder cannot be written.
    """

    def __init__(self, folder: Path, meaning: dict[str, Any]) -> None:
        self.answered: set[int] = set()
        self._lock = _take_lock(folder)
        try:
            end = self._take_up(folder, meaning)
            self._writer = LogWriter(folder / _LOG_NAME, run_id=_LOG_NAME, end=end)
            if end is None:
                self._begin(meaning)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, meaning: dict[str, Any]) -> None:
        try:
            self._writer.append([{"meaning": meaning}])
        except DiskError:
            with contextlib.suppress(DiskError):
                self._writer.close()
            raise

    def _take_up(self, folder: Path, meaning: dict[str, Any]) -> Position | None:
        end: Position | None = None
        for body, position in _lines(folder):
            if end is None:
                _check_same(folder, body.get("meaning", {}), meaning)
            elif "failure" not in body:
                self.answered.add(body["number"])
            end = position
        return end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, replies: Iterable[Reply]) -> None:
        """Write the replies down and make them durable.

        :raises DiskError: nothing of them was kept.
        """
        kept = list(replies)
        self._writer.append([_encode(reply) for reply in kept])
        self._writer.sync()
        self.answered.update(reply.number for reply in kept if reply.failure is None)
        if self._writer.segment_full:
            self._writer.roll()

    def close(self) -> None:
        """Sync, close and let others write."""
        try:
            self._writer.close()
        finally:
            self._lock.release()


def read_replies(folder: Path) -> Iterator[Reply]:
    """Every logged reply, in the order of arrival; a question that failed first has a later one that replaces it.

    :raises InputError: there are no answers in the folder. :raises DamagedLogError: the log is damaged.
    """
    lines = _lines(folder)
    if next(lines, None) is None:
        raise InputError(f"{folder}: there are no answers here")
    for body, _ in lines:
        yield _decode(body)


def read_meaning(folder: Path) -> dict[str, Any] | None:
    """What was asked and of whom; ``None`` where nothing was asked yet."""
    first = next(_lines(folder), None)
    return None if first is None else dict(first[0].get("meaning", {}))


def _lines(folder: Path) -> Iterator[tuple[dict[str, Any], Position]]:
    for item in read_log(folder / _LOG_NAME, run_id=_LOG_NAME):
        if not isinstance(item, TornTail):
            yield item


def _encode(reply: Reply) -> dict[str, Any]:
    if reply.failure is not None:
        return {"number": reply.number, "failure": reply.failure}
    tokens = (reply.prompt_tokens, reply.completion_tokens)
    body = {"number": reply.number, "text": reply.text, "reason": reply.finish_reason, "tokens": tokens}
    return body | ({"shortened": True} if reply.shortened else {})


def _decode(body: dict[str, Any]) -> Reply:
    if "failure" in body:
        return Reply(body["number"], "", failure=body["failure"])
    prompt_tokens, completion_tokens = body["tokens"]
    return Reply(
        *(body["number"], body["text"], body["reason"], token_count(prompt_tokens), token_count(completion_tokens)),
        shortened=body.get("shortened", False),
    )


def _take_lock(folder: Path) -> Lock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror}); mend that and run it again") from None
    return Lock(folder / "lock", named=str(folder), instead="use another name or folder")


def _check_same(folder: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = sorted(key for key in saved.keys() | asked.keys() if saved.get(key) != asked.get(key))
    if differing:
        name = differing[0]
        raise InputError(
            f"{folder}: holds answers to other questions ({name} was {saved.get(name)!r}, now {asked.get(name)!r}); "
            f"name another folder, or remove this one"
        )


class _Unanswered:
    """The scheduler's `Source`: the questions that have no answer yet, in their order, taken one at a time."""

    def __init__(self, questions: Iterable[Question], answered: set[int], shorten: Shorten) -> None:
        self._left = (question for question in questions if question.number not in answered)
        self._shorten = shorten
        self.shortened: set[int] = set()
        self.again: deque[Question] = deque()  # asked first

    def next(self) -> Request | None:
        """See `fastgen.scheduling.delivery.Source`."""
        question = self.again.popleft() if self.again else next(self._left, None)
        if question is None:
            return None
        return Request(question.number, Stage.QUESTION, question.prompt, question.sampling)

    def give_back(self, request: Request) -> None:
        """Nothing: it is asked in the next session."""

    def shrink(self, request: Request) -> Request | None:
        """The same question in fewer words, if there is such a form."""
        shorter = self._shorten(request.number)
        if shorter is None:
            return None
        self.shortened.add(request.number)
        return replace(request, prompt=shorter)


class Asking:
    """One session: all unanswered questions, as fast as the servers take them.

    ``stop`` drains what is in flight; a later session goes on. ``observe`` sees every batch of replies once logged.
    ``shorten`` gives the next shorter prompt of a question (by number) whose prompt was too long, or ``None``.
    ``again`` looks at every logged reply and may give one more question, of another number, that is asked next.
    ``rates`` are what the servers allow.
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
        self._again = again
        self._observe = observe
        self._source = _Unanswered(questions, log.answered, shorten)
        self.scheduler = Scheduler(self._source, backend, self._commit, limits, jitter=random.Random(), rates=rates)

    def stop(self) -> None:
        """Ask nothing more; `run` returns when what is in flight is logged. ``observe`` may call it."""
        self.scheduler.stop()

    async def run(self) -> None:
        """Ask until every question is answered or has failed, or `stop` was called.

        :raises StoppedError: no server answers, or the disk is full; what was logged stays.
        """
        await self.scheduler.run()

    async def _commit(self, answers: Sequence[Answer]) -> bool:
        replies = [_reply(answer, shortened=answer.request.number in self._source.shortened) for answer in answers]
        self._log.append(replies)
        self._observe(replies)
        for answer, reply in zip(answers, replies, strict=True):
            if (more := self._again(_question(answer.request), reply)) is not None:
                self._source.again.append(more)
        return False


def _question(request: Request) -> Question:
    """The question that a request was made of, in its shortest form so far."""
    prompt: Any = request.prompt  # of the kinds that a question has
    return Question(request.number, prompt, request.sampling)


def _reply(answer: Answer, *, shortened: bool) -> Reply:
    number, result = answer.request.number, answer.result
    if isinstance(result, Failure):
        return Reply(number, "", failure=f"{result.kind}: {' '.join(result.detail.split())}")
    tokens = result.prompt_tokens, result.completion_tokens
    return Reply(number, result.text, result.finish_reason, *tokens, shortened=shortened)
