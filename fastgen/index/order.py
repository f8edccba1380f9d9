"""The order of elements that the exact index is built on, and what the rule demands of a text of a given length.

Rarest first, by frequencies counted once (:class:`Order`); elements that were unknown then come before all others, the
newest first, since what is frequent is met early. Guarantees: the order is total and, between two calls of
:func:`freeze_order`, never changes for elements that exist. Knows nothing of keys or postings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.jit import kernel, signed
from fastgen.index.lcs import compute_need
from fastgen.index.pool import reread_entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.index.layout import Pool, Rule

_U64 = np.uint64
_HALF = _U64(32)
_NEWEST_FIRST = _U64((1 << 32) - 1)
_INSERTION_SORT = 64


class Order(NamedTuple):
    """``frequency[symbol]``: entries that held the symbol when the order was frozen; below ``known[0]`` only."""

    frequency: NDArray[np.int32]
    known: NDArray[np.int64]


@kernel
def freeze_order(pool: Pool, order: Order) -> None:
    """Count the elements of every entry in the pool; ``pool.query`` is overwritten."""
    order.frequency[: pool.symbols.size[0]] = 0
    for entry in range(pool.entries.size[0]):
        text = reread_entry(pool, entry)
        for i in range(text.length):
            order.frequency[pool.query.elements[i]] += 1
    order.known[0] = pool.symbols.size[0]


@kernel
def put_in_order(pool: Pool, order: Order, length: int, out: NDArray[np.uint64]) -> None:
    """Write the elements of the text in ``pool.query`` to ``out``, rarest first, as 64-bit values unique to each."""
    for i in range(length):
        element = signed(pool.query.elements[i])
        frequency = signed(order.frequency[element]) if element < order.known[0] else 0
        out[i] = (_U64(frequency) << _HALF) | (_NEWEST_FIRST - _U64(element))
    _sort(out, length)


@kernel
def least_overlap(rule: Rule, length: int) -> int:
    """o(m): the smallest LCS with which any text can be too similar to one of ``length`` tokens; 0 where none can.

    ``need`` never falls as the other text grows, so the shortest possible partner decides.
    """
    shortest = max(1, int(length * rule.threshold / (2 - rule.threshold)) - 2)
    for other in range(shortest, length + 1):
        need = compute_need(length, other, rule.threshold, rule.at_threshold)
        if need > 0:
            return need
    return 0


@kernel
def _sift_down(values: NDArray[np.uint64], root: int, size: int) -> None:
    while 2 * root + 1 < size:
        child = 2 * root + 1
        if child + 1 < size and values[child] < values[child + 1]:
            child += 1
        if values[root] >= values[child]:
            return
        values[root], values[child] = values[child], values[root]
        root = child


@kernel
def _sort(values: NDArray[np.uint64], size: int) -> None:
    """Ascending, in place: by insertion for the usual few, by heap for many."""
    if size <= _INSERTION_SORT:
        for i in range(1, size):
            value, at = values[i], i
            while at > 0 and values[at - 1] > value:
                values[at] = values[at - 1]
                at -= 1
            values[at] = value
        return
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(values, root, size)
    for last in range(size - 1, 0, -1):
        values[0], values[last] = values[last], values[0]
        _sift_down(values, 0, last)
