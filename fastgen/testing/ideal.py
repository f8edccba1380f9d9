"""The most that an engine can do: its own model with a queue that is never empty.

The ceiling that a client is measured against comes from the same code that it is measured on, fed with the same
lengths. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from fastgen.testing.batching import Batch
from fastgen.testing.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgen.testing.timing import EngineModel

WARM_ROUNDS = 3
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Lengths:
    """One sequence's tokens: in the prompt, of those in the prefix cache, and in the output."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def ideal_tokens_per_s(model: EngineModel, lengths: Iterable[Lengths]) -> float:
    """Return the output tokens per simulated second of a batch that always has a queue behind it.

    The lengths are taken in order, again and again, until the batch has turned over at least `ROUNDS` times and every
    one was taken once; the first `WARM_ROUNDS` do not count. Cached tokens cost nothing and need no blocks.

    :raises ValueError: no lengths.
    """
    known = list(lengths)
    if not known:
        raise ValueError("an ideal needs lengths")
    ended: list[Sequence] = []
    batch, endless, now_s = Batch(model, ended.append), cycle(known), 0.0
    warm = WARM_ROUNDS * model.max_num_seqs
    wanted = max(ROUNDS * model.max_num_seqs, warm + len(known))
    from_s, before = 0.0, 0
    while len(ended) < wanted:
        missing = 2 * model.max_num_seqs - batch.waiting
        batch.add([_sequence(next(endless)) for _ in range(missing)], now_s)
        now_s = batch.next_change_s() or now_s
        batch.advance(now_s)
        if not before and len(ended) >= warm:
            from_s, before = now_s, batch.counts.generation_tokens
    return (batch.counts.generation_tokens - before) / (now_s - from_s)


def _sequence(one: Lengths) -> Sequence:
    return Sequence(one.prompt_tokens, one.output_tokens, cached_tokens=one.cached_tokens)
