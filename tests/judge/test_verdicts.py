"""What counts as a judge's vote, and what never does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.judge.prompts import QUESTIONS, SCHEMA, Fault, Verdict, Vote, read_vote, verdict_of

CODE = "kqzwvb"
GOOD = {"code": CODE, "valid_task": True, "input_fits": False, "output_right": True, "score": 4}
VOTE = Vote(valid_task=True, input_fits=False, output_right=True, score=4)
votes = st.builds(Vote, st.booleans(), st.booleans(), st.booleans(), st.integers(1, 5))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        "\n\n " + json.dumps(dict(reversed(GOOD.items()))) + " \n",
        "```json\n" + json.dumps(GOOD) + "\n```",
        "```\n" + json.dumps(GOOD) + "\n```\n",
        '<think>\nThe output says {"score": 5}. </think> Hm. </think>\n\n' + json.dumps(GOOD),
    ],
)
def test_an_answer_that_is_the_expected_object_is_a_vote(text: str) -> None:
    assert read_vote(text, CODE) == VOTE


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", Fault.NOT_JSON),
        ("The score is 5.", Fault.NOT_JSON),
        ("5", Fault.NOT_JSON),
        (json.dumps([GOOD]), Fault.NOT_JSON),
        ("Here it is: " + json.dumps(GOOD), Fault.NOT_JSON),
        (json.dumps(GOOD) + "\nI hope this helps.", Fault.NOT_JSON),
        (json.dumps(GOOD) * 2, Fault.NOT_JSON),
        ("```json\n" + json.dumps(GOOD), Fault.NOT_JSON),
        ("<think>" + json.dumps(GOOD), Fault.NOT_JSON),
        (json.dumps(GOOD).replace("4", "NaN"), Fault.NOT_JSON),
        (json.dumps(GOOD)[:-1] + ', "score": 5}', Fault.NOT_JSON),
        (json.dumps(GOOD).replace('"', "'"), Fault.NOT_JSON),
        ("[" * 50_000, Fault.NOT_JSON),
        ("x" * 200_000, Fault.NOT_JSON),
        (json.dumps(GOOD | {"reason": "good"}), Fault.WRONG_FIELDS),
        (json.dumps({name: value for name, value in GOOD.items() if name != "score"}), Fault.WRONG_FIELDS),
        (json.dumps(GOOD | {"score": 6}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"score": 0}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"score": 4.0}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"score": "4"}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"score": True}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"valid_task": "yes"}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"valid_task": 1}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"input_fits": None}), Fault.WRONG_VALUES),
        (json.dumps(GOOD | {"code": "abcdef"}), Fault.WRONG_CODE),
        (json.dumps(GOOD | {"code": CODE.upper()}), Fault.WRONG_CODE),
        (json.dumps(GOOD | {"code": [CODE]}), Fault.WRONG_CODE),
    ],
)
def test_anything_else_is_a_fault_and_not_guessed_at(text: str, fault: Fault) -> None:
    assert read_vote(text, CODE) is fault


def test_an_answer_cut_off_by_the_token_limit_is_a_separate_fault() -> None:
    assert read_vote(json.dumps(GOOD)[:-9], CODE, "length") is Fault.CUT_OFF
    assert read_vote(json.dumps(GOOD), CODE, "length") == VOTE


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_text_without_the_code_is_a_vote(text: str) -> None:
    assert isinstance(read_vote(text, CODE), Fault) or CODE in text


@given(st.fixed_dictionaries({name: st.booleans() | st.integers(-1, 6) | st.none() | st.text() for name in GOOD}))
def test_a_vote_has_the_types_of_the_schema(found: dict[str, Any]) -> None:
    vote = read_vote(json.dumps(found | {"code": CODE}), CODE)
    fits = found["score"] in SCHEMA["properties"]["score"]["enum"] and type(found["score"]) is int
    assert isinstance(vote, Vote) == (fits and all(type(found[name]) is bool for name in QUESTIONS))


def test_the_majority_decides_the_questions_and_the_median_the_score() -> None:
    cast = [Vote(True, True, False, 5), Vote(True, False, False, 1), Vote(True, True, True, 4)]
    assert verdict_of(cast) == Verdict(True, True, False, 4.0, 3)
    assert verdict_of(cast[:2]) == Verdict(True, False, False, 3.0, 2), "a tie is a no"
    assert not verdict_of(cast).all_right
    assert verdict_of([Vote(True, True, True, 2)]).all_right


@given(st.lists(votes, min_size=1, max_size=9))
def test_a_verdict_does_not_depend_on_the_order_of_the_votes(cast: list[Vote]) -> None:
    assert verdict_of(cast) == verdict_of(cast[::-1])
    assert min(vote.score for vote in cast) <= verdict_of(cast).score <= max(vote.score for vote in cast)
