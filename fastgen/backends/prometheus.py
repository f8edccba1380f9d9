"""A vLLM server's own figures, read from the text of its ``/metrics`` page; pure.

Only the dozen lines that steer or explain a run are looked at (a page has a thousand). Format: Prometheus text
exposition 0.0.4. Names: vLLM's, the older ``gpu_`` ones included. Knows nothing of how the page was got.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

MAX_COUNT: Final = 1 << 53
"""The largest counter that is believed: floats hold every whole number up to it."""
MAX_SEQUENCES: Final = 1_000_000
"""The most running or waiting sequences that are believed."""
_LINE = re.compile(
    rb"^vllm:((?:num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc|prefix_cache_queries"
    rb"|prefix_cache_hits|gpu_prefix_cache_queries|gpu_prefix_cache_hits|num_preemptions|prompt_tokens|generation_tokens)"
    rb"(?:_total)?)(?:\{[^\n]*\})?[ \t]+([0-9.eE+\-]+|NaN|[+-]?Inf)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """Gauges now and counters since the server's start, summed over its engines.

    ``running`` and ``waiting`` count sequences. ``kv_cache_usage`` (0..1) is that of the fullest engine, since the
    fullest one preempts first. Prefix queries and hits, prompt and generated figures are tokens; ``preemptions`` are
    events. What the page does not state is 0, and so is what cannot be: below 0, infinite, not a number. What is too
    large is cut to `MAX_SEQUENCES`, `MAX_COUNT` and 1, so every figure is safe to calculate with.
    """

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


def parse_metrics(page: bytes) -> ServerMetrics | None:
    """Return the figures on a page; ``None`` where it is no vLLM page (no ``vllm:num_requests_running``)."""
    totals: dict[str, float] = {}
    fullest = 0.0
    for raw_name, raw_value in _LINE.findall(page):
        name, value = raw_name.decode().removesuffix("_total").removeprefix("gpu_"), _number(raw_value)
        totals[name] = totals.get(name, 0.0) + value
        if name.endswith("cache_usage_perc"):
            fullest = max(fullest, value)
    if "num_requests_running" not in totals:
        return None
    return ServerMetrics(
        running=_whole(totals["num_requests_running"], MAX_SEQUENCES),
        waiting=_whole(totals.get("num_requests_waiting", 0.0), MAX_SEQUENCES),
        kv_cache_usage=min(fullest, 1.0),
        prefix_queries_tokens=_whole(totals.get("prefix_cache_queries", 0.0)),
        prefix_hits_tokens=_whole(totals.get("prefix_cache_hits", 0.0)),
        preemptions=_whole(totals.get("num_preemptions", 0.0)),
        prompt_tokens=_whole(totals.get("prompt_tokens", 0.0)),
        generation_tokens=_whole(totals.get("generation_tokens", 0.0)),
    )


def _whole(value: float, most: int = MAX_COUNT) -> int:
    return int(min(value, most))


def _number(raw: bytes) -> float:
    try:
        value = float(raw)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
