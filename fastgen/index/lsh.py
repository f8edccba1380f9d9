"""MinHash-LSH over occurrence-tagged tokens, then exact ROUGE-L on what shares a band.

Guarantees: a text is never rejected wrongly; a too-similar pool member at multiset Jaccard J is met with probability
``1 - (1 - J**rows) ** bands`` over the draw of the permutations, and any such member has J >= t / (2 - t)
(:mod:`fastgen.index.bands`). Signatures are datasketch's (:mod:`fastgen.index.minhash`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.arrays import grow_to
from fastgen.index.checks import conclude, make_found, verify
from fastgen.index.jit import kernel, signed
from fastgen.index.lcs import close_query, open_query
from fastgen.index.minhash import Permutations, band_key, datasketch_permutations, sign
from fastgen.index.pool import TextPool, make_batch, read_text, reread_entry, store_text
from fastgen.index.vocabulary import forget_symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.index.bands import Bands
    from fastgen.index.layout import Batch, Found, Pool, Text

_SMALLEST_TABLE = 1 << 10


class Lsh(NamedTuple):
    """``heads[band, bucket]`` starts a chain of entries through ``links[entry, band]``; -1 ends it.

    ``seen[entry]``: the number (``clock[0]``) of the last text that met the entry. ``keys``: the query's band keys.
    """

    permutations: Permutations
    signature: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    heads: NDArray[np.int32]
    links: NDArray[np.int32]
    seen: NDArray[np.int64]
    clock: NDArray[np.int64]


@kernel
def _make_keys(pool: Pool, lsh: Lsh, count: int) -> None:
    sign(pool.symbols, lsh.permutations, pool.query.elements, count, lsh.signature)
    bands = lsh.heads.shape[0]
    rows = lsh.signature.size // bands
    for band in range(bands):
        lsh.keys[band] = band_key(lsh.signature, band, rows)


@kernel
def _link(lsh: Lsh, entry: int) -> None:
    mask = np.uint64(lsh.heads.shape[1] - 1)
    lsh.seen[entry] = 0
    for band in range(lsh.heads.shape[0]):
        bucket = signed(lsh.keys[band] & mask)
        lsh.links[entry, band] = lsh.heads[band, bucket]
        lsh.heads[band, bucket] = entry


@kernel
def _meet(pool: Pool, lsh: Lsh, found: Found, text: Text) -> None:
    mask = np.uint64(lsh.heads.shape[1] - 1)
    lsh.clock[0] += 1
    now = lsh.clock[0]
    for band in range(lsh.heads.shape[0]):
        entry = signed(lsh.heads[band, signed(lsh.keys[band] & mask)])
        while entry >= 0:
            if lsh.seen[entry] != now:
                lsh.seen[entry] = now
                verify(pool, found, text, entry)
            entry = signed(lsh.links[entry, band])


@kernel
def _decide(pool: Pool, lsh: Lsh, batch: Batch, found: Found) -> None:
    for row in range(batch.start.size - 1):
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        if text.length > 0:
            _make_keys(pool, lsh, text.length)
            _meet(pool, lsh, found, text)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel:
            _store(pool, lsh, text)
        else:
            forget_symbols(pool.symbols, known)


@kernel
def _store(pool: Pool, lsh: Lsh, text: Text) -> None:
    entry = store_text(pool, text)
    if text.length > 0:
        _link(lsh, entry)


@kernel
def _add(pool: Pool, lsh: Lsh, batch: Batch) -> None:
    for row in range(batch.start.size - 1):
        text = read_text(pool, batch, row)
        _make_keys(pool, lsh, text.length)
        _store(pool, lsh, text)


@kernel
def _relink(pool: Pool, lsh: Lsh) -> None:
    """Fill empty tables from the pool's tokens."""
    for entry in range(pool.entries.size[0]):
        text = reread_entry(pool, entry)
        if text.length > 0:
            _make_keys(pool, lsh, text.length)
            _link(lsh, entry)


@kernel
def _unlink(pool: Pool, lsh: Lsh, keep: int) -> None:
    """Take entries out of the tables, youngest first: each stands at the head of its chains."""
    mask = np.uint64(lsh.heads.shape[1] - 1)
    for entry in range(pool.entries.size[0] - 1, keep - 1, -1):
        text = reread_entry(pool, entry)
        if text.length > 0:
            _make_keys(pool, lsh, text.length)
            for band in range(lsh.heads.shape[0]):
                lsh.heads[band, signed(lsh.keys[band] & mask)] = lsh.links[entry, band]


class LshIndex:
    """A :class:`fastgen.index.CandidateIndex` that finds candidates by MinHash bands."""

    def __init__(self, threshold: float, reject_at: str, bands: Bands) -> None:
        self._pool = TextPool(threshold, reject_at)
        self.bands = bands
        permutations = bands.bands * bands.rows
        self._lsh = Lsh(
            permutations=datasketch_permutations(permutations),
            signature=np.empty(permutations, np.uint32),
            keys=np.empty(bands.bands, np.uint64),
            heads=np.full((bands.bands, _SMALLEST_TABLE), -1, np.int32),
            links=np.empty((0, bands.bands), np.int32),
            seen=np.empty(0, np.int64),
            clock=np.zeros(1, np.int64),
        )

    def __len__(self) -> int:
        """Entries in the pool."""
        return len(self._pool)

    def add(self, texts: Sequence[bytes], *, seeds: bool = False) -> None:
        """Append texts without a check."""
        batch = make_batch(texts)
        self._reserve(batch)
        _add(self._pool.view(), self._lsh, batch)
        if seeds:
            self._pool.index_seeds()

    def decide(self, texts: Sequence[bytes]) -> Found:
        """Decide texts in order and append the novel ones."""
        batch, found = make_batch(texts), make_found(len(texts))
        self._reserve(batch)
        _decide(self._pool.view(), self._lsh, batch, found)
        return found

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries."""
        _unlink(self._pool.view(), self._lsh, entries)
        self._pool.truncate(entries)

    def memory_bytes(self) -> int:
        """Bytes held."""
        lsh = self._lsh
        held = (*lsh.permutations, lsh.signature, lsh.keys, lsh.heads, lsh.links, lsh.seen, lsh.clock)
        return self._pool.memory_bytes() + sum(array.nbytes for array in held)

    def _reserve(self, batch: Batch) -> None:
        self._pool.reserve(batch)
        entries = len(self._pool) + batch.start.size - 1
        grow_to(self._lsh.links, entries)
        grow_to(self._lsh.seen, entries)
        if entries > self._lsh.heads.shape[1]:
            heads = np.full((self.bands.bands, 1 << (entries * 2 - 1).bit_length()), -1, np.int32)
            self._lsh = self._lsh._replace(heads=heads)
            _relink(self._pool.view(), self._lsh)
