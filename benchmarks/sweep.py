"""Which concurrency is best for a server: `generate` at each of several settings, and with ``auto``.

``python -m benchmarks.sweep --base-url URL --concurrency 1,8,32 [--auto] [--seconds 60] [--repeats 3]``

It works with any OpenAI-compatible server; without ``--base-url`` with a simulated one (``--engine``). Each run is a
whole `generate`, everything on, in a new folder. Every repeat runs all settings, in another order each time, so a
machine that gets slower affects all settings alike. Ramp-up and drain do not count: with ``--seconds`` the first
``--warm`` seconds are left out (default: a third) and the run is cancelled at the end; with ``--instructions`` the
window begins when a third of the answers are there and ends when the last request begins.

- *output tokens/s*: by the server's own counter (vLLM's metrics), else by the answers that came in the window.
- *in flight*: completions requested and not yet answered, mean over the window. *occupancy* is that over the
  concurrency (for ``auto``: over the largest number of running sequences in any run).
- *running*, *waiting*: the server's own figures, where it has them.
- *p50, p99*: of the requests of a stage that were answered in the window, from sending to the last byte.

Intervals are Student's t, 95 %, over the repeats; that of the throughput is around the geometric mean, by the relative
spread of all settings together. The recommendation is the smallest concurrency whose throughput is within the interval
of the best (within 3 % of it after a single repeat), or ``auto`` where that is within it too. A run begins with
instructions only, so ``--warm`` should be twice the time of a request; the benchmark says where it is shorter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvloop

from benchmarks.harness import Interval, finish, mean_interval, pooled_intervals, print_table, test_server
from benchmarks.real_server import Concurrency, numbers, positive, shortened
from fastgen.engine.backend import ServerMetrics
from fastgen.errors import FastgenError
from fastgen.generate.options import JobOptions, Options, SamplingOptions, ServerOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import Created
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.openai import OpenAIBackend
from fastgen.simulator.batching import ENGINES
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import QuietReporter
from fastgen.types import Completion, Request

UNENDING = 10_000_000
NEAR = 0.03
"""Difference that counts as equal after a single repeat, which has no spread."""
FAR = 0.1
"""Difference that never counts as equal, however large the spread of the best is."""
Results = Mapping[Concurrency, Sequence["RunFigures"]]
LOOK_EVERY_S = 0.5
IDLE_TIMEOUT_S = 30.0
WARM_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Advice:
    """A setting, the flags for it, and why."""

    concurrency: Concurrency
    flags: str
    reason: str


def throughputs(results: Results) -> dict[Concurrency, Interval]:
    """Output tokens/s over the repeats, by setting.

    :raises ValueError: a run without any.
    """
    return dict(
        zip(results, pooled_intervals([[run.tokens_per_s for run in r] for r in results.values()]), strict=True)
    )


def recommend(results: Results) -> Advice:
    """The smallest setting that is as good as the best, by the repeats.

    :raises ValueError: there are no results.
    """
    rates = throughputs(results)
    best = max(rates, key=lambda setting: rates[setting].estimate)
    top = rates[best]
    enough = max(top.low, top.estimate * (1 - FAR)) if top.low > 0 else top.estimate * (1 - NEAR)
    said = f"{top.estimate:,.0f} tokens/s at {best}; from {enough:,.0f} on it counts as equal"
    if 0 < top.low < enough:
        said += f", though its own repeats go down to {top.low:,.0f}: more of them, or longer ones, would tell more"
    if "auto" in rates and rates["auto"].estimate >= enough:
        share = rates["auto"].estimate / top.estimate
        return Advice(
            "auto", "--concurrency auto", f"auto reaches {share:.1%} of the best ({said}) and needs no tuning"
        )
    smallest = min((s for s in rates if s != "auto" and rates[s].estimate >= enough), default=best)
    reason = f"the smallest whose {rates[smallest].estimate:,.0f} tokens/s are within the interval of the best ({said})"
    return Advice(smallest, f"--concurrency {smallest}", reason)


# -- running -----------------------------------------------------------------------------------------------------------


def orders(settings: Sequence[Concurrency], repeats: int, seed: int = 0) -> list[list[Concurrency]]:
    """Every repeat's order."""
    draw = random.Random(seed)
    return [draw.sample(list(settings), len(settings)) for _ in range(repeats)]


async def sweep(
    base_url: str, options: Options, turns: Sequence[Sequence[Concurrency]], seconds: float | None, warm_s: float | None
) -> dict[Concurrency, list[RunFigures]]:
    """The figures of every run, by setting; a run that was too short to have a window is reported and left out.

    :raises ValueError: all runs of a setting were.
    """
    results: dict[Concurrency, list[RunFigures]] = {}
    for turn, settings in enumerate(turns):
        for setting in settings:
            watched = await watch(base_url, options, setting, seconds)
            try:
                found = figures(watched, *window(watched, warm_s))
            except ValueError as error:
                print(f"repeat {turn + 1}, {setting}: left out: {error}", file=sys.stderr, flush=True)
                continue
            results.setdefault(setting, []).append(found)
            print(f"repeat {turn + 1}, {setting}: {found.tokens_per_s:,.1f} tokens/s", file=sys.stderr, flush=True)
    if without := {setting for settings in turns for setting in settings} - set(results):
        raise ValueError(f"--concurrency {', '.join(map(str, without))}: every run was too short; give them more time")
    return results


# -- showing -----------------------------------------------------------------------------------------------------------


def in_order(results: Results) -> list[Concurrency]:
    """Numbers first, then ``auto``."""
    return [*sorted(s for s in results if s != "auto"), *(s for s in results if s == "auto")]


def summary(results: Results) -> dict[Concurrency, dict[str, Any]]:
    """One row a setting: means over its repeats, throughput with its interval."""
    largest = max((run.running or run.in_flight for runs in results.values() for run in runs), default=0.0)
    rates = throughputs(results)
    rows: dict[Concurrency, dict[str, Any]] = {}
    for setting in in_order(results):
        runs = results[setting]
        in_flight = statistics.fmean(run.in_flight for run in runs)
        rows[setting] = {
            "tokens_per_s": rates[setting].as_list(),
            "completions_per_s": mean_interval([run.completions_per_s for run in runs]).as_list(),
            "kept_per_s": mean_interval([run.kept_per_s for run in runs]).as_list(),
            "in_flight": in_flight,
            "occupancy": min(1.0, in_flight / (largest if setting == "auto" else setting)),
            "running": _mean([run.running for run in runs]),
            "waiting": _mean([run.waiting for run in runs]),
            "latency_s": _latency(runs),
        }
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _latency(runs: Sequence[RunFigures]) -> dict[str, dict[str, float]]:
    """By stage: the medians over the repeats."""
    stages = sorted({stage for run in runs for stage in run.latency})
    return {
        stage: {
            "p50": statistics.median(run.latency[stage].p50_s for run in runs if stage in run.latency),
            "p99": statistics.median(run.latency[stage].p99_s for run in runs if stage in run.latency),
        }
        for stage in stages
    }


def print_summary(rows: Mapping[Concurrency, Mapping[str, Any]]) -> None:
    """The table."""
    stages = sorted({stage for row in rows.values() for stage in row["latency_s"]})
    columns = (
        "concurrency",
        "tokens/s",
        "95 %",
        "completions/s",
        "kept/s",
        "in flight",
        "occupancy",
        "running",
        "waiting",
    )
    print_table(
        (*columns, *(f"{stage} p50 / p99 s" for stage in stages)),
        [
            (
                *(setting, row["tokens_per_s"][0], _half(row["tokens_per_s"]), row["completions_per_s"][0]),
                *(row["kept_per_s"][0], row["in_flight"], row["occupancy"], _or_dash(row["running"])),
                _or_dash(row["waiting"]),
                *(_took(row["latency_s"].get(stage)) for stage in stages),
            )
            for setting, row in rows.items()
        ],
    )


def _half(interval: Sequence[float | None]) -> str:
    _, low, high = interval
    return "-" if low is None or high is None else f"{low:,.4g} to {high:,.4g}"


def _or_dash(value: float | None) -> object:
    return "-" if value is None else value


def _took(latency: Mapping[str, float] | None) -> str:
    return "-" if latency is None else f"{latency['p50']:.3g} / {latency['p99']:.3g}"


def hurried(results: Results, warm_s: float) -> list[str]:
    """Return a line for each setting whose requests take more than half of the time that was left out."""
    said: list[str] = []
    for setting in in_order(results):
        longest_s = max((one.p50_s for run in results[setting] for one in run.latency.values()), default=0.0)
        if 2 * longest_s > warm_s:
            said.append(f"at {setting} a request takes {longest_s:.3g} s: --warm {2 * longest_s:.0f} would be enough")
    return said


# -- the command -------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="default: start a simulated server")
    parser.add_argument("--engine", choices=list(ENGINES), default="h100-8b", help="of the simulated server")
    parser.add_argument("--model", help="if the server has several")
    parser.add_argument("--api", choices=("completions", "chat"), default="completions")
    parser.add_argument("--concurrency", type=numbers, default=[], metavar="N,N,...", help="fixed settings")
    parser.add_argument("--auto", action="store_true", help="--concurrency auto, too")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="of each run, from its first request (default: 60)")
    length.add_argument("--instructions", type=positive, help="of each run, to its end")
    parser.add_argument("--warm", type=float, help="seconds that do not count")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--max-tokens", type=positive, help="bound of every answer, for slow servers")
    parser.add_argument("--plot", type=Path, default=Path("sweep.png"))
    given = parser.parse_args()
    if not given.concurrency and not given.auto:
        parser.error("give --concurrency, --auto or both")
    if given.instructions is None:
        given.seconds = given.seconds or 60.0
        given.warm = given.seconds / 3 if given.warm is None else given.warm
        if not 0 <= given.warm < given.seconds:
            parser.error(f"--warm {given.warm:g} is not below --seconds {given.seconds:g}")
    return given


def main() -> None:
    """Run."""
    given = parse()
    with ExitStack() as stack:
        if given.base_url is None:
            given.base_url = stack.enter_context(test_server("--engine", given.engine)).base_url
        run(given)


def run(given: argparse.Namespace) -> None:
    """Sweep a running server."""
    settings: list[Concurrency] = list(given.concurrency)
    if given.auto:
        settings.append("auto")
    options = Options(
        job=JobOptions(num_instructions=given.instructions or UNENDING),
        server=ServerOptions(base_url=(given.base_url,), model=given.model, api=given.api),
        sampling=SamplingOptions() if given.max_tokens is None else shortened(given.max_tokens),
    )
    try:
        turns = orders(settings, given.repeats)
        results = uvloop.run(sweep(given.base_url, options, turns, given.seconds, given.warm))
    except (FastgenError, ValueError) as error:
        raise SystemExit(str(error)) from None
    rows, advice = summary(results), recommend(results)
    print_summary(rows)
    for line in [] if given.warm is None else hurried(results, given.warm):
        print(f"too short: {line}")
    plot(rows, advice.concurrency, given.plot)
    print(f"\nrecommended: {advice.flags}\n{advice.reason}\nplot: {given.plot}")
    runs = {str(setting): [asdict(run) for run in results[setting]] for setting in results}
    found = {"rows": {str(setting): row for setting, row in rows.items()}, "recommended": asdict(advice), "runs": runs}
    finish("sweep", found | {"settings": {**vars(given), "plot": str(given.plot)}})


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
    """What was seen of one run, from ``began_s`` until it was stopped."""

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

    It is warm ``warm_s`` seconds after its begin or, without that, when a third of the answers are there.

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
    """Watch one `generate` in a new folder, to its end or until it is cancelled after ``seconds``."""
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
    """Note every request of this process."""
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
        watched.asked.append(Asked(request.step, began_s, time.monotonic(), len(completions), tokens))
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
    """Wait for the sequences of the last run to end."""
    deadline_s = time.monotonic() + IDLE_TIMEOUT_S
    while (page := await server.metrics()) is not None and page.running + page.waiting:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the server is still busy with {page.running + page.waiting} sequences of others")
        await asyncio.sleep(LOOK_EVERY_S)


def _kept_s(folder: Path, offset_s: float) -> list[float]:
    """When each instruction was kept, on this process's monotonic clock."""
    kept: list[float] = []
    for commit in RunFolder(folder).whole_commits():
        if isinstance(commit.outcome, Created):
            kept += [commit.time_s - offset_s] * len(commit.outcome.kept)
    return kept


def plot(rows: Mapping[Concurrency, Mapping[str, Any]], recommended: Concurrency, path: Path) -> None:
    """Throughput and latency over concurrency as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    chart, (rate, latency) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    _draw_rate(rate, rows, recommended)
    _draw_latency(latency, rows)
    fixed = [setting for setting in rows if setting != "auto"]
    for axes in (rate, latency):
        axes.grid(alpha=0.3)
        if fixed:
            axes.set_xscale("log", base=2)
            axes.set_xticks(fixed, [str(setting) for setting in fixed])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=130)
    plt.close(chart)


def _draw_rate(rate: Any, rows: Mapping[Concurrency, Mapping[str, Any]], recommended: Concurrency) -> None:  # noqa: ANN401
    fixed = [setting for setting in rows if setting != "auto"]
    means = [rows[s]["tokens_per_s"][0] for s in fixed]
    rate.errorbar(fixed, means, yerr=_errors(rows, fixed), marker="o", capsize=4, label="fixed")
    if "auto" in rows:
        row = rows["auto"]
        at, mean = [row["in_flight"]], [row["tokens_per_s"][0]]
        rate.errorbar(at, mean, yerr=_errors(rows, ["auto"]), marker="D", capsize=4, ls="", label="auto")
    if recommended != "auto":
        rate.axvline(recommended, color="gray", ls=":", label=f"recommended: {recommended}")
    rate.set(xlabel="completions in flight", ylabel="output tokens/s", ylim=(0, None), title="Throughput")


def _draw_latency(latency: Any, rows: Mapping[Concurrency, Mapping[str, Any]]) -> None:  # noqa: ANN401
    """Of the fixed settings as lines; of ``auto`` as diamonds, where it was on average."""
    stages = sorted({stage for row in rows.values() for stage in row["latency_s"]})
    for colour, stage in enumerate(stages):
        known = {s: row["latency_s"][stage] for s, row in rows.items() if stage in row["latency_s"]}
        lines = {s: took for s, took in known.items() if s != "auto"}
        for name, style in (("p50", "-"), ("p99", "--")):
            took = [one[name] for one in lines.values()]
            latency.plot(list(lines), took, style, marker=".", color=f"C{colour}", label=f"{stage} {name}")
            if "auto" in known:
                latency.plot(rows["auto"]["in_flight"], known["auto"][name], marker="D", ms=5, color=f"C{colour}")
    latency.set(xlabel="completions in flight", ylabel="seconds a request", yscale="log", title="Latency by stage")


def _errors(rows: Mapping[Concurrency, Mapping[str, Any]], settings: Sequence[Concurrency]) -> list[list[float]]:
    """Distances below and above, none where there is no interval."""
    found = [rows[setting]["tokens_per_s"] for setting in settings]
    return [
        [mean - low if low else 0.0 for mean, low, _ in found],
        [high - mean if high else 0.0 for mean, _, high in found],
    ]


if __name__ == "__main__":
    main()
