"""Keeps a number of completions in flight and hands what comes back to one committer, in order of arrival.

Knows nothing of Self-Instruct: a `Source` says what to ask, a `Sink` takes the answers. Guarantees:

- a request is begun only while fewer than ``concurrency`` completions are in flight (a request asks for one or a few),
  and at once then, if the source has work and the rate limits allow; `set_concurrency` changes the number at any time,
  and what is in flight above it finishes;
- a failed request waits for its next attempt without holding a slot (`fastgen.engine.requests`), and requests
  waiting so are bounded, so an outage (`fastgen.engine.requests`) does not pile up work;
- every request that was taken ends as answers given to the sink, or is given back to the source
  (`fastgen.engine.requests`);
- answers reach the sink in batches, one batch at a time; the queue to it is bounded, so a slow sink slows the asking;
- the first `stop` asks nothing more and drains what is in flight; cancelling `run` drops it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from fastgen.engine.backend import Backend
from fastgen.engine.rate_limits import RateLimits
from fastgen.engine.requests import BEAT_S, AnswerQueue, Delivery, Limits, OutageWatch, Room, Sink, Source
from fastgen.types import Request


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
    """Runs one source against one backend; see the module's docstring. Use once.

    ``room``: see `Room`; without one there always is some. ``jitter`` draws the pauses before other attempts.
    """

    def __init__(
        self,
        source: Source,
        backend: Backend,
        sink: Sink,
        limits: Limits,
        *,
        jitter: random.Random,
        rates: RateLimits | None = None,
        room: Room | None = None,
    ) -> None:
        self._limits = limits
        self._outage = OutageWatch(limits.outage_timeout_s)
        self._answers = AnswerQueue(sink, in_flight=limits.most, max_batch=limits.max_batch)
        self._delivery = Delivery(
            *(source, backend, self._answers, limits, self._outage),
            jitter=jitter,
            rates=rates,
            room=room,
            ready=self._go_on,
        )
        self._concurrency = limits.concurrency
        self._highest = limits.concurrency  # so far: what an outage may leave waiting for another attempt
        self._in_flight = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._drain_ends: asyncio.TimerHandle | None = None

    def statistics(self) -> SchedulerStatistics:
        """Where the requests are now."""
        rate = self._delivery.rates.statistics()
        return SchedulerStatistics(
            in_flight=self._in_flight,
            waiting_retries=self._delivery.retries.waiting,
            queued_answers=self._answers.queued,
            faults=dict(self._outage.faults),
            concurrency=self._concurrency,
            rate_limit=rate.binding,
            rate_limited_s=rate.held_s,
        )

    def set_concurrency(self, concurrency: int) -> None:
        """Have so many completions in flight from now on, within 1 and the most that `Limits` allows."""
        before, self._concurrency = self._concurrency, max(1, min(concurrency, self._limits.most))
        self._highest = max(self._highest, self._concurrency)
        if self._concurrency > before and self._runs:
            self._fill()

    async def run(self) -> None:
        """Ask until the sink is satisfied, nothing is left to ask, or `stop` was called and everything is drained.

        :raises BackendUnavailable: nothing has answered for the outage timeout.
        :raises Exception: whatever the sink or the backend raises other than request errors.
        """
        self._ended = asyncio.get_running_loop().create_future()
        committer = asyncio.create_task(self._answers.empty_into_sink(self._goes_on))
        committer.add_done_callback(self._end_with)
        self._beat()
        try:
            self._go_on()
            await self._ended
        finally:
            await self._abandon(committer)
        if not committer.cancelled() and (error := committer.exception()) is not None:
            raise error  # of the batch that was let through

    def stop(self) -> None:
        """Ask nothing more; `run` returns when what is in flight is committed, or after the drain timeout."""
        if self._delivery.is_draining:
            return
        self._delivery.drain()
        if self._ended is None:  # `run` will find nothing to do
            return
        self._drain_ends = asyncio.get_running_loop().call_later(self._limits.drain_timeout_s, self._finish)
        self._check_idle()

    # -- slots ---------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Something has changed: begin what may begin now, or end where nothing is left."""
        self._fill()
        self._check_idle()

    def _goes_on(self) -> bool:
        """After a commit: whether more of them are wanted."""
        if self._runs:
            self._go_on()
            return True
        return False

    def _fill(self) -> None:
        """Start a worker for every request that may begin now."""
        while (request := self._take()) is not None:
            worker = asyncio.create_task(self._work(request))
            self._workers.add(worker)
            worker.add_done_callback(self._worker_ended)

    def _take(self) -> Request | None:
        if self._in_flight >= self._concurrency:
            return None
        request = self._delivery.take(most_backing_off=2 * self._highest)
        if request is not None:
            self._in_flight += request.sequences
        return request

    async def _work(self, request: Request | None) -> None:
        """Carry out a request, then pull the next; ends when there is none."""
        while request is not None:
            try:
                await self._delivery.carry_out(request)
            finally:
                self._in_flight -= request.sequences
            # One at a time, the next request waits for the commit of the last, so that such a run can be repeated.
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
    def _runs(self) -> bool:
        return self._ended is not None and not self._ended.done()

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._outage.beat(loop.time())
        if self._runs:
            self._beating = loop.call_later(BEAT_S, self._beat)

    def _check_idle(self) -> None:
        """End when nothing is left that could bring more work."""
        if not (self._workers or self._answers.unjudged or self._delivery.awaits_more):
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
        self._delivery.drain()
        for timer in (self._beating, self._drain_ends):
            if timer is not None:
                timer.cancel()
        for worker in self._workers:
            worker.cancel()
        if not self._answers.in_sink:
            committer.cancel()
        await asyncio.gather(*self._workers, committer, return_exceptions=True)
        self._delivery.drop_asked()
