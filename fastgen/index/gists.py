"""A text in one word: its length and a map of its elements, enough to tell most dissimilar pairs apart unseen.

Guarantees: what :func:`flag_similar` does not flag cannot be too similar. Its loop has neither branch nor table, so
that the compiler makes vector instructions of it. Knows nothing of pools.

A *gist* is a 56-bit map of the elements below 8 bits of length (255: that many or more, which is always flagged). Two
texts of m and n tokens whose maps differ have an overlap of at most m less the bits that only the first sets, and of at
most n less the bits that only the second sets, since each such bit is an element that the other lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.index.jit import kernel, signed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.index.layout import Rule

_U64 = np.uint64
_ONE = _U64(1)
_M1, _M2, _M4 = _U64(0x5555555555555555), _U64(0x3333333333333333), _U64(0x0F0F0F0F0F0F0F0F)
_M01 = _U64(0x0101010101010101)
_S1, _S2, _S4, _S8, _S56 = _U64(1), _U64(2), _U64(4), _U64(8), _U64(56)
_SPREAD = _U64(0x9E3779B97F4A7C15)
_HALF = _U64(32)
_MAP_BITS = _U64(56)
_LONG = _U64(255)
SLOPE_BITS = 24
_SLOPE_SHIFT = _U64(SLOPE_BITS)
_SLOPE_CEILING = _U64((1 << SLOPE_BITS) - 1 - (1 << 10))


@kernel
def popcount64(value: np.uint64) -> np.uint64:
    """Count the set bits (LLVM turns this form into one instruction, also on vectors)."""
    value -= (value >> _S1) & _M1
    value = (value & _M2) + ((value >> _S2) & _M2)
    value = (value + (value >> _S4)) & _M4
    return (value * _M01) >> _S56


@kernel
def popcount(value: np.uint64) -> int:
    """Count the set bits, as a signed integer."""
    return signed(popcount64(value))


@kernel
def gist_of(elements: NDArray[np.int32], count: int) -> np.uint64:
    """Make the gist of a text with these elements."""
    gist = min(_U64(count), _LONG) << _MAP_BITS
    for i in range(count):
        gist |= _ONE << (((_U64(elements[i]) * _SPREAD >> _HALF) * _MAP_BITS) >> _HALF)
    return gist


@kernel
def least_need(rule: Rule, both: np.uint64) -> np.uint64:
    """Lower bound of :func:`need_lcs` for two texts of ``both`` < 2**13 tokens in all, without a table.

    A rejection needs 2 LCS / (m + n) >= threshold up to a rounding error of the score. ``both * slope`` is at most
    half of ``threshold * (m + n)`` in units of 2**-24, so its ceiling is never above the smallest such LCS, nor is 1.
    """
    return max((both * _U64(rule.slope) + _SLOPE_CEILING) >> _SLOPE_SHIFT, _ONE)


@kernel
def flag_similar(gists: NDArray[np.uint64], gist: np.uint64, rule: Rule, flags: NDArray[np.uint8]) -> None:
    """Set ``flags`` to 1 where a text with that gist may be too similar to one with ``gist``, else to 0."""
    length = gist >> _MAP_BITS
    for i in range(gists.size):
        other = gists[i] >> _MAP_BITS
        need = least_need(rule, length + other)
        only_text = popcount64((gist & ~gists[i]) << _S8)
        only_other = popcount64((gists[i] & ~gist) << _S8)
        fits = (need + only_text <= length) & (need + only_other <= other)
        flags[i] = fits | (other == _LONG) | (length == _LONG)


@kernel
def flag_met(
    met: NDArray[np.int32], gists: NDArray[np.uint64], gist: np.uint64, rule: Rule, flags: NDArray[np.uint8]
) -> None:
    """:func:`flag_similar` for the texts numbered in ``met``."""
    length = gist >> _MAP_BITS
    for i in range(met.size):
        this = gists[_U64(met[i])]
        other = this >> _MAP_BITS
        need = least_need(rule, length + other)
        only_text = popcount64((gist & ~this) << _S8)
        only_other = popcount64((this & ~gist) << _S8)
        fits = (need + only_text <= length) & (need + only_other <= other)
        flags[i] = fits | (other == _LONG) | (length == _LONG)
