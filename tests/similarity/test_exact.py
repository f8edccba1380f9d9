"""The exact index never misses, also where its trie is crowded, split, reordered or taken back."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fastgen.similarity.exact import ExactIndex
from fastgen.similarity.exhaustive import ExhaustiveIndex
from fastgen.similarity.layout import Found
from fastgen.similarity.lcs import make_rule
from fastgen.similarity.postings import ENTRY_MASK, FIRST_LEVEL, block_of
from fastgen.similarity.rouge import REJECT_AT, RejectAt, min_lcs
from fastgen.similarity.trie import MARK_ENTRY, least_overlap

FEW = 48  # postings from which a node is split here: small pools have crowded nodes then


def stream(seed: int, count: int, *, words: int, longest: int, copies: float = 0.3) -> list[bytes]:
    """Zipf-like texts and edited copies of earlier ones."""
    rng = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and rng.random() < copies:
            rate = rng.random() * 0.6
            text = [w if rng.random() > rate else f"w{rng.randrange(words)}" for w in rng.choice(texts)]
        else:
            text = [f"w{int(words ** rng.random())}" for _ in range(rng.randint(1, longest))]
        texts.append(text)
    return [" ".join(text).encode() for text in texts]


def decisions(found: Found) -> list[tuple[bool, int, float]]:
    """What must not differ between indexes: novelty, and for a rejected text its nearest neighbour."""
    return [
        (bool(novel), -1 if novel else int(entry), 0.0 if novel else float(score))
        for novel, entry, score in zip(found.novel, found.entry[:, 0], found.score[:, 0], strict=True)
    ]


def marked_nodes(index: ExactIndex) -> int:
    postings = index._exact.postings
    blocks = [block_of(postings, int(bucket)) for bucket in np.flatnonzero(postings.heads[: 1 << FIRST_LEVEL])]
    held = np.concatenate([postings.slab[offset : offset + count] for offset, count in blocks])
    return int(np.count_nonzero((held & ENTRY_MASK) == MARK_ENTRY))


@pytest.mark.parametrize("reject_at", REJECT_AT)
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.95])
def test_a_crowded_trie_decides_as_the_scan(threshold: float, reject_at: RejectAt) -> None:
    texts = stream(1, 5000, words=60, longest=16)
    exact, oracle = ExactIndex(threshold, reject_at, crowded=FEW), ExhaustiveIndex(threshold, reject_at)
    assert decisions(exact.decide(texts)) == decisions(oracle.decide(texts))
    assert len(exact) == len(oracle)


@pytest.mark.parametrize(("words", "longest"), [(4, 12), (25, 40), (400, 25), (3000, 120)])
def test_other_vocabularies_and_lengths_decide_as_the_scan(words: int, longest: int) -> None:
    texts = stream(2, 3000, words=words, longest=longest)
    exact, oracle = ExactIndex(0.7, "gt", crowded=FEW), ExhaustiveIndex(0.7, "gt")
    assert decisions(exact.decide(texts)) == decisions(oracle.decide(texts))


@pytest.mark.parametrize("crowded", [2, 9, 300])
def test_the_size_of_a_crowd_changes_no_decision(crowded: int) -> None:
    texts = stream(8, 1500, words=30, longest=14)
    exact, oracle = ExactIndex(0.7, "gt", crowded=crowded), ExhaustiveIndex(0.7, "gt")
    assert decisions(exact.decide(texts)) == decisions(oracle.decide(texts))


def test_nodes_really_are_split_and_the_order_really_is_frozen_anew() -> None:
    exact = ExactIndex(0.7, "gt", crowded=FEW)
    exact.add(stream(3, 9000, words=60, longest=16))
    assert marked_nodes(exact) > 20
    assert exact._exact.freezes[0] == 3
    assert len(exact) > 20 * FEW


def test_a_pool_that_was_added_unchecked_is_searched_without_a_miss() -> None:
    pool, queries = stream(4, 9000, words=80, longest=14), stream(5, 300, words=80, longest=14)
    exact, oracle = ExactIndex(0.6, "gt", crowded=FEW), ExhaustiveIndex(0.6, "gt")
    exact.add(pool)
    oracle.add(pool)
    assert decisions(exact.decide(queries)) == decisions(oracle.decide(queries))


def test_taking_back_across_splits_and_reorderings_leaves_every_decision_right() -> None:
    texts = stream(6, 3000, words=50, longest=12)
    exact, oracle = ExactIndex(0.7, "gt", crowded=FEW), ExhaustiveIndex(0.7, "gt")
    for start in range(0, 3000, 300):
        size = len(exact)
        exact.decide(stream(1000 + start, 400, words=50, longest=12))
        exact.truncate(size)
        batch = texts[start : start + 300]
        assert decisions(exact.decide(batch)) == decisions(oracle.decide(batch))
    assert len(exact) == len(oracle)


def test_taking_everything_back_leaves_no_posting_of_a_text() -> None:
    exact = ExactIndex(0.7, "gt", crowded=FEW)
    exact.decide(stream(7, 400, words=50, longest=12))
    exact.truncate(0)
    assert exact._exact.postings.state[0] == marked_nodes(exact) > 0
    assert len(exact) == 0


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("reject_at", REJECT_AT)
def test_the_least_overlap_is_the_minimum_over_all_partners(threshold: float, reject_at: RejectAt) -> None:
    rule = make_rule(threshold, reject_at)
    for length in range(60):
        needs = [need for other in range(500) if (need := min_lcs(length, other, threshold, reject_at)) is not None]
        assert least_overlap(rule, length) == min(needs, default=0)
