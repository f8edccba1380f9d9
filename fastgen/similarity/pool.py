"""The pool of tokenised texts that every index shares, what every index promises, and the scan of the whole pool.

Guarantees: room for a batch is made before its kernel runs. Texts come in as bytes that
:func:`~fastgen.similarity.vocabulary.tokenise_bytes` can cut. Kernels check no bounds, so a loaded pool or index is
checked before it is used: whatever its arrays held, no kernel reads or writes outside them or loops endlessly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.errors import InputError, StoppedError
from fastgen.similarity.checks import make_found, record
from fastgen.similarity.jit import kernel
from fastgen.similarity.layout import Batch, Entries, Pool, Query, Rule, Seeds, Text, reserve_array, with_room
from fastgen.similarity.lcs import (
    SLOPE_BITS,
    WORD,
    append_entry,
    close_query,
    flag_similar,
    lcs_with,
    length_of,
    make_rule,
    offset_of,
    open_query,
    score_of,
    sketch_of,
)
from fastgen.similarity.vocabulary import Vocabulary, elements_of, tokenise_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.similarity.layout import Found, StoredArrays


def make_batch(texts: Sequence[bytes]) -> Batch:
    """Join texts into one array."""
    start = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=start[1:])
    return Batch(np.frombuffer(bytearray(b"".join((*texts, b" "))), np.uint8), start)


@kernel
def read_text(pool: Pool, batch: Batch, row: int) -> Text:
    """Tokenise a text of the batch into ``pool.query``."""
    query = pool.query
    count = tokenise_bytes(pool.symbols, batch.data, batch.start[row], batch.start[row + 1], query.tokens)
    elements_of(pool.symbols, query.tokens, count, query.elements)
    return Text(row, count, sketch_of(query.elements, count))


@kernel
def reread_entry(pool: Pool, entry: int) -> Text:
    """Put a stored text back into ``pool.query``."""
    query, offset, count = pool.query, offset_of(pool.entries, entry), length_of(pool.entries, entry)
    for i in range(count):
        query.tokens[i] = pool.entries.tokens[offset + i]
    elements_of(pool.symbols, query.tokens, count, query.elements)
    return Text(entry, count, pool.entries.sketch[entry])


@kernel
def store_text(pool: Pool, text: Text) -> int:
    """Append the text in ``pool.query`` to the pool and return its pool index."""
    return append_entry(pool.entries, pool.query.tokens, text.length, text.sketch)


@kernel
def _append_all(pool: Pool, batch: Batch) -> None:
    for row in range(batch.start.size - 1):
        store_text(pool, read_text(pool, batch, row))


@kernel
def _seed_lists(pool: Pool, first: NDArray[np.int64], member: NDArray[np.int32], fill: bool) -> None:
    """Count (``fill`` false) or write the seeds of every element. Two passes make the inverted lists."""
    for seed in range(pool.entries.size[0]):
        text = reread_entry(pool, seed)
        for i in range(text.length):
            element = pool.query.elements[i]
            if fill:
                member[first[element]] = seed
            first[element] += 1


@kernel
def _is_as_stored(pool: Pool) -> bool:
    """Whether every text's elements are known symbols and make its sketch. Nothing else may be in ``symbols.slot``."""
    known = pool.symbols.size[0]
    for entry in range(pool.entries.size[0]):
        text = reread_entry(pool, entry)
        if pool.symbols.size[0] != known or sketch_of(pool.query.elements, text.length) != text.sketch:
            return False
    return True


MOST_ENTRIES = 1 << 30
MOST_TOKENS = (1 << 24) - 1  # of one text: what `Entries.place` has bits for
_MOST_TOKENS = 1 << 34  # of all texts; address space only


class TextPool:
    """Owner of the arrays."""

    def __init__(self, threshold: float, reject_at: str) -> None:
        self._vocabulary = Vocabulary()
        self._entries = Entries(
            tokens=reserve_array(np.int32, _MOST_TOKENS),
            sketch=reserve_array(np.uint64, MOST_ENTRIES),
            place=reserve_array(np.uint64, MOST_ENTRIES),
            size=np.zeros(2, np.int64),
        )
        self._rule = make_rule(threshold, reject_at)
        self._seeds = Seeds(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))
        self._query = _make_query(WORD)

    def __len__(self) -> int:
        """Entries in the pool."""
        return int(self._entries.size[0])

    def view(self) -> Pool:
        """Give the arrays to a kernel. :meth:`reserve` and :meth:`index_seeds` may replace some."""
        return Pool(self._vocabulary.symbols, self._entries, self._query, self._rule, self._seeds)

    def reserve(self, batch: Batch) -> None:
        """Make room for every text of ``batch``."""
        size = int(batch.start[-1])
        texts = batch.start.size - 1
        tokens = size // 2 + texts
        self._vocabulary.reserve(tokens, size)
        self._make_room(len(self) + texts, int(self._entries.size[1]) + tokens)
        longest = int(np.diff(batch.start).max(initial=0)) // 2 + 1
        if longest > MOST_TOKENS:
            raise InputError(f"a text of {longest * 2} bytes is too long to be compared; cut it to 32 MB at most")
        if longest > self._query.tokens.size:
            self._query = _make_query(longest * 2)

    def _make_room(self, entries: int, tokens: int) -> None:
        old = self._entries
        if len(old.tokens) < tokens or len(old.sketch) < entries or len(old.place) < entries:
            self._entries = old._replace(
                tokens=with_room(old.tokens, tokens, int(old.size[1]), _MOST_TOKENS),
                sketch=with_room(old.sketch, entries, len(self), MOST_ENTRIES),
                place=with_room(old.place, entries, len(self), MOST_ENTRIES),
            )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Views of everything that :meth:`load` needs, and the rule, which must be the same then."""
        entries, tokens = (int(number) for number in self._entries.size)
        return {
            **self._vocabulary.arrays(),
            "tokens": self._entries.tokens[:tokens],
            "sketch": self._entries.sketch[:entries],
            "place": self._entries.place[:entries],
            "seeds_first": self._seeds.first,
            "seeds_member": self._seeds.member,
            "seeds": np.array([self._seeds.overlap.size], np.int64),
            "rule": np.array([self._rule.threshold, self._rule.at_threshold], np.float64),
        }

    def load(self, stored: StoredArrays) -> None:
        """Read what :meth:`arrays` gave. :meth:`check_loaded` makes it usable.

        :raises ValueError: the stored pool had another rule.
        """
        if not np.array_equal(stored.read("rule", np.float64), self.arrays()["rule"]):
            raise ValueError("the index was made with other parameters")
        self._vocabulary.load(stored)
        old = self._entries
        self._entries = old._replace(
            tokens=stored.load("tokens", old.tokens, _MOST_TOKENS),
            sketch=stored.load("sketch", old.sketch, MOST_ENTRIES),
            place=stored.load("place", old.place, MOST_ENTRIES),
        )
        old.size[:] = stored.rows["place"], stored.rows["tokens"]
        first, member = stored.read("seeds_first", np.int64), stored.read("seeds_member", np.int32)
        self._seeds = Seeds(first, member, np.zeros(int(stored.read("seeds", np.int64)[0]), np.int32))

    def check_loaded(self) -> None:
        """Make the pool usable after :meth:`load`.

        :raises ValueError: its arrays contradict each other.
        """
        entries, tokens = (int(number) for number in self._entries.size)
        place = self._entries.place[:entries]
        lengths = (place & np.uint64(MOST_TOKENS)).astype(np.int64)
        begins = (place >> np.uint64(24)).astype(np.int64)
        used = self._entries.tokens[:tokens]
        bad = (begins != np.cumsum(lengths) - lengths).any() or int(lengths.sum()) != tokens
        if bad or used.min(initial=0) < 0 or used.max(initial=-1) >= len(self._vocabulary):
            raise ValueError("the pool's texts contradict each other")
        longest = int(lengths.max(initial=0))
        self._vocabulary.check_loaded(longest)
        self._query = _make_query(max(WORD, longest))
        if not _is_as_stored(self.view()):
            raise ValueError("the pool's texts and vocabulary contradict each other")
        first, member, overlap = self._seeds
        bad = first.size == 0 or first[0] != 0 or first[-1] != member.size or (np.diff(first) < 0).any()
        if bad or overlap.size > entries or member.min(initial=0) < 0 or member.max(initial=-1) >= overlap.size:
            raise ValueError("the seeds' arrays contradict each other")

    def index_seeds(self) -> None:
        """Make the whole pool, as it is now, the seeds."""
        symbols = len(self._vocabulary)
        counts = np.zeros(symbols + 1, np.int64)
        pool = self.view()
        _seed_lists(pool, counts, np.empty(0, np.int32), False)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        member = np.empty(int(counts.sum()), np.int32)
        _seed_lists(pool, first.copy(), member, True)
        self._seeds = Seeds(first, member, np.zeros(len(self), np.int32))

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries. Their symbols stay, which changes no decision."""
        size = self._entries.size
        if entries < size[0]:
            size[1] = int(self._entries.place[entries]) >> 24
            size[0] = entries

    def symbols(self) -> int:
        """Count the symbols of the vocabulary."""
        return len(self._vocabulary)

    def symbol_room(self) -> int:
        """Most symbols that the vocabulary may have until the next :meth:`reserve`."""
        return self._vocabulary.symbols.table.size // 2

    def longest_text(self) -> int:
        """Most tokens that a text in the pool or in a batch that there is room for may have."""
        return self._query.tokens.size

    def memory_bytes(self) -> int:
        """Bytes in use."""
        entries, tokens = int(self._entries.size[0]), int(self._entries.size[1])
        stored = entries * 2 * self._entries.sketch.itemsize + tokens * self._entries.tokens.itemsize
        held = (*self._query, *self._seeds, self._rule.need)
        return self._vocabulary.memory_bytes() + stored + sum(array.nbytes for array in held)


def _make_query(tokens: int) -> Query:
    return Query(
        tokens=np.empty(tokens, np.int32),
        elements=np.empty(tokens, np.int32),
        masks=np.empty(tokens, np.uint64),
        first=np.empty(tokens + 1, np.int64),
        places=np.empty(tokens, np.int64),
        left=np.empty(tokens, np.int32),
        row=np.zeros(tokens // WORD + 1, np.uint64),
        hits=np.zeros(tokens // WORD + 1, np.uint64),
    )


_CHUNK = 2048  # entries that are scanned under one bound


@kernel
def _scan_chunk(pool: Pool, found: Found, row: int, entry: int, begin: int, flags: NDArray[np.uint8]) -> None:
    end, last = min(begin + flags.size, entry), found.entry.shape[1] - 1
    length = length_of(pool.entries, entry)
    slope = int(found.score[row, last] / 2 * (1 << SLOPE_BITS))
    rule = Rule(pool.rule.need, slope, found.score[row, last], True)
    flag_similar(pool.entries.sketch[begin:end], pool.entries.sketch[entry], rule, flags)
    for i in range(end - begin):
        if flags[i]:
            score = score_of(lcs_with(pool, length, begin + i), length, length_of(pool.entries, begin + i))
            if score > found.score[row, last]:
                record(found, row, begin + i, score)


@kernel
def _scan(pool: Pool, found: Found, entries: NDArray[np.int64], flags: NDArray[np.uint8]) -> None:
    for row in range(entries.size):
        length = reread_entry(pool, entries[row]).length
        if length == 0:
            continue
        open_query(pool, length)
        for begin in range(0, entries[row], flags.size):
            _scan_chunk(pool, found, row, entries[row], begin, flags)
        close_query(pool, length)


class CandidateIndex(ABC):
    """A pool of texts and a way to find those that may be too similar to a new one.

    Promises that every index keeps:

    - *Order.* Texts are decided in the order given, each against the pool and the texts found novel before it in the
      same call. Cutting a sequence of texts into calls in another way changes nothing.
    - *No wrong rejection.* A text is rejected only with a pool member at hand whose ROUGE-L F1, as rouge_score computes
      it, breaks the rule. ``exhaustive`` and ``exact`` also never keep a text that has such a member. ``lsh`` does with
      a stated probability.
    - *Seeds.* The nearest seed of a kept text is exact in all three.
    - *Last in, first out.* :meth:`decide` leaves the novel texts at the end of the pool. :meth:`truncate` takes the
      youngest entries back.
    - *One owner.* Calls come from one thread at a time. Kernels release the GIL.
    """

    def __init__(self, threshold: float, reject_at: str) -> None:
        self._pool = TextPool(threshold, reject_at)

    def __len__(self) -> int:
        """Entries in the pool."""
        return len(self._pool)

    def add(self, texts: Sequence[bytes], *, seeds: bool = False) -> None:
        """Append texts without a check. As ``seeds`` only while the pool holds nothing but seeds."""
        batch = make_batch(texts)
        self._reserve(batch)
        self._append(batch)
        if seeds:
            self._pool.index_seeds()

    def decide(self, texts: Sequence[bytes]) -> Found:
        """Decide texts in order and append the novel ones."""
        return self._search(texts, keep=True)

    def look_up(self, texts: Sequence[bytes]) -> Found:
        """Decide each text by itself against the pool as it is. Nothing is appended."""
        return self._search(texts, keep=False)

    def _search(self, texts: Sequence[bytes], *, keep: bool) -> Found:
        batch, found = make_batch(texts), make_found(len(texts))
        self._reserve(batch)
        self._decide(batch, found, keep=keep)
        return found

    def nearest_older(self, entries: Sequence[int], top: int) -> Found:
        """Find the ``top`` most similar older entries of each entry by a scan of all. Only those columns are filled.

        They have the highest ROUGE-L F1 above 0, lower pool index first among equals. The scan skips what, by its
        sketch, cannot beat the worst of the best so far.
        """
        found = make_found(len(entries), top)
        _scan(self._pool.view(), found, np.array(entries, np.int64), np.empty(_CHUNK, np.uint8))
        return found

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries until ``entries`` are left. Only what the last :meth:`decide` appended."""
        self._pool.truncate(entries)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Flat views of everything that :meth:`load` needs, valid until the next call."""
        return self._pool.arrays()

    def load(self, stored: StoredArrays) -> None:
        """Take over what :meth:`arrays` of another index gave. This one must be empty.

        :raises ValueError: the arrays are not those of such an index, or contradict each other, or do not fit into
            memory. The index is then unusable.
        """
        if stored.rows.keys() != self.arrays().keys():
            raise ValueError("the index has other arrays")
        try:
            self._load(stored)
            if {name: len(array) for name, array in self.arrays().items()} != stored.rows:
                raise ValueError("the index's arrays contradict each other")
            self._check_loaded()
            self._reserve(make_batch(()))
        except (IndexError, OverflowError, MemoryError, StoppedError) as error:
            raise ValueError(str(error) or "it does not fit into this machine's memory") from None

    def memory_bytes(self) -> int:
        """Bytes in use by the pool and the index."""
        return self._pool.memory_bytes()

    def _reserve(self, batch: Batch) -> None:
        """Make room for every text of ``batch``."""
        self._pool.reserve(batch)

    def _append(self, batch: Batch) -> None:
        _append_all(self._pool.view(), batch)

    @abstractmethod
    def _decide(self, batch: Batch, found: Found, *, keep: bool) -> None:
        """Fill ``found``. Append the novel texts if ``keep``."""

    def _load(self, stored: StoredArrays) -> None:
        self._pool.load(stored)

    def _check_loaded(self) -> None:
        self._pool.check_loaded()
