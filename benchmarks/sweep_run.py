"""One run of the sweep: `generate` against a server at one concurrency, watched from within, and what it did.

Ramp-up and drain are cut off: what counts lies in a window that begins when the run is warm and ends when the last
request begins or the time is up. Knows nothing of several runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks.replay import Concurrency
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import InstructionOutcome
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.openai import OpenAIBackend
from fastgen.store.log import TornTail
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import QuietReporter

if TYPE_CHECKING:
    from fastgen.engine.backend import ServerMetrics
    from fastgen.generate.options import Options
    from fastgen.types import Completion, Request

LOOK_EVERY_S = 0.5
IDLE_TIMEOUT_S = 30.0
WARM_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that was answered well; times are of ``time.monotonic``."""

    stage: str
    began_s: float
    ended_s: float
    completions: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Look:
    """The server's own figures at one moment."""

    at_s: float
    running: int
    waiting: int
    tokens: int


@dataclass(slots=True)
class Watched:
    """All that was seen of one run, from ``began_s`` until asking was stopped."""

    began_s: float
    ended_s: float = math.inf
    asked: list[Asked] = field(default_factory=list)
    open: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Requests without an answer: when they began, and their completions."""
    looks: list[Look] = field(default_factory=list)
    kept_s: list[float] = field(default_factory=list)
    """When each instruction was kept."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first request."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one stage's requests that ended in the window."""

    requests: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Means over the window. ``running`` and ``waiting`` are the server's own, ``None`` where it does not tell."""

    window_s: float
    tokens_per_s: float
    completions_per_s: float
    kept_per_s: float
    in_flight: float
    running: float | None
    waiting: float | None
    latency: dict[str, Latency]


# -- what it did -------------------------------------------------------------------------------------------------------


def window(watched: Watched, warm_s: float | None) -> tuple[float, float]:
    """When the run was warm, and when it began to drain.

    Warm is so many seconds after its begin or, without that, when a third of the answers had come.

    :raises ValueError: nothing lies between the two; the run was too short.
    """
    if not watched.asked:
        raise ValueError("no request was answered; give the run more time")
    if warm_s is None:
        ended_s = sorted(one.ended_s for one in watched.asked)
        from_s = ended_s[int(len(ended_s) * WARM_SHARE)]
    else:
        from_s = watched.began_s + warm_s
    last_begun_s = max([one.began_s for one in watched.asked] + [began_s for began_s, _ in watched.open.values()])
    to_s = min(watched.ended_s, last_begun_s) if warm_s is None else watched.ended_s
    if not any(from_s < one.ended_s <= to_s for one in watched.asked):
        raise ValueError("no request was answered between ramp-up and drain; give the run more time")
    return from_s, to_s


def figures(watched: Watched, from_s: float, to_s: float) -> RunFigures:
    """The means over a window; tokens by the server's counter if it has one, else by the answers that came in it."""
    span_s = to_s - from_s
    within = [one for one in watched.asked if from_s < one.ended_s <= to_s]
    looks = [look for look in watched.looks if from_s <= look.at_s <= to_s]
    counted = _counted_per_s(looks)
    spans = [(one.began_s, one.ended_s, one.completions) for one in watched.asked]
    spans += [(began_s, math.inf, completions) for began_s, completions in watched.open.values()]
    busy_s = sum(max(0.0, min(end_s, to_s) - max(begin_s, from_s)) * n for begin_s, end_s, n in spans)
    return RunFigures(
        window_s=span_s,
        tokens_per_s=sum(one.tokens for one in within) / span_s if counted is None else counted,
        completions_per_s=sum(one.completions for one in within) / span_s,
        kept_per_s=sum(from_s < at_s <= to_s for at_s in watched.kept_s) / span_s,
        in_flight=busy_s / span_s,
        running=_mean([look.running for look in looks]),
        waiting=_mean([look.waiting for look in looks]),
        latency=latencies(within),
    )


def _counted_per_s(looks: Sequence[Look]) -> float | None:
    if len(looks) < 2 or looks[-1].tokens <= looks[0].tokens:
        return None
    return (looks[-1].tokens - looks[0].tokens) / (looks[-1].at_s - looks[0].at_s)


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def latencies(asked: Sequence[Asked]) -> dict[str, Latency]:
    """By stage."""
    by_stage: dict[str, list[float]] = defaultdict(list)
    for one in asked:
        by_stage[one.stage].append(one.ended_s - one.began_s)
    return {
        stage: Latency(len(took), nearest_rank(took, 0.5), nearest_rank(took, 0.99))
        for stage, took in sorted(by_stage.items())
    }


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share (0..1) of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


# -- watching it -------------------------------------------------------------------------------------------------------


async def watch(base_url: str, options: Options, concurrency: Concurrency, seconds: float | None) -> Watched:
    """One `generate` in a fresh folder, cancelled after ``seconds`` or, without, at its end."""
    options = replace(options, speed=replace(options.speed, concurrency=concurrency))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        async with OpenAIBackend(Endpoint(base_url, "")) as server:
            await _until_idle(server)
            watched = Watched(time.monotonic())
            async with _looking(server, watched), _noting(watched):
                await _generate(folder, options, seconds, watched)
        watched.kept_s = list(_kept_s(folder, time.time() - time.monotonic()))
    return watched


async def _generate(folder: Path, options: Options, seconds: float | None, watched: Watched) -> None:
    reporter = QuietReporter()

    async def whole() -> None:
        await generate(Place(folder, folder), options, reporter, Stopper(reporter))

    run = asyncio.create_task(whole())
    beginning = asyncio.create_task(watched.begun.wait())
    await asyncio.wait([run, beginning], return_when=asyncio.FIRST_COMPLETED)
    beginning.cancel()
    watched.began_s = time.monotonic()
    await asyncio.wait([run], timeout=seconds)
    watched.ended_s = time.monotonic()
    run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run


@asynccontextmanager
async def _noting(watched: Watched) -> AsyncIterator[None]:
    """Every request of this process."""
    complete = OpenAIBackend.complete

    async def noting(self: OpenAIBackend, request: Request) -> tuple[Completion, ...]:
        began_s = time.monotonic()
        if watched.ended_s < began_s:
            return await complete(self, request)
        watched.begun.set()
        key = id(request)
        watched.open[key] = began_s, request.sequences
        try:
            completions = await complete(self, request)
        except Exception:
            del watched.open[key]
            raise
        del watched.open[key]
        tokens = sum(completion.completion_tokens for completion in completions)
        watched.asked.append(Asked(request.stage.value, began_s, time.monotonic(), len(completions), tokens))
        return completions

    with patch.object(OpenAIBackend, "complete", noting):
        yield


@asynccontextmanager
async def _looking(server: OpenAIBackend, watched: Watched) -> AsyncIterator[None]:
    async def look() -> None:
        while True:
            if (page := await server.metrics()) is not None:
                watched.looks.append(_look(page))
            await asyncio.sleep(LOOK_EVERY_S)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def _look(page: ServerMetrics) -> Look:
    return Look(time.monotonic(), page.running, page.waiting, page.generation_tokens)


async def _until_idle(server: OpenAIBackend) -> None:
    """What the last run left behind is no part of this one."""
    deadline_s = time.monotonic() + IDLE_TIMEOUT_S
    while (page := await server.metrics()) is not None and page.running + page.waiting:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the server is still busy with {page.running + page.waiting} sequences of others")
        await asyncio.sleep(LOOK_EVERY_S)


def _kept_s(folder: Path, offset_s: float) -> list[float]:
    """When each instruction was kept, on this process's monotonic clock."""
    kept: list[float] = []
    for item in RunFolder(folder).commits():
        if not isinstance(item, TornTail) and isinstance(item[0].outcome, InstructionOutcome):
            kept += [item[0].time_s - offset_s] * len(item[0].outcome.kept)
    return kept
