"""The exact prefix index: the full scan's decisions at a cost that grows far slower than the pool.

**What is indexed.** A text of m tokens is the set of its m occurrence-tagged elements
(:mod:`fastgen.similarity.vocabulary`), put in one total order, rarest first (:mod:`fastgen.similarity.trie`). A *path*
of depth d is a list of d elements in that order. Its *node* is a list of postings. ``need(m, n)`` is the smallest LCS
that rejects (:func:`fastgen.similarity.rouge.min_lcs`), and ``o(m)`` its minimum over the lengths n for which there is
one. A path is *allowed* for a text if all its elements are in the text and the j-th of them (from 0) has a place of at
most ``m - max(o(m), d) + j`` in it. Paths form a trie that grows where it is crowded. Every text starts with its
allowed paths of depth 1. A node that holds :data:`~fastgen.similarity.trie.CROWDED` postings is marked as split, and
the texts in it move to their allowed paths one element longer, except those with ``o(m) <= d`` (which are copied down
but also stay) and those that would take up too much room below (which stay). Later texts do the same at a node that is
already marked.

**No false negative.** Let two texts of m and n tokens have an LCS of at least ``need(m, n)``. The LCS is at most their
overlap c, so ``c >= need(m, n) >= max(o(m), o(n))``. Let s be the c shared elements in order. For every d <= c the path
of the first d of them is allowed for both texts: of the c shared elements, ``c - 1 - j`` come after the j-th, so its
place is at most ``m - c + j`` where ``c >= max(o(m), d)``, and likewise for n. Let the stored text have its posting in
the node of depth d on this line of paths: there is one, since it moves from such a node only down, to all its allowed
paths, of which the next on the line is one while d < c. And at d = c it stays, as ``o(n) <= c``. The query looks at
every node of its own allowed paths whose parent is marked. The nodes above that posting are marked, as it moved through
them. So it is met.

**What may be skipped.** If the path is the first d shared elements, then c is at most d plus the number of elements
after the path's last one, in either text. A posting whose lengths and remainders allow no ``need(m, n)`` is therefore
passed over: the pair above passes this test wherever on its line it meets. Then come a 64-bit map of the elements,
which bounds the overlap, and the LCS itself.

**Hash collisions.** Nodes are distinguished by bits of a hash. Two nodes that look alike are one: they share postings
and mark, a query reads all postings of a marked node too, and a text found in a node without the path in question stays
there. So a collision costs time, never a neighbour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.similarity.checks import conclude, verify_met
from fastgen.similarity.jit import kernel, signed
from fastgen.similarity.lcs import close_query, least_need, open_query
from fastgen.similarity.pool import CandidateIndex, read_text, reread_entry, store_text
from fastgen.similarity.postings import (
    CHUNK,
    ENTRY_MASK,
    INFO_SHIFT,
    arrays_of,
    check_loaded,
    check_whole,
    clear,
    keep_flagged,
    postings_bytes,
    same_print,
)
from fastgen.similarity.trie import (
    CROWDED,
    DEEPEST,
    LONG,
    MARK_ENTRY,
    NODES,
    REST_SHIFT,
    Exact,
    add_nodes,
    freeze_order,
    least_overlap,
    link,
    load_exact,
    make_exact,
    make_room,
    open_nodes,
    put_in_order,
    unlink,
    walk,
)
from fastgen.similarity.vocabulary import forget_symbols

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import Batch, Found, Pool, Rule, StoredArrays, Text


_U64 = np.uint64
_FIELD_MASK = _U64(LONG)
_FIRST_FREEZE, _LAST_FREEZE = 512, 8192  # pool sizes at which the order is frozen anew, each four times the last
_MOST_FREEZES = 3


@kernel
def _meet(pool: Pool, exact: Exact, found: Found, text: Text) -> int:
    """Verify every entry that shares a node with the open text and return the number of its nodes.

    -1 where there are too many of them: then every entry was verified.
    """
    exact.clock[0] += 1
    least = least_overlap(pool.rule, text.length)
    if least == 0:
        return 0
    put_in_order(pool, exact, text.length, exact.sorted)
    waiting, begin, end = 0, 0, add_nodes(exact, 0, -1, text.length, least)
    while begin < end:
        open_nodes(exact, begin, end)
        size = end
        for node in range(begin, end):
            waiting = _scan(pool, exact, found, text, node, waiting)
            if exact.nodes.split[node] and exact.nodes.depth[node] < DEEPEST:
                size = add_nodes(exact, size, node, text.length, least)
                if size < 0:
                    _meet_all(pool, exact, found, text)
                    return -1
        begin, end = end, size
    verify_met(pool, exact.met, waiting, exact.flags, exact.seen, exact.clock[0], found, text)
    return end


@kernel
def _meet_all(pool: Pool, exact: Exact, found: Found, text: Text) -> None:
    """Verify every entry that was not verified yet."""
    size = pool.entries.size[0]
    for begin in range(0, size, exact.met.size):
        waiting = min(exact.met.size, size - begin)
        for i in range(waiting):
            exact.met[i] = begin + i
        verify_met(pool, exact.met, waiting, exact.flags, exact.seen, exact.clock[0], found, text)


@kernel
def _scan(pool: Pool, exact: Exact, found: Found, text: Text, node: int, waiting: int) -> int:
    """Note the node's entries that may be too similar, its crowd and its mark. Return how many entries wait."""
    nodes = exact.nodes
    nodes.crowd[node], nodes.split[node] = 0, False
    for begin in range(0, nodes.held[node], CHUNK):
        offset = nodes.offset[node] + begin
        chunk = exact.postings.slab[offset : offset + min(CHUNK, nodes.held[node] - begin)]
        _flag(chunk, exact, node, text.length, pool.rule)
        waiting = keep_flagged(chunk, exact.flags, exact.met, waiting)
        if waiting > exact.met.size - CHUNK - 1:
            verify_met(pool, exact.met, waiting, exact.flags, exact.seen, exact.clock[0], found, text)
            waiting = 0
    return waiting


@kernel
def _flag(chunk: NDArray[np.uint64], exact: Exact, node: int, length: int, rule: Rule) -> None:
    """Flag the node's postings whose lengths and remainders allow the overlap that is needed. Count them and its marks.

    Without a branch or a table, so that the compiler makes vector instructions of it.
    """
    nodes, flags = exact.nodes, exact.flags
    key, depth = nodes.key[node], _U64(nodes.depth[node])
    mine = _U64(min(length, LONG))
    my_rest = _U64(length - signed(nodes.last[node]) - 1) + depth
    crowd, marks = 0, 0
    for i in range(chunk.size):
        posting = chunk[i]
        same = same_print(posting, key)
        marked = (posting & ENTRY_MASK) == MARK_ENTRY
        other = (posting >> INFO_SHIFT) & _FIELD_MASK
        need = least_need(rule, mine + other)
        fits = (need <= my_rest) & (need <= (posting >> REST_SHIFT) + depth) & (need <= other) & (need <= mine)
        flags[i] = same & (fits | (other == _FIELD_MASK) | (mine == _FIELD_MASK)) & (not marked)
        crowd += signed(same)
        marks += signed(same & marked)
    nodes.crowd[node] += crowd
    nodes.split[node] |= marks > 0


@kernel
def _prepare(pool: Pool, exact: Exact) -> None:
    """Before a text is read: freeze the order anew where a small pool has reached the size for it."""
    size = _FIRST_FREEZE << (2 * exact.freezes[0])
    if pool.entries.size[0] != size or size > _LAST_FREEZE:
        return
    clear(exact.postings)
    freeze_order(pool, exact)
    exact.freezes[0] += 1
    for entry in range(pool.entries.size[0]):
        text = reread_entry(pool, entry)
        link(pool, exact, text, entry, walk(pool, exact, text))


@kernel
def _decide(pool: Pool, exact: Exact, batch: Batch, found: Found, keep: bool) -> None:
    for row in range(batch.start.size - 1):
        _prepare(pool, exact)
        known = pool.symbols.size[0]
        text = read_text(pool, batch, row)
        open_query(pool, text.length)
        size = _meet(pool, exact, found, text)
        novel = conclude(pool, found, text)
        close_query(pool, text.length)
        if novel and keep:
            if size < 0:
                size = walk(pool, exact, text)
            link(pool, exact, text, store_text(pool, text), size)
        else:
            forget_symbols(pool.symbols, known)


@kernel
def _add(pool: Pool, exact: Exact, batch: Batch) -> None:
    for row in range(batch.start.size - 1):
        _prepare(pool, exact)
        text = read_text(pool, batch, row)
        link(pool, exact, text, store_text(pool, text), walk(pool, exact, text))


@kernel
def _take_back(pool: Pool, exact: Exact, keep: int) -> None:
    for entry in range(pool.entries.size[0] - 1, keep - 1, -1):
        unlink(pool, exact, entry)


class ExactIndex(CandidateIndex):
    """Never misses, by the proof above."""

    def __init__(self, threshold: float, reject_at: str, *, crowded: int = CROWDED, nodes: int = NODES) -> None:
        super().__init__(threshold, reject_at)
        self._exact = make_exact(crowded, nodes)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Flat views of everything that :meth:`load` needs, valid until the next call."""
        exact, known = self._exact, int(self._exact.known[0])
        arrays = super().arrays() | arrays_of(exact.postings)
        return arrays | {"frequency": exact.frequency[:known], "freezes": exact.freezes}

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries until ``entries`` are left. Only what the last :meth:`decide` appended."""
        _take_back(self._pool.view(), self._exact, entries)
        super().truncate(entries)

    def memory_bytes(self) -> int:
        """Bytes in use."""
        exact = self._exact
        order = int(exact.known[0]) * exact.frequency.itemsize
        return super().memory_bytes() + postings_bytes(exact.postings) + exact.seen.itemsize * len(self) + order

    def _reserve(self, batch: Batch) -> None:
        super()._reserve(batch)
        more = batch.start.size - 1
        self._exact = make_room(self._exact, len(self), more, self._pool.symbol_room(), self._pool.longest_text())

    def _append(self, batch: Batch) -> None:
        _add(self._pool.view(), self._exact, batch)
        check_whole(self._exact.postings)

    def _decide(self, batch: Batch, found: Found, *, keep: bool) -> None:
        _decide(self._pool.view(), self._exact, batch, found, keep)
        check_whole(self._exact.postings)

    def _load(self, stored: StoredArrays) -> None:
        super()._load(stored)
        self._exact = load_exact(self._exact, stored)

    def _check_loaded(self) -> None:
        super()._check_loaded()
        check_loaded(self._exact.postings, len(self), signed(MARK_ENTRY))
        known, freezes = int(self._exact.known[0]), int(self._exact.freezes[0])
        if not (0 <= known <= self._pool.symbols() and 0 <= freezes <= _MOST_FREEZES):
            raise ValueError("the order's arrays contradict each other")
