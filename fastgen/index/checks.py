"""What a check found, and the seed tasks' own exact scan.

Guarantees: the best neighbours are ordered by score, then by pool index, whatever the order in which an index met them;
the nearest seed is exact for every text that is kept. Knows nothing of how candidates are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.index.jit import kernel
from fastgen.index.lcs import (
    Entries,
    Query,
    Rule,
    bitmap_overlap,
    lcs_with,
    length_of,
    need_lcs,
    overlap_with,
    score_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.index.vocabulary import Symbols

TOP = 5
_LONG = 64


def make_found(texts: int) -> Found:
    """An empty result for ``texts`` rows."""
    return Found(
        entry=np.full((texts, TOP), -1, np.int64),
        score=np.zeros((texts, TOP)),
        novel=np.zeros(texts, np.uint8),
        seed=np.full(texts, -1, np.int64),
        seed_score=np.zeros(texts),
    )


@kernel
def record(found: Found, text: int, entry: int, score: float) -> None:
    """Put a verified pool member in its place among the best."""
    at = TOP
    while at > 0:
        other = found.entry[text, at - 1]
        best = found.score[text, at - 1]
        if other >= 0 and (best > score or (best == score and other < entry)):
            break
        at -= 1
    if at == TOP:
        return
    for i in range(TOP - 1, at, -1):
        found.entry[text, i] = found.entry[text, i - 1]
        found.score[text, i] = found.score[text, i - 1]
    found.entry[text, at] = entry
    found.score[text, at] = score


@kernel
def too_similar(rule: Rule, score: float) -> bool:
    """Whether a neighbour with this score rejects."""
    return score > rule.threshold or (rule.at_threshold and score == rule.threshold)


@kernel
def verify(
    symbols: Symbols,
    entries: Entries,
    query: Query,
    rule: Rule,
    found: Found,
    text: int,
    count: int,
    bits: np.uint64,
    entry: int,
) -> None:
    """Score a candidate that may be too similar by its length and bitmap, and record it; skip any other."""
    length = length_of(entries, entry)
    need = need_lcs(rule, count, length)
    if need == 0 or bitmap_overlap(bits, count, entries.meta[entry, 0], length) < need:
        return
    if count > _LONG and overlap_with(symbols, entries, query, entry) < need:
        return
    record(found, text, entry, score_of(lcs_with(symbols, entries, query, count, entry), count, length))


@kernel
def nearest_seed(
    symbols: Symbols, entries: Entries, query: Query, seeds: Seeds, found: Found, text: int, count: int
) -> None:
    """Find the seed with the highest score (lowest index among equals), exactly.

    The multiset overlaps with all seeds come from the inverted lists; an LCS is computed only where the overlap, which
    bounds it, could still win.
    """
    overlap = seeds.overlap
    for seed in range(overlap.size):
        overlap[seed] = 0
    known = seeds.first.size - 1
    for i in range(count):
        element = query.elements[i]
        if element < known:
            for at in range(seeds.first[element], seeds.first[element + 1]):
                overlap[seeds.member[at]] += 1
    best, best_score, likely, bound = -1, -1.0, -1, -1.0
    for seed in range(overlap.size):
        score = score_of(overlap[seed], count, length_of(entries, seed))
        if score > bound:
            likely, bound = seed, score
    for turn in range(-1, overlap.size):  # the likeliest first, so that most others are skipped
        seed = likely if turn < 0 else turn
        length = length_of(entries, seed)
        if seed < 0 or score_of(overlap[seed], count, length) < best_score:
            continue
        score = 0.0
        if overlap[seed] > 0:
            score = score_of(lcs_with(symbols, entries, query, count, seed), count, length)
        if score > best_score or (score == best_score and seed < best):
            best, best_score = seed, score
    found.seed[text] = best
    found.seed_score[text] = max(best_score, 0.0)


@kernel
def conclude(
    symbols: Symbols,
    entries: Entries,
    query: Query,
    rule: Rule,
    seeds: Seeds,
    found: Found,
    text: int,
    count: int,
) -> bool:
    """Decide from what was recorded; a text that would be kept meets every seed first. Returns whether it is novel."""
    if found.entry[text, 0] >= 0 and too_similar(rule, found.score[text, 0]):
        return False
    if seeds.overlap.size > 0:
        nearest_seed(symbols, entries, query, seeds, found, text, count)
        if too_similar(rule, found.seed_score[text]):
            record(found, text, found.seed[text], found.seed_score[text])
            found.seed[text], found.seed_score[text] = -1, 0.0
            return False
    found.novel[text] = 1
    return True
