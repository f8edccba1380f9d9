"""How hard a scheduler tries: what is in flight at once, how often and how patiently a request is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fastgen.engine.backend import Backend
from fastgen.engine.rate_limits import RateGate, RateLimits
from fastgen.errors import BackendUnavailable, PromptTooLong, RequestRejected, TransientError
from fastgen.types import Answer, Failure, Request, Stage


@dataclass(frozen=True, slots=True)
class Limits:
    """``concurrency`` is where it begins, ``max_concurrency`` what `Scheduler.set_concurrency` never exceeds.

    Both count completions; times are in seconds, and the three caps bound the pause before another attempt.
    """

    concurrency: int
    max_concurrency: int | None = None
    max_attempts: int = 8
    outage_timeout_s: float = 600.0
    drain_timeout_s: float = 60.0
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    reconnect_cap_s: float = 5.0
    retry_after_cap_s: float = 300.0
    max_batch: int = 64

    @property
    def most(self) -> int:
        """The most completions that are ever in flight."""
        return self.max_concurrency or self.concurrency


_MIN_QUEUED, _MAX_QUEUED = 256, 8192


class AnswerQueue:
    """Answers in order of arrival, taken in batches of at most ``max_batch``.

    About twice ``in_flight`` answers may wait; then `put` waits, so a slow consumer slows the asking.
    """

    def __init__(self, *, in_flight: int, max_batch: int) -> None:
        self.unjudged = 0
        """Answers that were put and not yet reported as `judged`."""
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[Answer | None] = asyncio.Queue(min(max(2 * in_flight, _MIN_QUEUED), _MAX_QUEUED))
        self._closed = False

    @property
    def queued(self) -> int:
        """Answers that wait to be taken."""
        return self._waiting.qsize()

    async def put(self, answer: Answer) -> None:
        """Add an answer; waits while the queue is full."""
        self.unjudged += 1
        await self._waiting.put(answer)

    async def take(self) -> list[Answer]:
        """The next answers, at least one; none once `close` was called."""
        batch: list[Answer] = []
        first = await self._waiting.get()
        while first is not None and not self._closed:
            batch.append(first)
            if len(batch) == self._max_batch or self._waiting.empty():
                break
            first = self._waiting.get_nowait()
        return batch

    def judged(self, answers: int) -> None:
        """Note that the consumer has finished a batch."""
        self.unjudged -= answers

    def close(self) -> None:
        """Make `take` return nothing, now and later."""
        self._closed = True
        with contextlib.suppress(asyncio.QueueFull):  # then nothing waits in `take`
            self._waiting.put_nowait(None)


log = logging.getLogger(__name__)
BEAT_S = 1.0  # `OutageWatch.beat` is to be called so often
_MOST_PATIENCE_S = 300.0
_ALIVE_S = 60.0  # servers work if a good answer came within this: then a fault counts against its request


class OutageWatch:
    """Sees every answer and every fault; ``timeout_s`` is how long nothing but faults may come."""

    def __init__(self, timeout_s: float) -> None:
        self.faults: Counter[str] = Counter()
        """By `TransientError.kind`, since the start."""
        self._timeout_s = timeout_s
        self._last_answer_s = -math.inf
        self._failing_since_s: float | None = None
        self._patience_s = 0.0  # the longest Retry-After since then
        self._beat_s = math.inf

    def saw_answer(self, now_s: float) -> None:
        """A server did what it was asked, or said why it will not."""
        self._last_answer_s = now_s
        self._failing_since_s = None

    def saw_fault(self, error: TransientError, now_s: float) -> None:
        """:raises BackendUnavailable: nothing but faults has come for the timeout."""
        if math.isfinite(self._beat_s):
            self.beat(now_s)  # what was cut off by a sleep may be seen before the beat that is late
        self.faults[error.kind] += 1
        if self.faults[error.kind] == 1:
            log.warning("first fault of its kind, retried: %s", error)
        if error.kind == "http_429":
            self._failing_since_s = None
            return
        if self._failing_since_s is None:
            self._failing_since_s, self._patience_s = now_s, 0.0
        self._patience_s = max(self._patience_s, min(error.retry_after_s or 0.0, _MOST_PATIENCE_S))
        if (failing_s := now_s - self._failing_since_s) >= self._timeout_s + self._patience_s:
            raise BackendUnavailable(
                f"no server has given a good answer for {failing_s:.0f} s (last fault: {error}); "
                f"the run is kept: bring a server back and run the same command again"
            )

    def is_requests_own(self, error: TransientError, last_attempt_s: float, now_s: float) -> bool:
        """Whether servers work, so that the attempt counts; ``last_attempt_s`` is when the one before it began."""
        if error.kind == "all_down":  # nobody was asked; other stages' servers may well answer meanwhile
            return False
        if error.reached_server:
            return now_s - self._last_answer_s < _ALIVE_S
        return self._last_answer_s > last_attempt_s

    def beat(self, now_s: float) -> None:
        """Notice by a late beat that this process did not run."""
        asleep_s = now_s - self._beat_s - BEAT_S
        if self._failing_since_s is not None and asleep_s > BEAT_S:
            self._failing_since_s += asleep_s
        self._beat_s = now_s


@dataclass(slots=True)
class _Attempts:
    last_s: float  # when the attempt before this one began
    tries: int = 0
    counted: int = 0  # those where a server was alive


class Retries:
    """``outage`` says which attempts count; ``ready`` is called when a request's pause is over."""

    def __init__(self, limits: Limits, outage: OutageWatch, jitter: random.Random, ready: Callable[[], None]) -> None:
        self._limits = limits
        self._outage = outage
        self._jitter = jitter
        self._tell = ready
        self._attempts: dict[int, _Attempts] = {}  # by request number, as the next one
        self._backing_off: dict[int, tuple[Request, asyncio.TimerHandle]] = {}
        self._ready: dict[Stage, deque[tuple[int, Request]]] = {}  # with the place in the order; never empty ones
        self._arrivals = 0

    @property
    def backing_off(self) -> int:
        """Requests whose pause is not over."""
        return len(self._backing_off)

    @property
    def waiting(self) -> int:
        """Requests that are to be asked again."""
        return len(self._backing_off) + sum(map(len, self._ready.values()))

    def count(self, request: Request, error: TransientError, started_s: float) -> int | None:
        """Count an attempt that failed; how many there were where that is the last that is allowed, else ``None``."""
        attempts = self._attempts.setdefault(request.number, _Attempts(started_s))
        now_s = asyncio.get_running_loop().time()
        attempts.tries += 1
        attempts.counted += self._outage.is_requests_own(error, attempts.last_s, now_s)
        attempts.last_s = started_s
        return attempts.tries if attempts.counted >= self._limits.max_attempts else None

    def back_off(self, request: Request, error: TransientError) -> None:
        """Ask a counted request again after a pause."""
        pause_s = self.pause_s(self._attempts[request.number].tries, error)
        timer = asyncio.get_running_loop().call_later(pause_s, self._is_over, request)
        self._backing_off[request.number] = (request, timer)

    def pause_s(self, tries: int, error: TransientError) -> float:
        """How long to wait after so many attempts, the last of which ended so."""
        cap_s = self._limits.backoff_cap_s if error.reached_server else self._limits.reconnect_cap_s
        ceiling_s = min(cap_s, self._limits.backoff_base_s * 2.0 ** min(tries - 1, 16))
        pause_s = self._jitter.uniform(0.1 * ceiling_s, ceiling_s)
        if error.retry_after_s is not None:
            pause_s = max(pause_s, min(error.retry_after_s, self._limits.retry_after_cap_s))
        return pause_s

    def _is_over(self, request: Request) -> None:
        del self._backing_off[request.number]
        self.add(request)
        self._tell()

    def add(self, request: Request) -> None:
        """Ask a request again as soon as there is a slot, and room."""
        self._arrivals += 1
        self._ready.setdefault(request.stage, deque()).append((self._arrivals, request))

    def take(self, has_room: Callable[[Request], bool]) -> Request | None:
        """The request that has been ready longest of those that find room; room that was found is to be used."""
        for _, stage in sorted((queue[0][0], stage) for stage, queue in self._ready.items()):
            request = self._ready[stage][0][1]
            if has_room(request):
                self._remove_first(stage)
                return request
        return None

    def _remove_first(self, stage: Stage) -> None:
        queue = self._ready[stage]
        queue.popleft()
        if not queue:
            del self._ready[stage]

    def forget(self, request: Request) -> None:
        """A request is answered, or given up: its attempts are of no interest any more."""
        self._attempts.pop(request.number, None)

    def clear(self) -> list[Request]:
        """Every request that waits; none is asked again."""
        dropped = [request for request, _ in self._backing_off.values()]
        for _, timer in self._backing_off.values():
            timer.cancel()
        dropped += [request for _, request in sorted(one for queue in self._ready.values() for one in queue)]
        self._backing_off.clear()
        self._ready.clear()
        return dropped


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
