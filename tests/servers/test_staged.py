"""Servers by stage: which server is asked, one list of endpoints, no slot held for servers that are full."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest

from fastgen.engine.requests import Limits
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.router import RoomAwareSource, Router
from fastgen.simulator.engine import SlotEngine
from fastgen.simulator.faults import Fault, FaultPlan
from fastgen.simulator.server import FaultServer
from fastgen.types import Answer, Failure, Request, Sampling
from tests.scripted import SinkScheduler

GUARD_S = 20.0
SAMPLING = Sampling(0.7, 0.5, 64)
STAGES = ("instance", "classification", "instruction")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, GUARD_S))


def request(number: int, stage: str) -> Request:
    return Request(number, stage, f"Tasks:\n1. Say hi to friend {number}\n2.", SAMPLING)


def backends(*servers: FaultServer) -> list[OpenAIBackend]:
    return [OpenAIBackend(Endpoint(server.base_url, server.model)) for server in servers]


@contextlib.asynccontextmanager
async def staged(main: Sequence[FaultServer], own: Sequence[FaultServer]) -> AsyncIterator[Router]:
    """A backend over servers that listen, those of the instance stage by themselves."""
    async with contextlib.AsyncExitStack() as stack:
        for server in (*main, *own):
            await stack.enter_async_context(server)
        backend = Router(backends(*main), {"instance": backends(*own)}, first_probe_s=0.005)
        stack.push_async_callback(backend.close)
        yield backend


def hanging() -> FaultServer:
    return FaultServer(engine=SlotEngine(latency_s=3600.0))


class Endless:
    """Always has something to ask of every stage, instances first; remembers what was given back."""

    def __init__(self) -> None:
        self.taken = 0
        self.given_back: list[int] = []

    def next(self, is_full: Callable[[str], bool] = lambda _: False) -> Request | None:
        stages = [stage for stage in STAGES if not is_full(stage)]
        if not stages:
            return None
        self.taken += 1
        return request(self.taken, stages[0])

    def give_back(self, request: Request) -> None:
        self.given_back.append(request.number)

    def shrink(self, request: Request) -> Request | None:
        return None


def test_each_stage_is_asked_of_its_own_servers() -> None:
    async def test() -> None:
        main, own = FaultServer(), FaultServer(model="test-model-base")
        async with staged([main], [own]) as backend:
            for number, stage in enumerate(("instruction", "instance", "classification", "instance")):
                await backend.complete(request(number, stage))
            assert (main.counters.requests, own.counters.requests) == (2, 2)

    run(test())


def test_all_endpoints_are_one_list_for_figures_and_limits() -> None:
    async def test() -> None:
        servers = [FaultServer() for _ in range(3)]
        async with staged(servers[:2], servers[2:]) as backend:
            urls = [server.base_url for server in servers]
            assert [one.endpoint.display_url for one in backend.backends] == urls
            assert [one.url for one in backend.statistics().endpoints] == urls
            await backend.complete(request(1, "instance"))
            tokens = [seen.generation_tokens if seen else None for seen in await backend.metrics()]
            assert tokens == [0, 0, servers[2].counters.generation_tokens]
            backend.set_limits([1, 2, 3])
            with pytest.raises(ValueError, match="2 limits for 3 endpoints"):
                backend.set_limits([1, 2])

    run(test())


def test_a_stage_whose_servers_are_down_leaves_the_others_at_work() -> None:
    async def test() -> None:
        main, own = FaultServer(), FaultServer()
        async with staged([main], [own]) as backend:
            await own.refuse()
            while backend.statistics().endpoints[1].healthy:
                with contextlib.suppress(Exception):
                    await backend.complete(request(1, "instance"))
            assert (await backend.complete(request(2, "instruction")))[0].text

    run(test())


def test_without_own_servers_no_stage_is_ever_full() -> None:
    async def test() -> None:
        async with FaultServer() as server:
            backend = Router(backends(server))
            backend.set_limits([1])
            backend.expect(request(1, "instance"))
            assert not any(map(backend.is_full_for, STAGES))
            assert not backend.is_split
            await backend.close()

    run(test())


def test_only_what_there_is_room_for_is_taken_from_the_source() -> None:
    async def test() -> None:
        main, own = hanging(), hanging()
        async with staged([main], [own]) as backend:
            backend.set_limits([5, 2])
            source = RoomAwareSource(Endless(), backend)
            taken = [source.next() for _ in range(9)]
            stages = [one.step for one in taken if one is not None]
            assert stages == ["instance"] * 2 + ["classification"] * 5
            assert taken[7:] == [None, None]
            first = taken[0]
            assert first is not None
            asked = asyncio.create_task(backend.complete(first))
            await own.until(lambda: own.counters.requests == 1)
            assert source.next() is None, "what is in flight takes room as what is expected does"
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            again = source.next()
            assert again is not None
            assert again.step == "instance"
            source.give_back(again)
            assert source.next() is not None

    run(test())


def test_a_slow_stage_server_does_not_starve_the_main_one() -> None:
    """The stage's two slots stay in use. Everything else continues."""

    async def test() -> None:
        main, own = FaultServer(), hanging()
        async with staged([main], [own]) as backend:
            backend.set_limits([6, 2])
            answered: list[Answer] = []

            async def sink(answers: Sequence[Answer]) -> bool:
                answered.extend(answers)
                return len(answered) >= 200

            limits = Limits(concurrency=8)
            await SinkScheduler(
                RoomAwareSource(Endless(), backend), backend, sink, limits, jitter=random.Random(1)
            ).run()
            assert {answer.request.step for answer in answered} == {"classification"}
            assert own.counters.requests == 2

    run(test())


def test_a_retry_waits_for_room_in_its_stage_and_delays_no_other() -> None:
    """The stage's first two requests fail; by the time that they may be asked again two others have their places."""

    async def test() -> None:
        main, own = FaultServer(), FaultServer(script=[Fault.OVERLOADED] * 2, engine=SlotEngine(latency_s=3600.0))
        async with staged([main], [own]) as backend:
            backend.set_limits([6, 2])
            answered: list[Answer] = []
            at_once: list[int] = []

            async def sink(answers: Sequence[Answer]) -> bool:
                answered.extend(answers)
                at_once.append(backend.backends[1].counters.sequences)
                if len(answered) < 200:
                    return False
                await own.until(lambda: own.counters.requests >= 4)
                return True

            quick = Limits(concurrency=8, backoff_base_s=0.0005, backoff_cap_s=0.0005)
            source, draw = RoomAwareSource(Endless(), backend), random.Random(1)
            scheduler = SinkScheduler(source, backend, sink, quick, jitter=draw, capacity=backend)
            await scheduler.run()
            assert {answer.request.step for answer in answered} == {"classification"}
            assert scheduler.statistics().faults == {"http_503": 2}
            assert own.counters.requests == 4
            assert max(at_once) == 2

    run(test())


@pytest.mark.parametrize("wrong", ["down", "errors only"])
def test_a_stage_whose_server_does_not_work_delays_no_other(wrong: str) -> None:
    """Its requests that wait for a retry are bounded, else they would soon be all that may wait."""

    async def test() -> None:
        main, own = FaultServer(), FaultServer(faults=FaultPlan(rate=1.0, kinds=[Fault.OVERLOADED]))
        async with staged([main], [own]) as backend:
            backend.set_limits([6, 2])
            if wrong == "down":
                await own.refuse()
            answered: list[Answer] = []

            async def sink(answers: Sequence[Answer]) -> bool:
                answered.extend(answers)
                return len(answered) >= 500

            source, draw = RoomAwareSource(Endless(), backend), random.Random(1)
            scheduler = SinkScheduler(source, backend, sink, Limits(concurrency=8), jitter=draw, capacity=backend)
            await scheduler.run()
            assert {answer.request.step for answer in answered} == {"classification"}
            assert scheduler.statistics().waiting_retries == 0
            assert not any(map(backend.is_full_for, STAGES)), "what was given back waits no more"

    run(test())


def test_a_request_that_is_asked_again_takes_room_until_it_is_asked() -> None:
    async def test() -> None:
        main, own = hanging(), hanging()
        async with staged([main], [own]) as backend:
            backend.set_limits([5, 2])
            first, second, third = (request(number, "instance") for number in range(3))
            assert backend.reserve(first)
            assert backend.reserve(second)
            assert not backend.reserve(third)
            assert backend.reserve(request(3, "instruction"))
            RoomAwareSource(Endless(), backend).give_back(second)
            assert backend.reserve(third)

    run(test())


def test_with_the_stages_servers_down_its_requests_wait_and_hold_the_run_open() -> None:
    """Such requests count no attempts, however well the main server works meanwhile."""

    async def test() -> None:
        main, own = FaultServer(), FaultServer()
        async with staged([main], [own]) as backend:
            backend.set_limits([4, 4])
            await own.refuse()
            answered: list[Answer] = []
            listening: list[bool] = []

            async def sink(answers: Sequence[Answer]) -> bool:
                answered.extend(answers)
                if scheduler.statistics().faults.get("all_down", 0) >= 100 and not listening:
                    listening.append(True)
                    await own.listen()
                return any(answer.request.step == "instance" for answer in answered)

            class Mixed(Endless):
                def next(self, is_full: Callable[[str], bool] = lambda _: False) -> Request | None:
                    self.taken += 1
                    return request(self.taken, "instance" if self.taken % 10 == 0 else "instruction")

            quick = Limits(concurrency=8, max_attempts=5, backoff_base_s=0.002, reconnect_cap_s=0.002)
            scheduler = SinkScheduler(RoomAwareSource(Mixed(), backend), backend, sink, quick, jitter=random.Random(1))
            await scheduler.run()
            late = [answer.result for answer in answered if answer.request.step == "instance"]
            assert late
            assert not [result for result in late if isinstance(result, Failure)]

    run(test())
