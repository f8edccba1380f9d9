"""A `generate` run whose requests are recorded, and the same prompts once more through fastgen's client alone.

The client is everything between the plan and the server: scheduler, router, connections and, with ``auto``, the
governor that finds the concurrency. Nothing is parsed for its meaning, filtered or committed.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unittest.mock import patch

from benchmarks.vllm_bench import Prompt
from fastgen.engine.concurrency import Governor
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler
from fastgen.generate.options import JobOptions, Options, SamplingOptions, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.generate.serving import START_CONCURRENCY
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.router import Router
from fastgen.telemetry.progress import QuietReporter
from fastgen.types import Answer, Failure, Request, Sampling, Stage

if TYPE_CHECKING:
    from fastgen.types import Completion

Concurrency = int | Literal["auto"]
MAX_CONCURRENCY = 4096
TIMEOUT_S = 600.0


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
    """The default sampling with answers of at most so many tokens: a CPU makes a hundred a second."""
    stages = SamplingOptions().by_stage()
    return SamplingOptions(
        **{name: replace(one, max_tokens=min(one.max_tokens, most_tokens)) for name, one in stages.items()}
    )


async def record(
    base_url: str, instructions: int, sampling: SamplingOptions, concurrency: Concurrency = "auto"
) -> Recording:
    """One whole `generate` in a fresh folder, everything on; nothing else of fastgen's may ask meanwhile."""
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
            Request(
                number, Stage.QUESTION, prompt.text, replace(sampling, max_tokens=prompt.tokens), subjects=(number,)
            )
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


def _tokens(answer: Answer) -> int:
    if isinstance(answer.result, Failure):
        raise RuntimeError(f"request {answer.request.number}: {answer.result.detail}")  # noqa: TRY004 - no type was wrong
    return answer.result.completion_tokens


async def replay(
    base_url: str, model: str, prompts: Sequence[Prompt], sampling: Sampling, concurrency: Concurrency
) -> TokenFigures:
    """Ask every prompt once through the client; ends of sequences are ignored.

    :raises RuntimeError: a request failed for good.
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
                tokens += sum(map(_tokens, answers))
        wall_s = time.perf_counter() - began_s
    finally:
        if steering is not None:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)
        await router.close()
    return TokenFigures(tokens, len(prompts), wall_s)
