"""The exact prefix index: the full scan's decisions at a cost that grows far slower than the pool.

**What is indexed.** A text of m tokens is the set of its m occurrence-tagged elements
(:mod:`fastgen.index.vocabulary`), put in one total order, rarest first. ``need(m, n)`` is the smallest LCS that rejects
(:func:`fastgen.rouge.min_lcs`) and ``o(m)`` its minimum over the lengths n for which there is one. Each element e has a
*depth* D(e) of 1, 2 or 3 that depends on nothing but its frequency. A *key of depth d* is a list of d elements in the
order. A text has, for every element e and every d from ``min(o(m), D(e))`` to D(e), the keys that start with e and whose
j-th element (from 0) stands at a place of at most ``m - max(o(m), d) + j``.

**No false negative.** Let two texts of m and n tokens have an LCS of at least ``need(m, n)``. The LCS is at most their
overlap c, so ``c >= need(m, n) >= max(o(m), o(n))``. Let e be their first shared element and ``d = min(c, D(e))``. Both
texts have the key of their first d shared elements: d lies between ``min(o, D(e))`` and D(e) for either; and of the c
shared elements, ``c - 1 - j`` come after the j-th, so its place is at most ``m - c + j``, where ``c >= max(o(m), d)``.
The same holds for n. So the pair meets under that key.

**What may be skipped.** If the key is the first d shared elements, then c is at most d plus the number of elements
after the key's last one, in either text. A posting whose lengths and remainders allow no ``need(m, n)`` is therefore
passed over: a pair that is too similar passes under the key of the proof. Then come a 64-bit map of the elements, which
bounds the overlap, and the LCS itself.

**The order.** The pool is cut into epochs at fixed sizes, 512 x 16**i. An epoch's order is the frequencies counted when
it began, newer elements first among equals (unknown ones are the rarest); its entries are indexed under it and a query
asks every epoch in its own order. So nothing is ever rebuilt, nothing stalls, and the decisions cannot depend on when a
batch ended. The proof needs only that both texts use the same order, which they do within an epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.arrays import check_room, reserve_array
from fastgen.index.checks import conclude, make_found, verify_met
from fastgen.index.jit import kernel, signed
from fastgen.index.lcs import close_query, compute_need, need_lcs, open_query
from fastgen.index.pool import TextPool, make_batch, read_text, reread_entry, store_text
from fastgen.index.postings import (
    ENTRY_MASK,
    INFO_SHIFT,
    Postings,
    block_of,
    bucket_of,
    check_postings,
    fingerprint,
    insert,
    make_postings,
    postings_bytes,
    remove_last,
    same_print,
)
from fastgen.index.vocabulary import forget_symbols, mix64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.index.layout import Batch, Found, Pool, Rule, Text

_U64 = np.uint64
_FIRST_EPOCH = 512
_EPOCH_GROWTH = 16
_EPOCHS = 8
_MOST_ENTRIES = 1 << 30  # address space only
_MOST_SYMBOLS = 1 << 30
_MOST_KEYS = 1 << 28
import os
_PAIR_RANKS = int(os.environ.get("PR","4000"))  # the most frequent elements, which need a pair
_TRIPLE_RANKS = int(os.environ.get("TR","60"))  # ... or a triple
_FIELD = _U64(11)
_LONG = (1 << 11) - 1  # lengths from here up are not filtered inline
_FIELD_MASK = _U64(_LONG)
_REST_SHIFT = INFO_SHIFT + _FIELD
_NEWEST_FIRST = _U64((1 << 32) - 1)
_HALF = _U64(32)
_SINGLE, _PAIR, _TRIPLE = 1, 2, 3
_MET = 1 << 12
_NEVER = 1 << 30
_INSERTION_SORT = 64


class Exact(NamedTuple):
    """Everything a kernel needs beyond the pool.

    ``live``: entries that hold each symbol. ``reference[epoch]``: ``live`` when the epoch began, valid below
    ``known[epoch]``. ``limits[epoch]``: frequencies above which an element needs a pair, a triple. ``epochs[0]``:
    epochs begun. ``reorders[0]``: times that a small pool was reordered. ``order``: the open text's elements in an epoch's order. ``keys``, ``rest``: its keys, and the elements
    after each key's last. ``heads``, ``first``: their buckets. ``need``: see :func:`_fill_needs`. ``met``, ``seen``, ``clock``: see
    :func:`fastgen.index.checks.verify_met`.
    """

    postings: Postings
    live: NDArray[np.int32]
    reference: NDArray[np.int32]
    known: NDArray[np.int64]
    limits: NDArray[np.int64]
    epochs: NDArray[np.int64]
    reorders: NDArray[np.int64]
    order: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    rest: NDArray[np.int32]
    heads: NDArray[np.uint64]
    first: NDArray[np.uint64]
    need: NDArray[np.int32]
    met: NDArray[np.int32]
    seen: NDArray[np.int32]
    clock: NDArray[np.int64]


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


@kernel
def _put_in_order(pool: Pool, exact: Exact, length: int, epoch: int) -> None:
    known, reference = exact.known[epoch], exact.reference[epoch]
    for i in range(length):
        element = signed(pool.query.elements[i])
        frequency = signed(reference[element]) if element < known else 0
        exact.order[i] = (_U64(frequency) << _HALF) | (_NEWEST_FIRST - _U64(element))
    _sort(exact.order, length)


@kernel
def _add_key(exact: Exact, count: int, key: np.uint64, rest: int) -> int:
    exact.keys[count] = key
    exact.rest[count] = rest
    return count + 1


@kernel
def _deeper(key: np.uint64, element: np.uint64) -> np.uint64:
    return mix64(key + (_NEWEST_FIRST & element) + _U64(0x9E3779B97F4A7C15))


@kernel
def _make_keys(pool: Pool, exact: Exact, text: Text, epoch: int) -> int:
    """Write the text's keys in an epoch to ``exact.keys``; returns how many."""
    length, order = text.length, exact.order
    least = least_overlap(pool.rule, length)
    if least == 0:
        return 0
    _put_in_order(pool, exact, length, epoch)
    pairs_above, triples_above = exact.limits[epoch, 0], exact.limits[epoch, 1]
    count = 0
    for i in range(length - least + 1):
        frequency = signed(order[i] >> _HALF)
        depth = _SINGLE if frequency <= pairs_above else (_PAIR if frequency <= triples_above else _TRIPLE)
        first = _deeper(_U64(epoch), order[i])
        if _SINGLE in (depth, least):
            count = _add_key(exact, count, first, length - i - 1)
        if depth == _PAIR or (depth == _TRIPLE and least <= _PAIR):
            count = _add_pairs(exact, text, count, first, i, least)
        if depth == _TRIPLE:
            count = _add_triples(exact, text, count, first, i, least)
    return count


@kernel
def _add_pairs(exact: Exact, text: Text, count: int, first: np.uint64, i: int, least: int) -> int:
    last = text.length - max(least, _PAIR)
    if i <= last:
        for j in range(i + 1, last + 2):
            count = _add_key(exact, count, _deeper(first, exact.order[j]), text.length - j - 1)
    return count


@kernel
def _add_triples(exact: Exact, text: Text, count: int, first: np.uint64, i: int, least: int) -> int:
    last = text.length - max(least, _TRIPLE)
    if i <= last:
        for j in range(i + 1, last + 2):
            second = _deeper(first, exact.order[j])
            for k in range(j + 1, last + 3):
                count = _add_key(exact, count, _deeper(second, exact.order[k]), text.length - k - 1)
    return count


@kernel
def _rank_limit(exact: Exact, symbols: int, ranks: int) -> int:
    """Smallest frequency that at most ``ranks`` elements exceed."""
    low, high = 0, 1
    for symbol in range(symbols):
        high = max(high, signed(exact.live[symbol]))
    while low < high:
        middle, above = (low + high) // 2, 0
        for symbol in range(symbols):
            above += exact.live[symbol] > middle
        if above <= ranks:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _begin_epoch(pool: Pool, exact: Exact) -> None:
    epoch, symbols = signed(exact.epochs[0]), signed(pool.symbols.size[0])
    exact.limits[epoch, 0] = _rank_limit(exact, symbols, _PAIR_RANKS)
    exact.limits[epoch, 1] = _rank_limit(exact, symbols, _TRIPLE_RANKS)
    for symbol in range(symbols):
        exact.reference[epoch, symbol] = exact.live[symbol]
    exact.known[epoch] = symbols
    exact.epochs[0] = epoch + 1


@kernel
def _epoch_start(epoch: int) -> int:
    return 0 if epoch == 0 else _FIRST_EPOCH * _EPOCH_GROWTH**epoch


@kernel
def _reorder(pool: Pool, exact: Exact) -> None:
    """Index a small pool anew in the order of its own frequencies."""
    for entry in range(pool.entries.size[0] - 1, -1, -1):
        _unlink(pool, exact, reread_entry(pool, entry))
    exact.epochs[0] = 0
    _begin_epoch(pool, exact)
    for entry in range(pool.entries.size[0]):
        _link(pool, exact, reread_entry(pool, entry), entry)


@kernel
def _link(pool: Pool, exact: Exact, text: Text, entry: int) -> None:
    base = _U64(entry) | (_U64(min(text.length, _LONG)) << INFO_SHIFT)
    for i in range(_make_keys(pool, exact, text, exact.epochs[0] - 1)):
        posting = base | (_U64(min(signed(exact.rest[i]), _LONG)) << _REST_SHIFT)
        insert(exact.postings, exact.keys[i], posting | fingerprint(exact.keys[i]))


@kernel
def _unlink(pool: Pool, exact: Exact, text: Text) -> None:
    for i in range(_make_keys(pool, exact, text, exact.epochs[0] - 1) - 1, -1, -1):
        remove_last(exact.postings, exact.keys[i])


@kernel
def _store(pool: Pool, exact: Exact, text: Text) -> None:
    entry = store_text(pool, text)
    exact.seen[entry] = 0
    for i in range(text.length):
        exact.live[pool.query.elements[i]] += 1
    _link(pool, exact, text, entry)


@kernel
def _prepare(pool: Pool, exact: Exact) -> None:
    """Begin an epoch or reorder a small pool where its size says so; before a text is read."""
    size = pool.entries.size[0]
    if exact.epochs[0] == 0 or (exact.epochs[0] < _EPOCHS and size == _epoch_start(exact.epochs[0])):
        _begin_epoch(pool, exact)
    elif exact.epochs[0] == 1 and size == _FIRST_EPOCH << (2 * exact.reorders[0]):
        exact.reorders[0] += 1
        _reorder(pool, exact)


@kernel
def _take_back(pool: Pool, exact: Exact, keep: int) -> None:
    """Take entries out of the index, youngest first: each stands last in its buckets."""
    for entry in range(pool.entries.size[0] - 1, keep - 1, -1):
        text = reread_entry(pool, entry)
        for i in range(text.length):
            exact.live[pool.query.elements[i]] -= 1
        _unlink(pool, exact, text)
        if entry > 0 and entry == _epoch_start(exact.epochs[0] - 1):
            exact.epochs[0] -= 1


@kernel
def _fill_needs(pool: Pool, exact: Exact, length: int) -> None:
    """By the other text's length: the overlap that a rejection needs; more than there can be where none can."""
    for other in range(_LONG):
        need = need_lcs(pool.rule, length, other)
        exact.need[other] = need if need > 0 else _NEVER
    exact.need[_LONG] = 0  # looked at more closely


@kernel
def _may_match(exact: Exact, rest: int, posting: np.uint64) -> bool:
    """Whether lengths and remainders leave room for the overlap needed; ``rest`` counts the key's elements too."""
    need = exact.need[signed((posting >> INFO_SHIFT) & _FIELD_MASK)]
    other_rest = signed(posting >> _REST_SHIFT) + _TRIPLE
    return bool((rest >= need) & (other_rest >= need))


@kernel
def _find_blocks(exact: Exact, count: int) -> None:
    """Read all heads, then the first posting of all blocks: independent loads, so their cache misses overlap."""
    for i in range(count):
        exact.heads[i] = exact.postings.heads[bucket_of(exact.postings, exact.keys[i])]
    for i in range(count):
        offset, _ = block_of(exact.heads[i])
        exact.first[i] = exact.heads[i] if offset < 0 else exact.postings.slab[offset]


@kernel
def _meet(pool: Pool, exact: Exact, found: Found, text: Text) -> None:
    """Verify every entry that shares a key with the open text."""
    exact.clock[0] += 1
    _fill_needs(pool, exact, text.length)
    waiting = 0
    for epoch in range(exact.epochs[0]):
        count = _make_keys(pool, exact, text, epoch)
        _find_blocks(exact, count)
        for i in range(count):
            waiting = _meet_key(pool, exact, found, text, i, waiting)
    verify_met(pool, exact.met, waiting, exact.seen, exact.clock[0], found, text)


@kernel
def _meet_key(pool: Pool, exact: Exact, found: Found, text: Text, number: int, waiting: int) -> int:
    key, rest = exact.keys[number], signed(exact.rest[number]) + _TRIPLE
    offset, count = block_of(exact.heads[number])
    for i in range(count):
        posting = exact.first[number] if i == 0 else exact.postings.slab[offset + i]
        # Written always, kept by the count: a branch here would be mispredicted half of the time.
        exact.met[waiting] = signed(posting & ENTRY_MASK)
        waiting += signed(same_print(posting, key) & _may_match(exact, rest, posting))
        if waiting == exact.met.size:
            verify_met(pool, exact.met, waiting, exact.seen, exact.clock[0], found, text)
            waiting = 0
    return waiting


@kernel
def _decide(pool: Pool, exact: Exact, batch: Batch, found: Found) -> None:
    for row in range(batch.start.size - 1):
        _prepare(pool, exact)
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        _meet(pool, exact, found, text)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel:
            _store(pool, exact, text)
        else:
            forget_symbols(pool.symbols, known)


@kernel
def _add(pool: Pool, exact: Exact, batch: Batch) -> None:
    for row in range(batch.start.size - 1):
        _prepare(pool, exact)
        _store(pool, exact, read_text(pool, batch, row))


class ExactIndex:
    """A :class:`fastgen.index.CandidateIndex` that never misses, by the proof above."""

    def __init__(self, threshold: float, reject_at: str) -> None:
        self._pool = TextPool(threshold, reject_at)
        self._exact = Exact(
            postings=make_postings(),
            live=reserve_array(np.int32, _MOST_SYMBOLS),
            reference=reserve_array(np.int32, _EPOCHS, _MOST_SYMBOLS),
            known=np.zeros(_EPOCHS, np.int64),
            limits=np.zeros((_EPOCHS, 2), np.int64),
            epochs=np.zeros(1, np.int64),
            reorders=np.zeros(1, np.int64),
            order=reserve_array(np.uint64, _MOST_KEYS),
            keys=reserve_array(np.uint64, _MOST_KEYS),
            rest=reserve_array(np.int32, _MOST_KEYS),
            heads=reserve_array(np.uint64, _MOST_KEYS),
            first=reserve_array(np.uint64, _MOST_KEYS),
            need=np.empty(_LONG + 1, np.int32),
            met=np.empty(_MET, np.int32),
            seen=reserve_array(np.int32, _MOST_ENTRIES),
            clock=np.zeros(1, np.int64),
        )

    def __len__(self) -> int:
        """Entries in the pool."""
        return len(self._pool)

    def add(self, texts: Sequence[bytes], *, seeds: bool = False) -> None:
        """Append texts without a check."""
        batch = make_batch(texts)
        self._reserve(batch)
        _add(self._pool.view(), self._exact, batch)
        if seeds:
            self._pool.index_seeds()

    def decide(self, texts: Sequence[bytes]) -> Found:
        """Decide texts in order and append the novel ones."""
        batch, found = make_batch(texts), make_found(len(texts))
        self._reserve(batch)
        _decide(self._pool.view(), self._exact, batch, found)
        return found

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries."""
        _take_back(self._pool.view(), self._exact, entries)
        self._pool.truncate(entries)

    def memory_bytes(self) -> int:
        """Bytes in use."""
        exact = self._exact
        epochs = int(exact.epochs[0])
        references = int(exact.known[:epochs].sum()) * exact.reference.itemsize
        live = self._pool.symbols() * exact.live.itemsize
        return self._pool.memory_bytes() + postings_bytes(exact.postings) + references + live + 4 * len(self)

    def _reserve(self, batch: Batch) -> None:
        self._pool.reserve(batch)
        texts = batch.start.size - 1
        check_room(self._exact.seen, len(self._pool) + texts)
        check_postings(self._exact.postings, texts * 64)
