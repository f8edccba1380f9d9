"""What concurrency is best for a server, measured: `generate` at each of several, and with ``auto``.

``python -m benchmarks.sweep --base-url URL --concurrency 1,8,32 [--auto] [--seconds 60] [--repeats 3]``

Works on any OpenAI-compatible server; without ``--base-url`` on a simulated one (``--engine``). Each run is a whole
`generate`, everything on, in a folder of its own. Every repeat goes through all settings, in another order each time,
so that a machine that gets slower is nobody's fault. Ramp-up and drain are cut off: with ``--seconds`` all up to
``--warm`` seconds (a third of the time, unless given) is left out and the run is cancelled at the end; with
``--instructions`` what counts lies between the first third of the answers and the last request's beginning.

- *output tokens/s*: by the server's own counter (vLLM's metrics), else by the answers that came in the window.
- *in flight*: completions asked for and not yet answered, the mean over the window; *occupancy* that over the
  concurrency (for ``auto``, which has none, over the largest number that was ever running at once).
- *running*, *waiting*: the server's own figures, where it tells.
- *p50, p99*: of the requests of a stage that were answered in the window, from sending to the last byte.

Intervals are Student's t, 95 %, over the repeats; that of the throughput is around the geometric mean, by the relative
spread of all settings together. Recommended is the smallest concurrency whose throughput is within the interval of the
best (within 3 % of it, where there was one repeat); ``auto`` where it is within, too. A run begins with instructions
only: ``--warm`` should be twice what a request takes, and what is shorter is told.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness import finish, print_table
from benchmarks.intervals import Interval, mean_interval, pooled_intervals
from benchmarks.real_server import numbers, positive
from benchmarks.replay import Concurrency, shortened
from benchmarks.simulated import Settings, simulated_servers
from benchmarks.sweep_plot import plot
from benchmarks.sweep_run import RunFigures, figures, watch, window
from fastgen.errors import FastgenError
from fastgen.generate.options import JobOptions, Options, SamplingOptions, ServerOptions
from fastgen.simulator.batching import ENGINES

UNENDING = 10_000_000
NEAR = 0.03
"""What counts as equal where a single repeat tells nothing of the spread."""
FAR = 0.1
"""What never counts as equal, however far the repeats of the best lie apart."""
Results = Mapping[Concurrency, Sequence[RunFigures]]


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
    """The figures of every run, by setting; a run that was too short to have a window is told and left out.

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
    """What to say of settings whose requests take more than half of the time that was left out."""
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
            given.base_url = stack.enter_context(simulated_servers(Settings(given.engine), 1))[0].base_url
        run(given)


def run(given: argparse.Namespace) -> None:
    """One sweep of a server that is there."""
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


if __name__ == "__main__":
    main()
