"""The test server: OpenAI's API as vLLM serves it, with faults on command.

Routes: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/models``, ``/health``, ``/metrics`` (vLLM's names),
``/tokenize`` and ``/detokenize``. ``GET /faults`` returns the counters as JSON. ``POST /faults`` with
``{"script": [...], "rate": 0.1, "kinds": [...], "seed": 0}`` plans new faults. Texts depend only on the prompt
(`answers`) and on the kind of model (`chat`), times on the engine (`engine`), faults on the order of arrival
(`faults`). Only a prompt that ends where a user's text begins is asked again and again for other texts: these also
depend on the request's ``seed``, or else on how often the server has seen the prompt.

With a simulated engine there are three more. ``GET /sim/stats`` returns the present figures, the CPU time of the
process, and what happened in each simulated second since the first request (`Timeline`). ``POST /sim/ideal`` with
``{"from_s": 10, "to_s": 60}`` returns what the engine as it is now would write if its queue were never empty, given the
lengths of the sequences that ended in that time. ``POST /sim/change`` with ``{"change": "slow=3"}`` applies a change
now.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import orjson

from fastgen.errors import InputError
from fastgen.simulator import api
from fastgen.simulator.answers import Writer, is_pre_query
from fastgen.simulator.api import count_tokens
from fastgen.simulator.batching import block_hashes, ideal_tokens_per_s
from fastgen.simulator.chat import NO_TEMPLATE, Schemas, ServedModel, Tokenizer, tokens_asked
from fastgen.simulator.engine import SimulatedEngine, SlotEngine, Work
from fastgen.simulator.faults import Change, Event, Fault, FaultPlan, inject_instead, inject_into, read_change
from fastgen.simulator.protocol import Connection, Exchange
from fastgen.simulator.schemas import fitting_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


BACKLOG = 4096
KEPT_REQUESTS = 64
BLOCK_CHARACTERS = 256
BLOCK_TOKENS = 64
CAPACITY_BLOCKS = 100_000
_LOADING = api.error_body(503, "Loading model", "unavailable_error")


@dataclass(slots=True)
class ServerCounters:
    """What a server has seen since its start.

    ``requests`` are those for completions. ``gone`` are clients that disconnected before their answer. ``finished``
    counts completions by finish_reason, ``injected`` faults by name.
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
        """Return the counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class PrefixCache:
    """Counts queried and hit tokens in whole blocks. It forgets everything when it is full."""

    def __init__(self) -> None:
        self.queries_tokens = 0
        self.hits_tokens = 0
        self._seen: set[int] = set()

    def look_up(self, prompt: str) -> None:
        """Count the blocks of ``prompt`` that continue a known prefix, and remember the others."""
        blocks = block_hashes(prompt, BLOCK_CHARACTERS)
        self.queries_tokens += len(blocks) * BLOCK_TOKENS
        self.hits_tokens += sum(block in self._seen for block in blocks) * BLOCK_TOKENS
        self._seen.update(blocks)
        if len(self._seen) > CAPACITY_BLOCKS:
            self._seen.clear()


class FaultServer:
    """The server. ``async with FaultServer() as server:`` listens on a free port of the loopback at `base_url`.

    ``script`` is short for a `FaultPlan` of that script. ``apis`` are the routes that exist. ``api_key``, if given, is
    required under ``/v1`` as in vLLM. Without an engine answers come at once. ``write`` returns the text for a prompt
    and the number of its choice, or ``None`` for a chat answer whose content is null. ``kind`` is the kind of
    model. While ``loading`` is true (it may be set at any time) ``/health`` and everything under ``/v1`` answer 503, as
    llama.cpp's server does.

    ``schedule`` holds changes of a simulated engine and the simulated seconds after the first request at which they
    happen. ``seed`` keys the faults of a change, reasoning and JSON. ``received`` has the last requests for
    completions.
    """

    def __init__(
        self,
        *,
        model: str = "test-model-base",
        script: Iterable[Event] = (),
        faults: FaultPlan | None = None,
        engine: SlotEngine | SimulatedEngine | None = None,
        write: Callable[[str, int], str | None] | None = None,
        max_model_len: int = 1 << 20,
        apis: Iterable[str] = ("completions", "chat"),
        api_key: str | None = None,
        slow_s: float = 1.0,
        schedule: Iterable[tuple[float, Change]] = (),
        seed: int = 0,
        kind: ServedModel | None = None,
    ) -> None:
        self.model = model
        self.kind = kind or ServedModel()
        self.faults = faults or FaultPlan(script)
        self.engine = engine or SlotEngine()
        self.loading = False
        self.counters = ServerCounters()
        self.received: deque[Exchange] = deque(maxlen=KEPT_REQUESTS)
        self._write = write or Writer().answer
        self._think = Writer(seed).reasoning
        template = self.kind.template
        self._tokenizer = Tokenizer(template.bos, template.writes_blank) if template else Tokenizer()
        self._asked_again: Counter[str] = Counter()  # how often each prompt that ends where a user begins was seen
        self._max_model_len = max_model_len
        self._api_key = api_key
        self._slow_s = slow_s
        self._seed = seed
        self._schedule = tuple(schedule)
        self._changes: list[tuple[float, str]] = []
        self._restarts: set[asyncio.Task[None]] = set()
        self._prefix_cache = PrefixCache()
        self._routes = self._make_routes(frozenset(apis))
        self._host, self._port = "127.0.0.1", 0
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()
        if isinstance(self.engine, SimulatedEngine):
            self.engine.on_start = self._start_schedule

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        """The value for ``--base-url``."""
        return f"http://{self._host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Accept connections, after `refuse` on the same port."""
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
        """Stop accepting and reset every connection, as a killed server does. `listen` starts again."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            for connection in tuple(self._connections):
                connection.reset()
            await self.until(lambda: not self._connections)
            await listener.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds. It is checked at each request, answer, connection and disconnection."""
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
        """Add or replace a route."""
        self._routes[method, path] = handler

    # -- routes --------------------------------------------------------------------------------------------------------

    def _make_routes(self, apis: frozenset[str]) -> dict[tuple[str, str], Callable[[Exchange], None]]:
        routes: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("GET", "/v1/models"): lambda exchange: exchange.respond_json(
                api.models_body(self.model, self._max_model_len)
            ),
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/faults"): self._report,
            ("POST", "/faults"): self._plan_faults,
        }
        if self.kind.tokenizes:
            routes["POST", "/tokenize"] = self._tokenize
            routes["POST", "/detokenize"] = self._detokenize
        if "completions" in apis:
            routes["POST", "/v1/completions"] = lambda exchange: self._arrive(exchange, chat=False)
        if "chat" in apis:
            routes["POST", "/v1/chat/completions"] = lambda exchange: self._arrive(exchange, chat=True)
        if isinstance(self.engine, SimulatedEngine):
            engine = self.engine
            routes["GET", "/sim/stats"] = lambda exchange: self._stats(exchange, engine)
            routes["POST", "/sim/ideal"] = lambda exchange: self._ideal(exchange, engine)
            routes["POST", "/sim/change"] = lambda exchange: self._change(exchange, engine)
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
        simulated = self.engine if isinstance(self.engine, SimulatedEngine) else None
        counters = (
            simulated.counts().vllm_counters()
            if simulated
            else {
                "prefix_cache_queries": self._prefix_cache.queries_tokens,
                "prefix_cache_hits": self._prefix_cache.hits_tokens,
                "prompt_tokens": self.counters.prompt_tokens,
                "generation_tokens": self.counters.generation_tokens,
            }
        )
        page = api.metrics_page(self.model, self.engine.load(), counters, self.counters.finished, simulated)
        exchange.respond(200, page, content_type="text/plain; version=0.0.4")

    def _tokenize(self, exchange: Exchange) -> None:
        def answer(asked: dict[str, Any]) -> dict[str, Any]:
            tokens = tokens_asked(asked, self.kind, self._tokenizer)
            return {"count": len(tokens), "max_model_len": self._max_model_len, "tokens": tokens, "token_strs": None}

        self._answer_small(exchange, answer)

    def _detokenize(self, exchange: Exchange) -> None:
        self._answer_small(exchange, lambda asked: {"prompt": self._tokenizer.decode(asked.get("tokens") or ())})

    def _answer_small(self, exchange: Exchange, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Respond with what ``answer`` makes of the body, or with a 400."""
        try:
            asked = orjson.loads(exchange.body)
            if not isinstance(asked, dict):
                raise api.BadRequestError("the body must be an object")  # noqa: TRY301 - one place answers
            exchange.respond_json(orjson.dumps(answer(asked)))
        except (orjson.JSONDecodeError, api.BadRequestError, TypeError) as error:
            exchange.respond(400, api.error_body(400, str(error), "BadRequestError"))

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
        self.received.append(exchange)
        event = self.faults.next()
        if event is not None:
            self.counters.injected[event.value if isinstance(event, Fault) else f"reply-{event.status}"] += 1
        if event is Fault.PROMPT_TOO_LONG:
            exchange.respond(400, api.too_long_body(self._max_model_len, self._max_model_len + 1))
        elif not inject_instead(exchange, event):
            self._generate(exchange, event if isinstance(event, Fault) else None, chat=chat)

    def _generate(self, exchange: Exchange, fault: Fault | None, *, chat: bool) -> None:
        try:
            asked = api.read_request(exchange.body, chat=chat)
        except api.BadRequestError as error:
            exchange.respond(400, api.error_body(400, str(error), "BadRequestError"))
            return
        if refused := self._refuses(asked, chat=chat):
            exchange.respond(400, api.error_body(400, refused, "BadRequestError"))
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

    def _run(
        self, exchange: Exchange, asked: api.CompletionRequest, tokens: list[int], fault: Fault | None, *, chat: bool
    ) -> None:
        completions = [
            completion
            for prompt, count in zip(asked.prompts, tokens, strict=True)
            for completion in self._complete(prompt, asked, self._max_model_len - count, chat=chat)
        ]
        if not isinstance(self.engine, SimulatedEngine):  # which counts itself
            for prompt in asked.prompts:
                self._prefix_cache.look_up(prompt)
        prompt_tokens = sum(tokens)
        self.counters.prompt_tokens += prompt_tokens

        def done() -> None:
            exchange.on_gone = None
            self.counters.answered += 1
            self.counters.generation_tokens += sum(completion.tokens for completion in completions)
            self.counters.finished.update(completion.finish_reason for completion in completions)
            answer = api.answer(asked, completions, prompt_tokens, chat=chat)
            if fault is None:
                exchange.respond_json(orjson.dumps(answer))
            else:
                inject_into(exchange, answer, fault, chat=chat)
            self._changed.set()

        def gone() -> None:
            self.counters.gone += 1
            cancel()

        exchange.on_gone = gone
        work = Work(prompt_tokens, tuple(completion.tokens for completion in completions), asked.prompts)
        cancel = self._submit(work, done, fault)

    def _refuses(self, asked: api.CompletionRequest, *, chat: bool) -> str:
        """Return why such a server refuses the request, an empty text where it does not."""
        if chat and self.kind.template is None:
            return NO_TEMPLATE
        if chat and self.kind.template is not None:
            try:
                self.kind.template.check(asked.messages)
            except api.BadRequestError as error:
                return str(error)
        if asked.schema is not None and self.kind.schemas is Schemas.REFUSE:
            return "response_format and structured_outputs are not supported by this server."
        return ""

    def _complete(
        self, prompt: str, asked: api.CompletionRequest, room_tokens: int, *, chat: bool
    ) -> Iterator[api.Completion]:
        """Yield the completions of one prompt."""
        first = 0
        if is_pre_query(prompt):
            first = asked.n * (self._asked_again[prompt] if asked.seed is None else asked.seed)
            self._asked_again[prompt] += 1
        for i in range(first, first + (1 if self.kind.ignores_n else asked.n)):
            if asked.schema is not None and self.kind.schemas is Schemas.HONOUR:
                text: str | None = fitting_json(asked.schema, prompt, i, self._seed)
            else:
                text = self._write(prompt, i)
            if chat:
                yield self.kind.complete(asked, text, partial(self._think, prompt, i), room_tokens)
            else:
                yield api.cut(text, asked, room_tokens)

    def _submit(self, work: Work, done: Callable[[], None], fault: Fault | None) -> Callable[[], None]:
        """Start the work. A hang never ends, a slow answer ignores the engine."""
        if fault is Fault.HANG:
            return lambda: None
        if fault is Fault.SLOW:
            return asyncio.get_running_loop().call_later(self._slow_s, done).cancel
        return self.engine.submit(work, done)

    # -- a simulated engine --------------------------------------------------------------------------------------------

    def _start_schedule(self, started_s: float) -> None:
        engine = self.engine
        assert isinstance(engine, SimulatedEngine), "it has called"  # noqa: S101 - for the type checker
        for at_s, change in self._schedule:
            engine.clock.call_at(started_s + at_s, partial(self._apply, change, engine))

    def _apply(self, change: Change, engine: SimulatedEngine) -> None:
        """:raises InputError: when the engine cannot have such limits."""
        model = engine.model
        resized = model.resized(max_num_seqs=change.max_num_seqs, kv_blocks=change.kv_blocks)
        changed = replace(resized, slowdown=model.slowdown if change.slow is None else change.slow)
        if changed != model:
            engine.change(changed)
        if change.fault_rate is not None:
            self.faults = FaultPlan(rate=change.fault_rate, kinds=change.faults, seed=self._seed)
        if change.stop_s is not None:
            restart = asyncio.get_running_loop().create_task(self._restart(engine, change.stop_s))
            self._restarts.add(restart)
            restart.add_done_callback(self._restarts.discard)
        self._changes.append((engine.now_s(), str(change)))

    async def _restart(self, engine: SimulatedEngine, seconds: float) -> None:
        over = asyncio.Event()
        back_s = engine.clock.now_s() + seconds
        engine.reset()
        await self.refuse()
        engine.clock.call_at(back_s, over.set)
        await over.wait()
        await self.listen()

    def _stats(self, exchange: Exchange, engine: SimulatedEngine) -> None:
        timeline = engine.timeline()
        stats = {
            "now_s": engine.now_s(),
            "load": asdict(engine.load()),
            "model": asdict(engine.model),
            "counters": engine.counts().vllm_counters(),
            "lateness": engine.lateness,
            "changes": self._changes,
            "cpu_s": time.process_time(),
            "monotonic_s": time.monotonic(),
            "requests": self.counters.requests,
            "sequences": self.counters.finished.total(),
            "seconds": None if timeline is None else timeline.as_dict(),
        }
        exchange.respond_json(orjson.dumps(stats))

    def _ideal(self, exchange: Exchange, engine: SimulatedEngine) -> None:
        try:
            asked = orjson.loads(exchange.body or b"{}")
            lengths = engine.lengths(float(asked.get("from_s", 0.0)), float(asked.get("to_s", math.inf)))
            ideal = ideal_tokens_per_s(engine.model, lengths)
        except (ValueError, TypeError, AttributeError) as error:
            exchange.respond(400, api.error_body(400, f"no ideal: {error}", "BadRequestError"))
            return
        mean_tokens = sum(one.output_tokens for one in lengths) / len(lengths)
        exchange.respond_json(
            orjson.dumps({"tokens_per_s": ideal, "sequences": len(lengths), "mean_output_tokens": mean_tokens})
        )

    def _change(self, exchange: Exchange, engine: SimulatedEngine) -> None:
        try:
            self._apply(read_change(str(orjson.loads(exchange.body)["change"])), engine)
        except (InputError, ValueError, TypeError, KeyError) as error:
            exchange.respond(400, api.error_body(400, f"no change: {error}", "BadRequestError"))
            return
        exchange.respond_json(b"{}")


@contextmanager
def in_a_thread(server: FaultServer) -> Iterator[FaultServer]:
    """Serve in another thread. This one stays free for a command and its signals."""
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
