"""The oracle: every pool member is a candidate. For tests, audits and small pools.

Guarantees: no text with a too-similar pool member is kept, whatever its length. The cost of a text grows linearly with
the pool: sketches are compared first, then the bit-parallel LCS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.similarity.checks import conclude, verify
from fastgen.similarity.jit import kernel
from fastgen.similarity.lcs import close_query, flag_similar, open_query
from fastgen.similarity.pool import CandidateIndex, read_text, store_text
from fastgen.similarity.vocabulary import forget_symbols

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import Batch, Found, Pool, Text


_CHUNK = 4096  # entries that are looked at in one go


@kernel
def _meet_all(pool: Pool, flags: NDArray[np.uint8], found: Found, text: Text) -> None:
    """Verify every entry that its sketch does not rule out."""
    size = pool.entries.size[0]
    for begin in range(0, size, flags.size):
        end = min(begin + flags.size, size)
        flag_similar(pool.entries.sketch[begin:end], text.sketch, pool.rule, flags)
        for i in range(end - begin):
            if flags[i]:
                verify(pool, found, text, begin + i)


@kernel
def _decide(pool: Pool, batch: Batch, found: Found, flags: NDArray[np.uint8], keep: bool) -> None:
    for row in range(batch.start.size - 1):
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        _meet_all(pool, flags, found, text)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel and keep:
            store_text(pool, text)
        else:
            forget_symbols(pool.symbols, known)


class ExhaustiveIndex(CandidateIndex):
    """A pool without an index."""

    def __init__(self, threshold: float, reject_at: str) -> None:
        super().__init__(threshold, reject_at)
        self._flags = np.empty(_CHUNK, np.uint8)

    def _decide(self, batch: Batch, found: Found, *, keep: bool) -> None:
        _decide(self._pool.view(), batch, found, self._flags, keep)
