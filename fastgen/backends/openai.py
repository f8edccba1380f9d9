"""One OpenAI-compatible server over HTTP: vLLM, SGLang, llama.cpp's, hosted ones.

Guarantees: one `complete` is at most one POST, never repeated here; connections are kept alive and as many as there are calls;
cancelling a call closes its connection, which makes vLLM free the sequence; a response is read up to a bound; whatever goes
wrong is one of fastgen's errors, without a foreign exception chained to it (those carry request headers, hence keys).
Knows nothing of retries, other servers or what the text means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import aiohttp
import orjson
from yarl import URL

from fastgen.backends import BackendStatistics, EndpointCounters, EndpointStatistics
from fastgen.backends.endpoint import Endpoint
from fastgen.backends.mapping import CLIENT_ERRORS, HttpAnswer, from_client_error, from_refusal, is_unknown_model
from fastgen.backends.prometheus import ServerMetrics, parse_metrics
from fastgen.backends.wire import decode_completions, encode_request
from fastgen.errors import BackendUnavailable, FastgenError, InputError, RequestError, TransientError
from fastgen.records import Completion, Request

KEEPALIVE_S = 4.0  # below uvicorn's (vLLM's) 5 s: a connection that idled longer may be closing under our next POST
SMALL_CALL_TIMEOUT_S = 5.0  # for what a server answers from memory: health, models, metrics
MAX_PAGE_BYTES = 8 << 20  # a metrics page of many engines, a hosted service's list of models
REPORT_EVERY_S = 10.0
_FAULTS = tuple(CLIENT_ERRORS)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server offers: model names (none if it does not say) and the context of the endpoint's model in tokens."""

    ids: tuple[str, ...] = ()
    max_model_len: int | None = None


class OpenAIBackend:
    """A `Backend` for one endpoint. Use it in one event loop; close it there (or use it as a context manager)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counters = EndpointCounters()
        self._url = URL(endpoint.completions_url)
        self._session: aiohttp.ClientSession | None = None
        self._timeouts: dict[int, aiohttp.ClientTimeout] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Backend.complete`."""
        counters = self.counters
        counters.in_flight += 1
        try:
            completions = await self._complete(request)
        except FastgenError:
            counters.failed += 1
            raise
        finally:
            counters.in_flight -= 1
        counters.completed += 1
        return completions

    async def _complete(self, request: Request) -> tuple[Completion, ...]:
        body = encode_request(self.endpoint, request)
        limit = self.endpoint.max_body_bytes * request.n
        answer = await self._send("POST", self._url, body, self._timeout(request.sampling.max_tokens), limit)
        if answer.status != 200:  # noqa: PLR2004 - the one status that carries completions
            offered = await self._offered() if is_unknown_model(answer, self.endpoint) else ()
            raise from_refusal(answer, self.endpoint, offered=offered)
        if len(answer.body) > limit:
            raise TransientError(f"{self.endpoint.display_url}: an answer of more than {limit} bytes", kind="too_large")
        return decode_completions(answer.body, self.endpoint, request.n)

    async def _send(self, method: str, url: URL, body: bytes | None, timeout: aiohttp.ClientTimeout, limit: int) -> HttpAnswer:
        """One request and what came back, read to at most a little more than ``limit`` bytes."""
        session = self._session or self._open()
        try:
            async with session.request(method, url, data=body, timeout=timeout, allow_redirects=False) as response:
                received = await response.content.readany()
                while len(received) <= limit and (more := await response.content.readany()):
                    received += more
        except _FAULTS as error:
            failure = from_client_error(error, self.endpoint)
        else:
            self.counters.last_answer_s = time.monotonic()
            return HttpAnswer(response.status, response.headers, received)
        raise failure  # outside the handler: chained to it, the foreign error would carry the request's headers along

    async def probe(self) -> ModelInfo:
        """What ``GET /models`` says; an empty answer where the server has no such list.

        :raises InputError: the key is refused, or the URL redirects.
        :raises TransientError: the server does not answer, or not yet.
        """
        answer = await self._get(self.endpoint.display_url + "/models")
        if answer.status == 200:  # noqa: PLR2004 - the status that carries the list
            return _read_models(answer.body, self.endpoint.model)
        error = from_refusal(answer, self.endpoint)
        if isinstance(error, TransientError) or (isinstance(error, InputError) and answer.status not in (404, 405)):
            raise error
        return ModelInfo()

    async def _offered(self) -> tuple[str, ...]:
        """The server's models for a message that already has another subject: whatever fails here is not worth saying."""
        try:
            return (await self.probe()).ids
        except FastgenError:
            return ()

    async def metrics(self) -> ServerMetrics | None:
        """The server's own figures; ``None`` where it has no vLLM metrics page or does not answer now."""
        try:
            answer = await self._get(self.endpoint.root_url + "/metrics")
        except FastgenError:
            return None
        return parse_metrics(answer.body) if answer.status == 200 else None  # noqa: PLR2004 - as above

    async def is_answering(self) -> bool:
        """Whether the server answers HTTP and does not call itself broken or still loading (``/health``, 5xx)."""
        try:
            return (await self._get(self.endpoint.root_url + "/health")).status < 500  # noqa: PLR2004 - server errors
        except FastgenError:
            return False

    async def wait_until_answering(self, timeout_s: float, report: Callable[[str], None]) -> ModelInfo:
        """Probe until the server answers; ``report`` gets a line at the first failure and then every ten seconds.

        :raises BackendUnavailable: it did not within ``timeout_s`` (0: a single try).
        :raises InputError: it answered, and something must be mended first.
        """
        started_s = told_s = time.monotonic()
        delay_s = 0.1
        while True:
            try:
                return await self.probe()
            except TransientError as error:
                failure = error
            now_s = time.monotonic()
            left_s = started_s + timeout_s - now_s
            if left_s <= 0:
                raise BackendUnavailable(
                    f"no answer within {timeout_s:.0f} s: {failure}; start the server, or wait longer with --server-timeout"
                )
            if told_s == started_s or now_s - told_s >= REPORT_EVERY_S:
                told_s = now_s
                report(f"waiting up to {left_s:.0f} s for {failure}")
            await asyncio.sleep(min(delay_s, left_s))
            delay_s = min(2 * delay_s, 2.0)

    def statistics(self) -> BackendStatistics:
        """See `Backend.statistics`; a lone endpoint is always called healthy, since nothing watches it."""
        return BackendStatistics((self.snapshot(healthy=True),))

    def snapshot(self, *, healthy: bool) -> EndpointStatistics:
        """The counters now, with the word of whoever watches the endpoint."""
        seen = self.counters
        return EndpointStatistics(
            self.endpoint.display_url, seen.in_flight, seen.completed, seen.failed, healthy, seen.last_answer_s
        )

    async def close(self) -> None:
        """See `Backend.close`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _get(self, url: str) -> HttpAnswer:
        timeout = aiohttp.ClientTimeout(total=SMALL_CALL_TIMEOUT_S)
        return await self._send("GET", URL(url), None, timeout, MAX_PAGE_BYTES)

    def _timeout(self, max_tokens: int) -> aiohttp.ClientTimeout:
        timeout = self._timeouts.get(max_tokens)
        if timeout is None:
            policy = self.endpoint.timeout
            timeout = aiohttp.ClientTimeout(total=policy.request_s(max_tokens), sock_connect=policy.connect_s)
            self._timeouts[max_tokens] = timeout
        return timeout

    def _open(self) -> aiohttp.ClientSession:
        """The one session; made at the first call because it belongs to the running loop."""
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


def _read_models(body: bytes, model: str) -> ModelInfo:
    """Names and context length from a list of models; tolerant, because servers' lists differ."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ModelInfo()
    entries = answer.get("data") if isinstance(answer, dict) else answer
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)] if isinstance(entries, list) else []
    ours = [entry for entry in named if entry["id"] == model] or (named if len(named) == 1 else [])
    length = ours[0].get("max_model_len") if ours else None
    return ModelInfo(tuple(entry["id"] for entry in named), length if type(length) is int else None)
