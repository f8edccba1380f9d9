"""The oracle: every pool member is a candidate.

Guarantees: no text with a too-similar pool member is kept, whatever its length. Cost per text grows linearly with the
pool (lengths and a 64-bit bitmap are compared first, then bit-parallel LCS): for tests, audits and small pools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgen.index.checks import conclude, make_found, may_be_similar, verify
from fastgen.index.jit import kernel
from fastgen.index.lcs import close_query, open_query
from fastgen.index.pool import TextPool, make_batch, read_text, store_text
from fastgen.index.vocabulary import forget_symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.index.layout import Batch, Found, Pool


@kernel
def _decide(pool: Pool, batch: Batch, found: Found, keep: bool) -> None:
    for row in range(batch.start.size - 1):
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        for entry in range(pool.entries.size[0]):
            if may_be_similar(pool, text, entry):
                verify(pool, found, text, entry)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel and keep:
            store_text(pool, text)
        else:
            forget_symbols(pool.symbols, known)


class ExhaustiveIndex:
    """A :class:`fastgen.index.CandidateIndex` without an index."""

    def __init__(self, threshold: float, reject_at: str) -> None:
        self._pool = TextPool(threshold, reject_at)

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
        _decide(self._pool.view(), batch, found, True)
        return found

    def look_up(self, texts: Sequence[bytes]) -> Found:
        """Decide each text by itself against the pool as it is; nothing is appended."""
        batch, found = make_batch(texts), make_found(len(texts))
        self._pool.reserve(batch)
        _decide(self._pool.view(), batch, found, False)
        return found

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries."""
        self._pool.truncate(entries)

    def memory_bytes(self) -> int:
        """Bytes held."""
        return self._pool.memory_bytes()
