"""Stage 2: the question, and what counts as a yes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.methods.self_instruct.classification import build_prompt, parse
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.types import Completion

DEFAULT, PAPER = PRESETS["default"], PRESETS["paper"]


YES = [
    *(" Yes", "yes", "YES", "Yes.", "**Yes**", "*Yes*.", '"Yes"', "- Yes", "\n\nYes\n", "Yes<|im_end|>"),
    *("Yes, because there are two labels.", "Answer: yes", "The answer is yes.", "The answer is: **Yes**"),
    *("Is it classification? Yes", "**Answer:** Yes", "Is it a classification task? Yes."),
    "<think>\nNo? It has labels.\n</think>\n\nYes",
    "It has two labels.\n\nYes.",
    "There are labels.\n\n**Yes**\n",
    "Yes\n\nTask: Write a poem.\nIs it classification? No",
]
NO = [
    *("", " No", "no.", "**No**", "Answer: no", "Is it classification? No", "Yesterday", "Y", "否"),
    *("The task asks for a poem.", "No, yes would be wrong.", "One may answer yes or no here", "Not classification"),
    *("<think>Yes, it seems", "<think>Yes</think>No", "It is not. The labels are yes and no."),
    "No\n\nTask: Sort it.\nIs it classification? Yes",
]


@pytest.mark.parametrize("answer", YES)
def test_a_yes_is_read_in_every_form(answer: str) -> None:
    assert parse(Completion(answer, "stop"), DEFAULT).value


@pytest.mark.parametrize("answer", NO)
def test_anything_else_is_a_no(answer: str) -> None:
    assert not parse(Completion(answer, "stop"), DEFAULT).value


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" Yes", True),
        ("yes\n", True),
        ("YES", True),
        ("Yes.", False),
        ("yEs", False),
        ("Answer: yes", False),
        ("No", False),
    ],
)
def test_the_paper_preset_takes_the_bare_word_only(answer: str, expected: bool) -> None:
    assert parse(Completion(answer, "length"), PAPER).value is expected


@settings(deadline=None)  # the time depends on what else the machine does
@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(["Yes", "no", "answer", " ", "\n", "?", "*", "<think>", ":"])).map("".join)
    )
)
def test_any_text_is_a_yes_or_a_no_and_a_bare_yes_is_one_in_both_styles(text: str) -> None:
    lenient, paper = (parse(Completion(text, None), rules).value for rules in (DEFAULT, PAPER))
    assert lenient or not paper


def test_the_prompt_ends_in_the_question_about_the_task() -> None:
    prompt = build_prompt(" Sort {x}. ", load_prompts("completions"))
    assert isinstance(prompt, str)
    assert prompt.endswith("\n\nTask: Sort {x}.\nIs it classification?")
    assert (prompt.count("classification? Yes\n"), prompt.count("classification? No\n")) == (12, 19)
