"""Several endpoints as one backend over real sockets: least in flight, takeout, return, no waiting in a request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from fastgen.backends.endpoint import Endpoint, TimeoutPolicy
from fastgen.backends.openai import OpenAIBackend
from fastgen.backends.router import TAKE_OUT_AFTER, Router
from fastgen.errors import BackendUnavailable, InputError, RequestRejected, TransientError
from fastgen.records import Completion, Request, Sampling, Stage
from fastgen.testing import Fault, FaultServer, SlotEngine

REQUEST = Request(1, Stage.INSTRUCTION, "Tasks:\n1. Say hi to a friend\n2.", Sampling(0.7, 0.5, 256))
GUARD_S = 20.0
QUICK_S = 0.005  # between probes


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a hang is a failure, not a stuck suite."""
    asyncio.run(asyncio.wait_for(test, GUARD_S))


@contextlib.asynccontextmanager
async def routed(*servers: FaultServer, **settings: Any) -> AsyncIterator[Router]:
    """A router over servers that listen."""
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        backends = [OpenAIBackend(Endpoint(server.base_url, server.model, **settings)) for server in servers]
        router = Router(backends, first_probe_s=QUICK_S)
        stack.push_async_callback(router.close)
        yield router


async def fails(router: Router) -> TransientError:
    with pytest.raises(TransientError) as caught:
        await router.complete(REQUEST)
    return caught.value


async def take_out(router: Router, server: FaultServer) -> None:
    """Kill a server and ask until the router has noticed."""
    await server.refuse()
    while all(one.healthy for one in router.statistics().endpoints if one.url == server.base_url):
        with contextlib.suppress(TransientError):
            await router.complete(REQUEST)


async def healthy_again(router: Router) -> None:
    """Yield to the probes until all endpoints are up; the guard ends it if they never are."""
    while not all(one.healthy for one in router.statistics().endpoints):
        await asyncio.sleep(0)


def hanging() -> FaultServer:
    return FaultServer(engine=SlotEngine(latency_s=3600.0))


def test_one_endpoint_is_a_router_too() -> None:
    async def test() -> None:
        server = FaultServer()
        async with routed(server) as router:
            (completion,) = await router.complete(REQUEST)
            assert isinstance(completion, Completion)
            (seen,) = router.statistics().endpoints
            assert (seen.url, seen.in_flight, seen.completed, seen.failed, seen.healthy) == (
                server.base_url,
                0,
                1,
                0,
                True,
            )
            assert seen.last_answer_s is not None
            assert seen.last_answer_s <= time.monotonic()

    run(test())


def test_a_router_without_endpoints_is_bad_input() -> None:
    with pytest.raises(InputError, match="--base-url"):
        Router([])


def test_idle_endpoints_take_turns() -> None:
    async def test() -> None:
        servers = [FaultServer() for _ in range(3)]
        async with routed(*servers) as router:
            for _ in range(12):
                await router.complete(REQUEST)
            assert [server.counters.requests for server in servers] == [4, 4, 4]

    run(test())


def test_the_endpoint_with_the_least_in_flight_gets_the_next_request() -> None:
    async def test() -> None:
        slow, quick = hanging(), FaultServer()
        async with routed(slow, quick) as router:
            stuck = asyncio.create_task(router.complete(REQUEST))
            await slow.until(lambda: slow.counters.requests == 1)
            for _ in range(6):
                await router.complete(REQUEST)
            assert (slow.counters.requests, quick.counters.requests) == (1, 6)
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)

    run(test())


def test_load_is_spread_evenly_over_equals() -> None:
    async def test() -> None:
        servers = [hanging() for _ in range(4)]
        async with routed(*servers) as router:
            calls = [asyncio.create_task(router.complete(REQUEST)) for _ in range(40)]
            for server in servers:
                await server.until(lambda server=server: server.counters.requests == 10)  # type: ignore[misc]  # bound now
            assert [one.in_flight for one in router.statistics().endpoints] == [10] * 4
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    run(test())


def test_a_dead_endpoint_is_taken_out_after_a_few_failures_and_its_work_goes_elsewhere() -> None:
    async def test() -> None:
        dead, alive = FaultServer(), FaultServer()
        async with routed(dead, alive) as router:
            await dead.refuse()
            outcomes = await asyncio.gather(*(router.complete(REQUEST) for _ in range(2)), return_exceptions=True)
            assert sum(isinstance(one, TransientError) for one in outcomes) == 1
            failures = 1
            while router.statistics().endpoints[0].healthy:
                with contextlib.suppress(TransientError):
                    await router.complete(REQUEST)
                    continue
                failures += 1
            assert failures == TAKE_OUT_AFTER
            for _ in range(10):
                await router.complete(REQUEST)
            first, second = router.statistics().endpoints
            assert (first.healthy, first.failed, second.healthy, second.failed) == (False, TAKE_OUT_AFTER, True, 0)
            assert router.all_down_since_s is None

    run(test())


def test_a_dead_endpoint_is_taken_back_when_it_answers() -> None:
    async def test() -> None:
        first, second = FaultServer(), FaultServer()
        async with routed(first, second) as router:
            await take_out(router, first)
            await first.listen()
            await healthy_again(router)
            before = first.counters.requests
            for _ in range(4):
                await router.complete(REQUEST)
            assert first.counters.requests == before + 2

    run(test())


def test_a_server_that_is_still_loading_is_not_taken_back() -> None:
    async def test() -> None:
        server = FaultServer()
        async with routed(server) as router:
            await take_out(router, server)
            server.loading = True
            await server.listen()
            await server.until(lambda: server.counters.health_checks == 3)
            assert not router.statistics().endpoints[0].healthy
            server.loading = False
            await healthy_again(router)
            assert server.counters.health_checks == 4

    run(test())


def test_with_all_endpoints_down_requests_fail_at_once_and_the_time_is_known() -> None:
    async def test() -> None:
        servers = [FaultServer(), FaultServer()]
        async with routed(*servers) as router:
            started_s = time.monotonic()
            for server in servers:
                await take_out(router, server)
            down_since_s = router.all_down_since_s
            assert down_since_s is not None
            assert started_s <= down_since_s <= time.monotonic()
            assert router.statistics().all_down_since_s == down_since_s
            failed = [one.failed for one in router.statistics().endpoints]
            error = await fails(router)
            assert (error.kind, error.reached_server) == ("all_down", False)
            assert [one.failed for one in router.statistics().endpoints] == failed, "no server is asked"
            await servers[1].listen()
            while router.all_down_since_s is not None:
                await asyncio.sleep(0)
            assert (await router.complete(REQUEST))[0].text

    run(test())


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.OVERLOADED, Fault.INVALID_JSON, Fault.TRUNCATED_BODY])
def test_answers_that_are_faults_take_no_endpoint_out(fault: Fault) -> None:
    async def test() -> None:
        async with routed(FaultServer(script=[fault] * 10)) as router:
            for _ in range(10):
                assert (await fails(router)).reached_server
            assert router.statistics().endpoints[0].healthy

    run(test())


def test_an_answer_between_failures_starts_the_count_again() -> None:
    async def test() -> None:
        script = [
            Fault.RESET,
            Fault.RESET,
            None,
            Fault.RESET,
            Fault.RESET,
            Fault.SERVER_ERROR,
            Fault.RESET,
            Fault.RESET,
        ]
        server = FaultServer(script=script)
        async with routed(server) as router:
            for fault in script:
                if fault is None:
                    await router.complete(REQUEST)
                else:
                    await fails(router)
            assert router.statistics().endpoints[0].healthy
            with pytest.raises(RequestRejected):
                await router.complete(Request(1, Stage.INSTRUCTION, "x", Sampling(-1.0, 1.0, 8)))
            server.faults.add(Fault.RESET, Fault.RESET)
            for _ in range(2):
                await fails(router)
            assert router.statistics().endpoints[0].healthy

    run(test())


def test_an_endpoint_that_only_fails_quickly_does_not_attract_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgen.backends.router._FORGIVEN_AFTER_S", 3600.0)

    async def test() -> None:
        broken, busy = FaultServer(script=[Fault.SERVER_ERROR] * 100), FaultServer()
        async with routed(broken, busy) as router:
            outcomes = [await asyncio.gather(router.complete(REQUEST), return_exceptions=True) for _ in range(60)]
            assert sum(isinstance(one, TransientError) for (one,) in outcomes) == broken.counters.requests
            assert broken.counters.requests == 1

    run(test())


def test_faults_of_a_while_ago_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgen.backends.router._FORGIVEN_AFTER_S", 0.0)

    async def test() -> None:
        first, second = FaultServer(script=[Fault.SERVER_ERROR] * 5), FaultServer()
        async with routed(first, second) as router:
            for _ in range(20):
                await asyncio.gather(router.complete(REQUEST), return_exceptions=True)
            assert (first.counters.requests, second.counters.requests) == (10, 10)

    run(test())


def test_hanging_requests_of_before_a_takeout_do_not_take_a_returned_endpoint_out() -> None:
    async def test() -> None:
        server = FaultServer(script=[Fault.HANG] * 5)
        timeout = TimeoutPolicy(total_s=0.4)
        async with routed(server, timeout=timeout) as router:
            late = [asyncio.create_task(router.complete(REQUEST)) for _ in range(5)]
            await server.until(lambda: server.counters.requests == 5)
            server.faults.add(*[Fault.RESET] * TAKE_OUT_AFTER)
            for _ in range(TAKE_OUT_AFTER):
                await fails(router)
            assert not router.statistics().endpoints[0].healthy
            await healthy_again(router)
            ends = await asyncio.gather(*late, return_exceptions=True)
            assert all(isinstance(end, TransientError) and end.kind == "timeout" for end in ends)
            assert router.statistics().endpoints[0].healthy

    run(test())


def test_the_start_goes_on_with_the_servers_that_are_there() -> None:
    async def test() -> None:
        there, absent = FaultServer(), FaultServer()
        told: list[str] = []
        async with routed(absent, there) as router:
            await absent.refuse()
            assert (await router.wait_until_answering(60.0, told.append)).ids == (there.model,)
            assert [one.healthy for one in router.statistics().endpoints] == [False, True]
            assert f"going on without {absent.base_url} until it answers" in told
            await absent.listen()
            await healthy_again(router)

    run(test())


def test_the_start_gives_up_when_no_server_is_there() -> None:
    async def test() -> None:
        servers = [FaultServer(), FaultServer()]
        async with routed(*servers) as router:
            for server in servers:
                await server.refuse()
            with pytest.raises(BackendUnavailable, match="--server-timeout"):
                await router.wait_until_answering(0.0, lambda line: None)

    run(test())


def test_the_start_stops_at_what_a_person_must_mend() -> None:
    async def test() -> None:
        async with routed(FaultServer(), FaultServer(api_key="k")) as router:
            with pytest.raises(InputError, match="--api-key-env"):
                await router.wait_until_answering(60.0, lambda line: None)

    run(test())


def test_figures_come_for_each_server() -> None:
    async def test() -> None:
        there, absent = FaultServer(), FaultServer()
        async with routed(there, absent) as router:
            await router.complete(REQUEST)
            await absent.refuse()
            first, second = await router.metrics()
            assert first is not None
            assert first.generation_tokens == there.counters.generation_tokens > 0
            assert second is None

    run(test())


def test_closing_ends_the_probes() -> None:
    async def test() -> None:
        server = FaultServer()
        async with routed(server) as router:
            await take_out(router, server)
            tasks = len(asyncio.all_tasks())
            await router.close()
            assert len(asyncio.all_tasks()) == tasks - 1

    run(test())
