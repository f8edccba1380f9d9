"""One sequence in a simulated engine, and what an engine counts. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence: what it asks, and where it stands.

    ``cached_tokens`` of its prompt cost nothing, as if they were held by somebody for ever; ``hashes`` are those of the
    prompt's whole blocks. Times are ``None`` until they have come.
    """

    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    cached_tokens: int = 0
    arrived_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    hit_tokens: int = 0  # when it was first admitted
    decoding: bool = field(default=False, repr=False)
    generated: int = field(default=0, repr=False)  # up to the last preemption
    to_prefill: int = field(default=0, repr=False)
    chunk: int = field(default=0, repr=False)  # of the step in progress
    offset: int = field(default=0, repr=False)  # cached tokens are this and the number of steps
    ends_at: int = field(default=-1, repr=False)  # number of steps


@dataclass(slots=True)
class Counts:
    """Since the engine's start. ``busy_s`` is the sum over all sequences of the time they ran."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    busy_s: float = 0.0
