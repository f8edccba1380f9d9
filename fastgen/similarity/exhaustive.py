"""The oracle: every pool member is a candidate.

Guarantees: no text with a too-similar pool member is kept, whatever its length. Cost per text grows linearly with the
pool (sketches are compared first, then bit-parallel LCS): for tests, audits and small pools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.similarity.checks import conclude, make_found, verify
from fastgen.similarity.jit import kernel
from fastgen.similarity.lcs import close_query, flag_similar, open_query
from fastgen.similarity.pool import TextPool, make_batch, nearest_older, read_text, store_text
from fastgen.similarity.vocabulary import forget_symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class ExhaustiveIndex:
    """A :class:`fastgen.similarity.layout.CandidateIndex` without an index."""

    def __init__(self, threshold: float, reject_at: str) -> None:
        self._pool = TextPool(threshold, reject_at)
        self._flags = np.empty(_CHUNK, np.uint8)

    def __len__(self) -> int:
        """Entries in the pool."""
        return len(self._pool)

    def add(self, texts: Sequence[bytes], *, seeds: bool = False) -> None:
        """Append texts without a check."""
        self._pool.append(make_batch(texts))
        if seeds:
            self._pool.index_seeds()

    def decide(self, texts: Sequence[bytes]) -> Found:
        """Decide texts in order and append the novel ones."""
        batch, found = make_batch(texts), make_found(len(texts))
        self._pool.reserve(batch)
        _decide(self._pool.view(), batch, found, self._flags, True)
        return found

    def look_up(self, texts: Sequence[bytes]) -> Found:
        """Decide each text by itself against the pool as it is; nothing is appended."""
        batch, found = make_batch(texts), make_found(len(texts))
        self._pool.reserve(batch)
        _decide(self._pool.view(), batch, found, self._flags, False)
        return found

    def nearest_older(self, entries: Sequence[int], top: int) -> Found:
        """Find the ``top`` most similar older entries of each entry, by a full scan."""
        return nearest_older(self._pool, entries, top)

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries."""
        self._pool.truncate(entries)

    def check_loaded(self) -> None:
        """Make the index usable after a load."""
        self._pool.check_loaded()

    def memory_bytes(self) -> int:
        """Bytes held."""
        return self._pool.memory_bytes()
