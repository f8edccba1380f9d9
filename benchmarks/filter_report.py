"""The filter's figures as a table, a plot and ratios."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.harness import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.filter_online import Row

_COLUMNS = ("method", "pool", "candidates/s", "B/entry", "batch p50 ms", "p99.9 ms", "max ms", "wrong", "kept")


def print_rows(rows: Sequence[Row]) -> None:
    """Print a Markdown table, the fastest of each pool size first."""
    print_table(_COLUMNS, [_cells(row) for row in sorted(rows, key=lambda row: (row.pool, -row.per_s))])


def _cells(row: Row) -> tuple[object, ...]:
    note = " (extrapolated)" if row.extrapolated else " (filled unchecked)" if row.filled else ""
    wrong = f"{row.wrong} of {row.audited:,}" if row.wrong >= 0 else "-"
    laps = [f"{lap:.2f}" if row.batches else "-" for lap in row.latencies]
    held = f"{row.bytes_per_entry:.0f}" if row.bytes_per_entry else "-"
    return (row.method + note, f"{row.pool:,}", row.per_s, held, *laps, wrong, row.accepted or "-")


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what follows from the rows, and what a second thread brings, as tables."""
    compared = summary["ratios"]
    others = list(dict.fromkeys(other for ours in compared.values() for other in ours))
    print("\nTimes as fast:\n")
    print_table(("", *compared), [(other, *(ours.get(other, "-") for ours in compared.values())) for other in others])
    print("\nGrowth: time a candidate ~ pool to the power of; bytes of one more entry:\n")
    slopes = {method: memory and memory["bytes_per_entry"] for method, memory in summary["memory"].items()}
    print_table(("", *slopes), [("exponent", *_known(summary["exponent_to_1m"])), ("bytes", *_known(slopes))])
    if threads := summary["threads"]:
        lag = threads["loop_lag_ms_at_10000_per_s"]
        print(
            f"\nevent loop's lag while a thread decides 10,000 candidates a second: median {lag['p50']:.1f} ms, "
            f"p99.9 {lag['p999']:.1f} ms, most {lag['max']:.1f} ms\n"
            f"two pools in two threads over one: {threads['two_pools_in_two_threads_over_one']:.2f}; share of one "
            f"pool's time that could run ahead: {threads['share_of_one_pool_that_could_run_ahead']:.2f}"
        )


def _known(by_method: Mapping[str, float | None]) -> Iterator[object]:
    return ("-" if value is None else value for value in by_method.values())


def exponent(rows: Sequence[Row], method: str, largest: int = 1_000_000) -> float | None:
    """Slope of log time per candidate over log pool size, from the smallest size to the largest up to ``largest``."""
    mine = sorted((row.pool, row.per_s) for row in rows if row.method == method and row.pool <= largest)
    if len(mine) < 2:
        return None
    (small, fast), (large, slow) = mine[0], mine[-1]
    return math.log(fast / slow) / math.log(large / small)


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How many times faster each index is than every other method, at the largest pool that both were measured at."""
    rates = {(row.method, row.pool): row.per_s for row in rows}
    methods = list(dict.fromkeys(row.method for row in rows))
    out: dict[str, dict[str, float]] = {}
    for mine in (method for method in methods if method.startswith("fastgen")):
        for other in (method for method in methods if not method.startswith("fastgen")):
            both = [pool for method, pool in rates if method == other and (mine, pool) in rates]
            if both:
                out.setdefault(mine, {})[f"{other} at {max(both):,}"] = rates[mine, max(both)] / rates[other, max(both)]
    return out


def memory_slope(rows: Sequence[Row], method: str) -> dict[str, float] | None:
    """Bytes that one more entry takes between the two largest pools, and what 10,000,000 entries then take."""
    mine = sorted((row.pool, row.bytes_per_entry * row.pool) for row in rows if row.method == method)
    if len(mine) < 2:
        return None
    (small, less), (large, more) = mine[-2:]
    slope = (more - less) / (large - small)
    return {"bytes_per_entry": slope, "gb_at_10m_extrapolated": (more + slope * (10_000_000 - large)) / 1e9}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw rate and bytes over pool size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speed, memory) = plt.subplots(1, 2, figsize=(12, 5.5), width_ratios=(3, 2), layout="constrained")
    for number, method in enumerate(dict.fromkeys(row.method for row in rows)):
        mine = method.startswith("fastgen")
        width, dashes = (2.5, "-") if mine else (1.2, "--")
        style: dict[str, Any] = {"marker": "o", "linewidth": width, "linestyle": dashes, "color": f"C{number}"}
        points = sorted((row.pool, row.per_s, row.bytes_per_entry) for row in rows if row.method == method)
        label = f"{method} (extrapolated)" if method == "rouge_score" else method
        speed.loglog([p[0] for p in points], [p[1] for p in points], label=label, **style)
        if mine:
            memory.semilogx([p[0] for p in points], [p[2] for p in points], **style)
    speed.set(xlabel="entries in the pool", ylabel="candidates a second, one core", title="Similarity filter, online")
    memory.set(
        xlabel="entries in the pool", ylabel="bytes an entry, everything included", title="Memory", ylim=(0, None)
    )
    for axes in (speed, memory):
        axes.grid(visible=True, which="both", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
