"""The public class: decisions, numbering, and an import that stays light."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest

import fastgen
from fastgen.dedup import deduplicator
from fastgen.dedup.deduplicator import Decision, Deduplicator
from fastgen.errors import InputError
from fastgen.similarity.novelty import IndexKind, NoveltyFilter
from tests.dedup_data import make_texts


@pytest.mark.parametrize("index", get_args(IndexKind))
def test_decisions_are_those_of_the_filter_one_at_a_time_with_neighbours_by_number(index: IndexKind) -> None:
    pool, texts = make_texts(50, seed=5), make_texts(1000)
    novelty, ours = NoveltyFilter(index=index), Deduplicator(index=index)
    novelty.add(pool)
    ours.add(iter(pool))
    numbers = list(range(50))
    expected = []
    for number, text in enumerate(texts, start=50):
        verdict = novelty.filter([text])[0]
        if verdict.novel:
            numbers.append(number)
        neighbour = None if verdict.neighbour is None else numbers[verdict.neighbour]
        expected.append(Decision(number, text, verdict.novel, verdict.score, neighbour))
    assert list(ours.filter(texts)) == expected
    assert len(ours) == len(numbers)
    assert 100 < sum(not decision.kept for decision in expected) < 500


def test_texts_may_come_in_several_calls_and_pools_in_between() -> None:
    ours = Deduplicator(index="exhaustive")
    assert [d.kept for d in ours.filter(["one two three", "four five six"])] == [True, True]
    ours.add(["seven eight nine"])
    decisions = list(ours.filter(["Seven eight nine!", "four five six"]))
    assert [(d.number, d.kept, d.neighbour, d.rouge_l) for d in decisions] == [(3, False, 2, 1.0), (4, False, 1, 1.0)]


def test_an_endless_stream_is_filtered_as_it_comes() -> None:
    def endless() -> Iterator[str]:
        number = 0
        while True:
            yield f"a{number} b{number} c{number}"
            number += 1

    stream = Deduplicator(index="exhaustive").filter(endless())
    assert [next(stream).number for _ in range(300)] == list(range(300))


def test_an_element_that_is_no_text_is_refused_by_its_place() -> None:
    ours = Deduplicator(index="exhaustive")
    odd: Any = ["fine", 7]
    for texts, words in (("a single text", "put it in a list"), (odd, "text 1: found a number")):
        for call in (ours.add, lambda texts: list(ours.filter(texts))):
            with pytest.raises(InputError, match=words):
                call(texts)
    assert len(ours) == 0
    with pytest.raises(InputError, match="threshold"):
        Deduplicator(threshold=0)


def test_the_examples_in_the_documentation_are_true() -> None:
    result = doctest.testmod(deduplicator)
    assert result.attempted >= 5
    assert result.failed == 0


def test_importing_fastgen_loads_nothing_and_the_names_are_there() -> None:
    script = (
        "import sys, fastgen\n"
        "assert not {'numpy', 'numba', 'orjson', 'fastgen.similarity.novelty'} & set(sys.modules)\n"
        "from fastgen import Deduplicator, Decision\n"
        "assert Deduplicator.__module__ == Decision.__module__ == 'fastgen.dedup.deduplicator'\n"
        "assert not {'numba', 'pyarrow', 'zstandard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert all(hasattr(fastgen, name) for name in fastgen.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastgen.nothing  # noqa: B018 - the access is the test
