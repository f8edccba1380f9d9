"""The exact prefix index: the full scan's decisions at a cost that grows far slower than the pool.

**What is indexed.** A text of m tokens is the set of its m occurrence-tagged elements
(:mod:`fastgen.index.vocabulary`), put in one total order, rarest first (:mod:`fastgen.index.order`). A *path* of depth d
is a list of d elements in that order; its *node* is a list of postings. ``need(m, n)`` is the smallest LCS that rejects
(:func:`fastgen.rouge.min_lcs`) and ``o(m)`` its minimum over the lengths n for which there is one. A path is *allowed*
for a text if all its elements are in the text and the j-th of them (from 0) has a place of at most
``m - max(o(m), d) + j`` in it. Paths form a trie that grows where it is crowded: every text starts with its allowed
paths of depth 1; a node that holds more than :data:`CROWDED` postings is marked as split, and the texts in it move to
their allowed paths one element longer, except those with ``o(m) <= d`` (which are copied down but also stay) and those
that would take up too much room below (which stay). Later texts do the same at a node that is already marked.

**No false negative.** Let two texts of m and n tokens have an LCS of at least ``need(m, n)``. The LCS is at most their
overlap c, so ``c >= need(m, n) >= max(o(m), o(n))``. Let s be the c shared elements in order. For every d <= c the path
of the first d of them is allowed for both texts: of the c shared elements, ``c - 1 - j`` come after the j-th, so its
place is at most ``m - c + j`` where ``c >= max(o(m), d)``, and likewise for n. Let the stored text have its posting in
the node of depth d on this line of paths: there is one, since it moves from such a node only down, to all its allowed
paths, of which the next on the line is one while d < c; and at d = c it stays, as ``o(n) <= c``. The query looks at
every node of its own allowed paths whose parent is marked; the nodes above that posting are marked, as it moved through
them; so it is met.

**What may be skipped.** If the path is the first d shared elements, then c is at most d plus the number of elements
after the path's last one, in either text. A posting whose lengths and remainders allow no ``need(m, n)`` is therefore
passed over: the pair above passes this test wherever on its line it meets. Then come a 64-bit map of the elements,
which bounds the overlap, and the LCS itself.

**Hash collisions.** Nodes are told apart by bits of a hash. Two nodes that look alike are one: they share postings and
mark, a query looks at all postings of a marked node too, and a text found in a node without the path in question stays
there. So a collision costs time, never a neighbour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.arrays import check_room, reserve_array
from fastgen.index.checks import conclude, make_found, verify_met
from fastgen.index.jit import kernel, signed
from fastgen.index.lcs import close_query, need_lcs, open_query
from fastgen.index.order import Order, freeze_order, least_overlap, put_in_order
from fastgen.index.pool import TextPool, make_batch, read_text, reread_entry, store_text
from fastgen.index.postings import (
    ENTRY_MASK,
    INFO_SHIFT,
    Postings,
    block_of,
    bucket_of,
    check_postings,
    clear,
    fingerprint,
    insert,
    make_postings,
    postings_bytes,
    remove,
    same_print,
)
from fastgen.index.vocabulary import forget_symbols, mix64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.index.layout import Batch, Found, Pool, Text

import os

CROWDED = int(os.environ.get("CR", "64"))
_DEEPEST = int(os.environ.get("DEEP", "4"))
_MOST_CHILDREN = np.array([0, 24, 12, 8, -1], np.int64)  # by depth: a text that has more below stays where it is
_FIRST_FREEZE, _LAST_FREEZE = 512, 8192  # pool sizes at which the order is frozen anew, each four times the last

_U64 = np.uint64
_MOST_ENTRIES = 1 << 30  # address space only
_MOST_SYMBOLS = 1 << 30
_MOST_NODES = 1 << 28
_MET = 1 << 12
_NEVER = 1 << 30
_FIELD = _U64(11)
_LONG = (1 << 11) - 1  # lengths from here up are not filtered inline
_FIELD_MASK = _U64(_LONG)
_REST_SHIFT = INFO_SHIFT + _FIELD
_MARK_ENTRY = (1 << 31) - 1
_MARK = _U64(_MARK_ENTRY) | (_U64(1) << INFO_SHIFT)
_GOLDEN = _U64(0x9E3779B97F4A7C15)
_ROOT = _U64(0)


class Nodes(NamedTuple):
    """The nodes of one text's allowed paths, level by level.

    ``key``: hash of the path. ``last``: place of its last element. ``depth``: its length. ``parent``: its row, -1.
    ``head``, ``first``: its bucket and the first posting there. ``crowd``, ``split``: postings that it holds, and whether
    it is marked. ``onward``: whether the text goes on below it.
    """

    key: NDArray[np.uint64]
    last: NDArray[np.int32]
    depth: NDArray[np.int32]
    parent: NDArray[np.int32]
    head: NDArray[np.uint64]
    first: NDArray[np.uint64]
    crowd: NDArray[np.int32]
    split: NDArray[np.bool_]
    onward: NDArray[np.bool_]


class Exact(NamedTuple):
    """Everything a kernel needs beyond the pool.

    ``sorted``, ``other``: the elements of the open text and of a stored one, in order. ``path``: elements of the node
    being split. ``need``: see :func:`_fill_needs`. ``moving``: entries that leave a node. ``met``, ``seen``, ``clock``:
    see :func:`fastgen.index.checks.verify_met`. ``freezes[0]``: times that the order was frozen.
    """

    postings: Postings
    order: Order
    nodes: Nodes
    sorted: NDArray[np.uint64]
    other: NDArray[np.uint64]
    path: NDArray[np.uint64]
    need: NDArray[np.int32]
    moving: NDArray[np.int32]
    met: NDArray[np.int32]
    seen: NDArray[np.int32]
    clock: NDArray[np.int64]
    freezes: NDArray[np.int64]


@kernel
def _child_key(key: np.uint64, element: np.uint64) -> np.uint64:
    return mix64(key + (element & _U64(0xFFFFFFFF)) + _GOLDEN)


@kernel
def _last_place(length: int, least: int, depth: int) -> int:
    """Highest place that the last element of an allowed path of this depth may have."""
    return length - max(least, depth) + depth - 1


@kernel
def _posting(entry: int, length: int, last: int, key: np.uint64) -> np.uint64:
    rest = min(length - last - 1, _LONG)
    info = (_U64(min(length, _LONG)) << INFO_SHIFT) | (_U64(rest) << _REST_SHIFT)
    return _U64(entry) | info | fingerprint(key)


@kernel
def _add_nodes(exact: Exact, size: int, parent: int, length: int, least: int) -> int:
    """Append the nodes one element below ``parent`` (-1: of depth 1); returns the new number of nodes."""
    nodes = exact.nodes
    depth, first, key = 1, 0, _ROOT
    if parent >= 0:
        depth, first, key = nodes.depth[parent] + 1, nodes.last[parent] + 1, nodes.key[parent]
    for place in range(first, _last_place(length, least, depth) + 1):
        nodes.key[size] = _child_key(key, exact.sorted[place])
        nodes.last[size] = place
        nodes.depth[size] = depth
        nodes.parent[size] = parent
        size += 1
    return size


@kernel
def _open_nodes(exact: Exact, begin: int, end: int) -> None:
    """Read the buckets of a level, then the first posting of each: independent loads, so their cache misses overlap."""
    nodes, postings = exact.nodes, exact.postings
    for i in range(begin, end):
        nodes.head[i] = postings.heads[bucket_of(postings, nodes.key[i])]
    for i in range(begin, end):
        offset, _ = block_of(nodes.head[i])
        nodes.first[i] = nodes.head[i] if offset < 0 else postings.slab[offset]


@kernel
def _fill_needs(pool: Pool, exact: Exact, length: int) -> None:
    """By the other text's length: the overlap that a rejection needs; more than there can be where none can."""
    exact.need[:_LONG] = _NEVER
    exact.need[_LONG] = 0  # looked at more closely
    longest = int(length * (2 - pool.rule.threshold) / pool.rule.threshold) + 2
    for other in range(min(longest, _LONG - 1) + 1):
        need = need_lcs(pool.rule, length, other)
        if need > 0:
            exact.need[other] = need


@kernel
def _meet(pool: Pool, exact: Exact, found: Found, text: Text) -> int:
    """Verify every entry that shares a node with the open text; returns the number of its nodes."""
    exact.clock[0] += 1
    least = least_overlap(pool.rule, text.length)
    if least == 0:
        return 0
    put_in_order(pool, exact.order, text.length, exact.sorted)
    _fill_needs(pool, exact, text.length)
    waiting, begin, end = 0, 0, _add_nodes(exact, 0, -1, text.length, least)
    while begin < end:
        _open_nodes(exact, begin, end)
        size = end
        for node in range(begin, end):
            waiting = _scan(pool, exact, found, text, node, waiting)
            if exact.nodes.split[node] and exact.nodes.depth[node] < _DEEPEST:
                size = _add_nodes(exact, size, node, text.length, least)
        begin, end = end, size
    verify_met(pool, exact.met, waiting, exact.seen, exact.clock[0], found, text)
    return end


@kernel
def _scan(pool: Pool, exact: Exact, found: Found, text: Text, node: int, waiting: int) -> int:
    """Note the node's entries that may be too similar, its crowd and its mark; returns how many entries wait."""
    nodes = exact.nodes
    key, depth = nodes.key[node], signed(nodes.depth[node])
    rest = text.length - signed(nodes.last[node]) - 1 + depth
    offset, count = block_of(nodes.head[node])
    crowd, split = 0, False
    for i in range(count):
        posting = nodes.first[node] if i == 0 else exact.postings.slab[offset + i]
        entry = signed(posting & ENTRY_MASK)
        same = same_print(posting, key)
        marked = same & (entry == _MARK_ENTRY)
        need = exact.need[signed((posting >> INFO_SHIFT) & _FIELD_MASK)]
        fits = (rest >= need) & (signed(posting >> _REST_SHIFT) + depth >= need)
        crowd += signed(same)
        split |= marked
        # Written always, kept by the count: a branch here would be mispredicted half of the time.
        exact.met[waiting] = entry
        waiting += signed(same & fits & (not marked))
        if waiting == exact.met.size:
            verify_met(pool, exact.met, waiting, exact.seen, exact.clock[0], found, text)
            waiting = 0
    nodes.crowd[node] = crowd
    nodes.split[node] = split
    return waiting


@kernel
def _walk(pool: Pool, exact: Exact, text: Text) -> int:
    """Find the nodes that the text in ``pool.query`` would be put into, without meeting anyone; returns how many."""
    least = least_overlap(pool.rule, text.length)
    if least == 0:
        return 0
    put_in_order(pool, exact.order, text.length, exact.sorted)
    begin, end = 0, _add_nodes(exact, 0, -1, text.length, least)
    while begin < end:
        _open_nodes(exact, begin, end)
        size = end
        for node in range(begin, end):
            _count(exact, node)
            if exact.nodes.split[node] and _descends(exact, node, text.length, least):
                size = _add_nodes(exact, size, node, text.length, least)
        begin, end = end, size
    return end


@kernel
def _count(exact: Exact, node: int) -> None:
    nodes = exact.nodes
    key = nodes.key[node]
    offset, count = block_of(nodes.head[node])
    crowd, split = 0, False
    for i in range(count):
        posting = nodes.first[node] if i == 0 else exact.postings.slab[offset + i]
        same = same_print(posting, key)
        crowd += signed(same)
        split |= same & (signed(posting & ENTRY_MASK) == _MARK_ENTRY)
    nodes.crowd[node] = crowd
    nodes.split[node] = split


@kernel
def _descends(exact: Exact, node: int, length: int, least: int) -> bool:
    """Whether a text goes on below a marked node: only where that takes few enough postings."""
    depth = signed(exact.nodes.depth[node])
    return _children(length, least, depth, signed(exact.nodes.last[node])) <= _MOST_CHILDREN[depth]


@kernel
def _link(pool: Pool, exact: Exact, text: Text, entry: int, size: int) -> None:
    """Put a text into the trie whose first ``size`` nodes were just visited; ``pool.query`` is overwritten."""
    nodes, length = exact.nodes, text.length
    least = least_overlap(pool.rule, length)
    for node in range(size):
        depth, parent, key = signed(nodes.depth[node]), signed(nodes.parent[node]), nodes.key[node]
        split = nodes.split[node] and depth < _DEEPEST
        reached = parent < 0 or nodes.onward[parent]
        nodes.onward[node] = reached and split and _descends(exact, node, length, least)
        if reached and (not nodes.onward[node] or least <= depth):
            insert(exact.postings, key, _posting(entry, length, signed(nodes.last[node]), key))
            if not split and nodes.crowd[node] >= CROWDED and depth < _DEEPEST:
                _split(pool, exact, node)


@kernel
def _children(length: int, least: int, depth: int, last: int) -> int:
    return _last_place(length, least, depth + 1) - last


@kernel
def _split(pool: Pool, exact: Exact, node: int) -> None:
    """Mark a node and move its entries one element down."""
    nodes, postings = exact.nodes, exact.postings
    key, depth, at = nodes.key[node], signed(nodes.depth[node]), node
    for d in range(depth - 1, -1, -1):
        exact.path[d] = exact.sorted[nodes.last[at]]
        at = signed(nodes.parent[at])
    offset, count = block_of(postings.heads[bucket_of(postings, key)])
    moving = 0
    for i in range(count):
        posting = postings.slab[offset + i]
        if same_print(posting, key):
            exact.moving[moving] = signed(posting & ENTRY_MASK)
            moving += 1
    insert(postings, key, _MARK | fingerprint(key))
    for i in range(moving):
        _move_down(pool, exact, signed(exact.moving[i]), key, depth)


@kernel
def _move_down(pool: Pool, exact: Exact, entry: int, key: np.uint64, depth: int) -> None:
    """Move one entry from a node to the nodes below, unless it has too many or reached the node by another path."""
    text = reread_entry(pool, entry)
    put_in_order(pool, exact.order, text.length, exact.other)
    least = least_overlap(pool.rule, text.length)
    last = _place_of_path(exact, text.length, depth)
    if last < 0 or _children(text.length, least, depth, last) > _MOST_CHILDREN[depth]:
        return
    if least > depth:
        remove(exact.postings, key, entry)
    for place in range(last + 1, _last_place(text.length, least, depth + 1) + 1):
        child = _child_key(key, exact.other[place])
        insert(exact.postings, child, _posting(entry, text.length, place, child))


@kernel
def _place_of_path(exact: Exact, length: int, depth: int) -> int:
    """Place in ``other`` of the last element of ``path``; -1 unless all of them are there."""
    place = -1
    for d in range(depth):
        place += 1
        while place < length and exact.other[place] < exact.path[d]:
            place += 1
        if place >= length or exact.other[place] != exact.path[d]:
            return -1
    return place


@kernel
def _unlink(pool: Pool, exact: Exact, entry: int) -> None:
    """Take a stored text out of the trie; ``pool.query`` is overwritten."""
    for node in range(_walk(pool, exact, reread_entry(pool, entry))):
        remove(exact.postings, exact.nodes.key[node], entry)


@kernel
def _prepare(pool: Pool, exact: Exact) -> None:
    """Before a text is read: freeze the order anew where a small pool has reached the size for it."""
    size = _FIRST_FREEZE << (2 * exact.freezes[0])
    if pool.entries.size[0] != size or size > _LAST_FREEZE:
        return
    clear(exact.postings)
    freeze_order(pool, exact.order)
    exact.freezes[0] += 1
    for entry in range(pool.entries.size[0]):
        text = reread_entry(pool, entry)
        _link(pool, exact, text, entry, _walk(pool, exact, text))


@kernel
def _decide(pool: Pool, exact: Exact, batch: Batch, found: Found) -> None:
    for row in range(batch.start.size - 1):
        _prepare(pool, exact)
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        size = _meet(pool, exact, found, text)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel:
            _link(pool, exact, text, store_text(pool, text), size)
        else:
            forget_symbols(pool.symbols, known)


@kernel
def _add(pool: Pool, exact: Exact, batch: Batch) -> None:
    for row in range(batch.start.size - 1):
        _prepare(pool, exact)
        text = read_text(pool, batch, row)
        _link(pool, exact, text, store_text(pool, text), _walk(pool, exact, text))


@kernel
def _take_back(pool: Pool, exact: Exact, keep: int) -> None:
    for entry in range(pool.entries.size[0] - 1, keep - 1, -1):
        _unlink(pool, exact, entry)


class ExactIndex:
    """A :class:`fastgen.index.CandidateIndex` that never misses, by the proof above."""

    def __init__(self, threshold: float, reject_at: str) -> None:
        self._pool = TextPool(threshold, reject_at)
        self._exact = Exact(
            postings=make_postings(),
            order=Order(reserve_array(np.int32, _MOST_SYMBOLS), np.zeros(1, np.int64)),
            nodes=Nodes(
                key=reserve_array(np.uint64, _MOST_NODES),
                last=reserve_array(np.int32, _MOST_NODES),
                depth=reserve_array(np.int32, _MOST_NODES),
                parent=reserve_array(np.int32, _MOST_NODES),
                head=reserve_array(np.uint64, _MOST_NODES),
                first=reserve_array(np.uint64, _MOST_NODES),
                crowd=reserve_array(np.int32, _MOST_NODES),
                split=reserve_array(np.bool_, _MOST_NODES),
                onward=reserve_array(np.bool_, _MOST_NODES),
            ),
            sorted=reserve_array(np.uint64, _MOST_NODES),
            other=reserve_array(np.uint64, _MOST_NODES),
            path=np.empty(_DEEPEST + 1, np.uint64),
            need=np.empty(_LONG + 1, np.int32),
            moving=reserve_array(np.int32, _MOST_ENTRIES),
            met=np.empty(_MET, np.int32),
            seen=reserve_array(np.int32, _MOST_ENTRIES),
            clock=np.zeros(1, np.int64),
            freezes=np.zeros(1, np.int64),
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
        order = int(exact.order.known[0]) * exact.order.frequency.itemsize
        index = postings_bytes(exact.postings) + exact.seen.itemsize * len(self)
        return self._pool.memory_bytes() + index + order

    def _reserve(self, batch: Batch) -> None:
        self._pool.reserve(batch)
        texts = batch.start.size - 1
        check_room(self._exact.seen, len(self._pool) + texts)
        check_postings(self._exact.postings, texts * 4096)
