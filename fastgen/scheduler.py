"""Keeps a number of completions in flight and hands what comes back to one committer, in order of arrival.

Knows nothing of Self-Instruct: a `Source` says what to ask, a sink takes the answers. Guarantees:

- a request is begun only while fewer than ``concurrency`` completions are in flight (a request asks for one or a few),
  and at once then, if the source has work and the rate limits allow; `set_concurrency` changes the number at any time,
  and what is in flight above it finishes;
- a failed request waits for its next attempt without holding a slot (full jitter, exponential; the server's Retry-After
  is obeyed), and requests waiting so are bounded, so an outage does not pile up work;
- every request that was taken ends as answers given to the sink, or is given back to the source;
- answers reach the sink in batches, one batch at a time; the queue to it is bounded, so a slow sink slows the asking;
- the first `stop` asks nothing more and drains what is in flight; cancelling `run` drops it.

Attempts count only where a server works (it gave others a good answer lately), so that a storm of errors costs time
and blames no request; when no good answer has come for the outage timeout, `BackendUnavailable` ends the run. A server
that asks for patience (429, Retry-After) gets it. Back-off after AWS's "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastgen.backends import Backend
from fastgen.errors import BackendUnavailable, PromptTooLong, RequestRejected, TransientError
from fastgen.rate_limits import RateLimits, RateStatistics
from fastgen.records import Answer, Completion, Failure, Request

log = logging.getLogger(__name__)
_ALIVE_S = 60.0  # servers work if a good answer came within this: then a fault counts against its request
_BEAT_S = 1.0
_MIN_QUEUED_ANSWERS, _MAX_QUEUED_ANSWERS = 256, 8192


class Source(Protocol):
    """Where requests come from. All methods are quick and synchronous."""

    def next(self) -> Request | None:
        """The next request; ``None`` while only answers on their way can create more."""

    def give_back(self, request: Request) -> None:
        """A request taken from `next` will not be answered."""

    def shrink(self, request: Request) -> Request | None:
        """A shorter form of a request whose prompt was too long, if there is one."""


Sink = Callable[[Sequence[Answer]], Awaitable[bool]]
"""Takes a batch of answers; returns true when the work is done and nothing more is wanted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try. ``concurrency`` is where it begins, ``max_concurrency`` what `set_concurrency` never exceeds."""

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


@dataclass(slots=True)
class _Attempts:
    last_s: float  # when the attempt before this one began
    tries: int = 0
    counted: int = 0  # those where a server was alive


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A snapshot; counts are since the start.

    ``in_flight`` are completions asked for and not yet handed over, ``concurrency`` how many may be. ``rate_limit`` is
    the flag of the rate limit that holds requests back now, ``None`` while none does; ``rate_limited_s`` is how long
    they were held so far.
    """

    in_flight: int
    waiting_retries: int
    queued_answers: int
    faults: dict[str, int]
    concurrency: int = 0
    rate_limit: str | None = None
    rate_limited_s: float = 0.0


class Scheduler:
    """Runs one source against one backend; see the module's docstring. Use once."""

    def __init__(
        self,
        source: Source,
        backend: Backend,
        sink: Sink,
        limits: Limits,
        *,
        jitter: random.Random,
        rates: RateLimits | None = None,
    ) -> None:
        self._source = source
        self._backend = backend
        self._sink = sink
        self._limits = limits
        self._jitter = jitter
        self._rates = rates
        self._rate_timer: asyncio.TimerHandle | None = None
        self._concurrency = limits.concurrency
        self._most = limits.max_concurrency or limits.concurrency
        self._highest = limits.concurrency  # so far: what an outage may leave waiting for another attempt
        self._in_flight = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._asked: dict[int, Request] = {}  # in flight, by number
        self._retries: deque[Request] = deque()
        self._backing_off: dict[int, tuple[Request, asyncio.TimerHandle]] = {}
        self._attempts: dict[int, _Attempts] = {}
        self._faults: Counter[str] = Counter()
        queued = min(max(2 * self._most, _MIN_QUEUED_ANSWERS), _MAX_QUEUED_ANSWERS)
        self._answers: asyncio.Queue[Answer] = asyncio.Queue(maxsize=queued)
        self._last_answer_s = -math.inf  # a good one
        self._failing_since_s: float | None = None
        self._beat_s = math.inf
        self._unjudged = 0
        self._committing = False
        self._stopping = False
        self._ended: asyncio.Future[None] | None = None

    def statistics(self) -> SchedulerStatistics:
        """Where the requests are now."""
        rate = (
            self._rates.statistics(asyncio.get_running_loop().time()) if self._rates is not None else RateStatistics()
        )
        return SchedulerStatistics(
            in_flight=self._in_flight,
            waiting_retries=len(self._retries) + len(self._backing_off),
            queued_answers=self._answers.qsize(),
            faults=dict(self._faults),
            concurrency=self._concurrency,
            rate_limit=rate.binding,
            rate_limited_s=rate.held_s,
        )

    def set_concurrency(self, concurrency: int) -> None:
        """Have so many completions in flight from now on, within 1 and the most that `Limits` allows."""
        before, self._concurrency = self._concurrency, max(1, min(concurrency, self._most))
        self._highest = max(self._highest, self._concurrency)
        if self._concurrency > before and self._ended is not None and not self._ended.done():
            self._fill()

    async def run(self) -> None:
        """Ask until the sink is satisfied, nothing is left to ask, or `stop` was called and everything is drained.

        :raises BackendUnavailable: nothing has answered for the outage timeout.
        :raises Exception: whatever the sink or the backend raises other than request errors.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        committer = asyncio.create_task(self._commit())
        committer.add_done_callback(self._end_with)
        self._beat()
        try:
            self._fill()
            self._check_idle()
            await self._ended
        finally:
            await self._abandon(committer)

    def stop(self) -> None:
        """Ask nothing more; `run` returns when what is in flight is committed, or after the drain timeout."""
        if self._stopping:
            return
        self._stopping = True
        if self._ended is None:  # `run` will find nothing to do
            return
        self._drop_waiting()
        self._forget_rate_timer()
        asyncio.get_running_loop().call_later(self._limits.drain_timeout_s, self._finish)
        self._check_idle()

    # -- asking --------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start a worker for every request that may begin now."""
        while (request := self._take()) is not None:
            worker = asyncio.create_task(self._work(request))
            self._workers.add(worker)
            worker.add_done_callback(self._worker_ended)

    def _take(self) -> Request | None:
        if self._stopping or self._in_flight >= self._concurrency or self._is_held_back():
            return None
        if self._retries:
            request: Request | None = self._retries.popleft()
        elif len(self._backing_off) >= 2 * self._highest:  # an outage must not pile up work
            return None
        else:
            request = self._source.next()
        if request is not None:
            self._begin(request)
        return request

    def _begin(self, request: Request) -> None:
        self._in_flight += request.sequences
        self._asked[request.number] = request
        if self._rates is not None:
            self._rates.began(asyncio.get_running_loop().time(), request)

    def _is_held_back(self) -> bool:
        """Whether the rate limits want it later; then a timer fills the slots."""
        if self._rates is None:
            return False
        loop = asyncio.get_running_loop()
        if (wait_s := self._rates.wait_s(loop.time())) <= 0:
            return False
        if self._rate_timer is None:
            self._rate_timer = loop.call_later(wait_s, self._rate_allows)
        return True

    def _forget_rate_timer(self) -> None:
        if self._rate_timer is not None:
            self._rate_timer.cancel()
            self._rate_timer = None

    def _rate_allows(self) -> None:
        self._rate_timer = None
        self._fill()
        self._check_idle()

    async def _work(self, request: Request | None) -> None:
        """One slot: ask, hand over the answers, pull the next request; ends when there is none."""
        while request is not None:
            try:
                await self._ask(request)
            finally:
                self._in_flight -= request.sequences
            # One at a time, the next request waits for the commit of the last, so that such a run can be repeated.
            request = self._take() if self._concurrency > 1 else None

    async def _ask(self, request: Request) -> None:
        started_s = asyncio.get_running_loop().time()
        try:
            completions = await self._backend.complete(request)
        except TransientError as error:
            self._settle(request, None if error.kind.startswith("http_") else ())
            await self._try_later(request, error, started_s)
        except PromptTooLong as error:
            self._settle(request, None)
            await self._ask_shorter(request, error)
        except RequestRejected as error:
            self._settle(request, None)
            self._saw_answer()
            await self._give_up(request, Failure("rejected", str(error)))
        else:
            self._settle(request, completions)
            self._saw_answer()
            self._forget(request)
            for choice, completion in enumerate(completions):
                await self._hand_over(Answer(request, choice, completion))

    def _settle(self, request: Request, completions: tuple[Completion, ...] | None) -> None:
        if self._rates is not None:
            self._rates.ended(asyncio.get_running_loop().time(), request, completions)

    async def _hand_over(self, answer: Answer) -> None:
        self._unjudged += 1
        await self._answers.put(answer)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and worker.exception() is not None:
            self._end_with(worker)
        else:
            if not self._unjudged:  # no commit is coming that would fill the slot
                self._fill()
            self._check_idle()

    def _saw_answer(self) -> None:
        self._last_answer_s = asyncio.get_running_loop().time()
        self._failing_since_s = None

    # -- failing -------------------------------------------------------------------------------------------------------

    async def _ask_shorter(self, request: Request, error: PromptTooLong) -> None:
        self._saw_answer()
        shorter = self._source.shrink(request)
        if shorter is None:
            await self._give_up(request, Failure("prompt_too_long", str(error)))
        elif self._stopping:
            self._drop(request)
        else:
            del self._asked[request.number]
            self._retries.append(shorter)

    async def _give_up(self, request: Request, failure: Failure) -> None:
        self._forget(request)
        await self._hand_over(Answer(request, 0, failure))

    async def _try_later(self, request: Request, error: TransientError, started_s: float) -> None:
        self._note_fault(error)
        attempts = self._attempts.setdefault(request.number, _Attempts(started_s))
        attempts.tries += 1
        attempts.counted += self._is_its_fault(error, attempts.last_s)
        attempts.last_s = started_s
        if attempts.counted >= self._limits.max_attempts:
            await self._give_up(request, Failure(error.kind, f"after {attempts.tries} attempts: {error}"))
        elif self._stopping:
            self._drop(request)
        else:
            del self._asked[request.number]
            timer = asyncio.get_running_loop().call_later(self._delay_s(attempts.tries, error), self._back, request)
            self._backing_off[request.number] = (request, timer)

    def _note_fault(self, error: TransientError) -> None:
        self._faults[error.kind] += 1
        if self._faults[error.kind] == 1:
            log.warning("first fault of its kind, retried: %s", error)
        if error.kind == "http_429" or error.retry_after_s is not None:
            self._failing_since_s = None
            return
        now_s = asyncio.get_running_loop().time()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        elif now_s - self._failing_since_s >= self._limits.outage_timeout_s:
            raise BackendUnavailable(
                f"no server has given a good answer for {self._limits.outage_timeout_s:.0f} s (last fault: {error}); "
                f"the run is kept: bring a server back and run the same command again"
            )

    def _is_its_fault(self, error: TransientError, last_attempt_s: float) -> bool:
        """Whether servers work, so that the attempt counts: an outage must not use up the attempts of all requests."""
        if error.kind == "all_down":  # nobody was asked; other stages' servers may well answer meanwhile
            return False
        if error.reached_server:
            return asyncio.get_running_loop().time() - self._last_answer_s < _ALIVE_S
        return self._last_answer_s > last_attempt_s

    def _beat(self) -> None:
        """Keep time that this process did not run (Ctrl-Z, a machine asleep) out of the outage timeout."""
        loop = asyncio.get_running_loop()
        asleep_s = loop.time() - self._beat_s - _BEAT_S
        if self._failing_since_s is not None and asleep_s > _BEAT_S:
            self._failing_since_s += asleep_s
        self._beat_s = loop.time()
        if self._ended is not None and not self._ended.done():
            loop.call_later(_BEAT_S, self._beat)

    def _delay_s(self, tries: int, error: TransientError) -> float:
        cap_s = self._limits.backoff_cap_s if error.reached_server else self._limits.reconnect_cap_s
        ceiling_s = min(cap_s, self._limits.backoff_base_s * 2.0 ** min(tries - 1, 16))
        delay_s = self._jitter.uniform(0.1 * ceiling_s, ceiling_s)
        if error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, self._limits.retry_after_cap_s))
        return delay_s

    def _back(self, request: Request) -> None:
        del self._backing_off[request.number]
        self._retries.append(request)
        self._fill()

    def _forget(self, request: Request) -> None:
        self._asked.pop(request.number, None)
        self._attempts.pop(request.number, None)

    def _drop(self, request: Request) -> None:
        self._forget(request)
        self._source.give_back(request)

    def _drop_waiting(self) -> None:
        for request, timer in self._backing_off.values():
            timer.cancel()
            self._drop(request)
        for request in self._retries:
            self._drop(request)
        self._backing_off.clear()
        self._retries.clear()

    # -- committing and ending -----------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        """The one consumer of answers; returns when the sink wants no more."""
        while True:
            batch = [await self._answers.get()]
            while len(batch) < self._limits.max_batch and not self._answers.empty():
                batch.append(self._answers.get_nowait())
            self._committing = True
            done = await self._sink(batch)
            self._committing = False
            self._unjudged -= len(batch)
            if done or (self._ended is not None and self._ended.done()):
                return
            self._fill()
            self._check_idle()

    def _check_idle(self) -> None:
        """End when nothing is left that could bring more work."""
        if not (self._workers or self._unjudged or self._backing_off or self._retries or self._rate_timer):
            self._finish()

    def _finish(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _end_with(self, task: asyncio.Task[None]) -> None:
        if self._ended is None or self._ended.done() or task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    async def _abandon(self, committer: asyncio.Task[None]) -> None:
        """Cancel what is still asked; a batch that the sink is in the middle of is let through."""
        self._stopping = True
        self._forget_rate_timer()
        for worker in self._workers:
            worker.cancel()
        if not self._committing:
            committer.cancel()
        await asyncio.gather(*self._workers, committer, return_exceptions=True)
        self._drop_waiting()
        for request in list(self._asked.values()):
            self._drop(request)
