"""The way from the workers that ask to the one sink that takes answers: bounded, in order of arrival, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from fastgen.records import Answer

Sink = Callable[[Sequence[Answer]], Awaitable[bool]]
"""Takes a batch of answers; returns true when the work is done and nothing more is wanted."""

_MIN_QUEUED, _MAX_QUEUED = 256, 8192


class AnswerQueue:
    """At most ``max_batch`` answers at a time reach the sink; twice ``in_flight`` may wait for it, about."""

    def __init__(self, sink: Sink, *, in_flight: int, max_batch: int) -> None:
        self.unjudged = 0
        """Answers that were put and are not through the sink, those that wait to be put included."""
        self.in_sink = False
        """Whether the sink is in the middle of a batch."""
        self._sink = sink
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[Answer] = asyncio.Queue(min(max(2 * in_flight, _MIN_QUEUED), _MAX_QUEUED))

    @property
    def queued(self) -> int:
        """Answers that wait for the sink."""
        return self._waiting.qsize()

    async def put(self, answer: Answer) -> None:
        """Hand an answer over; waits while the queue is full."""
        self.unjudged += 1
        await self._waiting.put(answer)

    async def empty_into_sink(self, go_on: Callable[[], bool]) -> None:
        """Be the one consumer; returns when the sink wants no more or ``go_on``, asked after every batch, says no."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._max_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            self.in_sink = True
            done = await self._sink(batch)
            self.in_sink = False
            self.unjudged -= len(batch)
            if done or not go_on():
                return
