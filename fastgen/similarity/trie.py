"""The trie of the exact index: the nodes of a text, how it is put in and taken out, how a crowded node is split.

:mod:`fastgen.similarity.exact` says what the trie guarantees and proves it. The trie is built on an order of all
elements: rarest first, by frequencies counted once. Elements that were unknown then come before all
others, the newest first, since frequent ones are met early. The order is total and, between two calls of
:func:`freeze_order`, never changes for elements that exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.similarity.jit import kernel, signed
from fastgen.similarity.layout import reserve_array, with_room
from fastgen.similarity.lcs import compute_need
from fastgen.similarity.pool import MOST_ENTRIES, reread_entry
from fastgen.similarity.postings import (
    CHUNK,
    ENTRY_MASK,
    INFO_SHIFT,
    Postings,
    find_block,
    fingerprint,
    insert,
    load_postings,
    make_postings,
    prefetch_head,
    remove,
    same_print,
    with_room_for,
)
from fastgen.similarity.vocabulary import mix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import Pool, Rule, StoredArrays, Text


_U64 = np.uint64
_HALF = _U64(32)
_NEWEST_FIRST = _U64((1 << 32) - 1)
_INSERTION_SORT = 64
CROWDED = 1024
DEEPEST = 4
_MOST_CHILDREN = np.array([0, 24, 12, 8, -1], np.int64)  # by depth: a text that has more below stays where it is
_MOST_SYMBOLS = 1 << 31  # address space only
_MOST_TOKENS = 1 << 28
NODES = 1 << 22  # of one text: one that would visit more is compared with the whole pool instead
_MOST_BELOW = 1 << 15  # nodes deeper than 1 that a text may be put into: fewer, by `_MOST_CHILDREN`
_POSTINGS_A_TEXT, _MOST_POSTINGS_A_BATCH = 4096, 1 << 20
_MET = 4 * CHUNK
_FIELD = _U64(11)
LONG = (1 << 11) - 1  # lengths from here up are not filtered inline
REST_SHIFT = INFO_SHIFT + _FIELD
MARK_ENTRY = ENTRY_MASK
_MARK = MARK_ENTRY | (_U64(1) << INFO_SHIFT)
_GOLDEN = _U64(0x9E3779B97F4A7C15)
_LOW_HALF = _U64(0xFFFFFFFF)
_ROOT = _U64(0)


class Nodes(NamedTuple):
    """The nodes of one text's allowed paths, level by level.

    ``key``: hash of the path. ``last``: place of its last element. ``depth``: its length. ``parent``: its row, -1.
    ``offset``, ``held``: where its bucket's postings are, and how many. ``crowd``, ``split``: how many of them are in
    this node, and whether it is marked. ``onward``: whether the text is put into nodes below it.
    """

    key: NDArray[np.uint64]
    last: NDArray[np.int32]
    depth: NDArray[np.int32]
    parent: NDArray[np.int32]
    offset: NDArray[np.int64]
    held: NDArray[np.int64]
    crowd: NDArray[np.int32]
    split: NDArray[np.bool_]
    onward: NDArray[np.bool_]


class Exact(NamedTuple):
    """Everything a kernel needs beyond the pool.

    ``crowded``: postings from which a node is split. ``frequency[symbol]``: entries that held the symbol when the order
    was frozen, below ``known[0]`` only. ``freezes[0]``: times that it was frozen. ``sorted``, ``other``: the elements
    of the open text and of a stored one, in order. ``path``: elements of the node being split. ``moving``: entries that
    leave a node. ``flags``: which of a chunk of postings may be too similar. ``met``, ``seen``, ``clock``: see
    :func:`fastgen.similarity.checks.verify_met`.
    """

    crowded: int
    postings: Postings
    frequency: NDArray[np.int32]
    known: NDArray[np.int64]
    freezes: NDArray[np.int64]
    nodes: Nodes
    sorted: NDArray[np.uint64]
    other: NDArray[np.uint64]
    path: NDArray[np.uint64]
    moving: NDArray[np.int32]
    flags: NDArray[np.uint8]
    met: NDArray[np.int32]
    seen: NDArray[np.int32]
    clock: NDArray[np.int64]


def make_exact(crowded: int, nodes: int = NODES) -> Exact:
    """Make an empty trie whose nodes are split when they hold ``crowded`` postings.

    ``nodes``: most nodes that a text's search visits, at least ``1 << 16``.
    """
    return Exact(
        crowded=crowded,
        postings=make_postings(),
        frequency=reserve_array(np.int32, _MOST_SYMBOLS),
        known=np.zeros(1, np.int64),
        freezes=np.zeros(1, np.int64),
        nodes=Nodes(
            key=reserve_array(np.uint64, nodes),
            last=reserve_array(np.int32, nodes),
            depth=reserve_array(np.int32, nodes),
            parent=reserve_array(np.int32, nodes),
            offset=reserve_array(np.int64, nodes),
            held=reserve_array(np.int64, nodes),
            crowd=reserve_array(np.int32, nodes),
            split=reserve_array(np.bool_, nodes),
            onward=reserve_array(np.bool_, nodes),
        ),
        sorted=reserve_array(np.uint64, _MOST_TOKENS),
        other=reserve_array(np.uint64, _MOST_TOKENS),
        path=np.empty(DEEPEST + 1, np.uint64),
        moving=reserve_array(np.int32, MOST_ENTRIES),
        flags=np.empty(_MET, np.uint8),
        met=np.empty(_MET, np.int32),
        seen=reserve_array(np.int32, MOST_ENTRIES),
        clock=np.zeros(1, np.int64),
    )


def make_room(exact: Exact, entries: int, more: int, symbols: int, longest: int) -> Exact:
    """The trie with room for ``more`` texts besides ``entries``, of at most ``longest`` tokens, and for ``symbols``."""
    texts, below = entries + more, longest + _MOST_BELOW
    postings = with_room_for(exact.postings, min(more * _POSTINGS_A_TEXT, _MOST_POSTINGS_A_BATCH) + longest)
    if (
        postings is exact.postings
        and texts <= min(len(exact.seen), len(exact.moving))
        and symbols <= len(exact.frequency)
        and longest <= min(len(exact.sorted), len(exact.other))
        and below <= min(map(len, exact.nodes._asdict().values()))
    ):
        return exact
    return exact._replace(
        postings=postings,
        frequency=with_room(exact.frequency, symbols, int(exact.known[0]), _MOST_SYMBOLS),
        nodes=Nodes(*(with_room(column, below, 0, 2 * _MOST_TOKENS) for column in exact.nodes)),
        sorted=with_room(exact.sorted, longest, 0, _MOST_TOKENS),
        other=with_room(exact.other, longest, 0, _MOST_TOKENS),
        moving=with_room(exact.moving, texts, 0, MOST_ENTRIES),
        seen=with_room(exact.seen, texts, entries, MOST_ENTRIES),
    )


def load_exact(exact: Exact, stored: StoredArrays) -> Exact:
    """Read the postings, ``frequency`` and ``freezes`` into an empty trie.

    :raises ValueError: the arrays have other lengths.
    """
    freezes = stored.read("freezes", np.int64)
    if freezes.shape != exact.freezes.shape:
        raise ValueError("the order's arrays have other lengths")
    return exact._replace(
        postings=load_postings(exact.postings, stored),
        frequency=stored.load("frequency", exact.frequency, _MOST_SYMBOLS),
        known=np.array([stored.rows["frequency"]], np.int64),
        freezes=freezes,
    )


@kernel
def freeze_order(pool: Pool, exact: Exact) -> None:
    """Count the elements of every entry in the pool. ``pool.query`` is overwritten."""
    exact.frequency[: pool.symbols.size[0]] = 0
    for entry in range(pool.entries.size[0]):
        text = reread_entry(pool, entry)
        for i in range(text.length):
            exact.frequency[pool.query.elements[i]] += 1
    exact.known[0] = pool.symbols.size[0]


@kernel
def put_in_order(pool: Pool, exact: Exact, length: int, out: NDArray[np.uint64]) -> None:
    """Write the elements of the text in ``pool.query`` to ``out``, rarest first, as 64-bit values unique to each."""
    for i in range(length):
        element = signed(pool.query.elements[i])
        frequency = signed(exact.frequency[element]) if element < exact.known[0] else 0
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
    """Append the nodes one element below ``parent`` (-1: of depth 1) and return the new number of nodes.

    -1 where there is no room for all of them.
    """
    nodes = exact.nodes
    depth, first, key = 1, 0, _ROOT
    if parent >= 0:
        depth, first, key = nodes.depth[parent] + 1, nodes.last[parent] + 1, nodes.key[parent]
    end = _last_place(length, least, depth) + 1
    if size + end - first > nodes.key.size:
        return -1
    for place in range(first, end):
        nodes.key[size] = _child_key(key, exact.sorted[place])
        nodes.last[size] = place
        nodes.depth[size] = depth
        nodes.parent[size] = parent
        size += 1
    return size


@kernel
def open_nodes(exact: Exact, begin: int, end: int) -> None:
    """Find the postings of a level: first all heads, then all blocks, so that their cache misses overlap."""
    nodes, postings = exact.nodes, exact.postings
    for i in range(begin, end):
        prefetch_head(postings, nodes.key[i])
    for i in range(begin, end):
        nodes.offset[i], nodes.held[i] = find_block(postings, nodes.key[i])


@kernel
def walk(pool: Pool, exact: Exact, text: Text) -> int:
    """Find the nodes that the text in ``pool.query`` would be put into, without verifying entries. Return how many."""
    least = least_overlap(pool.rule, text.length)
    if least == 0:
        return 0
    put_in_order(pool, exact, text.length, exact.sorted)
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
    offset, key = nodes.offset[node], nodes.key[node]
    chunk = exact.postings.slab[offset : offset + nodes.held[node]]
    crowd, marks = 0, 0
    for i in range(chunk.size):
        same = same_print(chunk[i], key)
        crowd += signed(same)
        marks += signed(same & ((chunk[i] & ENTRY_MASK) == MARK_ENTRY))
    nodes.crowd[node] = crowd
    nodes.split[node] = marks > 0


@kernel
def _descends(exact: Exact, node: int, length: int, least: int) -> bool:
    """Whether a text is put into the nodes below a marked node: only where that takes few enough postings."""
    depth = signed(exact.nodes.depth[node])
    return bool(_children(length, least, depth, signed(exact.nodes.last[node])) <= _MOST_CHILDREN[depth])


@kernel
def link(pool: Pool, exact: Exact, text: Text, entry: int, size: int) -> None:
    """Put a text into the trie whose first ``size`` nodes were just visited. ``pool.query`` is overwritten."""
    nodes, length = exact.nodes, text.length
    least = least_overlap(pool.rule, length)
    for node in range(size):
        depth, parent, key = signed(nodes.depth[node]), signed(nodes.parent[node]), nodes.key[node]
        split = nodes.split[node] and depth < DEEPEST
        reached = parent < 0 or nodes.onward[parent]
        nodes.onward[node] = reached and split and _descends(exact, node, length, least)
        if reached and (not nodes.onward[node] or least <= depth):
            insert(exact.postings, key, _posting(entry, length, signed(nodes.last[node]), key))
            if not split and nodes.crowd[node] >= exact.crowded and depth < DEEPEST:
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
    offset, count = find_block(postings, key)
    chunk = postings.slab[offset : offset + count]
    moving = 0
    for i in range(chunk.size):
        if same_print(chunk[i], key) and moving < exact.moving.size:
            exact.moving[moving] = signed(chunk[i] & ENTRY_MASK)
            moving += 1
    insert(postings, key, _MARK | fingerprint(key))
    for i in range(moving):
        _move_down(pool, exact, signed(exact.moving[i]), key, depth)


@kernel
def _move_down(pool: Pool, exact: Exact, entry: int, key: np.uint64, depth: int) -> None:
    """Move one entry from a node to the nodes below, unless it has too many or reached the node by another path."""
    text = reread_entry(pool, entry)
    put_in_order(pool, exact, text.length, exact.other)
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
    """Take a stored text out of the trie. ``pool.query`` is overwritten."""
    for node in range(walk(pool, exact, reread_entry(pool, entry))):
        remove(exact.postings, exact.nodes.key[node], entry)
