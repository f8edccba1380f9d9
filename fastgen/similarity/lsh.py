"""MinHash-LSH over occurrence-tagged tokens, then exact ROUGE-L on what shares a band.

Guarantees: a text is never rejected wrongly. A too-similar pool member at multiset Jaccard J is met with probability
``1 - (1 - J**rows) ** bands`` over the draw of the permutations, and every such member has J >= t / (2 - t)
(:mod:`fastgen.similarity.bands`).

Signatures are those of ``datasketch.MinHash``, value for value: scheme ``affine32`` of datasketch 2, seed 1 by default,
hash function ``sha1_hash32`` (its default), over the elements of :mod:`fastgen.similarity.vocabulary`. The permutations
come from datasketch itself, so a change there changes them here. Never mix signatures of other schemes, seeds or widths
with these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgen.similarity.checks import conclude, verify_met
from fastgen.similarity.jit import kernel
from fastgen.similarity.layout import reserve_array, with_room
from fastgen.similarity.lcs import close_query, least_need, open_query, popcount64
from fastgen.similarity.pool import (
    MOST_ENTRIES,
    CandidateIndex,
    TextPool,
    make_batch,
    read_text,
    reread_entry,
    store_text,
)
from fastgen.similarity.postings import (
    CHUNK,
    INFO_SHIFT,
    Postings,
    arrays_of,
    check_loaded,
    check_whole,
    find_block,
    fingerprint,
    insert,
    keep_flagged,
    load_postings,
    make_postings,
    postings_bytes,
    prefetch_head,
    remove,
    same_print,
    with_room_for,
)
from fastgen.similarity.vocabulary import forget_symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.similarity.bands import Bands
    from fastgen.similarity.layout import Batch, Found, Pool, Rule, StoredArrays, Symbols, Text


SCHEME = "affine32"
SEED = 1
_U64 = np.uint64
_ONE = _U64(1)
_LENGTHS = 64  # lengths from 63 up share a class
_LONG = _U64(_LENGTHS - 1)
_BITS = 16
_MET = 4 * CHUNK
_BITS_MASK = _U64((1 << _BITS) - 1)
_LENGTH_SHIFT = INFO_SHIFT + _U64(_BITS)
_FOLD = _U64(64 - 4)
_SPREAD = _U64(0xD6E8FEB86659FD93)


Permutations = tuple["NDArray[np.uint32]", "NDArray[np.uint32]"]
"""``h -> multipliers[p] * h + increments[p]`` modulo 2**32, for every permutation p."""


def datasketch_permutations(count: int, seed: int = SEED) -> Permutations:
    """Take the permutations of ``datasketch.MinHash(num_perm=count, seed=seed, scheme="affine32")``."""
    import datasketch

    multiplier, increment = datasketch.MinHash(num_perm=count, seed=seed, scheme=SCHEME).permutations
    return np.ascontiguousarray(multiplier, np.uint32), np.ascontiguousarray(increment, np.uint32)


@kernel
def sign(
    symbols: Symbols,
    permutations: Permutations,
    elements: NDArray[np.int32],
    count: int,
    signature: NDArray[np.uint32],
) -> None:
    """Write the minimum of every permutation over the elements to ``signature`` (all ones for no elements)."""
    signature[:] = np.uint32(0xFFFFFFFF)
    multiplier, increment = permutations
    for i in range(count):
        base = symbols.base[elements[i]]
        for p in range(signature.size):
            signature[p] = min(signature[p], np.uint32(multiplier[p] * base + increment[p]))


@kernel
def _sign_all(pool: Pool, batch: Batch, permutations: Permutations, out: NDArray[np.uint32]) -> None:
    for row in range(out.shape[0]):
        text = read_text(pool, batch, row)
        sign(pool.symbols, permutations, pool.query.elements, text.length, out[row])


def signatures(texts: Sequence[bytes], permutations: int, seed: int = SEED) -> NDArray[np.uint32]:
    """Sign texts by themselves: one row of ``permutations`` values each, all ones for a text without tokens."""
    pool, batch = TextPool(1.0, "ge"), make_batch(texts)
    pool.reserve(batch)
    out = np.empty((len(texts), permutations), np.uint32)
    _sign_all(pool.view(), batch, datasketch_permutations(permutations, seed), out)
    return out


@kernel
def band_key(signature: NDArray[np.uint32], band: int, rows: int) -> np.uint64:
    """64-bit hash of one band's rows."""
    key = np.uint64(band)
    for i in range(band * rows, (band + 1) * rows):
        key = (key ^ np.uint64(signature[i])) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


class Lsh(NamedTuple):
    """Everything an LSH kernel needs beyond the pool.

    ``keys``: the open text's band keys. ``block``: where each band's postings are. ``flags``: which of a chunk of
    postings may be too similar. ``met``, ``seen``, ``clock``: see :func:`fastgen.similarity.checks.verify_met`.
    """

    permutations: Permutations
    postings: Postings
    signature: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    block: NDArray[np.int64]
    flags: NDArray[np.uint8]
    met: NDArray[np.int32]
    seen: NDArray[np.int32]
    clock: NDArray[np.int64]


@kernel
def _make_keys(pool: Pool, lsh: Lsh, text: Text) -> None:
    sign(pool.symbols, lsh.permutations, pool.query.elements, text.length, lsh.signature)
    bands = lsh.keys.size
    rows = lsh.signature.size // bands
    for band in range(bands):
        lsh.keys[band] = band_key(lsh.signature, band, rows)


@kernel
def _info(pool: Pool, text: Text) -> np.uint64:
    """Length class (6 bits) and a 16-bit map of the elements, in place in a posting."""
    bits = _U64(0)
    for i in range(text.length):
        bits |= _ONE << ((_U64(pool.query.elements[i] + 1) * _SPREAD) >> _FOLD)
    return (min(_U64(text.length), _LONG) << _LENGTH_SHIFT) | (bits << INFO_SHIFT)


@kernel
def _link(pool: Pool, lsh: Lsh, text: Text, entry: int) -> None:
    lsh.seen[entry] = 0
    posting = _info(pool, text) | _U64(entry)
    for band in range(lsh.keys.size):
        insert(lsh.postings, lsh.keys[band], posting | fingerprint(lsh.keys[band]))


@kernel
def _find_blocks(lsh: Lsh) -> None:
    """Find every band's postings: first all heads, then all blocks, so that their cache misses overlap."""
    for band in range(lsh.keys.size):
        prefetch_head(lsh.postings, lsh.keys[band])
    for band in range(lsh.keys.size):
        offset, count = find_block(lsh.postings, lsh.keys[band])
        lsh.block[band, 0], lsh.block[band, 1] = offset, count


@kernel
def _flag(chunk: NDArray[np.uint64], flags: NDArray[np.uint8], key: np.uint64, info: np.uint64, rule: Rule) -> None:
    """Flag the postings under ``key`` whose length and 16-bit map leave room for the overlap that is needed.

    Without a branch or a table, so that the compiler makes vector instructions of it.
    """
    length = info >> _LENGTH_SHIFT
    for i in range(chunk.size):
        posting = chunk[i]
        other = posting >> _LENGTH_SHIFT
        need = least_need(rule, length + other)
        only_text = popcount64((info & ~posting) >> INFO_SHIFT & _BITS_MASK)
        only_other = popcount64((posting & ~info) >> INFO_SHIFT & _BITS_MASK)
        fits = (need + only_text <= length) & (need + only_other <= other)
        flags[i] = same_print(posting, key) & (fits | (other == _LONG) | (length == _LONG))


@kernel
def _meet(pool: Pool, lsh: Lsh, found: Found, text: Text) -> None:
    """Verify every entry that shares a band with the open text."""
    _find_blocks(lsh)
    info = _info(pool, text)
    lsh.clock[0] += 1
    waiting = 0
    for band in range(lsh.keys.size):
        for begin in range(0, lsh.block[band, 1], CHUNK):
            offset = lsh.block[band, 0] + begin
            chunk = lsh.postings.slab[offset : offset + min(CHUNK, lsh.block[band, 1] - begin)]
            _flag(chunk, lsh.flags, lsh.keys[band], info, pool.rule)
            waiting = keep_flagged(chunk, lsh.flags, lsh.met, waiting)
            if waiting > lsh.met.size - CHUNK - 1:
                verify_met(pool, lsh.met, waiting, lsh.flags, lsh.seen, lsh.clock[0], found, text)
                waiting = 0
    verify_met(pool, lsh.met, waiting, lsh.flags, lsh.seen, lsh.clock[0], found, text)


@kernel
def _decide(pool: Pool, lsh: Lsh, batch: Batch, found: Found, keep: bool) -> None:
    for row in range(batch.start.size - 1):
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        if text.length > 0:
            _make_keys(pool, lsh, text)
            _meet(pool, lsh, found, text)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel and keep:
            _store(pool, lsh, text)
        else:
            forget_symbols(pool.symbols, known)


@kernel
def _store(pool: Pool, lsh: Lsh, text: Text) -> None:
    entry = store_text(pool, text)
    if text.length > 0:
        _link(pool, lsh, text, entry)


@kernel
def _add(pool: Pool, lsh: Lsh, batch: Batch) -> None:
    for row in range(batch.start.size - 1):
        text = read_text(pool, batch, row)
        _make_keys(pool, lsh, text)
        _find_blocks(lsh)
        _store(pool, lsh, text)


@kernel
def _unlink(pool: Pool, lsh: Lsh, keep: int) -> None:
    """Take the youngest entries out of the tables."""
    for entry in range(pool.entries.size[0] - 1, keep - 1, -1):
        text = reread_entry(pool, entry)
        if text.length > 0:
            _make_keys(pool, lsh, text)
            for band in range(lsh.keys.size):
                remove(lsh.postings, lsh.keys[band], entry)


class LshIndex(CandidateIndex):
    """Finds candidates by MinHash bands."""

    def __init__(self, threshold: float, reject_at: str, bands: Bands) -> None:
        super().__init__(threshold, reject_at)
        self.bands = bands
        permutations = bands.bands * bands.rows
        self._lsh = Lsh(
            permutations=datasketch_permutations(permutations),
            postings=make_postings(),
            signature=np.empty(permutations, np.uint32),
            keys=np.empty(bands.bands, np.uint64),
            block=np.empty((bands.bands, 2), np.int64),
            flags=np.empty(_MET, np.uint8),
            met=np.empty(_MET, np.int32),
            seen=reserve_array(np.int32, MOST_ENTRIES),
            clock=np.zeros(1, np.int64),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Flat views of everything that :meth:`load` needs, valid until the next call."""
        bands = np.array([self.bands.bands, self.bands.rows], np.int64)
        return super().arrays() | arrays_of(self._lsh.postings) | {"bands": bands}

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries until ``entries`` are left. Only what the last :meth:`decide` appended."""
        _unlink(self._pool.view(), self._lsh, entries)
        super().truncate(entries)

    def memory_bytes(self) -> int:
        """Bytes in use."""
        lsh = self._lsh
        held = (*lsh.permutations, lsh.signature, lsh.keys, lsh.block, lsh.flags, lsh.met)
        index = postings_bytes(lsh.postings) + lsh.seen.itemsize * len(self)
        return super().memory_bytes() + index + sum(array.nbytes for array in held)

    def _reserve(self, batch: Batch) -> None:
        super()._reserve(batch)
        texts = batch.start.size - 1
        seen = with_room(self._lsh.seen, len(self) + texts, len(self), MOST_ENTRIES)
        postings = with_room_for(self._lsh.postings, texts * self.bands.bands)
        if seen is not self._lsh.seen or postings is not self._lsh.postings:
            self._lsh = self._lsh._replace(seen=seen, postings=postings)

    def _append(self, batch: Batch) -> None:
        _add(self._pool.view(), self._lsh, batch)
        check_whole(self._lsh.postings)

    def _decide(self, batch: Batch, found: Found, *, keep: bool) -> None:
        _decide(self._pool.view(), self._lsh, batch, found, keep)
        check_whole(self._lsh.postings)

    def _load(self, stored: StoredArrays) -> None:
        if not np.array_equal(stored.read("bands", np.int64), self.arrays()["bands"]):
            raise ValueError("the index was made with other parameters")
        super()._load(stored)
        self._lsh = self._lsh._replace(postings=load_postings(self._lsh.postings, stored))

    def _check_loaded(self) -> None:
        super()._check_loaded()
        check_loaded(self._lsh.postings, len(self), -1)
