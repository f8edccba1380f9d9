"""Carries out requests, each to its end: answers, another attempt, a shorter form, a failure.

Guarantee: every request that was taken ends as answers handed over, or is given back to its source. Knows nothing of
how many are in flight at once, or of what is asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from fastgen.backends import Backend
from fastgen.errors import PromptTooLong, RequestRejected, TransientError
from fastgen.records import Answer, Failure, Request
from fastgen.scheduling.answer_queue import AnswerQueue
from fastgen.scheduling.limits import Limits
from fastgen.scheduling.outage import OutageWatch
from fastgen.scheduling.rate_gate import RateGate
from fastgen.scheduling.rate_limits import RateLimits
from fastgen.scheduling.retries import Retries


class Source(Protocol):
    """Where requests come from. All methods are quick and synchronous."""

    def next(self) -> Request | None:
        """The next request; ``None`` while only answers on their way can create more."""

    def give_back(self, request: Request) -> None:
        """A request taken from `next` will not be answered."""

    def shrink(self, request: Request) -> Request | None:
        """A shorter form of a request whose prompt was too long, if there is one."""


class Room(Protocol):
    """Counts the requests that are asked again, where some servers are for some stages only."""

    def take_room(self, request: Request) -> bool:
        """Take room for a request whose pause is over, if the servers of its stage have some."""

    def pauses(self, request: Request) -> None:
        """A request waits for another attempt, until it takes room or is given back to its source."""


class Delivery:
    """Between a source and the queue of answers; ``ready`` is called when a request that had to wait may begin."""

    def __init__(
        self,
        source: Source,
        backend: Backend,
        answers: AnswerQueue,
        limits: Limits,
        outage: OutageWatch,
        *,
        jitter: random.Random,
        rates: RateLimits | None,
        room: Room | None,
        ready: Callable[[], None],
    ) -> None:
        self.is_draining = False
        self.rates = RateGate(rates, ready)
        self.retries = Retries(limits, outage, jitter, ready)
        self._source = source
        self._backend = backend
        self._answers = answers
        self._outage = outage
        self._room = room
        self._asked: dict[int, Request] = {}  # in flight, by number

    @property
    def awaits_more(self) -> bool:
        """Whether requests wait here that will be ready by themselves."""
        return self.retries.waiting > 0 or self.rates.will_open

    def take(self, *, most_backing_off: int) -> Request | None:
        """The request to carry out now: one that is asked again, or a new one.

        ``None`` where the source has nothing, the rate limits want it later, or so many are backing off that new ones
        would only pile up behind an outage.
        """
        if self.is_draining or self.rates.is_shut():
            return None
        request = self.retries.take(self._has_room)
        if request is None and self.retries.backing_off < most_backing_off:
            request = self._source.next()
        if request is not None:
            self._asked[request.number] = request
            self.rates.began(request)
        return request

    async def carry_out(self, request: Request) -> None:
        """Ask what `take` gave, and see to what came of it.

        :raises BackendUnavailable: nothing has answered for the outage timeout.
        :raises Exception: whatever the backend raises other than request errors.
        """
        started_s = _now_s()
        try:
            completions = await self._backend.complete(request)
        except TransientError as error:
            self.rates.ended(request, None if error.kind.startswith("http_") else ())
            await self._try_later(request, error, started_s)
        except PromptTooLong as error:
            self.rates.ended(request, None)
            self._outage.saw_answer(_now_s())
            await self._ask_shorter(request, error)
        except RequestRejected as error:
            self.rates.ended(request, None)
            self._outage.saw_answer(_now_s())
            await self._give_up(request, Failure("rejected", str(error)))
        else:
            self.rates.ended(request, completions)
            self._outage.saw_answer(_now_s())
            self._forget(request)
            for choice, completion in enumerate(completions):
                await self._answers.put(Answer(request, choice, completion))

    async def _try_later(self, request: Request, error: TransientError, started_s: float) -> None:
        self._outage.saw_fault(error, _now_s())
        tries = self.retries.count(request, error, started_s)
        if tries is not None:
            await self._give_up(request, Failure(error.kind, f"after {tries} attempts: {error}"))
        elif self.is_draining:
            self._drop(request)
        else:
            del self._asked[request.number]
            self.retries.back_off(request, error)
            if self._room is not None:
                self._room.pauses(request)

    async def _ask_shorter(self, request: Request, error: PromptTooLong) -> None:
        shorter = self._source.shrink(request)
        if shorter is None:
            await self._give_up(request, Failure("prompt_too_long", str(error)))
        elif self.is_draining:
            self._drop(request)
        else:
            del self._asked[request.number]
            self.retries.add(shorter)

    def _has_room(self, request: Request) -> bool:
        return self._room is None or self._room.take_room(request)

    async def _give_up(self, request: Request, failure: Failure) -> None:
        self._forget(request)
        await self._answers.put(Answer(request, 0, failure))

    def drain(self) -> None:
        """Give back what waits, and begin nothing more."""
        self.is_draining = True
        self.rates.leave()
        for request in self.retries.clear():
            self._drop(request)

    def drop_asked(self) -> None:
        """Give back what was asked and never answered; nobody carries it out any more."""
        for request in list(self._asked.values()):
            self._drop(request)

    def _forget(self, request: Request) -> None:
        self._asked.pop(request.number, None)
        self.retries.forget(request)

    def _drop(self, request: Request) -> None:
        self._forget(request)
        self._source.give_back(request)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
