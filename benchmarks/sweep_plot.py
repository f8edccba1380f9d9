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
