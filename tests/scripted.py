"""A scripted source, backend and sink, for tests of what is between them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastgen.engine.backend import Backend, BackendStatistics
from fastgen.engine.requests import Limits, Source
from fastgen.engine.scheduler import Scheduler
from fastgen.types import Answer, Completion, Request, Sampling

Behaviour = Callable[[Request, int], Awaitable[tuple[Completion, ...]]]
OK = (Completion("ok", "stop"),)
QUICK = Limits(concurrency=4, backoff_base_s=0.0005, backoff_cap_s=0.001, reconnect_cap_s=0.001, drain_timeout_s=30.0)


def request(number: int, n: int = 1) -> Request:
    return Request(number, "instruction", f"prompt {number}", Sampling(0.7, 0.5, 16), n=n)


@dataclass
class ListSource:
    """Hands out a list of requests; work that was given back is handed out again."""

    requests: list[Request]
    given_back: list[Request] = field(default_factory=list)
    shorter: bool = False

    def next(self) -> Request | None:
        return self.requests.pop(0) if self.requests else None

    def give_back(self, request: Request) -> None:
        self.given_back.append(request)

    def shrink(self, request: Request) -> Request | None:
        return replace(request, prompt="short") if self.shorter and request.prompt != "short" else None


class ScriptedBackend:
    """Answers as told; counts what is in flight at once and every attempt."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.attempts: dict[int, int] = {}
        self.in_flight = self.most_in_flight = 0

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        attempt = self.attempts[request.number] = self.attempts.get(request.number, 0) + 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            return await self.behaviour(request, attempt)
        finally:
            self.in_flight -= 1

    async def close(self) -> None: ...

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(())


class Sink:
    """Collects answers; done after ``want`` of them; optionally makes more work for the source."""

    def __init__(self, want: int = 10**9, on_batch: Callable[[Sequence[Answer]], None] | None = None) -> None:
        self.answers: list[Answer] = []
        self.batches: list[int] = []
        self._want = want
        self._on_batch = on_batch

    async def __call__(self, answers: Sequence[Answer]) -> bool:
        await asyncio.sleep(0)
        self.answers += answers
        self.batches.append(len(answers))
        if self._on_batch:
            self._on_batch(answers)
        return len(self.answers) >= self._want


class SinkScheduler(Scheduler):
    """A scheduler whose answers go to a function; `run` ends when that returns true."""

    def __init__(
        self,
        source: Source,
        backend: Backend,
        sink: Callable[[Sequence[Answer]], Awaitable[bool]],
        *limits: Limits,
        **more: Any,
    ) -> None:
        super().__init__(source, backend, *limits, **more)
        self._sink = sink

    async def run(self) -> None:
        async with aclosing(self.answers()) as batches:
            async for answers in batches:
                if await self._sink(answers):
                    break


def make(
    behaviour: Behaviour, source: ListSource, sink: Sink, limits: Limits = QUICK
) -> tuple[SinkScheduler, ScriptedBackend]:
    backend = ScriptedBackend(behaviour)
    return SinkScheduler(source, backend, sink, limits, jitter=random.Random(1)), backend


async def answer_ok(_request: Request, _attempt: int) -> tuple[Completion, ...]:
    return OK


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(bounded())


def at(stage: str, number: int) -> Request:
    return replace(request(number), step=stage)


class Rooms:
    """So many places for each stage's retries; a place is free again when its request has ended."""

    def __init__(self, **places: int) -> None:
        self.places = dict(places)
        self.taken: list[int] = []

    def reserve(self, request: Request) -> bool:
        if not self.places[request.step]:
            return False
        self.places[request.step] -= 1
        self.taken.append(request.number)
        return True

    def backs_off(self, request: Request) -> None: ...
