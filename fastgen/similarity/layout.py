"""The flat arrays of the similarity filter as kernels receive them, and memory in which they can grow.

The named tuples have no behaviour. Their owners (:class:`~fastgen.similarity.vocabulary.Vocabulary`,
:class:`~fastgen.similarity.pool.TextPool` and the indexes) make and grow the arrays between kernel calls. A kernel
never does.

Guarantees: an array of :func:`reserve_array` reads as zero and costs physical memory only for the pages that were
written. It neither moves nor stalls as it fills, because its address space is reserved. Where address space is limited
(``ulimit -v``, ``vm.overcommit_memory=2``), an array starts small, and :func:`with_room` copies it into a larger one
before the batch that needs it. If that is refused too, the run stops with one line.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgen.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray


class Symbols(NamedTuple):
    """The arrays of a vocabulary as kernels see them. ``size[0]`` symbols are in use.

    ``table``: open-addressing slots, symbol or -1. ``hashes``: 64-bit hash of the symbol's bytes. ``start``: a token's
    bytes are ``blob[start[i]:start[i + 1]]`` (empty for a later occurrence). ``parent``, ``occurrence``: an element's
    token and k. A token is its own parent with k = 1. ``base``: the pre-mixed 32-bit MinHash hash. ``slot``: scratch,
    all zero between texts. ``work``: scratch for SHA-1.
    """

    table: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    start: NDArray[np.int64]
    blob: NDArray[np.uint8]
    parent: NDArray[np.int32]
    occurrence: NDArray[np.int32]
    base: NDArray[np.uint32]
    slot: NDArray[np.int32]
    size: NDArray[np.int64]
    work: NDArray[np.int64]


class Rule(NamedTuple):
    """When a pair is too similar.

    ``need[m, n]``: the smallest such LCS for lengths below 256, 0 where there is none. ``slope``: half the threshold,
    rounded down, in units of 2**-24.
    """

    need: NDArray[np.uint8]
    slope: int
    threshold: float
    at_threshold: bool


class Entries(NamedTuple):
    """The pool's tokens. ``size`` = entries, tokens in use.

    ``tokens``: every entry's symbols, one after the other. ``sketch``: what :mod:`fastgen.similarity.lcs` makes of an
    entry.
    ``place``: offset into ``tokens`` (40 bits) and length (24 bits).
    """

    tokens: NDArray[np.int32]
    sketch: NDArray[np.uint64]
    place: NDArray[np.uint64]
    size: NDArray[np.int64]


class Query(NamedTuple):
    """Scratch for one text: its tokens and elements, and per distinct token ("slot") where it stands.

    ``masks[s]``: positions of slot s as bits (at most 64 tokens). ``first``, ``places``: the same as lists, for longer
    texts. ``left[s]``: occurrences not yet matched. ``row``, ``hits``: words of the LCS row.
    """

    tokens: NDArray[np.int32]
    elements: NDArray[np.int32]
    masks: NDArray[np.uint64]
    first: NDArray[np.int64]
    places: NDArray[np.int64]
    left: NDArray[np.int32]
    row: NDArray[np.uint64]
    hits: NDArray[np.uint64]


class Seeds(NamedTuple):
    """Inverted lists over the seed texts: seeds ``member[first[e]:first[e + 1]]`` contain element ``e``.

    ``overlap`` is scratch, one counter per seed.
    """

    first: NDArray[np.int64]
    member: NDArray[np.int32]
    overlap: NDArray[np.int32]


class Pool(NamedTuple):
    """Everything a kernel needs about the pool."""

    symbols: Symbols
    entries: Entries
    query: Query
    rule: Rule
    seeds: Seeds


class Batch(NamedTuple):
    """Texts as one writable byte array. Text ``i`` is ``data[start[i]:start[i + 1]]``."""

    data: NDArray[np.uint8]
    start: NDArray[np.int64]


class Found(NamedTuple):
    """One row per text of a batch.

    ``entry``, ``score``: the up to five best pool members that were verified, best first, -1 where there are fewer.
    ``novel``: 1 for a text to keep. ``seed``, ``seed_score``: the nearest seed of a kept text, -1 without one.
    """

    entry: NDArray[np.int64]
    score: NDArray[np.float64]
    novel: NDArray[np.uint8]
    seed: NDArray[np.int64]
    seed_score: NDArray[np.float64]


class Text(NamedTuple):
    """One text of a batch while it is being decided: its row, its number of tokens, its sketch."""

    row: int
    length: int
    sketch: np.uint64


_SMALL_PAGES = 1 << 20  # bytes at the front that are left to small pages, so that a small pool stays small
_SMALLEST = 1 << 20  # bytes of an array that has to grow
_LEFT_FREE = 1 << 36  # bytes of address space that are left to everything else in the process
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.12 on


def reserve_array(dtype: type[np.generic], rows: int) -> NDArray[Any]:
    """Make a zeroed one-dimensional array of up to ``rows`` rows.

    It has fewer rows, and grows by :func:`with_room`, where the address space for all of them is not plentiful.
    """
    row_bytes = np.dtype(dtype).itemsize
    if rows * row_bytes > _SMALLEST and not _is_free(rows * row_bytes + _LEFT_FREE):
        rows = _SMALLEST // row_bytes
    return np.frombuffer(_reserve(rows * row_bytes), dtype, count=rows)


def _is_free(size: int) -> bool:
    try:
        _reserve(size).close()
    except (OSError, ValueError, OverflowError, MemoryError):
        return False
    return True


def with_room(array: NDArray[Any], rows: int, used: int, most: int) -> NDArray[Any]:
    """``array`` where it has ``rows`` rows, else a larger reserved one that begins with its first ``used`` rows.

    :raises StoppedError: more than ``most`` rows are needed, or the machine gives no address space for them.
    """
    if len(array) >= rows:
        return array
    if rows > most:
        raise StoppedError(
            f"the similarity pool is full: it needs {rows} rows and has {most} at most; export this run, begin another"
        )
    for wanted in (min(most, rows + rows // 2), rows):
        try:
            larger: NDArray[Any] = np.frombuffer(_reserve(wanted * array.itemsize), array.dtype, count=wanted)
        except (OSError, ValueError, OverflowError, MemoryError):
            continue
        kept = array[:used]
        larger[: len(kept)] = kept
        return larger
    raise StoppedError(
        f"the similarity pool is full: this machine gives no {rows * array.itemsize / 1e6:,.0f} MB of address space "
        "for one array; raise the limit (ulimit -v) and run the same command again"
    )


def _reserve(size: int) -> mmap.mmap:
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_MAP_NORESERVE if hasattr(mmap, "MADV_HUGEPAGE") else 0)
    space = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE") and size > 2 * _SMALL_PAGES:
        # Lookups are random, and with small pages most of their time would go into address translation.
        space.madvise(mmap.MADV_HUGEPAGE, _SMALL_PAGES, size - _SMALL_PAGES)
    return space


class StoredArrays(NamedTuple):
    """The arrays of an index in a file.

    ``rows``: their lengths by name. ``read_into``: fills a flat array with the stored one of that name, and raises
    `ValueError` if their lengths or dtypes differ.
    """

    rows: Mapping[str, int]
    read_into: Callable[[str, NDArray[Any]], None]

    def read(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """Read into a new array."""
        array: NDArray[Any] = np.empty(self.rows[name], dtype)
        self.read_into(name, array)
        return array

    def load(self, name: str, array: NDArray[Any], most: int) -> NDArray[Any]:
        """Read into the front of a reserved array, or of a larger one of at most ``most`` rows. Return it."""
        array = with_room(array, self.rows[name], 0, most)
        self.read_into(name, array[: self.rows[name]])
        return array
