"""What a controller sees of a server at one moment, and the words in which it says why its limit is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fastgen.backends.prometheus import ServerMetrics


class Reason(StrEnum):
    """Why the limit is what it is; the values are for people and stable."""

    STARTING = "starting"
    FIXED = "fixed by --concurrency"
    FILLING = "filling: the server's queue is empty"
    FULL = "the server is full"
    QUEUE_TOO_LONG = "the server's queue was too long"
    NOT_SEEN = "waiting until the server shows what was sent"
    OWN_WORK = "the run has not enough to ask, or the client is busy"
    PREEMPTIONS = "the server's KV cache was too small for more"
    REFUSED = "the server refused more (429, 503)"
    NO_FIGURES = "the server's figures are missing"
    FASTER_WITH_MORE = "more brought more"
    NO_FASTER_WITH_MORE = "more brought nothing more"
    MEASURING = "measuring the server's throughput"
    TAKEN_OUT = "the server is taken out"
    AT_MAXIMUM = "at --max-concurrency"


@dataclass(frozen=True, slots=True)
class Observation:
    """One server at ``now_s`` (any monotonic clock, seconds). All counts but the last are of completions.

    ``in_flight`` are those that were asked for and have not come. ``completed``, ``refused`` (429, 503, a timeout) and
    ``generated_tokens`` count since the start, as the client saw them. ``server`` is what the server says of itself,
    ``None`` where it says nothing now.
    """

    now_s: float
    in_flight: int
    completed: int
    refused: int = 0
    generated_tokens: int = 0
    healthy: bool = True
    server: ServerMetrics | None = None


def in_use(seen: Observation, limit: float) -> bool:
    """Whether the client really keeps so many in flight, but for a few that are just being replaced.

    Below its limit a client learns nothing about the server: the limit must not grow then (RFC 7661, "Updating TCP to
    Support Rate-Limited Traffic").
    """
    return seen.in_flight >= 0.95 * limit - 0.5
