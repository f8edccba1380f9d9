"""The contract between the scheduler and the servers, and the record of a server's state.

A `Backend` turns requests into completions. `ServerState` is the one record of a server: its backend changes it in
place, its router and its governor complete copies of it, and everything else reads copies. `ServerMetrics` is what a
vLLM server says of itself on its ``/metrics`` page.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from fastgen.types import Completion, Request


@dataclass(slots=True)
class ServerState:
    """One server as this client sees it. Counters begin with the client. Times are of ``time.monotonic``.

    ``url`` carries no credentials. ``in_flight``, ``completed`` and ``failed`` count requests (a cancelled one is
    neither). ``sequences`` counts the completions that the requests in flight ask for, ``completions`` those received,
    ``refused`` those that met 429, 503 or their timeout. ``generated_tokens`` is what the server stated for good
    answers. ``last_answer_s`` is the time of the last HTTP answer.

    A copy that is given to a reader may also hold ``at_s``, the time at which it was taken, ``metrics``, the server's
    own figures, and, under concurrency control, its ``limit`` of completions in flight with the ``reason`` for it.
    """

    url: str = ""
    healthy: bool = True
    in_flight: int = 0
    sequences: int = 0
    completed: int = 0
    failed: int = 0
    completions: int = 0
    refused: int = 0
    generated_tokens: int = 0
    last_answer_s: float | None = None
    at_s: float = 0.0
    metrics: ServerMetrics | None = None
    limit: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BackendStatistics:
    """A snapshot of all endpoints, in a fixed order."""

    endpoints: tuple[ServerState, ...]


class Backend(Protocol):
    """Turns requests into completions.

    Any number of calls may run at the same time, in one event loop. They finish in any order. A backend never retries
    by itself: one call is at most one request for completions. Cancelling a call closes its connection, which frees
    the sequence on the server. `close` may be called once, when no call is running. Nothing may be called after it.
    """

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """Return one completion per choice (``request.sequences`` of them), in choice order.

        :raises TransientError: another attempt may succeed.
        :raises PromptTooLong: prompt and completion do not fit the model's context, or several prompts in one request
            were refused; a smaller request may succeed.
        :raises RequestRejected: the server will never accept this request.
        :raises InputError: the user must fix something (key, model, URL, API) before anything can succeed.
        """

    async def close(self) -> None:
        """Close every connection."""

    def statistics(self) -> BackendStatistics:
        """Return a snapshot. It is cheap enough to be taken several times a second."""


MAX_COUNT: Final = 1 << 53
"""The largest counter that is accepted: floats hold every whole number up to it."""
MAX_SEQUENCES: Final = 1_000_000
"""The most running or waiting sequences that are accepted."""


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """A vLLM server's own gauges, and its counters since its start, summed over its engines.

    ``running`` and ``waiting`` count sequences. ``kv_cache_usage`` (0..1) is that of the fullest engine, since the
    fullest one preempts first. Prefix queries and hits, prompt and generated figures are tokens. ``preemptions`` are
    events. A figure that is missing, negative, infinite or not a number is 0. Larger ones are cut to `MAX_SEQUENCES`,
    `MAX_COUNT` and 1, so that every figure is safe to calculate with.
    """

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


_LINE = re.compile(
    rb"^vllm:((?:num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc|prefix_cache_queries"
    rb"|prefix_cache_hits|gpu_prefix_cache_queries|gpu_prefix_cache_hits|num_preemptions|prompt_tokens|generation_tokens)"
    rb"(?:_total)?)(?:\{[^\n]*\})?[ \t]+([0-9.eE+\-]+|NaN|[+-]?Inf)",
    re.MULTILINE,
)


def parse_metrics(page: bytes) -> ServerMetrics | None:
    """Return the figures of a ``/metrics`` page, or ``None`` if it is not vLLM's (no ``vllm:num_requests_running``).

    The format is Prometheus's text exposition 0.0.4. The names are vLLM's, including the older ``gpu_`` ones. Of the
    thousand lines of a page only the dozen that steer or explain a run are read.
    """
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
