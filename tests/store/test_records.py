"""Commits survive the log unchanged, apart from the rounding of scores."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.methods.base import (
    Answered,
    Commit,
    Created,
    Kept,
    Labelled,
    Outcome,
    Rejection,
)
from fastgen.store.records import decode, encode
from fastgen.types import MOST_TOKENS, Completion, Failure

NUMBER = st.integers(0, 2**40)
TOKENS = st.integers(0, MOST_TOKENS)
SPAN = st.tuples(NUMBER, NUMBER)
NEIGHBOUR = st.tuples(NUMBER, st.integers(0, 1000).map(lambda s: s / 1000))
KEPT = st.tuples(SPAN, st.none() | NEIGHBOUR, st.lists(NEIGHBOUR, max_size=3).map(tuple))


def numbered(first: int, kept: list[tuple[Any, ...]]) -> tuple[Kept, ...]:
    return tuple(Kept(span, first + i, seed, checked) for i, (span, seed, checked) in enumerate(kept))


REJECTION = st.builds(Rejection, SPAN, st.sampled_from(["too_short", "similar"]), st.none() | NEIGHBOUR)
OUTCOMES: dict[str, st.SearchStrategy[Any]] = {
    "instruction": st.builds(Created, st.builds(numbered, NUMBER, st.lists(KEPT)), st.lists(REJECTION).map(tuple)),
    "classification": st.builds(Labelled, st.booleans(), st.none() | st.just("no_answer")),
    "instance": st.builds(Answered, st.lists(st.tuples(SPAN, SPAN)).map(tuple), st.lists(st.text()).map(tuple)),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    stage = draw(st.sampled_from([*OUTCOMES]))
    outcome: Outcome = draw(OUTCOMES[stage] | st.builds(Failure, TEXT, TEXT, st.booleans()))
    completion = Completion(draw(TEXT), draw(st.none() | st.just("stop")), draw(TOKENS), draw(TOKENS), draw(TEXT))
    subject = None if stage == "instruction" else draw(NUMBER)
    demonstrations = tuple(draw(st.lists(NUMBER, max_size=8))) if stage == "instruction" else ()
    time_s = draw(st.integers(0, 10**12)) / 100
    return Commit(draw(NUMBER), draw(NUMBER), stage, subject, demonstrations, completion, outcome, time_s)


@given(commits())
def test_decoding_what_was_encoded_gives_the_same_commit(commit: Commit) -> None:
    assert decode(orjson.loads(orjson.dumps(encode(commit)))) == commit


def test_only_a_completion_with_reasoning_has_it_in_its_line() -> None:
    silent = Commit(1, 0, "classification", 0, (), Completion("No", "stop", 5, 1), Labelled(False), 1.0)
    assert "reasoning" not in encode(silent)
    thought = silent._replace(completion=Completion("No", "stop", 5, 1, "It is open-ended."))
    assert encode(thought) == encode(silent) | {"reasoning": "It is open-ended."}


def test_a_full_completion_takes_at_most_500_bytes_beyond_its_text_and_spans_replace_copies() -> None:
    text = "x" * 700
    near = ((1_000_123, 0.4567),)
    kept = tuple(Kept((100 * i, 100 * i + 80), 1_000_000 + i, (170, 0.4444), near) for i in range(6))
    rejected = tuple(Rejection((100 * i, 100 * i + 80), "similar", (1_000_123, 0.7777)) for i in range(6, 8))
    commit = Commit(
        *(987_654, 0, "instruction", None, (1, 17, 33, 100, 120, 174, 1_000_001, 999_999)),
        Completion(text, "stop", 400, 150),
        Created(kept, rejected),
        1_800_000_000.12,
    )
    line = orjson.dumps({"crc": "01234567", **encode(commit)})
    assert len(line) - len(text) <= 500


@pytest.mark.parametrize("line", [{}, {"req": 1}, {"req": 0, "choice": 0, "stage": "x", "tokens": [0, 0]}])
def test_what_is_no_commit_is_refused(line: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        decode(line)
