"""The check of a text against its candidates and against every seed.

Guarantees: the best neighbours are ordered by score, then by pool index, whatever the order in which an index met them.
The nearest seed is exact for every text that is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.similarity.jit import kernel, prefetch, signed
from fastgen.similarity.layout import Found
from fastgen.similarity.lcs import WORD, flag_met, lcs_with, length_of, need_lcs, offset_of, overlap_with, score_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import Pool, Rule, Text


TOP = 5
_LINE = 16  # tokens in a cache line


def make_found(texts: int, top: int = TOP) -> Found:
    """Make an empty result for ``texts`` rows with room for the ``top`` best neighbours of each."""
    return Found(
        entry=np.full((texts, top), -1, np.int64),
        score=np.zeros((texts, top)),
        novel=np.zeros(texts, np.uint8),
        seed=np.full(texts, -1, np.int64),
        seed_score=np.zeros(texts),
    )


@kernel
def record(found: Found, text: int, entry: int, score: float) -> None:
    """Put a verified pool member in its place among the best."""
    top = found.entry.shape[1]
    at = top
    while at > 0:
        other = found.entry[text, at - 1]
        best = found.score[text, at - 1]
        if other >= 0 and (best > score or (best == score and other < entry)):
            break
        at -= 1
    if at == top:
        return
    for i in range(top - 1, at, -1):
        found.entry[text, i] = found.entry[text, i - 1]
        found.score[text, i] = found.score[text, i - 1]
    found.entry[text, at] = entry
    found.score[text, at] = score


@kernel
def too_similar(rule: Rule, score: float) -> bool:
    """Whether a neighbour with this score rejects."""
    return score > rule.threshold or (rule.at_threshold and score == rule.threshold)


@kernel
def verify(pool: Pool, found: Found, text: Text, entry: int) -> None:
    """Score and record a candidate that may be too similar. A long one only where the multiset overlap suffices."""
    length = length_of(pool.entries, entry)
    if text.length > WORD and overlap_with(pool, entry) < need_lcs(pool.rule, text.length, length):
        return
    record(found, text.row, entry, score_of(lcs_with(pool, text.length, entry), text.length, length))


@kernel
def verify_met(
    pool: Pool,
    met: NDArray[np.int32],
    waiting: int,
    flags: NDArray[np.uint8],
    seen: NDArray[np.int32],
    now: int,
    found: Found,
    text: Text,
) -> None:
    """Verify the first ``waiting`` entries in ``met``, each once per text.

    ``seen[entry]`` is the number of the last text that met the entry, ``now`` this text's. The sketches are compared
    first, then the LCS. Whatever lies at random places in memory is fetched ahead of its use, so that the cache misses
    overlap: at a million entries that is six times faster.
    """
    entries = pool.entries
    for i in range(waiting):
        prefetch(entries.sketch, signed(met[i]))
    flag_met(met[:waiting], entries.sketch, text.sketch, pool.rule, flags)
    left = 0
    for i in range(waiting):
        met[left] = met[i]  # written always, kept by the count: a branch would mispredict
        left += signed(flags[i])
    for i in range(left):
        prefetch(entries.place, signed(met[i]))
        prefetch(seen, signed(met[i]))
    new = 0
    for i in range(left):
        entry = signed(met[i])
        if seen[entry] != now:
            seen[entry] = now
            met[new] = entry
            new += 1
            offset = offset_of(entries, entry)
            prefetch(entries.tokens, offset)
            prefetch(entries.tokens, offset + _LINE)
    for i in range(new):
        verify(pool, found, text, signed(met[i]))


@kernel
def _count_overlaps(pool: Pool, count: int) -> None:
    """Multiset overlap of the open query with every seed, from the inverted lists."""
    seeds = pool.seeds
    seeds.overlap[:] = 0
    known = seeds.first.size - 1
    for i in range(count):
        element = pool.query.elements[i]
        if element < known:
            for at in range(seeds.first[element], seeds.first[element + 1]):
                seeds.overlap[seeds.member[at]] += 1


@kernel
def _likeliest_seed(pool: Pool, count: int) -> int:
    likely, bound = 0, -1.0
    for seed in range(pool.seeds.overlap.size):
        score = score_of(pool.seeds.overlap[seed], count, length_of(pool.entries, seed))
        if score > bound:
            likely, bound = seed, score
    return likely


@kernel
def nearest_seed(pool: Pool, found: Found, text: Text) -> None:
    """Find the seed with the highest score (lowest index among equals), exactly.

    An LCS is computed only where the multiset overlap, which bounds it, could still win. The likeliest seed goes first,
    so that most others are skipped.
    """
    overlap, count = pool.seeds.overlap, text.length
    _count_overlaps(pool, count)
    likely = _likeliest_seed(pool, count)
    best, best_score = -1, -1.0
    for turn in range(-1, overlap.size):
        seed = likely if turn < 0 else turn
        length = length_of(pool.entries, seed)
        if score_of(overlap[seed], count, length) < best_score:
            continue
        score = 0.0
        if overlap[seed] > 0:
            score = score_of(lcs_with(pool, count, seed), count, length)
        if score > best_score or (score == best_score and seed < best):
            best, best_score = seed, score
    found.seed[text.row] = best
    found.seed_score[text.row] = best_score


@kernel
def conclude(pool: Pool, found: Found, text: Text) -> bool:
    """Decide from what was recorded. A text that would be kept meets every seed first. Returns whether it is novel."""
    row = text.row
    if found.entry[row, 0] >= 0 and too_similar(pool.rule, found.score[row, 0]):
        return False
    if pool.seeds.overlap.size > 0:
        nearest_seed(pool, found, text)
        if too_similar(pool.rule, found.seed_score[row]):
            record(found, row, found.seed[row], found.seed_score[row])
            found.seed[row], found.seed_score[row] = -1, 0.0
            return False
    found.novel[row] = 1
    return True
