"""One request, from its source to its answers.

`RequestExecutor` takes a request from its `Source` and executes it: it ends as answers, as another attempt, as a
shorter form of itself, or as a failure. `Retries` holds the requests that are to be asked again, `OutageWatch` tells
faults of a request from those of the servers, and `AnswerQueue` carries the answers to their consumer. Guarantees:

- Every request that was taken ends as answers in the queue, or is given back to its source.
- A request that waits for another attempt holds no slot. The pause is exponential with full jitter (AWS, "Exponential
  Backoff And Jitter"); the server's Retry-After is obeyed. Requests whose pause is over begin in that order, and one
  whose servers have no capacity does not hold up those of another role.
- An outage uses up no request's attempts, since a fault counts against its request only while a server works. A server
  that counts requests (429) may take any time, and one that names a time (Retry-After) gets that time once, beyond the
  outage timeout. Time in which this process did not run (Ctrl-Z, a sleeping machine) is no outage.
- Answers reach the consumer in order of arrival, in batches, through a bounded queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from fastgen.engine.backend import Backend
from fastgen.engine.rate_limits import RateLimits
from fastgen.errors import BackendUnavailable, PromptTooLong, RequestRejected, TransientError
from fastgen.types import Answer, Completion, Failure, Request

log = logging.getLogger(__name__)
BEAT_S: Final = 1.0
"""`OutageWatch.beat` must be called this often."""
ALIVE_S: Final = 60.0
"""Servers work if a good answer came within this time."""
_LONGEST_PATIENCE_S: Final = 300.0
_MAX_QUEUED = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is in flight at once, and how patiently a request is retried.

    ``concurrency`` is where it begins, ``max_concurrency`` what `Scheduler.set_concurrency` never exceeds. Both count
    completions. Times are in seconds. The three caps bound the pause before another attempt. A fault counts against its
    request if a good answer came within ``alive_s``.
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
    alive_s: float = ALIVE_S

    @property
    def most(self) -> int:
        """The most completions that are ever in flight."""
        return self.max_concurrency or self.concurrency


class Source(Protocol):
    """Where requests come from. All methods are quick and synchronous."""

    def next(self) -> Request | None:
        """The next request, or ``None`` while only outstanding answers can create more."""

    def give_back(self, request: Request) -> None:
        """A request taken from `next` will not be answered."""

    def shrink(self, request: Request) -> Request | None:
        """A shorter form of a request whose prompt was too long, if there is one."""


class Capacity(Protocol):
    """Counts the requests that are retried, where some servers serve some roles only."""

    def reserve(self, request: Request) -> bool:
        """Reserve capacity for a request whose pause is over, if the servers of its role have any."""

    def backs_off(self, request: Request) -> None:
        """A request waits for another attempt, until capacity is reserved for it or it is given back to its source."""


class RequestExecutor:
    """Takes requests from ``source``, executes them with ``backend`` and puts what comes back into ``answers``.

    ``ready`` is called when a request that had to wait may begin. ``observe`` gets the step of every good answer and
    the seconds that its attempt took.
    """

    def __init__(
        self,
        source: Source,
        backend: Backend,
        answers: AnswerQueue,
        limits: Limits,
        outage: OutageWatch,
        *,
        jitter: random.Random,
        ready: Callable[[], None],
        rates: RateLimits | None = None,
        capacity: Capacity | None = None,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        self.is_draining = False
        self.asked_for_nothing = False
        """Whether the source had nothing to ask when it was last asked."""
        self.retries = Retries(limits, outage, jitter, ready)
        self._source = source
        self._backend = backend
        self._answers = answers
        self._outage = outage
        self._ready = ready
        self._rates = rates
        self._rates_timer: asyncio.TimerHandle | None = None
        self._capacity = capacity
        self._observe = observe
        self._closed: set[str] = set()
        self._asked: dict[int, Request] = {}  # in flight, by number

    @property
    def will_be_ready(self) -> bool:
        """Whether requests wait here that will be ready without another answer."""
        return self.retries.waiting > 0 or self._rates_timer is not None

    def stop_asking(self, steps: Collection[str]) -> None:
        """Take no more requests of these steps from the source."""
        self._closed.update(steps)

    def take(self, *, most_backing_off: int) -> Request | None:
        """The request to execute now: a retry that is ready, or a new one.

        ``None`` if the source has nothing, the rate limits hold it back, or ``most_backing_off`` requests wait for
        another attempt, so that new ones would only pile up behind an outage.
        """
        if self.is_draining or self._is_held_back():
            return None
        request = self.retries.take(self._reserve)
        if request is None and self.retries.backing_off < most_backing_off:
            request = self._take_new()
        if request is not None:
            self._asked[request.number] = request
            if self._rates is not None:
                self._rates.began(_loop_s(), request)
        return request

    async def execute(self, request: Request) -> None:
        """Ask what `take` gave, and hand over its answers, or schedule what follows from its failure.

        :raises BackendUnavailable: nothing has answered for the outage timeout.
        :raises Exception: whatever the backend raises other than request errors.
        """
        started_s = time.monotonic()
        try:
            completions = await self._backend.complete(request)
        except TransientError as error:
            self._settle_rates(request, None if error.kind.startswith("http_") else ())
            await self._retry_later(request, error, started_s)
        except PromptTooLong as error:
            self._settle_rates(request, None)
            self._outage.saw_answer(time.monotonic())
            await self._ask_shorter(request, error)
        except RequestRejected as error:
            self._settle_rates(request, None)
            self._outage.saw_answer(time.monotonic())
            await self._fail(request, Failure("rejected", str(error)))
        else:
            self._settle_rates(request, completions)
            now_s = time.monotonic()
            self._outage.saw_answer(now_s)
            if self._observe is not None:
                self._observe(request.step, now_s - started_s)
            self._forget(request)
            for choice, completion in enumerate(completions):
                await self._answers.put(Answer(request, choice, completion))

    def held_back(self) -> tuple[str | None, float]:
        """See `RateLimits.held`."""
        return (None, 0.0) if self._rates is None else self._rates.held(_loop_s())

    def drain(self) -> None:
        """Begin nothing more, and give back the requests that wait for another attempt."""
        self.is_draining = True
        if self._rates_timer is not None:
            self._rates_timer.cancel()
            self._rates_timer = None
        for request in self.retries.clear():
            self._drop(request)

    def drop_asked(self) -> None:
        """Give back the requests whose execution was cancelled."""
        for request in list(self._asked.values()):
            self._drop(request)

    def _take_new(self) -> Request | None:
        request = self._source.next()
        if request is not None and request.step in self._closed:
            self._source.give_back(request)
            request = None
        self.asked_for_nothing = request is None
        return request

    def _reserve(self, request: Request) -> bool:
        return self._capacity is None or self._capacity.reserve(request)

    def _is_held_back(self) -> bool:
        """Whether the rate limits hold the next request back. Then a timer calls ``ready`` when it may begin."""
        if self._rates is None:
            return False
        loop = asyncio.get_running_loop()
        if (wait_s := self._rates.wait_s(loop.time())) <= 0:
            return False
        if self._rates_timer is None:
            self._rates_timer = loop.call_later(wait_s, self._release)
        return True

    def _release(self) -> None:
        self._rates_timer = None
        self._ready()

    def _settle_rates(self, request: Request, completions: tuple[Completion, ...] | None) -> None:
        if self._rates is not None:
            self._rates.ended(_loop_s(), request, completions)

    async def _retry_later(self, request: Request, error: TransientError, started_s: float) -> None:
        self._outage.saw_fault(error, time.monotonic())
        tries = self.retries.count(request, error, started_s)
        if tries is not None:
            await self._fail(request, Failure(error.kind, f"after {tries} attempts: {error}"))
        elif self.is_draining:
            self._drop(request)
        else:
            del self._asked[request.number]
            self.retries.back_off(request, error)
            if self._capacity is not None:
                self._capacity.backs_off(request)

    async def _ask_shorter(self, request: Request, error: PromptTooLong) -> None:
        shorter = self._source.shrink(request)
        if shorter is None:
            # The same prompt is too long again, so nothing is gained by another request about its subject.
            await self._fail(request, Failure("prompt_too_long", str(error), settles=bool(request.subjects)))
        elif self.is_draining:
            self._drop(request)
        else:
            del self._asked[request.number]
            self.retries.add(shorter)

    async def _fail(self, request: Request, failure: Failure) -> None:
        self._forget(request)
        await self._answers.put(Answer(request, 0, failure))

    def _forget(self, request: Request) -> None:
        self._asked.pop(request.number, None)
        self.retries.forget(request)

    def _drop(self, request: Request) -> None:
        self._forget(request)
        self._source.give_back(request)


@dataclass(slots=True)
class _Attempts:
    last_s: float  # when the attempt before this one began
    tries: int = 0
    counted: int = 0  # those where a server was alive


class Retries:
    """The requests that are to be asked again.

    ``outage`` tells which attempts count. ``ready`` is called when a request's pause is over.
    """

    def __init__(self, limits: Limits, outage: OutageWatch, jitter: random.Random, ready: Callable[[], None]) -> None:
        self._limits = limits
        self._outage = outage
        self._jitter = jitter
        self._on_ready = ready
        self._attempts: dict[int, _Attempts] = {}  # by request number, as the next one
        self._backing_off: dict[int, tuple[Request, asyncio.TimerHandle]] = {}
        self._ready: dict[str, deque[tuple[int, Request]]] = {}  # by role, in order; never empty
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
        """Count an attempt that failed. Return how many there were if that was the last one allowed, else ``None``."""
        attempts = self._attempts.setdefault(request.number, _Attempts(started_s))
        attempts.tries += 1
        attempts.counted += self._outage.blames_request(error, attempts.last_s, time.monotonic())
        attempts.last_s = started_s
        return attempts.tries if attempts.counted >= self._limits.max_attempts else None

    def back_off(self, request: Request, error: TransientError) -> None:
        """Ask a request again after a pause. Its failed attempt must have been counted."""
        pause_s = self.pause_s(self._attempts[request.number].tries, error)
        timer = asyncio.get_running_loop().call_later(pause_s, self._end_pause, request)
        self._backing_off[request.number] = (request, timer)

    def pause_s(self, tries: int, error: TransientError) -> float:
        """Seconds to wait after ``tries`` attempts, the last of which ended with ``error``."""
        cap_s = self._limits.backoff_cap_s if error.reached_server else self._limits.reconnect_cap_s
        ceiling_s = min(cap_s, self._limits.backoff_base_s * 2.0 ** min(tries - 1, 16))
        pause_s = self._jitter.uniform(0.1 * ceiling_s, ceiling_s)
        if error.retry_after_s is not None:
            pause_s = max(pause_s, min(error.retry_after_s, self._limits.retry_after_cap_s))
        return pause_s

    def _end_pause(self, request: Request) -> None:
        del self._backing_off[request.number]
        self.add(request)
        self._on_ready()

    def add(self, request: Request) -> None:
        """Ask a request again as soon as there is a slot and capacity."""
        self._arrivals += 1
        self._ready.setdefault(request.server_role, deque()).append((self._arrivals, request))

    def take(self, reserve: Callable[[Request], bool]) -> Request | None:
        """The request that has been ready longest of those for which capacity could be reserved."""
        for _, role in sorted((queue[0][0], role) for role, queue in self._ready.items()):
            queue = self._ready[role]
            request = queue[0][1]
            if reserve(request):
                queue.popleft()
                if not queue:
                    del self._ready[role]
                return request
        return None

    def forget(self, request: Request) -> None:
        """Drop the attempts of a request that was answered or has failed permanently."""
        self._attempts.pop(request.number, None)

    def clear(self) -> list[Request]:
        """Every request that waits. None is asked again."""
        dropped = [request for request, _ in self._backing_off.values()]
        for _, timer in self._backing_off.values():
            timer.cancel()
        dropped += [request for _, request in sorted(one for queue in self._ready.values() for one in queue)]
        self._backing_off.clear()
        self._ready.clear()
        return dropped


class OutageWatch:
    """Sees every answer and every fault. Nothing but faults for ``timeout_s`` is an outage.

    Every method is given the time, in seconds of any one monotonic clock.
    """

    def __init__(self, timeout_s: float, alive_s: float = ALIVE_S) -> None:
        self.faults: Counter[str] = Counter()
        """By `TransientError.kind`, since the start."""
        self._timeout_s = timeout_s
        self._alive_s = alive_s
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
            self.beat(now_s)  # a fault that a sleep caused may be seen before the beat that is late
        self.faults[error.kind] += 1
        if self.faults[error.kind] == 1:
            log.warning("first fault of its kind, retried: %s", error)
        if error.kind == "http_429":
            self._failing_since_s = None
            return
        if self._failing_since_s is None:
            self._failing_since_s, self._patience_s = now_s, 0.0
        self._patience_s = max(self._patience_s, min(error.retry_after_s or 0.0, _LONGEST_PATIENCE_S))
        if (failing_s := now_s - self._failing_since_s) >= self._timeout_s + self._patience_s:
            raise BackendUnavailable(
                f"no server has given a good answer for {failing_s:.0f} s (last fault: {error}); "
                f"the run is kept: bring a server back and run the same command again"
            )

    def blames_request(self, error: TransientError, last_attempt_s: float, now_s: float) -> bool:
        """Whether servers work, so that the attempt counts. ``last_attempt_s`` is when the one before it began."""
        if error.kind == "all_down":  # no server was asked; those of other roles may well answer meanwhile
            return False
        if error.reached_server:
            return now_s - self._last_answer_s < self._alive_s
        return self._last_answer_s > last_attempt_s

    def beat(self, now_s: float) -> None:
        """Notice by a late beat that this process did not run."""
        asleep_s = now_s - self._beat_s - BEAT_S
        if self._failing_since_s is not None and asleep_s > BEAT_S:
            self._failing_since_s += asleep_s
        self._beat_s = now_s


class AnswerQueue:
    """Answers in order of arrival, taken in batches of at most ``max_batch``.

    At most twice ``in_flight`` answers wait. Then `put` waits, so a slow consumer slows the asking. A step that must
    stop asks at most five times ``in_flight`` too many: those in flight, those that wait, and those of the last batch.
    """

    def __init__(self, *, in_flight: int, max_batch: int) -> None:
        self.unjudged = 0
        """Answers that were put and not yet reported as `judged`."""
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[Answer | None] = asyncio.Queue(min(2 * in_flight, _MAX_QUEUED))
        self._closed = False

    @property
    def queued(self) -> int:
        """Answers that wait to be taken."""
        return self._waiting.qsize()

    async def put(self, answer: Answer) -> None:
        """Add an answer. Waits while the queue is full."""
        self.unjudged += 1
        await self._waiting.put(answer)

    async def take(self) -> list[Answer]:
        """The next answers, at least one. None once `close` was called."""
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


def _loop_s() -> float:
    """The time of the loop's timers, which let requests through that the rate limits held back."""
    return asyncio.get_running_loop().time()
