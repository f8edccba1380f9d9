"""The page of metrics, as Prometheus text with vLLM's names and labels. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgen.testing.engine import EngineFigures, Load
    from fastgen.testing.histogram import Histogram


def metrics_page(
    model: str, load: Load, counters: Mapping[str, float], finished: Mapping[str, int], figures: EngineFigures | None
) -> bytes:
    """Return the page.

    ``counters`` have vLLM's names without ``vllm:`` and ``_total``; an engine's own count instead of a server's of the
    same name. ``finished`` counts sequences by their finish_reason.
    """
    label = f'engine="0",model_name="{model}"'
    gauges = {
        "num_requests_running": load.running,
        "num_requests_waiting": load.waiting,
        "kv_cache_usage_perc": load.kv_cache_usage,
    }
    lines: list[str] = []
    for name, value in gauges.items():
        lines += _family(name, "gauge", {label: value})
    lines += _family("num_requests_waiting_by_reason", "gauge", {f'{label},reason="capacity"': load.waiting})
    counted = {**counters, "num_preemptions": load.preemptions, **(figures.counters if figures else {})}
    for name, value in counted.items():
        lines += _family(f"{name}_total", "counter", {label: value})
    by_reason = {f'{label},finished_reason="{reason}"': count for reason, count in finished.items()}
    lines += _family("request_success_total", "counter", by_reason)
    if figures is not None:
        for name, histogram in figures.histograms.items():
            lines += _histogram(name, label, histogram)
        config = ",".join(f'{key}="{value}"' for key, value in figures.cache_config.items())
        lines += _family("cache_config_info", "gauge", {f'{config},engine="0"': 1})
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP vllm:{name} As vLLM's."
    yield f"# TYPE vllm:{name} {kind}"
    for labels, value in values.items():
        yield f"vllm:{name}{{{labels}}} {float(value)}"


def _histogram(name: str, label: str, histogram: Histogram) -> Iterator[str]:
    yield f"# HELP vllm:{name} As vLLM's."
    yield f"# TYPE vllm:{name} histogram"
    counts = histogram.cumulative()
    for bound, count in counts:
        yield f'vllm:{name}_bucket{{{label},le="{bound}"}} {float(count)}'
    yield f"vllm:{name}_count{{{label}}} {float(counts[-1][1])}"
    yield f"vllm:{name}_sum{{{label}}} {histogram.total_s}"
