"""What a test server keeps to be asked about afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import orjson

from fastgen.simulator import api
from fastgen.simulator.answers import Writer
from fastgen.simulator.api import count_tokens
from fastgen.simulator.engine import Engine, SlotEngine, Work
from fastgen.simulator.faults import Event, Fault, FaultPlan, inject_instead, inject_into
from fastgen.simulator.protocol import Connection, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastgen.simulator.engine import EngineFigures, Histogram, Load


@dataclass(slots=True)
class ServerCounters:
    """What a server has seen since its start.

    ``requests`` are those for completions, ``gone`` the clients that left before their answer, tokens are counted by
    the fake tokenizer, ``finished`` counts sequences by finish_reason and ``injected`` faults by name.
    """

    connections: int = 0
    open_connections: int = 0
    health_checks: int = 0
    requests: int = 0
    answered: int = 0
    gone: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For ``/faults``."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Received:
    """One request for completions, as it came."""

    path: str
    authorization: str
    body: bytes


BLOCK_CHARACTERS = 256
BLOCK_TOKENS = 64
CAPACITY_BLOCKS = 100_000


class PrefixCache:
    """Counts queried and hit tokens in whole blocks; forgets everything when it is full."""

    def __init__(self) -> None:
        self.queries_tokens = 0
        self.hits_tokens = 0
        self._seen: set[int] = set()

    def look_up(self, prompt: str) -> None:
        """Count the blocks of ``prompt`` that continue a known prefix, and remember the others."""
        chain, hits = 0, 0
        for start in range(0, len(prompt) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
            chain = hash((chain, prompt[start : start + BLOCK_CHARACTERS]))
            if chain in self._seen:
                hits += 1
            else:
                self._seen.add(chain)
        self.queries_tokens += len(prompt) // BLOCK_CHARACTERS * BLOCK_TOKENS
        self.hits_tokens += hits * BLOCK_TOKENS
        if len(self._seen) > CAPACITY_BLOCKS:
            self._seen.clear()


def metrics_page(
    model: str, load: Load, counters: Mapping[str, float], finished: Mapping[str, int], figures: EngineFigures | None
) -> bytes:
    """Return the page.

    ``counters`` have vLLM's names without ``vllm:`` and ``_total``; an engine's own count instead of a server's of the
    same name. ``finished`` counts sequences by their finish_reason.
    """
    label = f'engine="0",model_name="{model}"'
    gauges = {
        "num_requests_running": load.running,
        "num_requests_waiting": load.waiting,
        "kv_cache_usage_perc": load.kv_cache_usage,
    }
    lines: list[str] = []
    for name, value in gauges.items():
        lines += _family(name, "gauge", {label: value})
    lines += _family("num_requests_waiting_by_reason", "gauge", {f'{label},reason="capacity"': load.waiting})
    counted = {**counters, "num_preemptions": load.preemptions, **(figures.counters if figures else {})}
    for name, value in counted.items():
        lines += _family(f"{name}_total", "counter", {label: value})
    by_reason = {f'{label},finished_reason="{reason}"': count for reason, count in finished.items()}
    lines += _family("request_success_total", "counter", by_reason)
    if figures is not None:
        for name, histogram in figures.histograms.items():
            lines += _histogram(name, label, histogram)
        config = ",".join(f'{key}="{value}"' for key, value in figures.cache_config.items())
        lines += _family("cache_config_info", "gauge", {f'{config},engine="0"': 1})
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP vllm:{name} As vLLM's."
    yield f"# TYPE vllm:{name} {kind}"
    for labels, value in values.items():
        yield f"vllm:{name}{{{labels}}} {float(value)}"


def _histogram(name: str, label: str, histogram: Histogram) -> Iterator[str]:
    yield f"# HELP vllm:{name} As vLLM's."
    yield f"# TYPE vllm:{name} histogram"
    counts = histogram.cumulative()
    for bound, count in counts:
        yield f'vllm:{name}_bucket{{{label},le="{bound}"}} {float(count)}'
    yield f"vllm:{name}_count{{{label}}} {float(counts[-1][1])}"
    yield f"vllm:{name}_sum{{{label}}} {histogram.total_s}"


BACKLOG = 4096
KEPT_REQUESTS = 64
_LOADING = api.error_body(503, "Loading model", "unavailable_error")


class FaultServer:
    """The server; ``async with FaultServer() as server:`` listens on a free port of the loopback at `base_url`.

    ``script`` is short for a `FaultPlan` of that script. ``apis`` are the routes that exist; ``api_key``, if given, is
    asked for under ``/v1`` as vLLM does. Without an engine answers come at once. ``write`` gives the text
    for a prompt and the number of its choice, or ``None`` for a chat answer whose content is null. While ``loading`` is
    true (it may be set at any time) ``/health`` and everything under ``/v1`` answer 503, as llama.cpp's server does.
    """

    def __init__(
        self,
        *,
        model: str = "test-model",
        script: Iterable[Event] = (),
        faults: FaultPlan | None = None,
        engine: Engine | None = None,
        write: Callable[[str, int], str | None] | None = None,
        max_model_len: int = 1 << 20,
        apis: Iterable[str] = ("completions", "chat"),
        api_key: str | None = None,
        slow_s: float = 1.0,
    ) -> None:
        self.model = model
        self.faults = faults or FaultPlan(script)
        self.engine = engine or SlotEngine()
        self.loading = False
        self.counters = ServerCounters()
        self.received: deque[Received] = deque(maxlen=KEPT_REQUESTS)
        self._write = write or Writer().answer
        self._max_model_len = max_model_len
        self._api_key = api_key
        self._slow_s = slow_s
        self._prefix_cache = PrefixCache() if self.engine.figures() is None else None  # else it counts itself
        self._routes = self._make_routes(frozenset(apis))
        self._host, self._port = "127.0.0.1", 0
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        """For ``--base-url``."""
        return f"http://{self._host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Accept connections; after `refuse` on the same port as before."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._handle, self._opened, self._closed),
            host,
            port or self._port,
            backlog=BACKLOG,
            reuse_address=True,
        )
        self._host, self._port = self._listener.sockets[0].getsockname()[:2]

    async def refuse(self) -> None:
        """Stop accepting and reset every connection, as a killed server does; `listen` begins again."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            for connection in tuple(self._connections):
                connection.reset()
            await self.until(lambda: not self._connections)
            await listener.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; looked at whenever a request, an answer or a connection comes or goes."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _opened(self, connection: Connection) -> bool:
        self.counters.connections += 1
        self.counters.open_connections += 1
        self._connections.add(connection)
        self._changed.set()
        return self._listener is not None

    def _closed(self, connection: Connection) -> None:
        self.counters.open_connections -= 1
        self._connections.discard(connection)
        self._changed.set()

    def add_route(self, method: str, path: str, handler: Callable[[Exchange], None]) -> None:
        """Serve one more route, or another way."""
        self._routes[method, path] = handler

    # -- routes --------------------------------------------------------------------------------------------------------

    def _make_routes(self, apis: frozenset[str]) -> dict[tuple[str, str], Callable[[Exchange], None]]:
        routes: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("GET", "/v1/models"): lambda exchange: exchange.respond_json(
                api.models_body(self.model, self._max_model_len)
            ),
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("GET", "/faults"): self._report,
            ("POST", "/faults"): self._plan_faults,
        }
        if "completions" in apis:
            routes["POST", "/v1/completions"] = lambda exchange: self._arrive(exchange, chat=False)
        if "chat" in apis:
            routes["POST", "/v1/chat/completions"] = lambda exchange: self._arrive(exchange, chat=True)
        return routes

    def _handle(self, exchange: Exchange) -> None:
        route = self._routes.get((exchange.method, exchange.path))
        if route is None:
            exchange.respond(404, b'{"detail":"Not Found"}')
        elif self.loading and exchange.path.startswith("/v1/"):
            exchange.respond(503, _LOADING)
        elif (
            self._api_key
            and exchange.path.startswith("/v1/")
            and exchange.header("Authorization") != f"Bearer {self._api_key}"
        ):
            exchange.respond(401, b'{"error":"Unauthorized"}')
        else:
            route(exchange)
        self._changed.set()

    def _health(self, exchange: Exchange) -> None:
        self.counters.health_checks += 1
        exchange.respond(503 if self.loading else 200, _LOADING if self.loading else b"")

    def _metrics(self, exchange: Exchange) -> None:
        seen = self.counters
        counters = {
            "prefix_cache_queries": self._prefix_cache.queries_tokens if self._prefix_cache else 0,
            "prefix_cache_hits": self._prefix_cache.hits_tokens if self._prefix_cache else 0,
            "prompt_tokens": seen.prompt_tokens,
            "generation_tokens": seen.generation_tokens,
        }
        page = metrics_page(self.model, self.engine.load(), counters, seen.finished, self.engine.figures())
        exchange.respond(200, page, content_type="text/plain; version=0.0.4")

    def _tokenize(self, exchange: Exchange) -> None:
        try:
            asked = orjson.loads(exchange.body)
            text = (
                str(asked["prompt"]) if "prompt" in asked else "\n".join(str(m["content"]) for m in asked["messages"])
            )
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            exchange.respond(400, api.error_body(400, f"cannot tokenize: {error!r}", "BadRequestError"))
            return
        count = count_tokens(text)
        exchange.respond_json(
            orjson.dumps({"count": count, "max_model_len": self._max_model_len, "tokens": list(range(count))})
        )

    def _report(self, exchange: Exchange) -> None:
        load = self.engine.load()
        report = self.counters.as_dict() | {
            "running": load.running,
            "waiting": load.waiting,
            "busy_s": load.busy_s,
            "cpu_s": time.process_time(),
            "monotonic_s": time.monotonic(),
        }
        exchange.respond_json(orjson.dumps(report))

    def _plan_faults(self, exchange: Exchange) -> None:
        try:
            asked = orjson.loads(exchange.body)
            script = [Fault(name) if name else None for name in asked.get("script", ())]
            kinds = {"kinds": [Fault(name) for name in asked["kinds"]]} if "kinds" in asked else {}
            self.faults = FaultPlan(script, rate=float(asked.get("rate", 0.0)), seed=int(asked.get("seed", 0)), **kinds)
        except (orjson.JSONDecodeError, ValueError, TypeError, AttributeError) as error:
            exchange.respond(400, api.error_body(400, f"no plan: {error!r}", "BadRequestError"))
            return
        exchange.respond_json(b"{}")

    # -- completions ---------------------------------------------------------------------------------------------------

    def _arrive(self, exchange: Exchange, *, chat: bool) -> None:
        self.counters.requests += 1
        self.received.append(Received(exchange.path, exchange.header("Authorization"), exchange.body))
        event = self.faults.next()
        if event is not None:
            self.counters.injected[event.value if isinstance(event, Fault) else f"reply-{event.status}"] += 1
        too_long = api.too_long_body(self._max_model_len, self._max_model_len + 1)
        if not inject_instead(exchange, event, prompt_too_long=too_long):
            self._generate(exchange, event if isinstance(event, Fault) else None, chat=chat)

    def _generate(self, exchange: Exchange, fault: Fault | None, *, chat: bool) -> None:
        try:
            asked = api.read_request(exchange.body, chat=chat)
        except api.BadRequestError as error:
            exchange.respond(400, api.error_body(400, str(error), "BadRequestError"))
            return
        prompt_tokens = [count_tokens(prompt) for prompt in asked.prompts]
        if asked.model != self.model:
            exchange.respond(
                404, api.error_body(404, f"The model `{asked.model}` does not exist.", "NotFoundError", "model")
            )
        elif max(prompt_tokens) >= self._max_model_len:  # no room for a single token
            exchange.respond(400, api.too_long_body(self._max_model_len, max(prompt_tokens)))
        else:
            self._run(exchange, asked, prompt_tokens, fault, chat=chat)

    def _run(self, exchange: Exchange, asked: api.Asked, tokens: list[int], fault: Fault | None, *, chat: bool) -> None:
        sequences = [
            api.cut(self._write(prompt, i), asked, self._max_model_len - count)
            for prompt, count in zip(asked.prompts, tokens, strict=True)
            for i in range(asked.n)
        ]
        if self._prefix_cache is not None:
            for prompt in asked.prompts:
                self._prefix_cache.look_up(prompt)
        prompt_tokens = sum(tokens)
        self.counters.prompt_tokens += prompt_tokens

        def done() -> None:
            exchange.on_gone = None
            self.counters.answered += 1
            self.counters.generation_tokens += sum(sequence.tokens for sequence in sequences)
            self.counters.finished.update(sequence.finish_reason for sequence in sequences)
            answer = api.answer(asked, sequences, prompt_tokens, chat=chat)
            if fault is None:
                exchange.respond_json(orjson.dumps(answer))
            else:
                inject_into(exchange, answer, fault, chat=chat)
            self._changed.set()

        def gone() -> None:
            self.counters.gone += 1
            cancel()

        exchange.on_gone = gone
        work = Work(prompt_tokens, tuple(sequence.tokens for sequence in sequences), asked.prompts)
        cancel = self._submit(work, done, fault)

    def _submit(self, work: Work, done: Callable[[], None], fault: Fault | None) -> Callable[[], None]:
        """Begin the work; a hang never ends, a slow answer begins late."""
        if fault is Fault.HANG:
            return lambda: None
        if fault is Fault.SLOW:
            return asyncio.get_running_loop().call_later(self._slow_s, done).cancel
        return self.engine.submit(work, done)


@contextmanager
def in_a_thread(server: FaultServer) -> Iterator[FaultServer]:
    """Have the server listen in a thread of its own, so that a command may have this one and its signals."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.listen(), loop).result()
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.refuse(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
