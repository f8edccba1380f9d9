"""Where the reasoning and the answer are in a model's text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.text import AnswerKind, answer_span, parse_json_object, reasoning_of, reasoning_span, unread_kind
from fastgen.types import Completion

DEFAULT = PRESETS["default"]
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"


def parts(text: str) -> tuple[str, str | None]:
    """The reasoning and the answer, as texts without blanks at their ends."""
    answer = answer_span(text)
    thought = reasoning_span(text)
    return (
        "" if thought is None else text[slice(*thought)],
        None if answer is None else text[slice(*answer)].strip(),
    )


@pytest.mark.parametrize(
    "text",
    [
        f"{ANALYSIS}Think.<|end|><|start|>assistant{FINAL}Yes.<|return|>",
        f"<|start|>assistant{ANALYSIS}Think.<|end|><|start|>assistant{FINAL}Yes.",
        f"\n{ANALYSIS}Think.<|end|>\n<|start|>assistant{FINAL}Yes.<|end|>",
        f"{ANALYSIS}Think.<|start|>assistant{FINAL}Yes.",
        f"{ANALYSIS}Think.{FINAL}Yes.",
        f"{ANALYSIS}Think.<|end|>Yes.",
        f"{ANALYSIS}Think.<|end|><|start|>assistant<|message|>Yes.<|return|>",
        f"{ANALYSIS}Think.<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>Yes.",
        f"Think.<|end|><|start|>assistant{FINAL}Yes.<|return|>",
        f"{ANALYSIS}Think.<|end|><|start|>assistant{FINAL}Yes.<|return|><|start|>assistant{ANALYSIS}More.",
        f"{ANALYSIS}Think.<|end|><|start|>assistant{FINAL}Yes.{ANALYSIS}More.",
        "analysisThink.assistantfinalYes.",
        "analysisThink. assistantfinalYes.",
        "Think.assistantfinalYes.",
        "<think>Think.</think>Yes.",
        "<think>\nThink.\n</think>\n\nYes.<|im_end|>",
        "[THINK]Think.[/THINK]Yes.</s>",
        "<seed:think>Think.</seed:think>Yes.",
        "Think.</think>Yes.",
        "Sure!\n<think>Think.</think>\nYes.",
        "<think>Think.</think>Yes.\n<think>More.</think>No.",
        "<think>Think.</think>Yes.\n<think>More and more",
    ],
)
def test_reasoning_and_answer_are_told_apart(text: str) -> None:
    assert parts(text) == ("Think.", "Yes.")
    assert reasoning_of(Completion(text, "stop")) == "Think."


@pytest.mark.parametrize(
    "text",
    [
        f"{ANALYSIS}Think.",
        f"{ANALYSIS}Think.<|end|>",
        f"{ANALYSIS}Think.<|end|><|start|>assistant",
        f"{ANALYSIS}Think.<|end|><|start|>assistant<|channel|>commentary",
        f"<|start|>assistant{ANALYSIS}Think.",
        "<think>Think.",
        "[THINK]Think.",
        "<think>Think. <think>",
    ],
)
def test_reasoning_that_never_ends_leaves_no_answer(text: str) -> None:
    thought, answer = parts(text)
    assert answer is None
    assert thought.startswith("Think.")
    assert unread_kind(text, "length") is AnswerKind.THINKING


@pytest.mark.parametrize("text", ["<|channel|>", "<|channel|>anal", ANALYSIS, "analysisWe need to", "<think>"])
def test_reasoning_that_was_cut_at_its_beginning_leaves_no_answer(text: str) -> None:
    assert answer_span(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "analysis of the data shows a rise.",
        "analysisResult = compute(x)",
        "Analysis: the answer is 4.",
        "The header is <|channel|>analysis<|message|>, and then comes the text.",
        "A <think> tag opens the reasoning, in a line.",
        "out = text.split('<think>')[0]",
        "Is it a list [1, 2] or <b>bold</b>?",
    ],
)
def test_a_text_about_such_marks_is_an_answer(text: str) -> None:
    assert reasoning_span(text) is None
    answer = answer_span(text)
    assert answer is not None
    assert answer[0] == 0


def test_an_answer_may_quote_a_closing_mark_within_a_line() -> None:
    text = "<think>Think.</think>Use `text.split('</think>')` for that."
    assert parts(text) == ("Think.", "Use `text.split('</think>')` for that.")


def test_commentary_and_several_blocks_belong_to_the_reasoning() -> None:
    commentary = "<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    text = f"{ANALYSIS}One.{commentary}<|start|>assistant{FINAL}Yes."
    assert parts(text)[1] == "Yes."
    assert reasoning_of(Completion(text, "stop")) == "One.{}"
    blocks = Completion("<think>One.</think>\n<think>Two.</think>\nYes.", "stop")
    assert reasoning_of(blocks) == "One.\nTwo."


def test_an_empty_block_is_no_reasoning() -> None:
    assert parts("<think>\n\n</think>\n\nYes.") == ("", "Yes.")


def test_reasoning_that_was_sent_apart_comes_first() -> None:
    assert reasoning_of(Completion("<think>Inner.</think>Yes.", "stop", reasoning="Outer.\n")) == "Outer."
    assert reasoning_of(Completion("Yes.", "stop")) == ""


def test_steps_read_the_final_message_only() -> None:
    thought = f"{ANALYSIS}1. Vary the verbs.\nOutput: no\n<|end|><|start|>assistant{FINAL}"
    items = instruction.parse(Completion(f"{thought}9. Write a haiku.<|return|>", "stop"), DEFAULT, first_number=9)
    assert [(item.text, item.rule) for item in items] == [("Write a haiku.", None)]
    assert classification.parse(Completion(f"{ANALYSIS}No?<|end|>{FINAL}Yes", "stop"), DEFAULT).value is True
    text = f"{thought}Output: A haiku."
    ((_, output),) = ((i.input, i.output) for i in instance.parse(Completion(text, "stop"), False, DEFAULT).instances)
    assert text[slice(*output)] == "A haiku."


def test_an_object_may_follow_reasoning_of_any_kind() -> None:
    for text in (
        f'{ANALYSIS}Hm {{}}<|end|>{FINAL}{{"a": 1}}<|return|>',
        '<think>{}</think>{"a": 1}',
        'hm</think>{"a": 1}',
    ):
        assert parse_json_object(text) == {"a": 1}
    assert parse_json_object('{"a": "x</think>\\n"}') == {"a": "x</think>\n"}
    assert parse_json_object(f'{ANALYSIS}{{"a": 1}}') is None


WORDS = st.text(st.sampled_from("ab .\n"), max_size=12)
SECRET = st.builds("{}secret{}".format, WORDS, WORDS)
MARKED = st.one_of(
    SECRET.map(f"{ANALYSIS}{{}}<|end|><|start|>assistant{FINAL}".format),
    SECRET.map(f"{ANALYSIS}{{}}{FINAL}".format),
    st.builds(
        f"{ANALYSIS}{{}}<|end|><|start|>assistant<|channel|>commentary<|message|>{{}}{FINAL}".format, SECRET, SECRET
    ),
    SECRET.map("analysis-{}assistantfinal".format),
    SECRET.map("<think>{}</think>".format),
    st.builds("<think>{}</think>\n<think>{}</think>".format, SECRET, SECRET),
    SECRET.map("{}</think>".format),
)
AFTER = st.one_of(st.just(""), SECRET.map("\n<think>{}".format), SECRET.map("\n<think>{}</think>x".format))


@given(MARKED, WORDS, AFTER)
def test_no_answer_holds_reasoning(marked: str, answer: str, after: str) -> None:
    text = f"{marked}x{answer}{after if '<think>' in marked else ''}"
    found = answer_span(text)
    assert found is not None
    assert "secret" not in text[slice(*found)]
    assert text[slice(*found)].strip() == f"x{answer}".strip()


PIECES = st.lists(
    st.sampled_from(
        [
            *("<think>", "</think>", "[THINK]", "[/THINK]", "\n", " ", "a", "```\n", "<|return|>"),
            *("<|channel|>", "analysis", "commentary", "final", "<|message|>", "<|end|>", "<|start|>", "assistant"),
            *("assistantfinal", "<|constrain|>", "analysisWe need"),
        ]
    )
).map("".join)


@given(st.text() | PIECES)
def test_spans_lie_in_the_text_and_the_answer_follows_the_reasoning(text: str) -> None:
    answer, thought = answer_span(text), reasoning_span(text)
    for start, end in filter(None, (answer, thought)):
        assert 0 <= start <= end <= len(text)
    if thought is not None:
        assert text[slice(*thought)] == text[slice(*thought)].strip() != ""
        assert answer is None or answer[0] >= thought[1]
    reasoning_of(Completion(text, None))
