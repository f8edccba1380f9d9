"""The true nearest neighbours of stored texts, by a scan of all older ones: no index finds them below the threshold.

Guarantees: the ``top`` highest ROUGE-L F1 above 0 among all older entries, lower pool index first among equals. The
scan goes from the oldest entry on and passes over what, by its gist, cannot beat the worst of the best so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.index.checks import make_found, record
from fastgen.index.gists import SLOPE_BITS, flag_similar
from fastgen.index.jit import kernel
from fastgen.index.layout import Rule
from fastgen.index.lcs import close_query, lcs_with, length_of, open_query, score_of
from fastgen.index.pool import reread_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.index.layout import Found, Pool
    from fastgen.index.pool import TextPool

_CHUNK = 2048  # entries that are scanned under one bound


@kernel
def _scan_chunk(pool: Pool, found: Found, row: int, entry: int, begin: int, flags: NDArray[np.uint8]) -> None:
    end, last = min(begin + flags.size, entry), found.entry.shape[1] - 1
    length = length_of(pool.entries, entry)
    slope = int(found.score[row, last] / 2 * (1 << SLOPE_BITS))
    rule = Rule(pool.rule.need, slope, found.score[row, last], True)
    flag_similar(pool.entries.gist[begin:end], pool.entries.gist[entry], rule, flags)
    for i in range(end - begin):
        if flags[i]:
            score = score_of(lcs_with(pool, length, begin + i), length, length_of(pool.entries, begin + i))
            if score > found.score[row, last]:
                record(found, row, begin + i, score)


@kernel
def _scan(pool: Pool, found: Found, entries: NDArray[np.int64], flags: NDArray[np.uint8]) -> None:
    for row in range(entries.size):
        length = reread_entry(pool, entries[row]).length
        if length == 0:
            continue
        open_query(pool, length)
        for begin in range(0, entries[row], flags.size):
            _scan_chunk(pool, found, row, entries[row], begin, flags)
        close_query(pool, length)


def nearest_older(pool: TextPool, entries: Sequence[int], top: int) -> Found:
    """Find the ``top`` nearest older entries of each of ``entries`` (only ``entry`` and ``score`` are filled)."""
    found = make_found(len(entries), top)
    _scan(pool.view(), found, np.array(entries, np.int64), np.empty(_CHUNK, np.uint8))
    return found
