"""The sweep's plot: throughput and latency over concurrency. Needs matplotlib; knows nothing of how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.replay import Concurrency


def plot(rows: Mapping[Concurrency, Mapping[str, Any]], recommended: Concurrency, path: Path) -> None:
    """Throughput and latency over concurrency as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fixed = [setting for setting in rows if setting != "auto"]
    chart, (rate, latency) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    means = [rows[s]["tokens_per_s"][0] for s in fixed]
    rate.errorbar(fixed, means, yerr=_errors(rows, fixed), marker="o", capsize=4, label="fixed")
    if "auto" in rows:
        row = rows["auto"]
        at, mean = [row["in_flight"]], [row["tokens_per_s"][0]]
        rate.errorbar(at, mean, yerr=_errors(rows, ["auto"]), marker="D", capsize=4, ls="", label="auto")
    if recommended != "auto":
        rate.axvline(recommended, color="gray", ls=":", label=f"recommended: {recommended}")
    rate.set(xlabel="completions in flight", ylabel="output tokens/s", ylim=(0, None), title="Throughput")
    for colour, stage in enumerate(sorted({stage for s in fixed for stage in rows[s]["latency_s"]})):
        known = [s for s in fixed if stage in rows[s]["latency_s"]]
        for name, style in (("p50", "-"), ("p99", "--")):
            took = [rows[s]["latency_s"][stage][name] for s in known]
            latency.plot(known, took, style, marker=".", color=f"C{colour}", label=f"{stage} {name}")
    latency.set(xlabel="concurrency", ylabel="seconds a request", yscale="log", title="Latency by stage")
    for axes in (rate, latency):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        if fixed:
            axes.set_xscale("log", base=2)
            axes.set_xticks(fixed, [str(s) for s in fixed])
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=130)
    plt.close(chart)


def _errors(rows: Mapping[Concurrency, Mapping[str, Any]], settings: Sequence[Concurrency]) -> list[list[float]]:
    """Distances below and above, none where there is no interval."""
    found = [rows[setting]["tokens_per_s"] for setting in settings]
    return [
        [mean - low if low else 0.0 for mean, low, _ in found],
        [high - mean if high else 0.0 for mean, _, high in found],
    ]
