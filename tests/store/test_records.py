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
    Continued,
    Created,
    Ended,
    Kept,
    Labelled,
    Outcome,
    Rejected,
    Rejection,
    ends_by,
)
from fastgen.store.records import decode, encode
from fastgen.types import MOST_TOKENS, Completion, Failure

NUMBER = st.integers(0, 2**40)
TOKENS = st.integers(0, MOST_TOKENS)
SPAN = st.tuples(NUMBER, NUMBER)
NEIGHBOUR = st.tuples(NUMBER, st.integers(0, 1000).map(lambda s: s / 1000))
KEPT = st.tuples(SPAN, st.none() | NEIGHBOUR, st.lists(NEIGHBOUR, max_size=3).map(tuple), st.none() | SPAN)


def numbered(first: int, kept: list[tuple[Any, ...]]) -> tuple[Kept, ...]:
    return tuple(Kept(span, first + i, seed, checked, given) for i, (span, seed, checked, given) in enumerate(kept))


REJECTION = st.builds(Rejection, SPAN, st.sampled_from(["too_short", "similar"]), st.none() | NEIGHBOUR)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LABEL = st.booleans() | st.integers(-5, 10) | TEXT
OUTCOMES: dict[str, st.SearchStrategy[Any]] = {
    "instruction": st.builds(Created, st.builds(numbered, NUMBER, st.lists(KEPT)), st.lists(REJECTION).map(tuple)),
    "classification": st.builds(Labelled, st.booleans(), st.none() | st.just("no_answer")),
    "instance": st.builds(Answered, st.lists(st.tuples(SPAN, SPAN)).map(tuple), st.lists(TEXT).map(tuple)),
    "grade": st.builds(Labelled, LABEL, st.none() | st.just("no_grade")),
    "verdict": st.builds(Rejected, TEXT, st.none() | LABEL),
    "followup": st.builds(Continued, SPAN),
}


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    stage = draw(st.sampled_from([*OUTCOMES]))
    outcome: Outcome = draw(OUTCOMES[stage] | st.builds(Failure, TEXT, TEXT, st.booleans()))
    completion = Completion(draw(TEXT), draw(st.none() | st.just("stop")), draw(TOKENS), draw(TOKENS), draw(TEXT))
    subject = None if stage == "instruction" else draw(NUMBER)
    demonstrations = tuple(draw(st.lists(NUMBER, max_size=8))) if stage == "instruction" else ()
    time_s = draw(st.integers(0, 10**12)) / 100
    drawn = draw(st.none() | st.dictionaries(TEXT, TEXT, min_size=1)) if stage == "instruction" else None
    ended: Ended = draw(st.sampled_from(("complete", "empty", "")))
    return Commit(
        *(draw(NUMBER), draw(NUMBER), stage, subject, demonstrations, completion, outcome, time_s),
        shown=draw(st.none() | st.integers(0, 9)),
        drawn=drawn,
        end=None if ended == ends_by(outcome) else ended,
    )


@given(commits())
def test_decoding_what_was_encoded_gives_the_same_commit(commit: Commit) -> None:
    assert decode(orjson.loads(orjson.dumps(encode(commit)))) == commit


def test_only_a_completion_with_reasoning_has_it_in_its_line() -> None:
    silent = Commit(1, 0, "classification", 0, (), Completion("No", "stop", 5, 1), Labelled(False), 1.0)
    assert "reasoning" not in encode(silent)
    thought = silent._replace(completion=Completion("No", "stop", 5, 1, "It is open-ended."))
    assert encode(thought) == encode(silent) | {"reasoning": "It is open-ended."}


SAMPLES: list[tuple[Commit, dict[str, Any]]] = [
    (
        Commit(
            *(7, 1, "instruction", None, (3,), Completion("One. Two: x", "stop", 9, 5)),
            Created((Kept((0, 4), 12, None, ()), Kept((5, 9), 13, (2, 0.25), ((4, 0.5),), (10, 11))), ()),
            *(1.25, None, {"topic": "rivers"}),
        ),
        {"demos": [3], "drawn": {"topic": "rivers"}, "first": 12, "inputs": [None, [10, 11]], "rejected": []}
        | {"kept": [[0, 4, None, None], [5, 9, 2, 0.25, 4, 0.5]]},
    ),
    (
        Commit(*(8, 0, "grade", 12, (), Completion("4", "stop", 9, 1), Labelled(4), 1.25)),
        {"subject": 12, "label": 4},
    ),
    (
        Commit(*(8, 0, "grade", 12, (), Completion("good", "stop", 9, 1), Labelled("fair", "no_grade"), 1.25)),
        {"subject": 12, "label": "fair", "unread": "no_grade"},
    ),
    (
        Commit(*(8, 0, "grade", 12, (), Completion("1", "stop", 9, 1), Rejected("low_grade", 1), 1.25)),
        {"subject": 12, "rejected_by": "low_grade", "label": 1},
    ),
    (
        Commit(*(9, 0, "followup", 12, (), Completion(" no", "stop", 9, 1), Rejected("none"), 1.25), end="complete"),
        {"subject": 12, "rejected_by": "none", "ended": "complete"},
    ),
    (
        Commit(*(9, 0, "followup", 12, (), Completion(" So?", "stop", 9, 1), Continued((1, 4)), 1.25)),
        {"subject": 12, "message": [1, 4]},
    ),
    (
        Commit(*(9, 0, "answer", 12, (), Completion("So.", "stop", 9, 1), Answered((((0, 0), (0, 3)),)), 1.25), end=""),
        {"subject": 12, "instances": [[0, 0, 0, 3]], "rejected": [], "ended": ""},
    ),
    (
        Commit(*(9, 0, "score", 12, (), Completion("5", "stop", 9, 1), Labelled(True), 1.25), end="complete"),
        {"subject": 12, "is_classification": True, "ended": "complete"},
    ),
    (
        Commit(*(9, 0, "reply", 12, (), Completion("", None), Failure("http_500", "down", True), 1.25), end="complete"),
        {"subject": 12, "failed": "http_500", "detail": "down", "settles": True, "ended": "complete"},
    ),
]


@pytest.mark.parametrize(("commit", "line"), SAMPLES)
def test_a_line_has_these_keys_and_is_read_back(commit: Commit, line: dict[str, Any]) -> None:
    written = orjson.loads(orjson.dumps(encode(commit)))
    completion = commit.completion
    usual = {"req": commit.request, "choice": commit.choice, "stage": commit.step, "t": 1.25, "text": completion.text}
    usual |= {"finish": completion.finish_reason, "tokens": [completion.prompt_tokens, completion.completion_tokens]}
    assert written == usual | line
    read = decode(written)
    assert read == commit
    assert read.ended == commit.ended


EARLIER: list[tuple[str, Outcome, Ended]] = [
    (
        (
            '{"req":0,"choice":0,"stage":"instruction","t":1.0,"demos":[1,2],"text":" One.","finish":"stop",'
            '"tokens":[9,2],"first":0,"kept":[[1,5,1,0.25,1,0.25]],"rejected":[[1,5,"similar",0.8,2]]}'
        ),
        Created((Kept((1, 5), 0, (1, 0.25), ((1, 0.25),)),), (Rejection((1, 5), "similar", (2, 0.8)),)),
        "",
    ),
    (
        (
            '{"req":1,"choice":0,"stage":"classification","t":1.0,"subject":0,"text":"x","finish":"stop",'
            '"tokens":[9,1],"is_classification":false,"unread":"no_answer"}'
        ),
        Labelled(False, "no_answer"),
        "",
    ),
    (
        (
            '{"req":2,"choice":0,"stage":"instance","t":1.0,"subject":0,"text":"Output: x","finish":"stop",'
            '"tokens":[9,3],"instances":[[0,0,8,9]],"rejected":[]}'
        ),
        Answered((((0, 0), (8, 9)),)),
        "complete",
    ),
    (
        (
            '{"req":3,"choice":0,"stage":"instance","t":1.0,"subject":1,"text":"no","finish":"stop",'
            '"tokens":[9,3],"instances":[],"rejected":["no_instance"]}'
        ),
        Answered((), ("no_instance",)),
        "empty",
    ),
    (
        (
            '{"req":4,"choice":0,"stage":"instance","t":1.0,"subject":2,"text":"","finish":null,'
            '"tokens":[0,0],"failed":"http_500","detail":"down","settles":true}'
        ),
        Failure("http_500", "down", True),
        "empty",
    ),
    (
        (
            '{"req":5,"choice":0,"stage":"instance","t":1.0,"subject":2,"text":"","finish":null,'
            '"tokens":[0,0],"failed":"http_500","detail":"down","settles":false}'
        ),
        Failure("http_500", "down"),
        "",
    ),
]


@pytest.mark.parametrize(("line", "outcome", "ended"), EARLIER)
def test_lines_of_earlier_versions_mean_the_same_and_are_written_the_same(
    line: str, outcome: Outcome, ended: Ended
) -> None:
    commit = decode(orjson.loads(line))
    assert (commit.outcome, commit.ended) == (outcome, ended)
    assert orjson.dumps(encode(commit)).decode() == line


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
