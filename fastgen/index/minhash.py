"""MinHash signatures that are ``datasketch.MinHash``'s, value for value, computed in batches by a compiled kernel.

Scheme ``affine32`` of datasketch 2, seed 1 unless told otherwise, hash function ``sha1_hash32`` (its default), over the
occurrence-tagged elements of :mod:`fastgen.index.vocabulary`: the bytes ``token`` for a token's first occurrence in the
text, ``token NUL k`` (k in decimal) for its k-th. The permutations are taken from datasketch itself, so a change there
would show here at once. Never mix signatures of other schemes, seeds or widths with these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.jit import kernel
from fastgen.index.pool import TextPool, make_batch, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.index.layout import Batch, Pool, Symbols

SCHEME = "affine32"
SEED = 1


class Permutations(NamedTuple):
    """``h -> multiplier * h + increment`` modulo 2**32, one pair per permutation."""

    multiplier: NDArray[np.uint32]
    increment: NDArray[np.uint32]


def datasketch_permutations(count: int, seed: int = SEED) -> Permutations:
    """Take the permutations of ``datasketch.MinHash(num_perm=count, seed=seed, scheme="affine32")``."""
    import datasketch

    multiplier, increment = datasketch.MinHash(num_perm=count, seed=seed, scheme=SCHEME).permutations
    return Permutations(np.ascontiguousarray(multiplier, np.uint32), np.ascontiguousarray(increment, np.uint32))


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
    multiplier, increment = permutations.multiplier, permutations.increment
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
