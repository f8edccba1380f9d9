"""The trie of the exact index: which nodes a text has, how it is put in and taken out, how a crowded node is split.

What the trie guarantees, and why, is told in :mod:`fastgen.index.exact`. Knows nothing of verdicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.arrays import reserve_array
from fastgen.index.jit import kernel, signed
from fastgen.index.order import Order, least_overlap, put_in_order
from fastgen.index.pool import reread_entry
from fastgen.index.postings import (
    ENTRY_MASK,
    INFO_SHIFT,
    Postings,
    block_of,
    bucket_of,
    fingerprint,
    insert,
    make_postings,
    remove,
    same_print,
    touch,
)
from fastgen.index.vocabulary import mix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.index.layout import Pool, Text

CROWDED = 128
DEEPEST = 4
_MOST_CHILDREN = np.array([0, 24, 12, 8, -1], np.int64)  # by depth: a text that has more below stays where it is

_U64 = np.uint64
_MOST_ENTRIES = 1 << 30  # address space only
_MOST_SYMBOLS = 1 << 30
_MOST_NODES = 1 << 28
_MET = 1 << 12
_FIELD = _U64(11)
LONG = (1 << 11) - 1  # lengths from here up are not filtered inline
FIELD_MASK = _U64(LONG)
REST_SHIFT = INFO_SHIFT + _FIELD
MARK_ENTRY = (1 << 31) - 1
_MARK = _U64(MARK_ENTRY) | (_U64(1) << INFO_SHIFT)
_GOLDEN = _U64(0x9E3779B97F4A7C15)
_LOW_HALF = _U64(0xFFFFFFFF)
_ROOT = _U64(0)


class Nodes(NamedTuple):
    """The nodes of one text's allowed paths, level by level.

    ``key``: hash of the path. ``last``: place of its last element. ``depth``: its length. ``parent``: its row, -1.
    ``head``, ``first``: its bucket and the first posting there. ``crowd``, ``split``: postings that it holds, and
    whether it is marked. ``onward``: whether the text goes on below it.
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


def make_exact() -> Exact:
    """Make an empty trie."""
    return Exact(
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
        path=np.empty(DEEPEST + 1, np.uint64),
        need=np.empty(LONG + 1, np.int32),
        moving=reserve_array(np.int32, _MOST_ENTRIES),
        met=np.empty(_MET, np.int32),
        seen=reserve_array(np.int32, _MOST_ENTRIES),
        clock=np.zeros(1, np.int64),
        freezes=np.zeros(1, np.int64),
    )


@kernel
def _child_key(key: np.uint64, element: np.uint64) -> np.uint64:
    return mix64(key + (element & _LOW_HALF) + _GOLDEN)


@kernel
def _last_place(length: int, least: int, depth: int) -> int:
    """Highest place that the last element of an allowed path of this depth may have."""
    return length - max(least, depth) + depth - 1


@kernel
def _posting(entry: int, length: int, last: int, key: np.uint64) -> np.uint64:
    rest = min(length - last - 1, LONG)
    info = (_U64(min(length, LONG)) << INFO_SHIFT) | (_U64(rest) << REST_SHIFT)
    return _U64(entry) | info | fingerprint(key)


@kernel
def add_nodes(exact: Exact, size: int, parent: int, length: int, least: int) -> int:
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
def open_nodes(exact: Exact, begin: int, end: int) -> None:
    """Read the buckets of a level, then touch their blocks: independent loads, so their cache misses overlap."""
    nodes, postings = exact.nodes, exact.postings
    for i in range(begin, end):
        nodes.head[i] = postings.heads[bucket_of(postings, nodes.key[i])]
    for i in range(begin, end):
        offset, count = block_of(nodes.head[i])
        nodes.first[i] = nodes.head[i] if offset < 0 else touch(postings, offset, count)


@kernel
def walk(pool: Pool, exact: Exact, text: Text) -> int:
    """Find the nodes that the text in ``pool.query`` would be put into, without meeting anyone; returns how many."""
    least = least_overlap(pool.rule, text.length)
    if least == 0:
        return 0
    put_in_order(pool, exact.order, text.length, exact.sorted)
    begin, end = 0, add_nodes(exact, 0, -1, text.length, least)
    while begin < end:
        open_nodes(exact, begin, end)
        size = end
        for node in range(begin, end):
            _count(exact, node)
            if exact.nodes.split[node] and _descends(exact, node, text.length, least):
                size = add_nodes(exact, size, node, text.length, least)
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
        split |= same & (signed(posting & ENTRY_MASK) == MARK_ENTRY)
    nodes.crowd[node] = crowd
    nodes.split[node] = split


@kernel
def _descends(exact: Exact, node: int, length: int, least: int) -> bool:
    """Whether a text goes on below a marked node: only where that takes few enough postings."""
    depth = signed(exact.nodes.depth[node])
    return bool(_children(length, least, depth, signed(exact.nodes.last[node])) <= _MOST_CHILDREN[depth])


@kernel
def link(pool: Pool, exact: Exact, text: Text, entry: int, size: int) -> None:
    """Put a text into the trie whose first ``size`` nodes were just visited; ``pool.query`` is overwritten."""
    nodes, length = exact.nodes, text.length
    least = least_overlap(pool.rule, length)
    for node in range(size):
        depth, parent, key = signed(nodes.depth[node]), signed(nodes.parent[node]), nodes.key[node]
        split = nodes.split[node] and depth < DEEPEST
        reached = parent < 0 or nodes.onward[parent]
        nodes.onward[node] = reached and split and _descends(exact, node, length, least)
        if reached and (not nodes.onward[node] or least <= depth):
            insert(exact.postings, key, _posting(entry, length, signed(nodes.last[node]), key))
            if not split and nodes.crowd[node] >= CROWDED and depth < DEEPEST:
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
def unlink(pool: Pool, exact: Exact, entry: int) -> None:
    """Take a stored text out of the trie; ``pool.query`` is overwritten."""
    for node in range(walk(pool, exact, reread_entry(pool, entry))):
        remove(exact.postings, exact.nodes.key[node], entry)
