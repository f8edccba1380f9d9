"""One endpoint over real sockets: each fault is its error, connections are reused, cancelling frees the server."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from fastgen.errors import BackendUnavailable, FastgenError, InputError, PromptTooLong, RequestRejected, TransientError
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy
from fastgen.servers.openai import OpenAIBackend
from fastgen.simulator.engine import SlotEngine
from fastgen.simulator.faults import Event, Fault, Reply
from fastgen.simulator.server import FaultServer
from fastgen.types import Completion, Message, Request, Sampling

REQUEST = Request(1, "instruction", "Tasks:\n1. Say hi to a friend\n2.", Sampling(0.7, 0.5, 256))
CHAT_REQUEST = replace(REQUEST, prompt=(Message("system", "Be brief."), Message("user", "Say hi.")))
GUARD_S = 20.0


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a hang is a failure, not a stuck suite."""
    asyncio.run(asyncio.wait_for(test, GUARD_S))


def backend_for(server: FaultServer, **settings: Any) -> OpenAIBackend:
    return OpenAIBackend(Endpoint(server.base_url, server.model, **settings))


async def fault_of(backend: OpenAIBackend, request: Request = REQUEST) -> FastgenError:
    """What one request fails with."""
    with pytest.raises(FastgenError) as caught:
        await backend.complete(request)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "a foreign error in the chain carries headers along"
    return caught.value


@contextlib.asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[Endpoint]:
    """A server that says one thing to everybody and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # a client may have enough before the end
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield Endpoint(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", "b")


EXPECTED: dict[Fault, tuple[str, bool, float | None]] = {
    Fault.RESET: ("connection", False, None),
    Fault.DISCONNECT: ("connection", False, None),
    Fault.RESET_MID_BODY: ("incomplete_body", True, None),
    Fault.TRUNCATED_BODY: ("incomplete_body", True, None),
    Fault.RATE_LIMIT: ("http_429", True, None),
    Fault.RATE_LIMIT_RETRY_AFTER: ("http_429", True, 1.0),
    Fault.OVERLOADED: ("http_503", True, None),
    Fault.OVERLOADED_RETRY_AFTER: ("http_503", True, 1.0),
    Fault.SERVER_ERROR: ("http_500", True, None),
    Fault.BAD_GATEWAY: ("http_502", True, None),
    Fault.INVALID_JSON: ("bad_body", True, None),
    Fault.EMPTY_CHOICES: ("bad_body", True, None),
    Fault.MISSING_CHOICE: ("bad_body", True, None),
    Fault.EXTRA_CHOICE: ("bad_body", True, None),
    Fault.DUPLICATE_INDEX: ("bad_body", True, None),
    Fault.WRONG_TYPES: ("bad_body", True, None),
    Fault.NULL_TEXT: ("bad_body", True, None),
    Fault.ABORTED: ("aborted", True, None),
    Fault.HUGE: ("too_large", True, None),
}
HARMLESS = {Fault.NULL_FINISH_REASON, Fault.NO_USAGE, Fault.SLOW}
OTHERWISE_TESTED = {Fault.HANG, Fault.PROMPT_TOO_LONG}


def test_every_fault_is_tested() -> None:
    assert set(Fault) == set(EXPECTED) | HARMLESS | OTHERWISE_TESTED


@pytest.mark.parametrize("request_", [REQUEST, CHAT_REQUEST], ids=["completions", "chat"])
@pytest.mark.parametrize("fault", EXPECTED)
def test_each_fault_is_its_transient_error_and_the_next_request_succeeds(fault: Fault, request_: Request) -> None:
    async def test() -> None:
        api = "chat" if request_ is CHAT_REQUEST else "completions"
        async with FaultServer(script=[fault]) as server, backend_for(server, api=api) as backend:
            error = await fault_of(backend, request_)
            assert isinstance(error, TransientError)
            assert (error.kind, error.reached_server, error.retry_after_s) == EXPECTED[fault]
            assert server.base_url in str(error)
            assert (await backend.complete(request_))[0].text
            (seen,) = backend.statistics().endpoints
            assert (seen.in_flight, seen.completed, seen.failed) == (0, 1, 1)

    run(test())


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATED_BODY, Fault.HUGE, Fault.RATE_LIMIT])
def test_faults_mean_the_same_under_uvloop(fault: Fault) -> None:
    async def test() -> None:
        async with FaultServer(script=[fault]) as server, backend_for(server) as backend:
            error = await fault_of(backend)
            assert isinstance(error, TransientError)
            assert error.kind == EXPECTED[fault][0]
            assert (await backend.complete(REQUEST))[0].text

    uvloop.run(asyncio.wait_for(test(), GUARD_S))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_one_endpoint_answers_texts_and_messages(api: str) -> None:
    async def test() -> None:
        async with FaultServer() as server, backend_for(server, api=api) as backend:
            both = await asyncio.gather(backend.complete(REQUEST), backend.complete(CHAT_REQUEST))
            assert all(completion.text for (completion,) in both)

    run(test())


def test_a_server_that_lacks_the_api_of_a_prompt_is_named_with_it() -> None:
    async def test() -> None:
        async with FaultServer(apis=["completions"]) as server, backend_for(server) as backend:
            assert (await backend.complete(REQUEST))[0].text
            error = await fault_of(backend, CHAT_REQUEST)
            assert isinstance(error, InputError)
            assert "/v1/chat/completions, which the step instruction asks" in str(error)

    run(test())


@pytest.mark.parametrize("fault", sorted(HARMLESS))
def test_what_a_completion_can_do_without_loses_no_text(fault: Fault) -> None:
    async def test() -> None:
        async with FaultServer(script=[None, fault], slow_s=0.01) as server, backend_for(server) as backend:
            (good,) = await backend.complete(REQUEST)
            (bare,) = await backend.complete(REQUEST)
            assert bare.text == good.text
            assert bare.finish_reason == (None if fault is Fault.NULL_FINISH_REASON else good.finish_reason)
            assert bare.completion_tokens == (0 if fault is Fault.NO_USAGE else good.completion_tokens)

    run(test())


def test_a_hang_ends_at_the_time_allowed_and_frees_the_server() -> None:
    async def test() -> None:
        timeout = TimeoutPolicy(base_s=0.04, floor_tokens_per_s=256 / 0.01)
        async with FaultServer(script=[Fault.HANG]) as server, backend_for(server, timeout=timeout) as backend:
            error = await fault_of(backend)
            assert isinstance(error, TransientError)
            assert (error.kind, error.reached_server) == ("timeout", False)
            await server.until(lambda: server.counters.gone == 1)

    run(test())


def test_a_connection_that_cannot_be_opened_in_time_is_a_timeout() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as crowd:
            address = listener.getsockname()
            for _ in range(2):  # no connection is accepted: the queue is full, and the kernel drops the next one's SYN
                waiting = crowd.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            endpoint = Endpoint(f"http://127.0.0.1:{address[1]}", "m", timeout=TimeoutPolicy(connect_s=0.05))
            async with OpenAIBackend(endpoint) as backend:
                error = await fault_of(backend)
        assert isinstance(error, TransientError)
        assert (error.kind, error.reached_server) == ("timeout", False)
        assert "Connection timeout" in str(error)

    run(test())


def test_a_refused_connection_did_not_reach_a_server() -> None:
    async def test() -> None:
        async with FaultServer() as server, backend_for(server) as backend:
            await server.refuse()
            error = await fault_of(backend)
            assert isinstance(error, TransientError)
            assert (error.kind, error.reached_server) == ("connection", False)
            assert backend.statistics().endpoints[0].last_answer_s is None

    run(test())


@pytest.mark.parametrize("url", ["http://a..b:8000", "http://" + "a" * 70 + ".invalid", "http://xn--a.invalid"])
def test_a_host_that_no_resolver_takes_is_one_of_fastgens_errors(url: str) -> None:
    async def test() -> None:
        async with OpenAIBackend(Endpoint(url, "m")) as backend:
            assert isinstance(await fault_of(backend), (InputError, TransientError))

    run(test())


def test_a_server_that_speaks_no_http_is_a_broken_answer() -> None:
    async def test() -> None:
        async with saying(b"220 mail.example.org ESMTP\r\n") as endpoint, OpenAIBackend(endpoint) as backend:
            error = await fault_of(backend)
            assert isinstance(error, TransientError)
            assert error.kind == "bad_body"

    run(test())


def test_a_too_long_prompt_is_distinguished_from_other_refusals() -> None:
    async def test() -> None:
        async with (
            FaultServer(script=[Fault.PROMPT_TOO_LONG, None], max_model_len=4) as server,
            backend_for(server) as backend,
        ):
            assert type(await fault_of(backend)) is PromptTooLong
            assert type(await fault_of(backend)) is PromptTooLong
            cold = replace(REQUEST, prompt="short", sampling=Sampling(-1.0, 1.0, 16))
            assert type(await fault_of(backend, cold)) is RequestRejected

    run(test())


def test_a_key_is_sent_and_a_wrong_one_stops_the_run_without_showing() -> None:
    async def test() -> None:
        async with FaultServer(api_key="right-key") as server:
            async with backend_for(server, api_key="right-key") as backend:
                await backend.complete(REQUEST)
                assert server.received[-1].header("Authorization") == "Bearer right-key"
            async with backend_for(server, api_key="wrong-key") as backend:
                for error in (await fault_of(backend), await probe_fault(backend)):
                    assert isinstance(error, InputError)
                    assert "--api-key-env" in str(error)
                    assert "wrong-key" not in str(error)
                assert await backend.is_answering()
                assert await backend.metrics() is not None

    async def probe_fault(backend: OpenAIBackend) -> FastgenError:
        with pytest.raises(FastgenError) as caught:
            await backend.probe()
        return caught.value

    run(test())


def test_credentials_of_the_url_are_sent_and_not_shown() -> None:
    async def test() -> None:
        async with FaultServer(script=[Fault.SERVER_ERROR]) as server:
            url = server.base_url.replace("http://", "http://user:hidden@")
            async with OpenAIBackend(Endpoint(url, server.model)) as backend:
                error = await fault_of(backend)
                assert "hidden" not in str(error)
                assert server.received[-1].header("Authorization") == "Basic dXNlcjpoaWRkZW4="

    run(test())


def test_an_unknown_model_names_those_that_the_server_has() -> None:
    async def test() -> None:
        async with (
            FaultServer(model="the-model") as server,
            OpenAIBackend(Endpoint(server.base_url, "other")) as backend,
        ):
            error = await fault_of(backend)
            assert isinstance(error, InputError)
            assert "--model other" in str(error)
            assert "it offers the-model" in str(error)

    run(test())


def test_a_host_without_completions_names_the_chat_flag() -> None:
    async def test() -> None:
        async with FaultServer(apis=["chat"]) as server, backend_for(server) as backend:
            error = await fault_of(backend)
            assert isinstance(error, InputError)
            assert "--api chat" in str(error)

    run(test())


def test_a_redirect_is_not_followed() -> None:
    async def test() -> None:
        reply = Reply(307, headers={"Location": "http://elsewhere/v1/completions"})
        async with FaultServer(script=[reply]) as server, backend_for(server) as backend:
            error = await fault_of(backend)
            assert isinstance(error, InputError)
            assert "http://elsewhere/v1/completions" in str(error)
            assert server.counters.requests == 1

    run(test())


def test_cookies_are_not_kept() -> None:
    async def test() -> None:
        heads: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 500 X\r\nSet-Cookie: id=1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            async with OpenAIBackend(Endpoint(f"http://localhost:{port}", "m")) as backend:
                for _ in range(2):
                    await fault_of(backend)
        assert [b"cookie" in head.lower() for head in heads] == [False, False]

    run(test())


def test_several_choices_come_in_order() -> None:
    async def test() -> None:
        async with FaultServer(write=lambda prompt, i: f"text {i}") as server, backend_for(server) as backend:
            completions = await backend.complete(replace(REQUEST, n=3))
            assert [one.text for one in completions] == ["text 0", "text 1", "text 2"]
            assert sum(one.completion_tokens for one in completions) == server.counters.generation_tokens
            assert [one.prompt_tokens for one in completions] == [server.counters.prompt_tokens, 0, 0]

    run(test())


GOOD_BODY = b'{"choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}'
CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (GOOD_BODY[:9], GOOD_BODY[9:], b""))


@pytest.mark.parametrize(
    "answer",
    [
        b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(GOOD_BODY),
        b"Connection: close\r\n\r\n" + GOOD_BODY,
    ],
    ids=["chunked", "compressed though not asked for", "without a length"],
)
def test_whatever_way_a_body_is_sent_it_is_read(answer: bytes) -> None:
    async def test() -> None:
        async with saying(b"HTTP/1.1 200 OK\r\n" + answer) as endpoint, OpenAIBackend(endpoint) as backend:
            assert await backend.complete(REQUEST) == (Completion("hi", "stop"),)

    run(test())


def test_a_body_that_inflates_beyond_its_bound_is_not_read_to_its_end() -> None:
    bomb = gzip.compress(b"x" * (64 << 20))

    async def test() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
        async with saying(head + bomb) as endpoint, OpenAIBackend(endpoint) as backend:
            error = await fault_of(backend)
            assert isinstance(error, TransientError)
            assert error.kind in ("too_large", "incomplete_body")

    run(test())


@pytest.mark.parametrize("size", [1 << 10, (1 << 20) + 1])
def test_the_bound_of_a_body_grows_with_the_choices(size: int) -> None:
    async def test() -> None:
        async with FaultServer(write=lambda prompt, i: "x" * size) as server:
            async with backend_for(server, max_body_bytes=size) as backend:
                long = replace(REQUEST, sampling=Sampling(1.0, 1.0, size))
                error = await fault_of(backend, long)
                assert isinstance(error, TransientError)
                assert error.kind == "too_large"
            async with backend_for(server, max_body_bytes=size + 1000) as backend:
                assert [len(one.text) for one in await backend.complete(replace(long, n=2))] == [size, size]

    run(test())


def test_connections_are_reused() -> None:
    async def test() -> None:
        async with FaultServer(engine=SlotEngine(latency_s=0.001)) as server, backend_for(server) as backend:
            for _ in range(5):
                await asyncio.gather(*(backend.complete(REQUEST) for _ in range(8)))
            assert server.counters.answered == 40
            assert server.counters.connections == 8

    run(test())


@pytest.mark.parametrize(
    "fault", [Fault.RATE_LIMIT, Fault.SERVER_ERROR, Fault.INVALID_JSON, Fault.EMPTY_CHOICES, Fault.PROMPT_TOO_LONG]
)
def test_a_whole_answer_keeps_its_connection_whatever_it_says(fault: Fault) -> None:
    async def test() -> None:
        async with FaultServer(script=[fault] * 5) as server, backend_for(server) as backend:
            for _ in range(5):
                await fault_of(backend)
            await backend.complete(REQUEST)
            assert server.counters.connections == 1

    run(test())


def test_as_many_connections_as_calls_are_open_at_the_same_time() -> None:
    async def test() -> None:
        async with FaultServer(script=[Fault.HANG] * 300) as server, backend_for(server) as backend:
            calls = [asyncio.create_task(backend.complete(REQUEST)) for _ in range(300)]
            await server.until(lambda: server.counters.requests == 300)
            assert server.counters.open_connections == 300
            assert backend.statistics().endpoints[0].in_flight == 300
            for call in calls:
                call.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
            )
            await server.until(lambda: server.counters.gone == 300)
            assert backend.statistics().endpoints[0].in_flight == 0

    run(test())


def test_cancelling_a_call_closes_its_connection_and_frees_the_sequence() -> None:
    async def test() -> None:
        engine = SlotEngine(slots=2, latency_s=3600.0)
        async with FaultServer(engine=engine) as server, backend_for(server) as backend:
            calls = [asyncio.create_task(backend.complete(REQUEST)) for _ in range(3)]
            await server.until(lambda: server.counters.requests == 3)
            assert (engine.load().running, engine.load().waiting) == (2, 1)
            calls[0].cancel()
            await server.until(lambda: server.counters.gone == 1)
            assert (engine.load().running, engine.load().waiting) == (2, 0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await server.until(lambda: server.counters.gone == 3)
            assert engine.load().running == 0
            (seen,) = backend.statistics().endpoints
            assert (seen.completed, seen.failed) == (0, 0)

    run(test())


def test_nothing_is_repeated_by_itself() -> None:
    async def test() -> None:
        script: list[Event] = [None, Fault.DISCONNECT, Fault.RESET, Fault.SERVER_ERROR, Fault.RATE_LIMIT_RETRY_AFTER]
        async with FaultServer(script=script) as server, backend_for(server) as backend:
            await backend.complete(REQUEST)
            for _ in script[1:]:
                await fault_of(backend)
            assert server.counters.requests == len(script)

    run(test())


def test_what_the_server_offers_is_probed() -> None:
    async def test() -> None:
        async with (
            FaultServer(model="a") as server,
            OpenAIBackend(Endpoint(server.base_url, "")) as backend,
        ):
            assert await backend.probe() == ("a",)

    run(test())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"data": [{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 2}]}', ("a", "b")),
        (b'[{"id": "a"}, 5, {"id": null}, {"id": "a"}]', ("a",)),
        (b'{"models": []}', ()),
        (b'{"data": {}}', ()),
        (b"<html>", ()),
    ],
)
def test_lists_of_models_are_read_tolerantly(body: bytes, expected: tuple[str, ...]) -> None:
    async def test() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        async with saying(answer) as endpoint, OpenAIBackend(endpoint) as backend:
            assert await backend.probe() == expected

    run(test())


@pytest.mark.parametrize("status", [404, 405, 400])
def test_a_server_without_a_list_of_models_is_one_without_figures(status: int) -> None:
    async def test() -> None:
        answer = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
        async with saying(answer) as endpoint, OpenAIBackend(endpoint) as backend:
            assert await backend.probe() == ()
            assert await backend.metrics() is None
            assert await backend.is_answering()

    run(test())


def test_a_server_that_is_still_loading_does_not_answer_yet() -> None:
    async def test() -> None:
        answer = b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n"
        async with saying(answer) as endpoint, OpenAIBackend(endpoint) as backend:
            assert not await backend.is_answering()
            with pytest.raises(TransientError, match="503"):
                await backend.probe()

    run(test())


def test_the_servers_figures_are_read() -> None:
    async def test() -> None:
        engine = SlotEngine(slots=2, latency_s=3600.0)
        async with FaultServer(engine=engine) as server, backend_for(server) as backend:
            calls = [asyncio.create_task(backend.complete(REQUEST)) for _ in range(3)]
            await server.until(lambda: server.counters.requests == 3)
            figures = await backend.metrics()
            assert figures is not None
            assert (figures.running, figures.waiting, figures.kv_cache_usage) == (2, 1, 1.0)
            assert figures.prompt_tokens == server.counters.prompt_tokens > 0
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await server.refuse()
            assert await backend.metrics() is None
            assert not await backend.is_answering()

    run(test())


def test_the_start_waits_for_a_server_and_says_so() -> None:
    async def test() -> None:
        server = FaultServer()
        await server.listen()
        await server.refuse()
        told: list[str] = []
        started: list[asyncio.Task[None]] = []

        def report(line: str) -> None:
            told.append(line)
            started.append(asyncio.create_task(server.listen()))

        async with backend_for(server) as backend:
            assert await backend.wait_until_answering(60.0, report) == (server.model,)
        assert len(told) == len(started) == 1
        assert told[0].startswith("waiting up to 60 s for the server")
        await server.refuse()

    run(test())


def test_the_start_gives_up_with_a_remedy() -> None:
    async def test() -> None:
        async with FaultServer() as server, backend_for(server) as backend:
            await server.refuse()
            with pytest.raises(BackendUnavailable, match="--server-timeout"):
                await backend.wait_until_answering(0.0, lambda line: None)
            with pytest.raises(BackendUnavailable, match=r"no answer within 0 s"):
                await backend.wait_until_answering(0.15, lambda line: None)

    run(test())


def test_the_start_does_not_wait_for_what_the_user_must_fix() -> None:
    async def test() -> None:
        async with FaultServer(api_key="k") as server, backend_for(server) as backend:
            with pytest.raises(InputError, match="--api-key-env"):
                await backend.wait_until_answering(60.0, pytest.fail)

    run(test())


def test_closing_leaves_no_connection_and_twice_is_once() -> None:
    async def test() -> None:
        async with FaultServer() as server:
            backend = backend_for(server)
            await backend.complete(REQUEST)
            await backend.close()
            await backend.close()
            await server.until(lambda: server.counters.open_connections == 0)

    run(test())


def _batch(*prompts: str, n: int = 1) -> Request:
    return Request(7, "classification", prompts, Sampling(0.0, 1.0, 3), tuple(range(len(prompts))), n=n)


def test_several_prompts_in_one_request_are_answered_in_their_order() -> None:
    async def test() -> None:
        async with FaultServer(write=lambda prompt, sample: f"{prompt}{sample}") as server:
            async with backend_for(server) as backend:
                completions = await backend.complete(_batch("a", "b", "c", n=2))
                assert [one.text for one in completions] == ["a0", "a1", "b0", "b1", "c0", "c1"]
                assert [one.prompt_tokens > 0 for one in completions] == [True] + [False] * 5
            assert server.counters.requests == 1

    run(test())


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_refuses_one_of_several_prompts_asks_for_smaller_requests(status: int) -> None:
    async def test() -> None:
        async with FaultServer(script=[Reply(status, b"no")] * 2) as server, backend_for(server) as backend:
            several = await fault_of(backend, _batch("a", "b"))
            assert isinstance(several, PromptTooLong)
            assert "2 prompts in one request" in str(several)
            alone = await fault_of(backend, REQUEST)
            assert isinstance(alone, RequestRejected)
            assert not isinstance(alone, PromptTooLong)

    run(test())


def test_one_prompt_that_is_too_long_refuses_all_of_a_request() -> None:
    async def test() -> None:
        async with FaultServer(max_model_len=50) as server, backend_for(server) as backend:
            assert isinstance(await fault_of(backend, _batch("a", "b" * 300, "c")), PromptTooLong)
            assert len(await backend.complete(_batch("a", "c"))) == 2

    run(test())


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.RESET, Fault.INVALID_JSON, Fault.EXTRA_CHOICE])
def test_a_fault_of_the_server_is_transient_for_several_prompts_too(fault: Fault) -> None:
    async def test() -> None:
        async with FaultServer(script=[fault]) as server, backend_for(server) as backend:
            assert isinstance(await fault_of(backend, _batch("a", "b")), TransientError)
            assert len(await backend.complete(_batch("a", "b"))) == 2

    run(test())


def test_a_missing_choice_is_lost_and_the_others_are_kept() -> None:
    async def test() -> None:
        async with FaultServer(script=[Fault.MISSING_CHOICE] * 2) as server, backend_for(server) as backend:
            for asked in (replace(REQUEST, n=3), _batch("a", "b", "c")):
                completions = await backend.complete(asked)
                assert [one.is_lost for one in completions] == [False, False, True]

    run(test())


def test_the_sequences_in_flight_are_counted() -> None:
    async def test() -> None:
        async with FaultServer(script=[Fault.HANG] * 2) as server, backend_for(server) as backend:
            tasks = [asyncio.create_task(backend.complete(one)) for one in (_batch("a", "b"), replace(REQUEST, n=3))]
            while backend.counters.in_flight < 2:
                await asyncio.sleep(0)
            assert backend.counters.sequences == 5
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert backend.counters.sequences == 0

    run(test())
