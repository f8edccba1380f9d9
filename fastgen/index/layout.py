"""The flat arrays of the similarity filter, as kernels receive them: plain named tuples, no behaviour.

Owners (:class:`~fastgen.index.vocabulary.Vocabulary`, :class:`~fastgen.index.pool.TextPool`, the indexes) make and grow
the arrays between kernel calls; a kernel never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Symbols(NamedTuple):
    """The arrays of a vocabulary as kernels see them; ``size[0]`` symbols are in use.

    ``table``: open-addressing slots, symbol or -1. ``hashes``: 64-bit hash of the symbol's bytes. ``start``: a token's
    bytes are ``blob[start[i]:start[i + 1]]`` (empty for a later occurrence). ``parent``, ``occurrence``: an element's
    token and k; a token is its own parent with k = 1. ``base``: the pre-mixed 32-bit MinHash hash. ``slot``: scratch,
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

    ``tokens``: every entry's symbols, one after the other. ``gist``: what :mod:`fastgen.index.gists` makes of an entry.
    ``place``: offset into ``tokens`` (40 bits) and length (24 bits).
    """

    tokens: NDArray[np.int32]
    gist: NDArray[np.uint64]
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
    """Texts as one writable byte array; text ``i`` is ``data[start[i]:start[i + 1]]``."""

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
    """One text of a batch while it is being decided: its row, its number of tokens, its gist."""

    row: int
    length: int
    gist: np.uint64
