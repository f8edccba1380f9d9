"""The text that a model is tuned on, against the method's description."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.export.options import draw
from fastgen.export.rows import WITH_INPUT, WITHOUT_INPUT, plain_input, training_text
from fastgen.types import Instance

DRAWS = st.integers(0, 2**64 - 1)


def test_there_are_seven_templates_with_input_and_six_without_all_different() -> None:
    assert (len(set(WITH_INPUT)), len(set(WITHOUT_INPUT))) == (7, 6)
    for template in WITH_INPUT:
        assert template.index("{instruction}") < template.index("{input}")
    for template in WITH_INPUT + WITHOUT_INPUT:
        assert template.endswith(("Output:", "\n")), "the model can tell where its turn begins"


@given(st.text(min_size=1), st.text(), st.text(min_size=1), DRAWS)
def test_prompt_and_completion_hold_the_texts_and_a_space_follows_output_only(
    instruction: str, source: str, output: str, bits: int
) -> None:
    text = training_text(instruction, Instance(source, output), bits & ~1)
    assert instruction.strip() in text.prompt
    assert source.strip() in text.prompt
    assert text.completion == (" " if text.prompt.endswith("Output:") else "") + output.strip()


def test_text_with_braces_is_not_taken_for_a_template() -> None:
    text = training_text("Fill {input} and {0}", Instance("{instruction}", "{output}"), 0)
    assert text.prompt == "Fill {input} and {0}\nInput: {instruction}\nOutput:"
    assert text.completion == " {output}"


@pytest.mark.parametrize(("source", "templates"), [("Text: a", WITH_INPUT), ("", WITHOUT_INPUT)])
def test_every_template_is_drawn_equally_often_with_and_without_plain_input(
    source: str, templates: tuple[str, ...]
) -> None:
    seen: Counter[tuple[str, bool]] = Counter()
    for number in range(14_000):
        bits = draw(0, "template", f"machine_{number} 0")
        seen[training_text("Do it", Instance(source, "x"), bits).prompt, bool(bits & 1)] += 1
    expected = 14_000 / (2 * len(templates))
    assert len(seen) == 2 * len(templates)
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 40, "chi-squared, 13 degrees of freedom"


@pytest.mark.parametrize(
    ("source", "lenient", "paper"),
    [
        ("Sentence: It rains.", "It rains.", "It rains."),
        ("Sentence: One.\n\nSentence: Two.", "One.\nSentence: Two.", "One.\nSentence: Two."),
        ("Name: Ada\nAge: 36", "Name: Ada\nAge: 36", "Name: Ada\nAge: 36"),
        ("a\n\nb\n\n\n\nc", "a\nb\n\nc", "a\nb\n\nc"),
        ("Meet me at 12:30", "Meet me at 12:30", "30"),
        ("https://example.org/page", "https://example.org/page", "//example.org/page"),
        ("Wind speed: 3 m/s", "3 m/s", "3 m/s"),
        ("Text:", "", ""),
        ("Texto:\n¿Qué?", "¿Qué?", "¿Qué?"),
        ("no name", "no name", "no name"),
    ],
)
def test_a_single_field_name_goes_and_blank_lines_are_halved(source: str, lenient: str, paper: str) -> None:
    assert (plain_input(source), plain_input(source, "paper")) == (lenient, paper)


@given(DRAWS)
def test_only_half_of_the_draws_change_the_input(bits: int) -> None:
    prompt = training_text("Do it", Instance("Text: a\n\nb", "x"), bits).prompt
    assert ("Text: a\n\nb" in prompt) == (bits & 1 == 0)
    assert ("a\nb" in prompt) == (bits & 1 == 1)


def test_an_input_that_is_nothing_but_a_name_leaves_a_template_without_input() -> None:
    assert training_text("Do it", Instance("Text:", "x"), 1).prompt == "Do it Output:"
