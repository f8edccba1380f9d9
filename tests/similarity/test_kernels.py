"""The flat structures under the indexes behave as the dictionaries and big integers that they replace."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import StoppedError
from fastgen.similarity.checks import make_found, record
from fastgen.similarity.exhaustive import ExhaustiveIndex
from fastgen.similarity.jit import kernel
from fastgen.similarity.layout import reserve_array, with_room
from fastgen.similarity.lcs import (
    compute_need,
    flag_met,
    flag_similar,
    least_need,
    make_rule,
    need_lcs,
    popcount,
    score_of,
    sketch_of,
)
from fastgen.similarity.pool import make_batch
from fastgen.similarity.postings import (
    ENTRY_MASK,
    FIRST_LEVEL,
    LOAD,
    Postings,
    block_of,
    bucket_of,
    check_whole,
    clear,
    fingerprint,
    insert,
    make_postings,
    remove,
    same_print,
)
from fastgen.similarity.rouge import REJECT_AT, f1_of_lcs, min_lcs, tokenise
from fastgen.similarity.vocabulary import (
    WORK_WORDS,
    Vocabulary,
    elements_of,
    forget_symbols,
    mix64,
    sha1_hash32,
    tokenise_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_sha1_is_hashlibs(data: bytes) -> None:
    padded = np.frombuffer(b"xx" + data + b"yy", np.uint8)
    expected = int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:4], "little")
    assert sha1_hash32(padded, 2, 2 + len(data), np.empty(WORK_WORDS, np.int64)) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_popcount_counts_bits_and_the_mixer_is_a_bijection_on_what_it_met(a: int, b: int) -> None:
    assert popcount(np.uint64(a)) == a.bit_count()
    assert (mix64(np.uint64(a)) == mix64(np.uint64(b))) is (a == b)


@pytest.mark.parametrize("reject_at", REJECT_AT)
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.85, 1.0])
def test_the_integer_rule_is_the_references(threshold: float, reject_at: str) -> None:
    rule = make_rule(threshold, reject_at)
    rng = random.Random(threshold)
    pairs = [(rng.randrange(1, 400), rng.randrange(1, 400)) for _ in range(1500)]
    pairs += [(a, b) for a in range(1, 40) for b in range(1, 40)]
    for a, b in pairs:
        expected = min_lcs(a, b, threshold, "ge" if reject_at == "ge" else "gt") or 0
        assert need_lcs(rule, a, b) == compute_need(a, b, threshold, reject_at == "ge") == expected
        lcs = rng.randrange(min(a, b) + 1)
        assert score_of(lcs, a, b) == f1_of_lcs(lcs, a, b)


@pytest.mark.parametrize("reject_at", REJECT_AT)
@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_bound_without_a_table_is_never_above_the_rule_and_at_most_one_below(
    threshold: float, reject_at: str
) -> None:
    rule = make_rule(threshold, reject_at)
    for a in range(1, 256):
        for b in range(1, 256):
            need = need_lcs(rule, a, b)
            bound = int(least_need(rule, np.uint64(a + b)))
            assert need == 0 or need - 1 <= bound <= need
            assert need > 0 or bound >= min(a, b)


@given(
    st.sets(st.integers(0, 5000), max_size=300),
    st.lists(st.tuples(st.sets(st.integers(0, 5000), max_size=300), st.booleans()), min_size=1, max_size=9),
    st.sampled_from([0.3, 0.5, 0.7, 0.95, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_a_pair_whose_overlap_suffices_is_flagged_by_its_sketches(
    text: set[int], others: list[tuple[set[int], bool]], threshold: float
) -> None:
    rule = make_rule(threshold, "ge")
    pool = [other | (set(list(text)[: len(other) * 3]) if near else set()) for other, near in others]

    def sketch(elements: set[int]) -> np.uint64:
        return np.uint64(sketch_of(np.array([*elements, 0], np.int32), len(elements)))

    sketches = np.array([sketch(other) for other in pool], np.uint64)
    flags, met_flags = np.full(16, 7, np.uint8), np.full(16, 7, np.uint8)
    flag_similar(sketches, sketch(text), rule, flags)
    met = np.arange(len(pool), dtype=np.int32)[::-1].copy()
    flag_met(met, sketches, sketch(text), rule, met_flags)
    for at, other in enumerate(pool):
        need = need_lcs(rule, len(text), len(other))
        assert flags[at] in (0, 1)
        assert flags[at] or need == 0 or len(text & other) < need
        assert met_flags[len(pool) - 1 - at] == flags[at]
    assert flags[len(pool)] == 7


@given(st.lists(st.text(alphabet="aB1é \n-翻", max_size=12), max_size=12))
@settings(max_examples=150, deadline=None)
def test_symbols_are_the_tokens_and_forgetting_undoes_them(texts: list[str]) -> None:
    vocabulary = Vocabulary()
    out, elements = np.empty(64, np.int32), np.empty(64, np.int32)
    known: dict[str, int] = {}
    for text in texts:
        data = " ".join(tokenise(text)).encode() if not text.isascii() else text.encode()
        batch = make_batch([data])
        vocabulary.reserve(len(data) + 1, len(data))
        before = len(vocabulary)
        count = tokenise_bytes(vocabulary.symbols, batch.data, 0, len(data), out)
        elements_of(vocabulary.symbols, out, count, elements)
        tokens = tokenise(text)
        assert count == len(tokens)
        assert len(set(elements[:count].tolist())) == count
        if len(text) % 2:
            forget_symbols(vocabulary.symbols, before)
            assert len(vocabulary) == before
        else:
            for token, symbol in zip(tokens, out[:count].tolist(), strict=True):
                assert known.setdefault(token, symbol) == symbol
    assert len(set(known.values())) == len(known)
    assert not vocabulary.symbols.slot[: len(vocabulary)].any()


@kernel
def insert_all(postings: Postings, keys: NDArray[np.uint64]) -> None:
    for entry in range(keys.size):
        insert(postings, keys[entry], np.uint64(entry) | np.uint64(1 << 50) | fingerprint(keys[entry]))


def entries_under(postings: Postings, key: np.uint64) -> list[int]:
    offset, count = block_of(postings, bucket_of(postings, key))
    bucket = postings.slab[offset : offset + count]
    return sorted(int(posting & ENTRY_MASK) for posting in bucket if same_print(posting, key))


def test_postings_are_a_multimap_through_thousands_of_bucket_splits_and_removals() -> None:
    rng = random.Random(1)
    postings = make_postings()
    reference: dict[int, list[int]] = defaultdict(list)
    keys = [rng.getrandbits(64) for _ in range(40_000)]
    count = LOAD * (1 << FIRST_LEVEL) + 60_000
    drawn = [keys[int(rng.random() ** 3 * len(keys))] for _ in range(count)]
    for entry, key in enumerate(drawn):
        reference[key].append(entry)
    insert_all(postings, np.array(drawn, np.uint64))
    assert postings.state[2] > 5000  # buckets split so far
    for key in rng.sample(list(reference), 1500):
        gone = reference[key].pop(rng.randrange(len(reference[key])))
        assert remove(postings, np.uint64(key), gone)
        assert not remove(postings, np.uint64(key), gone)
    for key, entries in reference.items():
        assert set(entries) <= set(entries_under(postings, np.uint64(key)))
    assert postings.state[0] == count - 1500 == sum(map(len, reference.values()))
    heads = [block_of(postings, bucket) for bucket in range((1 << FIRST_LEVEL) + int(postings.state[2]))]
    blocks = sorted((offset, count) for offset, count in heads if count)
    assert all(a + count <= b for (a, count), (b, _) in itertools.pairwise(blocks))  # no block overlaps another
    clear(postings)
    assert not any(entries_under(postings, np.uint64(key)) for key in keys)


def test_the_best_neighbours_do_not_depend_on_the_order_in_which_they_are_found() -> None:
    met = [(entry, [0.25, 0.5, 0.75][entry % 3]) for entry in range(12)]
    expected = sorted(met, key=lambda pair: (-pair[1], pair[0]))[:5]
    for seed in range(20):
        random.Random(seed).shuffle(met)
        found = make_found(1)
        for entry, score in met:
            record(found, 0, entry, score)
        assert list(zip(found.entry[0].tolist(), found.score[0].tolist(), strict=True)) == expected


def test_a_reserved_array_reads_zero_and_costs_no_memory_until_it_is_written() -> None:
    array = reserve_array(np.uint64, 1 << 32)
    assert array.shape[0] > 1 << 20
    assert array[1 << 20] == 0
    array[5] = 7
    assert array[5] == 7


def test_an_array_with_room_stays_and_a_full_one_is_copied() -> None:
    array = np.arange(10)
    assert with_room(array, 10, 10, 99) is array
    larger = with_room(array, 11, 8, 99)
    assert len(larger) >= 11
    assert larger[:11].tolist() == [*range(8), 0, 0, 0]


@pytest.mark.parametrize(("rows", "most"), [(100, 99), (1 << 60, 1 << 61)])
def test_an_array_that_can_not_grow_is_one_clear_line(rows: int, most: int) -> None:
    with pytest.raises(StoppedError, match="the similarity pool is full") as error:
        with_room(np.zeros(10), rows, 10, most)
    assert "\n" not in str(error.value)


def small_postings(words: int) -> Postings:
    """A multimap with so few words in its slab."""
    postings = make_postings()
    return postings._replace(slab=postings.slab[:words], heads=postings.heads[: (1 << FIRST_LEVEL) + 20])


def test_a_full_multimap_writes_nowhere_else_and_says_so() -> None:
    rng = random.Random(3)
    postings = small_postings(5000)
    whole = postings.slab.base
    assert isinstance(whole, np.ndarray)
    keys = np.array([rng.getrandbits(64) for _ in range(2000)], np.uint64)
    insert_all(postings, keys)
    assert not whole[5000:6000].any()
    with pytest.raises(StoppedError, match="index is full"):
        check_whole(postings)


def test_buckets_that_have_no_room_for_more_of_them_get_longer() -> None:
    rng = random.Random(4)
    postings = small_postings(1 << 24)
    keys = [rng.getrandbits(64) for _ in range(LOAD * (1 << FIRST_LEVEL) + 5000)]
    insert_all(postings, np.array(keys, np.uint64))
    check_whole(postings)
    assert postings.state[2] <= 20
    assert all(entry in entries_under(postings, np.uint64(keys[entry])) for entry in range(0, len(keys), 97))


def test_every_column_of_a_vocabulary_has_room_where_address_space_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgen.similarity.layout._is_free", lambda _: False)
    vocabulary = Vocabulary()
    for tokens in range(0, 700_000, 50_000):
        vocabulary.reserve(tokens, 10)
        symbols = vocabulary.symbols
        columns = (symbols.hashes, symbols.start, symbols.parent, symbols.occurrence, symbols.base, symbols.slot)
        assert all(len(column) > tokens for column in columns)


def test_a_pool_reports_what_it_uses_not_what_it_reserved() -> None:
    index = ExhaustiveIndex(0.7, "gt")
    empty = index.memory_bytes()
    index.add([b"a b c"] * 1000)
    assert 16_000 < index.memory_bytes() - empty < 100_000
