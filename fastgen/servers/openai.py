"""A client of one OpenAI-compatible server over HTTP: vLLM, SGLang, llama.cpp's, hosted ones.

One `OpenAIBackend.complete` is at most one POST, which is never repeated here. Connections are kept alive, and there
are as many as there are calls. Cancelling a call closes its connection, which makes vLLM free the sequence. A response
is read up to a bound. Every failure is one of fastgen's errors, without the foreign exception chained to it, because
that may hold request headers and so a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

import aiohttp
import orjson
from yarl import URL

from fastgen.engine.backend import BackendStatistics, ServerMetrics, ServerState, parse_metrics
from fastgen.errors import BackendUnavailable, FastgenError, InputError, PromptTooLong, RequestRejected, TransientError
from fastgen.servers.protocol import (
    CLIENT_ERRORS,
    HttpAnswer,
    decode_completions,
    encode_request,
    from_client_error,
    from_refusal,
    is_unknown_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgen.servers.endpoint import Endpoint
    from fastgen.types import Completion, Request


KEEPALIVE_S = 4.0  # below uvicorn's (vLLM's) 5 s: a connection that idled longer may be closing under our next POST
SMALL_CALL_S = 5.0  # for what a server answers from memory: health, models, metrics
MAX_PAGE_BYTES = 8 << 20  # a metrics page of many engines, a hosted service's list of models
REPORT_EVERY_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0  # between probes at the start
_FAULTS = tuple(CLIENT_ERRORS)
_REFUSALS = ("http_429", "http_503", "timeout")  # "not so much at once"


class OpenAIBackend:
    """A `Backend` for one endpoint, as a context manager too. Use it in one event loop, and close it there."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counters = ServerState(endpoint.display_url)
        self._urls = (URL(endpoint.url(chat=False)), URL(endpoint.url(chat=True)))
        self._session: aiohttp.ClientSession | None = None
        self._timeouts: dict[int, aiohttp.ClientTimeout] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Backend.complete`."""
        endpoint, counters = self.endpoint, self.counters
        counters.in_flight += 1
        counters.sequences += request.sequences
        try:
            body = encode_request(endpoint, request)
            limit = endpoint.max_body_bytes * request.sequences
            tokens = request.sampling.max_tokens
            allowed = self._timeouts.get(tokens) or self._timeout(tokens)
            session = self._session or self._open()
            url, failure = self._urls[request.is_chat], None
            try:
                async with session.post(url, data=body, timeout=allowed, allow_redirects=False) as response:
                    received = await response.content.readany()
                    while len(received) <= limit and (more := await response.content.readany()):
                        received += more
            except _FAULTS as error:
                failure = from_client_error(error, endpoint)
            if failure is not None:  # outside the handler: chained to it, the foreign error would carry the headers
                raise failure
            counters.last_answer_s = time.monotonic()
            if response.status != HTTPStatus.OK:
                raise await self._refusal(request, HttpAnswer(response.status, response.headers, received))
            if len(received) > limit:
                raise TransientError(f"{endpoint.display_url}: an answer of more than {limit} bytes", kind="too_large")
            completions = decode_completions(received, endpoint, request)
        except FastgenError as error:
            counters.failed += 1
            if isinstance(error, TransientError) and error.kind in _REFUSALS:
                counters.refused += request.sequences
            raise
        finally:
            counters.in_flight -= 1
            counters.sequences -= request.sequences
        counters.completed += 1
        counters.completions += len(completions)
        for completion in completions:
            counters.generated_tokens += completion.completion_tokens
        return completions

    async def _refusal(self, request: Request, answer: HttpAnswer) -> FastgenError:
        offered: tuple[str, ...] = ()
        if is_unknown_model(answer, self.endpoint):
            with contextlib.suppress(FastgenError):  # the list is only for the message
                offered = await self.probe()
        error = from_refusal(answer, self.endpoint, request, offered=offered)
        if request.prompts > 1 and isinstance(error, RequestRejected):
            # it may be about any one of the prompts: asked one by one, the others may be answered
            return PromptTooLong(f"{request.prompts} prompts in one request: {error}")
        return error

    async def probe(self) -> tuple[str, ...]:
        """The names of the models that ``GET /models`` lists. None where the server has no such list.

        :raises InputError: the key is refused, or the URL redirects.
        :raises TransientError: the server does not answer, or not yet.
        """
        answer = await self.ask(self.endpoint.display_url + "/models")
        if answer.status == HTTPStatus.OK:
            return _read_models(answer.body)
        error = from_refusal(answer, self.endpoint)
        no_list = answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
        if isinstance(error, TransientError) or (isinstance(error, InputError) and not no_list):
            raise error
        return ()

    async def metrics(self) -> ServerMetrics | None:
        """The server's own figures, or ``None`` where it has no vLLM metrics page or does not answer now."""
        try:
            answer = await self.ask(self.endpoint.root_url + "/metrics")
        except FastgenError:
            return None
        return parse_metrics(answer.body) if answer.status == HTTPStatus.OK else None

    async def is_answering(self) -> bool:
        """Whether the server answers ``/health`` without a 5xx, which means that it is broken or still loading."""
        try:
            answer = await self.ask(self.endpoint.root_url + "/health")
        except FastgenError:
            return False
        return answer.status < HTTPStatus.INTERNAL_SERVER_ERROR

    async def wait_until_answering(self, timeout_s: float, report: Callable[[str], None]) -> tuple[str, ...]:
        """Probe until the server answers, and return the names of its models.

        ``report`` gets a line at the first failure and then every ten seconds.

        :raises BackendUnavailable: it did not within ``timeout_s`` (0: a single try).
        :raises InputError: it answered, and the user must fix something first.
        """
        deadline_s = time.monotonic() + timeout_s
        pause_s, report_at_s = _FIRST_PAUSE_S, 0.0
        while True:
            try:
                return await self.probe()
            except TransientError as error:
                failure = str(error)
            now_s = time.monotonic()
            if now_s >= deadline_s:
                remedy = "start the server, or wait longer with --server-timeout"
                raise BackendUnavailable(f"no answer within {timeout_s:.0f} s ({failure}); {remedy}")
            if now_s >= report_at_s:
                report_at_s = now_s + REPORT_EVERY_S
                report(f"waiting up to {deadline_s - now_s:.0f} s for the server ({failure})")
            await asyncio.sleep(min(pause_s, deadline_s - now_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def statistics(self) -> BackendStatistics:
        """See `Backend.statistics`. A single endpoint always counts as healthy, because nothing watches it."""
        return BackendStatistics((self.snapshot(healthy=True),))

    def snapshot(self, *, healthy: bool) -> ServerState:
        """Return a copy of the counters."""
        return replace(self.counters, healthy=healthy)

    async def close(self) -> None:
        """See `Backend.close`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, url: str, body: object = None, *, timeout_s: float = SMALL_CALL_S) -> HttpAnswer:
        """``GET`` a page, or ``POST`` a JSON body: for small things beside completions. It is not counted.

        The answer may have any status. At most a little more than `MAX_PAGE_BYTES` of it are read.

        :raises TransientError: the server does not answer within ``timeout_s``.
        :raises InputError: the URL cannot be used.
        """
        session = self._session or self._open()
        method, data = ("GET", None) if body is None else ("POST", orjson.dumps(body))
        allowed = aiohttp.ClientTimeout(total=timeout_s)
        failure = None
        try:
            async with session.request(method, URL(url), data=data, timeout=allowed, allow_redirects=False) as response:
                received = await response.content.readany()
                while len(received) <= MAX_PAGE_BYTES and (more := await response.content.readany()):
                    received += more
        except _FAULTS as error:
            failure = from_client_error(error, self.endpoint)
        if failure is not None:
            raise failure
        self.counters.last_answer_s = time.monotonic()
        return HttpAnswer(response.status, response.headers, received)

    def _timeout(self, max_tokens: int) -> aiohttp.ClientTimeout:
        """The time allowed for a request of ``max_tokens`` (see `TimeoutPolicy`), kept for the next one."""
        policy = self.endpoint.timeout
        allowed = aiohttp.ClientTimeout(total=policy.request_s(max_tokens), sock_connect=policy.connect_s)
        self._timeouts[max_tokens] = allowed
        return allowed

    def _open(self) -> aiohttp.ClientSession:
        """Make the session at the first call, because it belongs to the running loop."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # inflating costs more than a few KB on the wire
            "User-Agent": "fastgen",
        }
        if authorization := self.endpoint.authorization():
            headers["Authorization"] = authorization
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )
        return self._session


def _read_models(body: bytes) -> tuple[str, ...]:
    """The names in a list of models. Tolerant, because servers' lists differ."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    entries = answer.get("data") if isinstance(answer, dict) else answer
    cards = [card for card in entries if isinstance(card, dict)] if isinstance(entries, list) else []
    return tuple(dict.fromkeys(card["id"] for card in cards if isinstance(card.get("id"), str)))
