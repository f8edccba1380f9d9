"""Signatures are datasketch's, no rejection is wrong, and misses stay within the stated probability."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from fastgen.errors import InputError
from fastgen.similarity.bands import Bands, choose_bands, jaccard_bound
from fastgen.similarity.exhaustive import ExhaustiveIndex
from fastgen.similarity.lsh import SCHEME, SEED, LshIndex, datasketch_permutations, signatures
from fastgen.similarity.rouge import rouge_l_f1
from tests.similarity.test_exact import stream


def elements(tokens: list[str]) -> list[bytes]:
    """Occurrence-tagged tokens, as the documentation of the signature states them."""
    seen: Counter[str] = Counter()
    tagged = []
    for token in tokens:
        seen[token] += 1
        tagged.append(f"{token}\x00{seen[token]}".encode() if seen[token] > 1 else token.encode())
    return tagged


def datasketch_of(text: bytes, permutations: int) -> MinHash:
    sketch = MinHash(num_perm=permutations, seed=SEED, scheme=SCHEME)
    sketch.update_batch(elements(text.decode().split()))
    return sketch


def test_signatures_are_datasketchs_value_for_value() -> None:
    texts = [*stream(1, 300, words=40, longest=30), b"", b"one", b"a " * 130, "für ไ 翻 訳".encode(), b"x" * 200]
    mine = signatures(texts, 256)
    for row, text in zip(mine, texts, strict=True):
        assert np.array_equal(row, datasketch_of(text, 256).hashvalues)
    assert mine.dtype == np.uint32


def test_fewer_permutations_are_datasketchs_too() -> None:
    multiplier, increment = datasketch_permutations(128)
    expected = MinHash(num_perm=128, seed=SEED, scheme=SCHEME).permutations
    assert np.array_equal(np.array([multiplier, increment]), np.asarray(expected))


def test_candidates_are_those_of_datasketchs_own_index() -> None:
    texts = list(dict.fromkeys(stream(2, 400, words=60, longest=14)))
    pool, queries = texts[:300], texts[300:]
    theirs = MinHashLSH(num_perm=20, params=(10, 2))
    for number, text in enumerate(pool):
        theirs.insert(number, datasketch_of(text, 20))
    index = LshIndex(0.5, "gt", Bands(10, 2, 0.5))
    index.add(pool)
    found = index.decide(queries)
    for text, met in zip(queries, found.entry, strict=True):
        candidates = set(theirs.query(datasketch_of(text, 20)))
        assert {entry for entry in met.tolist() if 0 <= entry < len(pool)} <= candidates


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.5, 0.6, 0.7, 0.85])
def test_no_rejection_is_wrong_and_misses_stay_within_the_stated_probability(threshold: float) -> None:
    pool = stream(3, 6000, words=400, longest=18)
    queries = stream(4, 6000, words=400, longest=18, copies=0.5)
    oracle, bands = ExhaustiveIndex(threshold, "gt"), choose_bands(threshold, 0.9998)
    oracle.add(pool)
    index = LshIndex(threshold, "gt", bands)
    index.add(pool)
    true, mine = oracle.look_up(queries), index.look_up(queries)
    tokens = [text.decode().split() for text in pool]
    for query, novel, entry, score in zip(queries, mine.novel, mine.entry, mine.score, strict=True):
        if not novel:
            assert score[0] == rouge_l_f1(tokens[entry[0]], query.decode().split()) > threshold
    duplicates = int(np.count_nonzero(true.novel == 0))
    missed = int(np.count_nonzero((true.novel == 0) & (mine.novel == 1)))
    assert duplicates > 150
    # Every duplicate at the very bound would be the worst case; this stream is not far from it.
    assert missed <= duplicates * (1 - bands.at_bound) + 3


def test_few_bands_do_miss_so_that_the_test_above_can_fail() -> None:
    pool = stream(3, 3000, words=400, longest=18)
    queries = stream(4, 2000, words=400, longest=18)
    oracle, index = ExhaustiveIndex(0.7, "gt"), LshIndex(0.7, "gt", Bands(14, 9, 0.7))
    oracle.add(pool)
    index.add(pool)
    true, mine = oracle.look_up(queries), index.look_up(queries)
    assert np.count_nonzero((true.novel == 0) & (mine.novel == 1)) > 0.05 * np.count_nonzero(true.novel == 0)


def test_the_probability_is_the_banding_formula() -> None:
    bands = Bands(32, 4, 0.7)
    assert jaccard_bound(0.7) == pytest.approx(0.5385, abs=1e-4)
    assert bands.at_bound == pytest.approx(0.94, abs=0.005)
    assert Bands(14, 9, 0.7).at_bound == pytest.approx(0.05, abs=0.005)
    assert bands.probability(1.0) == 1.0


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("recall", [0.9, 0.99, 0.9998])
def test_the_chosen_bands_reach_the_recall_and_not_with_one_band_to_spare(threshold: float, recall: float) -> None:
    bands = choose_bands(threshold, recall)
    assert bands.recall >= recall
    assert bands.bands == 1 or Bands(bands.bands - 1, bands.rows, threshold).recall < recall


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.45])
def test_below_the_measured_thresholds_the_recall_is_that_of_the_worst_case(threshold: float) -> None:
    bands = choose_bands(threshold, 0.9998)
    assert bands.recall == bands.at_bound >= 0.9998


def test_a_recall_that_no_bands_can_promise_is_refused() -> None:
    with pytest.raises(InputError, match=r"LSH recall 1\.0"):
        choose_bands(0.7, 1.0)
