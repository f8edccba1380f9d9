"""Keeps a number of completions in flight and yields the answers, in order of arrival.

A `Source` says what to ask. The consumer of `Scheduler.answers` takes the answers. Guarantees:

- A request begins only while fewer than ``concurrency`` completions are in flight (a request asks for one or a few). It
  begins at once then, if the source has work and the rate limits allow it. `set_concurrency` changes the number at any
  time. Requests in flight above it finish.
- A failed request waits for its next attempt without holding a slot. The number of waiting requests is bounded, so an
  outage does not pile up work (`fastgen.engine.requests`).
- Every request that was taken from the source ends as answers that are yielded, or is given back to the source.
- Answers come in batches, one batch at a time. The queue is bounded, so a slow consumer slows the asking.
- With a concurrency of 1, a request begins after the consumer has finished the answers of the last one, so such a run
  can be repeated exactly.
- The first `stop` asks nothing more and drains the requests in flight. Closing the generator cancels them, and so does
  an error, even while the consumer is busy.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass

from fastgen.engine.backend import Backend
from fastgen.engine.rate_limits import RateLimits
from fastgen.engine.requests import BEAT_S, AnswerQueue, Capacity, Limits, OutageWatch, RequestExecutor, Source
from fastgen.types import Answer, Request


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """The state at one moment. Counts are since the start.

    ``in_flight`` are completions asked for and not yet handed over, ``concurrency`` how many may be. ``rate_limit`` is
    the flag of the rate limit that holds requests back now, ``None`` while none does. ``rate_limited_s`` is how many
    seconds they were held back so far. ``asked_for_nothing``: the source had no work when it was last asked.
    """

    in_flight: int
    waiting_retries: int
    queued_answers: int
    faults: dict[str, int]
    concurrency: int = 0
    rate_limit: str | None = None
    rate_limited_s: float = 0.0
    asked_for_nothing: bool = False


class Scheduler:
    """Runs one source against one backend. See the module's docstring. Use once.

    ``jitter`` draws the pauses before other attempts. Without ``capacity`` every retry may begin when a slot is free.
    ``observe`` gets the step of every good answer and the seconds that its attempt took.
    """

    def __init__(
        self,
        source: Source,
        backend: Backend,
        limits: Limits,
        *,
        jitter: random.Random,
        rates: RateLimits | None = None,
        capacity: Capacity | None = None,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        self._limits = limits
        self._outage = OutageWatch(limits.outage_timeout_s, limits.alive_s)
        self._answers = AnswerQueue(in_flight=limits.most, max_batch=limits.max_batch)
        self._executor = RequestExecutor(
            *(source, backend, self._answers, limits, self._outage),
            jitter=jitter,
            ready=self._advance,
            rates=rates,
            capacity=capacity,
            observe=observe,
        )
        self._concurrency = limits.concurrency
        self._highest = limits.concurrency  # so far: what an outage may leave waiting for another attempt
        self._in_flight = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._drain_ends: asyncio.TimerHandle | None = None
        self._is_abandoned = False

    def statistics(self) -> SchedulerStatistics:
        """Where the requests are now."""
        rate_limit, rate_limited_s = self._executor.held_back()
        return SchedulerStatistics(
            in_flight=self._in_flight,
            waiting_retries=self._executor.retries.waiting,
            queued_answers=self._answers.queued,
            faults=dict(self._outage.faults),
            concurrency=self._concurrency,
            rate_limit=rate_limit,
            rate_limited_s=rate_limited_s,
            asked_for_nothing=self._executor.asked_for_nothing,
        )

    def set_concurrency(self, concurrency: int) -> None:
        """Keep ``concurrency`` completions in flight from now on, within 1 and the most that `Limits` allows."""
        before, self._concurrency = self._concurrency, max(1, min(concurrency, self._limits.most))
        self._highest = max(self._highest, self._concurrency)
        if self._concurrency > before and self._is_running:
            self._fill()

    def stop_asking(self, steps: Collection[str]) -> None:
        """Begin no more requests of these steps; `answers` ends when those that are on their way are finished.

        Retries are still carried out, and so are requests of other steps that the source gives.
        """
        self._executor.stop_asking(steps)

    async def answers(self) -> AsyncGenerator[list[Answer], None]:
        """Ask, and yield the answers in batches, in order of arrival.

        Ends when nothing is left to ask, or when `stop` was called and the requests in flight have drained. Close the
        generator (``contextlib.aclosing``) to stop at once: requests in flight are cancelled and given back.

        :raises BackendUnavailable: no server has answered for the outage timeout.
        :raises Exception: any error of the backend that is not about one request.
        """
        self._ended = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(lambda _: self._abandon())
        self._beat()
        try:
            self._advance()
            while batch := await self._answers.take():
                yield batch
                self._answers.judged(len(batch))
                if self._is_running:
                    self._advance()
            self._ended.result()
        finally:
            self._abandon()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._executor.drop_asked()
            if self._is_running:
                self._ended.cancel()
            else:
                self._ended.exception()  # it may have been set after the last batch was taken: it is retrieved here

    def stop(self) -> None:
        """Ask nothing more; `answers` ends when the requests in flight are answered, or after the drain timeout."""
        if self._executor.is_draining:
            return
        self._executor.drain()
        if self._ended is None:  # `answers` will find nothing to do
            return
        self._drain_ends = asyncio.get_running_loop().call_later(self._limits.drain_timeout_s, self._finish)
        self._check_idle()

    # -- slots ---------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Begin what may begin now, or end if nothing is left."""
        self._fill()
        self._check_idle()

    def _fill(self) -> None:
        """Start a worker for every request that may begin now."""
        while (request := self._take()) is not None:
            worker = asyncio.create_task(self._worker(request))
            self._workers.add(worker)
            worker.add_done_callback(self._worker_ended)

    def _take(self) -> Request | None:
        if self._in_flight >= self._concurrency:
            return None
        request = self._executor.take(most_backing_off=2 * self._highest)
        if request is not None:
            self._in_flight += request.sequences
        return request

    async def _worker(self, request: Request | None) -> None:
        """Execute a request, then take the next, until there is none."""
        while request is not None:
            try:
                await self._executor.execute(request)
            finally:
                self._in_flight -= request.sequences
            # With a concurrency of 1 the next request waits for the commit of the last.
            request = self._take() if self._concurrency > 1 else None
            if request is not None:  # a request of several completions has left room for more than one other
                self._fill()

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and worker.exception() is not None:
            self._end_with(worker)
        else:
            if not self._answers.unjudged:  # no commit is coming that would fill the slot
                self._fill()
            self._check_idle()

    # -- ending --------------------------------------------------------------------------------------------------------

    @property
    def _is_running(self) -> bool:
        return self._ended is not None and not self._ended.done()

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._outage.beat(time.monotonic())
        if self._is_running:
            self._beating = loop.call_later(BEAT_S, self._beat)

    def _check_idle(self) -> None:
        """End when nothing is left that could bring more work."""
        if not (self._workers or self._answers.unjudged or self._executor.will_be_ready):
            self._finish()

    def _finish(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _end_with(self, task: asyncio.Task[None]) -> None:
        if self._ended is not None and not self._ended.done() and (error := task.exception()) is not None:
            self._ended.set_exception(error)

    def _abandon(self) -> None:
        """Begin nothing more, cancel the requests in flight, and hand over no more answers; once."""
        if self._is_abandoned:
            return
        self._is_abandoned = True
        self._executor.drain()
        for timer in (self._beating, self._drain_ends):
            if timer is not None:
                timer.cancel()
        for worker in self._workers:
            worker.cancel()
        self._answers.close()
