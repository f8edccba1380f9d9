"""What the whole of ``fastgen generate`` costs, compared with a bare aiohttp loop that sends the same bodies.

``python -m benchmarks.pipeline [--instructions 4000] [--concurrency 256] [--repeats 3]``

Three loops in this process take turns against one test server without latency in another process:

- *bare*: aiohttp, uvloop and orjson; POST, read, parse JSON: the least that any client on aiohttp costs.
- *generate*: everything on: prompts drawn and built, requests sent, answers parsed, every rule, the ROUGE-L check
  against the growing pool, commits written and synced, the plan and the ledger. From an open event loop to the closed
  folder.
- *generate, one prompt a request*: the same with ``--classification-batch 1``, which sends as many requests for a
  completion as the bare loop.

The bodies are those of a `generate` run with one prompt a request, recorded before. CPU is this process's own (user and
system, all threads). Figures are medians over the repeats. The server shares the machine: on two cores it uses one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import uvloop

from benchmarks.client import LoopResult, bare_loop
from benchmarks.harness import Stopwatch, finish, print_table, test_server
from fastgen.generate.options import JobOptions, Options, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.servers import openai
from fastgen.servers.protocol import encode_request
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import QuietReporter

if TYPE_CHECKING:
    from fastgen.servers.endpoint import Endpoint
    from fastgen.types import Request


ONE = "generate, one prompt a request"
DEFAULT_BATCH = SpeedOptions().classification_batch


def run_generate(base_url: str, instructions: int, concurrency: int, batch: int = DEFAULT_BATCH) -> LoopResult:
    """Measure one whole run in a new folder; ``batch`` classification prompts share a request."""
    options = Options(
        job=JobOptions(num_instructions=instructions, probe="off"),
        server=ServerOptions(base_url=(base_url,), api="completions"),
        speed=SpeedOptions(concurrency=concurrency, classification_batch=batch),
    )

    async def main(folder: Path) -> None:
        reporter = QuietReporter()
        await generate(Place(folder, folder), options, reporter, Stopper(reporter))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        watch = Stopwatch()
        uvloop.run(main(folder))
        wall_s, cpu_s = watch.read()
        return LoopResult(RunFolder(folder).ledger().completions.total(), wall_s, cpu_s)


def record_bodies(base_url: str, instructions: int, concurrency: int) -> list[bytes]:
    """Return the bodies that such a run sends with one prompt each: one for each completion."""
    bodies: list[bytes] = []

    def recording(endpoint: Endpoint, request: Request) -> bytes:
        bodies.append(encode_request(endpoint, request))
        return bodies[-1]

    with patch.object(openai, "encode_request", recording):
        run_generate(base_url, instructions, concurrency, batch=1)
    return bodies


def measure(instructions: int, concurrency: int, repeats: int) -> dict[str, list[LoopResult]]:
    """Measure the three in turn, after a pass that records the bodies and compiles the kernels."""
    results: dict[str, list[LoopResult]] = {"bare": [], "generate": [], ONE: []}
    with test_server() as server:
        bodies = record_bodies(server.base_url, instructions, concurrency)
        for _ in range(repeats):
            results["bare"].append(uvloop.run(bare_loop(bodies, server.base_url, concurrency)))
            results["generate"].append(run_generate(server.base_url, instructions, concurrency))
            results[ONE].append(run_generate(server.base_url, instructions, concurrency, batch=1))
    return results


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    results = measure(given.instructions, given.concurrency, given.repeats)
    medians: dict[str, dict[str, Any]] = {
        name: {
            "completions": statistics.median(r.completions for r in runs),
            "completions_per_s": statistics.median(r.per_s for r in runs),
            "cpu_us": statistics.median(r.cpu_us for r in runs),
        }
        for name, runs in results.items()
    }
    bare = medians["bare"]["cpu_us"]
    print_table(
        ("loop", "completions", "completions/s", "client CPU us", "client CPU / bare"),
        [(name, *figures.values(), figures["cpu_us"] / bare) for name, figures in medians.items()],
    )
    ratios = {"cpu_over_bare": medians["generate"]["cpu_us"] / bare, "one_over_bare": medians[ONE]["cpu_us"] / bare}
    finish("pipeline", medians | ratios | {"settings": vars(given)})


if __name__ == "__main__":
    main()
