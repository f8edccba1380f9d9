"""The worked example of a user's own method: sixty lines that declare one, and that read what models write."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.methods.base import Answered, Context, Draw, Labelled, Method, Rejected, Setup, Subject
from fastgen.types import Completion, Message, Request

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"


class NoPool:
    seeds = kept = 0

    def text(self, index: int) -> str:
        raise IndexError(index)

    def depth(self, index: int) -> int:
        raise IndexError(index)


def build(setup: Setup) -> Method:
    spec = importlib.util.spec_from_file_location("own_method", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    method = module.build(setup)
    assert isinstance(method, Method)
    return method


METHOD = build(Setup(api="chat"))
RATING, ANSWER = METHOD.steps
QUESTION = "A train needs two hours for 180 km. How long does it need for 45 km?"


def draw(number: int) -> Draw:
    return Draw(number, 0, NoPool(), lambda _count, _machine: ())


def test_it_has_at_most_sixty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_it_declares_a_creation_and_two_steps() -> None:
    method = build(Setup(check=lambda text: text or None, seed=7))
    assert (method.name, method.step_names, method.seed) == ("exam", ("instruction", "difficulty", "answer"), 7)
    assert method.check("x") == "x"


def test_questions_are_about_a_topic_that_the_request_draws_and_records() -> None:
    asked = [METHOD.creation.ask(draw(number)) for number in range(30)]
    assert asked == [METHOD.creation.ask(draw(number)) for number in range(30)]
    topics = {(one.drawn or {})["topic"] for one in asked if one is not None}
    assert len(topics) == 5
    own = build(Setup(context=Context(topics=["bees"]))).creation.ask(draw(0))
    assert own is not None
    assert own.drawn == {"topic": "bees"}
    assert isinstance(own.prompt[0], Message)
    assert "about bees." in own.prompt[0].content


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (f"\n{QUESTION}\n", "stop", [(QUESTION, None)]),
        (f"<think>trains</think>{QUESTION}<|im_end|>", "stop", [(QUESTION, None)]),
        (QUESTION[:20], "length", [(QUESTION[:20].strip(), "unfinished")]),
        ("", "stop", []),
        ("<think>trains", "length", []),
    ],
)
def test_a_completion_is_a_question(text: str, finish: str, expected: list[tuple[str, str | None]]) -> None:
    items = METHOD.creation.read(Completion(text, finish), Request(0, "question", "", METHOD.creation.sampling))
    assert [(item.text, item.rule) for item in items] == expected
    assert [METHOD.item_text(text, item.span) for item in items] == [item.text for item in items]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", Rejected("too_easy", 1)),
        ("4", Labelled(4)),
        ("**Difficulty: 3**", Labelled(3)),
        ("<think>1 or 2?</think>2", Labelled(2)),
        ("hard", Labelled(3, "no_digit")),
        ("", Labelled(3, "no_digit")),
    ],
)
def test_easy_questions_end_at_their_rating(text: str, expected: Labelled | Rejected) -> None:
    assert RATING.read(Completion(text, "stop"), Subject(0, QUESTION)) == expected


def test_the_answer_is_asked_as_the_question_itself_and_taken_whole() -> None:
    subject = Subject(0, QUESTION)
    assert ANSWER.ask(subject).prompt == (Message("user", QUESTION),)
    assert ANSWER.read(Completion(" Half an hour.\n", "stop"), subject) == Answered((((0, 0), (1, 14)),))
    assert ANSWER.read(Completion("Half an", "length"), subject) == Answered((), ("unfinished",))
    assert ANSWER.read(Completion("", "stop"), subject) == Answered((), ("unfinished",))


@given(st.text(), st.sampled_from(["stop", "length", None]))
def test_any_text_can_be_read(text: str, finish: str | None) -> None:
    completion, subject = Completion(text, finish), Subject(0, QUESTION)
    METHOD.creation.read(completion, Request(0, "question", "", METHOD.creation.sampling))
    assert isinstance(RATING.read(completion, subject), Labelled | Rejected)
    assert isinstance(ANSWER.read(completion, subject), Answered)
