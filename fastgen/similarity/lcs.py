"""Kernels that verify a candidate: a one-word sketch first, then the bit-parallel LCS, decided in integers.

A *sketch* is a 56-bit map of a text's elements below 8 bits of length (255: that many or more, which is always
flagged). Two texts of m and n tokens whose maps differ have an overlap of at most m less the bits that only the first
sets, and of at most n less the bits that only the second sets, since each such bit is an element that the other lacks.

Guarantees: what :func:`flag_similar` does not flag cannot be too similar. :func:`need_lcs` is
:func:`fastgen.similarity.rouge.min_lcs`, and :func:`score_of` is :func:`fastgen.similarity.rouge.f1_of_lcs`, operation
by operation. One machine word covers a query of up to 64 tokens, several cover a longer one. The loops over sketches
have neither branch nor table, so that the compiler makes vector instructions of them.

Source of the recurrence: Hyyro, "Bit-parallel LCS-length computation revisited", 2004.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.similarity.jit import kernel, signed
from fastgen.similarity.layout import Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import Entries, Pool


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
_ALL = _U64(0xFFFFFFFFFFFFFFFF)
_LEN_BITS = _U64(24)
_LEN_MASK = _U64((1 << 24) - 1)
WORD = 64
TABLE_TOKENS = 256  # lengths below this are looked up, longer ones computed


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
def sketch_of(elements: NDArray[np.int32], count: int) -> np.uint64:
    """Make the sketch of a text with these elements."""
    sketch = min(_U64(count), _LONG) << _MAP_BITS
    for i in range(count):
        sketch |= _ONE << (((_U64(elements[i]) * _SPREAD >> _HALF) * _MAP_BITS) >> _HALF)
    return sketch


@kernel
def least_need(rule: Rule, both: np.uint64) -> np.uint64:
    """Lower bound of :func:`need_lcs` for two texts of ``both`` < 2**13 tokens in all, without a table.

    A rejection needs 2 LCS / (m + n) >= threshold up to a rounding error of the score. ``both * slope`` is at most
    half of ``threshold * (m + n)`` in units of 2**-24, so its ceiling is never above the smallest such LCS, nor is 1.
    """
    return max((both * _U64(rule.slope) + _SLOPE_CEILING) >> _SLOPE_SHIFT, _ONE)


@kernel
def flag_similar(sketches: NDArray[np.uint64], sketch: np.uint64, rule: Rule, flags: NDArray[np.uint8]) -> None:
    """Set ``flags`` to 1 where a text with that sketch may be too similar to one with ``sketch``, else to 0."""
    length = sketch >> _MAP_BITS
    for i in range(sketches.size):
        other = sketches[i] >> _MAP_BITS
        need = least_need(rule, length + other)
        only_text = popcount64((sketch & ~sketches[i]) << _S8)
        only_other = popcount64((sketches[i] & ~sketch) << _S8)
        fits = (need + only_text <= length) & (need + only_other <= other)
        flags[i] = fits | (other == _LONG) | (length == _LONG)


@kernel
def flag_met(
    met: NDArray[np.int32], sketches: NDArray[np.uint64], sketch: np.uint64, rule: Rule, flags: NDArray[np.uint8]
) -> None:
    """:func:`flag_similar` for the texts numbered in ``met``."""
    length = sketch >> _MAP_BITS
    for i in range(met.size):
        this = sketches[_U64(met[i])]
        other = this >> _MAP_BITS
        need = least_need(rule, length + other)
        only_text = popcount64((sketch & ~this) << _S8)
        only_other = popcount64((this & ~sketch) << _S8)
        fits = (need + only_text <= length) & (need + only_other <= other)
        flags[i] = fits | (other == _LONG) | (length == _LONG)


@kernel
def score_of(lcs: int, a_tokens: int, b_tokens: int) -> float:
    """rouge_score's F-measure."""
    if lcs == 0:
        return 0.0
    precision = lcs / b_tokens
    recall = lcs / a_tokens
    return 2 * precision * recall / (precision + recall)


@kernel
def compute_need(a_tokens: int, b_tokens: int, threshold: float, at_threshold: bool) -> int:
    """Smallest LCS that rejects, 0 where none can."""
    start = max(1, int(threshold * (a_tokens + b_tokens) / 2) - 1)
    for lcs in range(start, min(a_tokens, b_tokens, start + 3) + 1):
        score = score_of(lcs, a_tokens, b_tokens)
        if score > threshold or (at_threshold and score == threshold):
            return lcs
    return 0


@kernel
def _fill_need(table: NDArray[np.uint8], threshold: float, at_threshold: bool) -> None:
    for a in range(1, table.shape[0]):
        for b in range(1, table.shape[1]):
            table[a, b] = compute_need(a, b, threshold, at_threshold)


def make_rule(threshold: float, reject_at: str) -> Rule:
    """Table and parameters for one threshold and one of the two rules (``gt``, ``ge``)."""
    table = np.zeros((TABLE_TOKENS, TABLE_TOKENS), np.uint8)
    _fill_need(table, threshold, reject_at == "ge")
    return Rule(table, int(threshold / 2 * (1 << SLOPE_BITS)), threshold, reject_at == "ge")


@kernel
def need_lcs(rule: Rule, a_tokens: int, b_tokens: int) -> int:
    """Smallest LCS that rejects, 0 where none can. Symmetric."""
    if a_tokens < TABLE_TOKENS and b_tokens < TABLE_TOKENS:
        return signed(rule.need[a_tokens, b_tokens])
    return compute_need(a_tokens, b_tokens, rule.threshold, rule.at_threshold)


@kernel
def length_of(entries: Entries, entry: int) -> int:
    """Tokens in an entry."""
    return signed(entries.place[entry] & _LEN_MASK)


@kernel
def offset_of(entries: Entries, entry: int) -> int:
    """Where an entry's tokens begin."""
    return signed(entries.place[entry] >> _LEN_BITS)


@kernel
def append_entry(entries: Entries, tokens: NDArray[np.int32], count: int, sketch: np.uint64) -> int:
    """Store a text at the end of the pool and return its pool index. Room must be there."""
    entry, offset = entries.size[0], entries.size[1]
    for i in range(count):
        entries.tokens[offset + i] = tokens[i]
    entries.sketch[entry] = sketch
    entries.place[entry] = (_U64(offset) << _LEN_BITS) | _U64(count)
    entries.size[0] = entry + 1
    entries.size[1] = offset + count
    return signed(entry)


@kernel
def open_query(pool: Pool, count: int) -> int:
    """Number the query's distinct tokens in ``symbols.slot`` (from 1), note where they stand, and return how many."""
    symbols, query = pool.symbols, pool.query
    slots = 0
    for i in range(count):
        token = query.tokens[i]
        slot = signed(symbols.slot[token]) - 1
        if slot < 0:
            slot = slots
            slots += 1
            symbols.slot[token] = slots
            query.left[slot] = 0
            query.masks[slot] = _U64(0)
        query.left[slot] += 1
        if count <= WORD:
            query.masks[slot] |= _ONE << _U64(i)
    if count > WORD:
        _list_places(pool, count, slots)
    return slots


@kernel
def _list_places(pool: Pool, count: int, slots: int) -> None:
    symbols, query = pool.symbols, pool.query
    query.first[0] = 0
    for slot in range(slots):
        query.first[slot + 1] = query.first[slot] + query.left[slot]
    for i in range(count - 1, -1, -1):
        slot = signed(symbols.slot[query.tokens[i]]) - 1
        query.left[slot] -= 1
        query.places[query.first[slot] + query.left[slot]] = i
    for slot in range(slots):
        query.left[slot] = query.first[slot + 1] - query.first[slot]
    for word in range(query.hits.size):
        query.hits[word] = _U64(0)


@kernel
def close_query(pool: Pool, count: int) -> None:
    """Return the scratch in ``symbols.slot`` to zero."""
    for i in range(count):
        pool.symbols.slot[pool.query.tokens[i]] = 0


@kernel
def overlap_with(pool: Pool, entry: int) -> int:
    """Multiset overlap of the open query and an entry: no LCS is longer."""
    symbols, entries, query = pool.symbols, pool.entries, pool.query
    offset = offset_of(entries, entry)
    end = offset + length_of(entries, entry)
    overlap = 0
    for i in range(offset, end):
        slot = symbols.slot[entries.tokens[i]]
        if slot > 0:
            if query.left[slot - 1] > 0:
                overlap += 1
            query.left[slot - 1] -= 1
    for i in range(offset, end):
        slot = symbols.slot[entries.tokens[i]]
        if slot > 0:
            query.left[slot - 1] += 1
    return overlap


@kernel
def lcs_with(pool: Pool, count: int, entry: int) -> int:
    """LCS length of the open query of ``count`` tokens and an entry."""
    if count > WORD:
        return _lcs_many_words(pool, count, entry)
    symbols, entries, query = pool.symbols, pool.entries, pool.query
    offset = offset_of(entries, entry)
    row = _ALL
    for i in range(offset, offset + length_of(entries, entry)):
        slot = symbols.slot[entries.tokens[i]]
        if slot > 0:
            matched = row & query.masks[slot - 1]
            row = (row + matched) | (row - matched)
    full = _ALL >> _U64(WORD - count)
    return count - popcount(row & full)


@kernel
def _lcs_many_words(pool: Pool, count: int, entry: int) -> int:
    symbols, entries, query = pool.symbols, pool.entries, pool.query
    words = (count + WORD - 1) // WORD
    row, hits = query.row, query.hits
    for word in range(words):
        row[word] = _ALL
    offset = offset_of(entries, entry)
    for i in range(offset, offset + length_of(entries, entry)):
        slot = signed(symbols.slot[entries.tokens[i]]) - 1
        if slot < 0:
            continue
        for at in range(query.first[slot], query.first[slot + 1]):
            place = query.places[at]
            hits[place >> 6] |= _ONE << _U64(place & 63)
        carry = _U64(0)
        for word in range(query.places[query.first[slot]] >> 6, words):
            matched = row[word] & hits[word]
            added = row[word] + matched
            total = added + carry
            carry = _U64(added < matched) | _U64(total < carry)
            row[word] = total | (row[word] - matched)
            hits[word] = _U64(0)
    zeros = 0
    for word in range(words - 1):
        zeros += WORD - popcount(row[word])
    tail = count - (words - 1) * WORD
    return zeros + tail - popcount(row[words - 1] & (_ALL >> _U64(WORD - tail)))
