"""Several endpoints as one backend over real sockets: shares, takeout, silence, refusals, return, no waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import BackendUnavailable, InputError, RequestRejected, StoppedError, TransientError
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.router import MISSES_ALLOWED, TAKE_OUT_AFTER, Router
from fastgen.simulator.engine import SlotEngine
from fastgen.simulator.faults import Fault
from fastgen.simulator.server import FaultServer
from fastgen.types import Completion, Request, Sampling

REQUEST = Request(1, "instruction", "Tasks:\n1. Say hi to a friend\n2.", Sampling(0.7, 0.5, 256))
GUARD_S = 20.0
QUICK_S = 0.005  # between probes


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a hang is a failure, not a stuck suite."""
    asyncio.run(asyncio.wait_for(test, GUARD_S))


@contextlib.asynccontextmanager
async def routed(
    *servers: FaultServer, forgiven_after_s: float = 1.0, refused_pause_s: float = 30.0, **settings: Any
) -> AsyncIterator[Router]:
    """A router over servers that listen."""
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        backends = [OpenAIBackend(Endpoint(server.base_url, server.model, **settings)) for server in servers]
        router = Router(
            backends, first_probe_s=QUICK_S, forgiven_after_s=forgiven_after_s, refused_pause_s=refused_pause_s
        )
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


async def cancelled(*calls: asyncio.Task[Any]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


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
            await cancelled(stuck)

    run(test())


def test_load_is_spread_evenly_over_equals() -> None:
    async def test() -> None:
        servers = [hanging() for _ in range(4)]
        async with routed(*servers) as router:
            calls = [asyncio.create_task(router.complete(REQUEST)) for _ in range(40)]
            for server in servers:
                await server.until(lambda server=server: server.counters.requests == 10)  # type: ignore[misc]  # bound now
            assert [one.in_flight for one in router.statistics().endpoints] == [10] * 4
            await cancelled(*calls)

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


def test_with_all_endpoints_down_requests_fail_at_once_until_one_answers() -> None:
    async def test() -> None:
        servers = [FaultServer(), FaultServer()]
        async with routed(*servers) as router:
            for server in servers:
                await take_out(router, server)
            failed = [one.failed for one in router.statistics().endpoints]
            error = await fails(router)
            assert (error.kind, error.reached_server) == ("all_down", False)
            assert [one.failed for one in router.statistics().endpoints] == failed, "no server is asked"
            await servers[1].listen()
            while not router.statistics().endpoints[1].healthy:
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
                await router.complete(Request(1, "instruction", "x", Sampling(-1.0, 1.0, 8)))
            server.faults.add(Fault.RESET, Fault.RESET)
            for _ in range(2):
                await fails(router)
            assert router.statistics().endpoints[0].healthy

    run(test())


def test_an_endpoint_that_only_fails_quickly_does_not_attract_the_work() -> None:
    async def test() -> None:
        broken, busy = FaultServer(script=[Fault.SERVER_ERROR] * 100), FaultServer()
        async with routed(broken, busy, forgiven_after_s=3600.0) as router:
            outcomes = [await asyncio.gather(router.complete(REQUEST), return_exceptions=True) for _ in range(60)]
            assert sum(isinstance(one, TransientError) for (one,) in outcomes) == broken.counters.requests
            assert broken.counters.requests == 1

    run(test())


def test_faults_of_a_while_ago_are_forgiven() -> None:
    async def test() -> None:
        first, second = FaultServer(script=[Fault.SERVER_ERROR] * 5), FaultServer()
        async with routed(first, second, forgiven_after_s=0.0) as router:
            for _ in range(20):
                await asyncio.gather(router.complete(REQUEST), return_exceptions=True)
            assert (first.counters.requests, second.counters.requests) == (10, 10)

    run(test())


def test_hanging_requests_from_before_a_removal_do_not_remove_a_returned_endpoint() -> None:
    async def test() -> None:
        server, other = FaultServer(script=[Fault.HANG] * 5), hanging()
        timeout = TimeoutPolicy(total_s=0.4)
        async with routed(server, other, timeout=timeout) as router:
            router.set_limits([1000, 1])
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


def test_the_last_endpoint_is_not_taken_out_for_resets_while_it_answers_probes() -> None:
    async def test() -> None:
        server = FaultServer(script=[Fault.RESET] * (4 * TAKE_OUT_AFTER))
        async with routed(server) as router:
            for _ in range(4 * TAKE_OUT_AFTER):
                assert (await fails(router)).kind == "connection"
            await server.until(lambda: server.counters.health_checks > 0)
            assert (await router.complete(REQUEST))[0].text
            assert router.statistics().endpoints[0].healthy

    run(test())


# -- shares ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 2000))
def test_requests_are_shared_out_by_the_limits(limits: list[int], count: int) -> None:
    router = Router([OpenAIBackend(Endpoint(f"http://127.0.0.1:{9 + i}", "m")) for i in range(len(limits))])
    router.set_limits(limits)
    for _ in range(count):
        router._pick(router._main).backend.counters.sequences += 1
    for limit, seen in zip(limits, router.statistics().endpoints, strict=True):
        assert abs(seen.sequences - count * limit / sum(limits)) <= len(limits)


def test_an_endpoint_with_three_times_the_limit_gets_three_times_the_requests() -> None:
    async def test() -> None:
        large, small = hanging(), hanging()
        async with routed(large, small) as router:
            router.set_limits([30, 10])
            calls = [asyncio.create_task(router.complete(REQUEST)) for _ in range(40)]
            await large.until(lambda: large.counters.requests == 30)
            await small.until(lambda: small.counters.requests == 10)
            await cancelled(*calls)

    run(test())


def test_there_must_be_one_limit_for_each_endpoint() -> None:
    router = Router([OpenAIBackend(Endpoint("http://127.0.0.1:9", "m"))])
    with pytest.raises(ValueError, match="2 limits for 1 endpoints"):
        router.set_limits([1, 2])


def test_a_router_is_full_by_what_fits_its_healthy_endpoints() -> None:
    async def test() -> None:
        first, second = hanging(), hanging()
        async with routed(first, second) as router:
            router.set_limits([2, 1])
            calls = [asyncio.create_task(router.complete(REQUEST)) for _ in range(3)]
            await first.until(lambda: first.counters.requests == 2)
            await second.until(lambda: second.counters.requests == 1)
            assert not router.reserve(replace(REQUEST, number=2))
            await cancelled(calls[0])
            assert router.reserve(replace(REQUEST, number=2))
            assert not router.reserve(replace(REQUEST, number=3)), "the expected request takes the room"
            await cancelled(*calls)
            for server in (first, second):
                await take_out(router, server)
            for number in range(4, 104):
                assert router.reserve(replace(REQUEST, number=number)), "requests must fail and wait"

    run(test())


# -- silence -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def mute() -> AsyncIterator[str]:
    """A server that accepts connections and never says a word, as a stopped process does; its base URL."""
    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for connection in connections:
            connection.transport.abort()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def over(*urls: str) -> AsyncIterator[Router]:
    """A router over addresses that looks for silence all the time, and notices it in a few hundredths of a second."""
    backends = [OpenAIBackend(Endpoint(url, "test-model-base")) for url in urls]
    router = Router(backends, first_probe_s=QUICK_S, check_every_s=0.0, check_within_s=0.02)
    try:
        yield router
    finally:
        await router.close()


def test_a_silent_endpoint_is_taken_out_and_its_requests_are_asked_elsewhere() -> None:
    async def test() -> None:
        async with mute() as silent, FaultServer() as other, over(silent, other.base_url) as router:
            router.set_limits([1000, 1])
            calls = [asyncio.create_task(router.complete(REQUEST)) for _ in range(5)]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {(e.kind, e.reached_server) for e in ends if isinstance(e, TransientError)} == {("hung", False)}
            assert len(ends) == 5
            seen = router.statistics().endpoints[0]
            assert (seen.healthy, seen.in_flight) == (False, 0)
            assert (await router.complete(REQUEST))[0].text

    run(test())


def test_when_no_endpoint_answers_none_is_called_silent() -> None:
    async def test() -> None:
        async with mute() as first, mute() as second, over(first, second) as router:
            calls = [asyncio.create_task(router.complete(REQUEST)) for _ in range(4)]
            while [one.in_flight for one in router.statistics().endpoints] != [2, 2]:
                await asyncio.sleep(0)
            for _ in range(2 * MISSES_ALLOWED):
                await asyncio.gather(*(router._check(member) for member in router._members))
            assert not any(call.done() for call in calls)
            assert all(one.healthy for one in router.statistics().endpoints)
            await cancelled(*calls)

    run(test())


def test_an_endpoint_that_answers_completions_is_not_silent_however_slow_its_health_is() -> None:
    class SlowHealth(FaultServer):
        """Never answers ``/health``."""

        def _health(self, exchange: Any) -> None:
            self.counters.health_checks += 1

    async def test() -> None:
        busy = SlowHealth(script=[Fault.HANG])
        async with busy, FaultServer() as other, over(busy.base_url, other.base_url) as router:
            stuck = asyncio.create_task(router.complete(REQUEST))
            await busy.until(lambda: busy.counters.requests == 1)
            while busy.counters.health_checks < 3 * MISSES_ALLOWED:
                await asyncio.gather(*(router.complete(REQUEST) for _ in range(4)))
            assert all(one.healthy for one in router.statistics().endpoints)
            assert not stuck.done()
            await cancelled(stuck)

    run(test())


def test_a_call_that_is_cancelled_by_its_owner_is_not_a_fault() -> None:
    """Also where both cancel it in the same pass of the event loop."""

    async def test() -> None:
        server = hanging()
        async with routed(server) as router:
            owned, broken = (asyncio.create_task(router.complete(REQUEST)) for _ in range(2))
            await server.until(lambda: server.counters.requests == 2)
            (member,) = router._members
            owned.cancel()
            assert len(member.calls) == 2
            router._break_off(member)
            ends = await asyncio.gather(owned, broken, return_exceptions=True)
            assert [type(end) for end in ends] == [asyncio.CancelledError, TransientError]
            assert isinstance(ends[1], TransientError)
            assert ends[1].kind == "hung"
            assert broken.cancelling() == 0
            assert member.calls == {}

    run(test())


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_refusal_before_anything_worked_ends_the_run() -> None:
    async def test() -> None:
        async with routed(FaultServer(api_key="k"), FaultServer()) as router:
            with pytest.raises(InputError, match="--api-key-env"):
                await router.complete(REQUEST)

    run(test())


def test_an_endpoint_that_begins_to_refuse_is_taken_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        locked, open_ = FaultServer(), FaultServer()
        async with routed(locked, open_) as router:
            for _ in range(2):
                await router.complete(REQUEST)
            locked._api_key = "k"
            ends = await asyncio.gather(*(router.complete(REQUEST) for _ in range(10)), return_exceptions=True)
            assert {end.kind for end in ends if isinstance(end, TransientError)} == {"refused"}
            assert [one.healthy for one in router.statistics().endpoints] == [False, True]
            for _ in range(4):
                await router.complete(REQUEST)
            assert locked.counters.health_checks == 0, "its health says nothing about its key"

    run(test())
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "--api-key-env: continuing without it" in warning.message


def test_when_all_refuse_the_run_stops_resumable() -> None:
    async def test() -> None:
        servers = [FaultServer(), FaultServer()]
        async with routed(*servers) as router:
            for _ in servers:
                await router.complete(REQUEST)
            for server in servers:
                server._api_key = "k"
            with pytest.raises(TransientError):
                await router.complete(REQUEST)
            with pytest.raises(StoppedError, match=r"--api-key-env; the run is kept"):
                await router.complete(REQUEST)

    run(test())


def test_an_endpoint_that_refused_is_tried_again_with_one_request() -> None:
    async def test() -> None:
        locked, other = FaultServer(), hanging()
        async with routed(locked, other, refused_pause_s=QUICK_S) as router:
            await router.complete(REQUEST)
            waiting = [asyncio.create_task(router.complete(REQUEST)) for _ in range(1)]
            locked._api_key = "k"
            while router.statistics().endpoints[0].healthy:
                seen = other.counters.requests
                waiting.append(asyncio.create_task(router.complete(REQUEST)))
                hangs = asyncio.create_task(other.until(lambda seen=seen: other.counters.requests > seen))  # type: ignore[misc]  # bound now
                await asyncio.wait((waiting[-1], hangs), return_when=asyncio.FIRST_COMPLETED)
                await cancelled(hangs)
            locked._api_key, locked.engine = None, SlotEngine(latency_s=3600.0)
            await healthy_again(router)
            waiting += [asyncio.create_task(router.complete(REQUEST)) for _ in range(20)]
            await other.until(lambda: other.counters.requests >= 20)
            assert router.statistics().endpoints[0].in_flight == 0, "one on probation counts as loaded"
            await cancelled(*waiting)

    run(test())


def test_only_the_first_removal_of_an_endpoint_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastgen.servers.router")

    async def test() -> None:
        first, second = FaultServer(), FaultServer()
        async with routed(first, second) as router:
            for _ in range(3):
                await take_out(router, first)
                await first.listen()
                await healthy_again(router)

    run(test())
    said = [(record.levelname, record.message.rpartition(": ")[2]) for record in caplog.records]
    out, back = "taken out until it answers", "taken back"
    assert said == [("WARNING", out), ("INFO", back), ("INFO", out), ("INFO", back), ("INFO", out), ("INFO", back)]


def test_a_run_can_begin_without_endpoints_that_are_known_to_be_absent() -> None:
    async def test() -> None:
        absent, there = FaultServer(), FaultServer()
        async with routed(absent, there) as router:
            await absent.refuse()
            router.begin_without(router.backends[:1])
            for _ in range(4):
                await router.complete(REQUEST)
            assert router.statistics().endpoints[0].failed == 0
            await absent.listen()
            await healthy_again(router)

    run(test())


def test_the_start_continues_with_the_servers_that_answer() -> None:
    async def test() -> None:
        there, absent = FaultServer(), FaultServer()
        told: list[str] = []
        async with routed(absent, there) as router:
            await absent.refuse()
            assert await router.wait_until_answering(60.0, told.append) == (there.model,)
            assert [one.healthy for one in router.statistics().endpoints] == [False, True]
            assert f"continuing without {absent.base_url} until it answers" in told
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


def test_the_start_stops_at_what_the_user_must_fix() -> None:
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


def test_an_endpoint_on_probation_does_not_count_as_refusing() -> None:
    """It may have been fixed. The run stops only when it refuses again."""

    async def test() -> None:
        fixed, locked = FaultServer(), FaultServer()
        async with routed(fixed, locked) as router:
            for _ in range(2):
                await router.complete(REQUEST)
            member = router._members[0]
            member.refusals = 1  # it refused once and was taken back; it has not been asked since
            locked._api_key = "k"
            router.set_limits([1, 1000])  # the next request goes to the other one
            with pytest.raises(TransientError, match="asks for a key"):
                await router.complete(REQUEST)
            assert await router.complete(REQUEST)

    run(test())


def test_an_error_in_the_background_ends_the_run_with_the_next_request() -> None:
    async def test() -> None:
        async with routed(FaultServer()) as router:

            async def break_down() -> None:
                raise OSError("broken")

            await asyncio.wait({router._begin(break_down())})
            with pytest.raises(OSError, match="broken"):
                await router.complete(REQUEST)

    run(test())
