"""The oracle: every pool member is a candidate.

Guarantees: no text with a too-similar pool member is kept, whatever its length. Cost per text grows linearly with the
pool (lengths and a 64-bit bitmap are compared first, then bit-parallel LCS): for tests, audits and small pools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgen.index.checks import Found, conclude, make_found, verify
from fastgen.index.jit import kernel
from fastgen.index.lcs import append_entry, bitmap_of, close_query, open_query
from fastgen.index.pool import Batch, Pool, TextPool, make_batch, read_text
from fastgen.index.vocabulary import forget_symbols

if TYPE_CHECKING:
    from collections.abc import Sequence


@kernel
def _decide(pool: Pool, batch: Batch, found: Found, keep: bool) -> None:
    symbols, entries, query = pool.symbols, pool.entries, pool.query
    for text in range(batch.start.size - 1):
        known = symbols.size[0]
        count = read_text(pool, batch, text)
        bits = bitmap_of(query.elements, count)
        open_query(symbols, query, count)
        for entry in range(entries.size[0]):
            verify(symbols, entries, query, pool.rule, found, text, count, bits, entry)
        novel = conclude(symbols, entries, query, pool.rule, pool.seeds, found, text, count)
        close_query(symbols, query, count)
        if novel and keep:
            append_entry(entries, query.tokens, count, bits)
        else:
            forget_symbols(symbols, known)


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
