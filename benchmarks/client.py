"""What fastgen's client costs, compared with a bare aiohttp loop that sends the same bodies to the same server.

``python -m benchmarks.client [--completions 20000] [--concurrency 512] [--repeats 5] [--occupancy 5000]``

Three loops in this process take turns against one test server without latency in another process:

- *raw*: hand-written HTTP on `asyncio.Protocol`; answers are not parsed. The ceiling: what the server can give.
- *bare*: aiohttp, uvloop and orjson; POST, read, parse. What any client on aiohttp costs at least.
- *fastgen*: `Router.complete`: builds the body, sends it, checks the answer, makes completions, counts.

Figures are medians over the repeats. CPU is this process's own (user and system). Last comes the occupancy of a server
with 256 slots and 1 s a request, from the first request to the last answer. Its ceiling is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import orjson
import uvloop

from benchmarks.harness import Server, Stopwatch, finish, instruction_prompts, print_table, test_server
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.protocol import encode_request
from fastgen.servers.router import Router
from fastgen.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fastgen.engine.backend import Backend

SAMPLING = Sampling(temperature=0.7, top_p=0.5, max_tokens=1024, presence_penalty=2.0, stop=("\n\n", "\n16."))


@dataclass(frozen=True, slots=True)
class LoopResult:
    """One loop's cost: this process's wall and CPU seconds over ``completions`` requests."""

    completions: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Completions per second."""
        return self.completions / self.wall_s

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per completion."""
        return self.cpu_s / self.completions * 1e6


async def bare_loop(
    bodies: Sequence[bytes], base_url: str, concurrency: int, *, route: str = "/completions"
) -> LoopResult:
    """POST every body once, ``concurrency`` workers at a time; read and parse the answers.

    The session is opened before timing, its connections within.
    """
    pending = iter(bodies)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=headers
    ) as session:

        async def worker() -> None:
            for body in pending:
                async with session.post(base_url + route, data=body) as response:
                    answer = orjson.loads(await response.read())
                    assert answer["choices"][0]["text"], "the server must answer"

        return await _timed(worker, len(bodies), concurrency)


async def backend_loop(requests: Sequence[Request], backend: Backend, concurrency: int) -> LoopResult:
    """Complete every request once, ``concurrency`` workers at a time."""
    pending = iter(requests)

    async def worker() -> None:
        for request in pending:
            (completion,) = await backend.complete(request)
            assert completion.text, "the server must answer"

    return await _timed(worker, len(requests), concurrency)


async def raw_loop(bodies: Sequence[bytes], base_url: str, concurrency: int) -> LoopResult:
    """POST every body once over ``concurrency`` hand-made connections; only the length of the answers is read."""
    host, _, port = base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    pending = iter(bodies)

    async def worker() -> None:
        _, connection = await asyncio.get_running_loop().create_connection(_RawConnection, host, int(port))
        for body in pending:
            await connection.post(body)
        connection.close()

    return await _timed(worker, len(bodies), concurrency)


async def _timed(worker: Callable[[], Awaitable[None]], completions: int, concurrency: int) -> LoopResult:
    watch = Stopwatch()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return LoopResult(completions, *watch.read())


class _RawConnection(asyncio.Protocol):
    """The least that can be called an HTTP client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none, though they do the same
        self._received = b""
        self._answered: asyncio.Future[None] | None = None

    async def post(self, body: bytes) -> None:
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await self._answered

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.rpartition(b"Content-Length: ")[2]) and self._answered is not None:
            self._received = b""
            self._answered.set_result(None)

    def close(self) -> None:
        self._transport.close()


def make_requests(count: int) -> list[Request]:
    """First-stage requests with different prompts of about 1.6 KB."""
    return [Request(i, "instruction", prompt, SAMPLING) for i, prompt in enumerate(instruction_prompts(count))]


async def _measure(
    name: str, server: Server, requests: Sequence[Request], bodies: Sequence[bytes], concurrency: int
) -> LoopResult:
    if name == "raw":
        return await raw_loop(bodies, server.base_url, concurrency)
    if name == "bare":
        return await bare_loop(bodies, server.base_url, concurrency)
    router = Router([OpenAIBackend(Endpoint(server.base_url, "test-model-base"))])
    try:
        return await backend_loop(requests, router, concurrency)
    finally:
        await router.close()


def run(completions: int, concurrency: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians for each loop: completions/s, CPU per completion here and on the server, new connections."""
    requests = make_requests(completions)
    with test_server() as server:
        bodies = [encode_request(Endpoint(server.base_url, "test-model-base"), request) for request in requests]
        seen: dict[str, list[dict[str, float]]] = {"raw": [], "bare": [], "fastgen": []}
        for repeat in range(-1, repeats):  # the first round warms both processes up
            for name, figures in seen.items():
                before = server.ask("/faults")
                result = uvloop.run(_measure(name, server, requests, bodies, concurrency))
                after = server.ask("/faults")
                if repeat >= 0:
                    figures.append(
                        {
                            "completions_per_s": result.per_s,
                            "client_cpu_us": result.cpu_us,
                            "server_cpu_us": (after["cpu_s"] - before["cpu_s"]) / completions * 1e6,
                            "connections": float(after["connections"] - before["connections"] - 1),
                        }
                    )
    return {
        name: {key: statistics.median(f[key] for f in figures) for key in figures[0]} for name, figures in seen.items()
    }


def occupancy(completions: int, concurrency: int, slots: int = 256, latency_s: float = 1.0) -> dict[str, float]:
    """Return the share of slot-seconds used; ``completions`` should fill whole rounds of the slots."""
    requests = make_requests(completions)
    with test_server("--slots", str(slots), "--latency", str(latency_s)) as server:
        before = server.ask("/faults")
        result = uvloop.run(_measure("fastgen", server, requests, (), concurrency))
        after = server.ask("/faults")
    used = (after["busy_s"] - before["busy_s"]) / (slots * result.wall_s)
    return {"occupancy": used, "client_cpu_us": result.cpu_us}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--occupancy", type=int, default=5_120, help="requests of the occupancy run; 0 leaves it out")
    given = parser.parse_args()
    medians = run(given.completions, given.concurrency, given.repeats)
    columns = ("loop", "completions/s", "client CPU us", "server CPU us", "connections", "client CPU / bare")
    bare = medians["bare"]["client_cpu_us"]
    print_table(columns, [(name, *row.values(), row["client_cpu_us"] / bare) for name, row in medians.items()])
    figures: dict[str, Any] = dict(medians)
    figures["fastgen_cpu_over_bare"] = medians["fastgen"]["client_cpu_us"] / bare
    if given.occupancy:
        figures["occupancy"] = occupancy(given.occupancy, given.concurrency)
        print(f"\noccupancy of 256 slots of 1 s: {figures['occupancy']['occupancy']:.4f} (ceiling 1)")
    finish("client", figures | {"settings": vars(given)})


if __name__ == "__main__":
    main()
