"""Texts made to hold a parser up: half a megabyte of what makes a careless pattern try everything twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastgen.methods.backtranslate import find_score, read_instruction
from fastgen.methods.base import Subject
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.media import asks_for_media
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.self_instruct_chat import read_answer, read_tasks
from fastgen.text import CHARACTERS_PER_TOKEN, SHORTEST_BOUND, bounded
from fastgen.types import Completion

CHARACTERS = 480_000
TIMEOUT_S = 120  # for all of them together; linear parsers need seconds, quadratic ones minutes for each text
HOSTILE = [  # what comes first, what comes again and again, what comes last
    ("", "- ", "Output:"),
    ("", "a: ", "\nOutput: a"),
    ("", "* ", ":"),
    ("Output", " ", "x"),
    ("Output", "\n", "x"),
    ("Input: a\nOutput: b\nInput", "\t", ""),
    ("Output: a\n\nlet me know if you need ", "more ", "\nx"),
    ("Output: a", "\n\nlet me know if you need more", "\nx"),
    ("Output: a", "\n \n", "x"),
    ("Example 1\n", "A: b\n", ""),
    ("", "\nExample 1\nA b c ", ":"),
    ("Class label: a\n", "Input ", ":"),
    ("", "Class label: a\nExplanation: ", "b"),
    ("Question 1: a\n", "Question 2: b ", "\n10. c"),
    ("1. a", " 2. b", ""),
    ("**", "a:", "**"),
    ("", "**a** ", "**"),
    ("", "```\n", "x"),
    ("{", '"a": "b", ', "}"),
    ("", '["', "]"),
    ("| a |\n", "|-", "|\n| b |"),
    ("<think>", "</think><think>", "yes"),
    ("<think>a</think>", " \n<think>", "yes"),
    ("", "</think> \n", "yes"),
    ("<|channel|>analysis<|message|>", "<|end|> ", "yes"),
    ("<|channel|>", "analysis<|channel|>", "final<|message|>yes"),
    ("<|channel|>analysis", "<|start|>assistant ", ""),
    ("analysis", "assistant ", "assistantfinalyes"),
    ("answer", " ", "yes"),
    ("answer: ", "*", "no"),
    ("1", "0", ". a"),
]
INSTRUCTION_CHARACTERS = 120_000  # of an instruction, which is read no further than --max-characters by default
HOSTILE_REQUESTS = [
    ("Create ", "a ", "picture"),
    ("draw ", "draw the ", "line"),
    ("", "the following ", "file"),
    ("创建", "一个", "图片"),
    ("Dessine ", "une ", "image"),
    ("What is ", "in the picture shown ", "to"),
    ("图片 그림 चित्र ", "https://", "的"),
    ("사진 ", "http://a!", "의"),
    ("इस ", "चित्र को ", "देख"),
    ("", "ดูภาพ", "นี้"),
    ("1", "0", ". a"),
    ("Task 9: a\nInput:\n", "# a\n", ""),
    ("", "Task 9: a\n\n**b**\n\n", "c"),
    ("9. Sing.", " 10. Sing.", ""),
    ("Task 9: a\nInput: ```\n", "1. a\n\n", "```"),
    ("Write an article in the article ", "in the article ", "."),
    ("score:", "\n", "x"),
    ("", "score: 4 / ", "x"),
    ("Sure, ", "please ", "provide the text"),
]


def text_of(first: str, again: str, last: str, characters: int = CHARACTERS) -> str:
    return first + again * (characters // len(again)) + last


def read_everything(text: str) -> None:
    for rules in PRESETS.values():
        completion = Completion(text, "stop")
        instruction.parse(completion, rules, first_number=9)
        classification.parse(completion, rules)
        for is_classification in (False, True):
            instance.parse(completion, is_classification, rules)
        check_instruction(text, rules)
    read_tasks(completion, first_number=9)
    read_answer(completion, Subject(0, "Do as I say."))
    read_instruction(completion, text)
    find_score(text)


def test_half_a_megabyte_of_anything_is_read_in_linear_time() -> None:
    """In a separate process: a pattern that tries everything twice holds the interpreter's lock against a signal."""
    try:
        subprocess.run([sys.executable, __file__], check=True, timeout=TIMEOUT_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        shown = (error.stdout or b"").decode()
        pytest.fail(f"still reading after {TIMEOUT_S} s; these were begun: {shown}")


@pytest.mark.parametrize("max_tokens", [3, 350, 1024])
def test_a_completion_is_read_as_far_as_its_tokens_can_reach(max_tokens: int) -> None:
    most = max(SHORTEST_BOUND, CHARACTERS_PER_TOKEN * max_tokens)
    short = Completion("a" * most, "stop", 5, max_tokens)
    assert bounded(short, max_tokens) is short
    cut = bounded(Completion("a" * most + "b", "stop", 5, max_tokens), max_tokens)
    assert cut == Completion("a" * most, "length", 5, max_tokens)
    thought = bounded(Completion("a", "stop", 5, max_tokens, "b" * (most + 1)), max_tokens)
    assert thought == Completion("a", "stop", 5, max_tokens, "b" * most)


if __name__ == "__main__":
    for pattern in HOSTILE:
        print(pattern, flush=True)  # noqa: T201 - read when the time is up
        read_everything(text_of(*pattern))
    for pattern in HOSTILE_REQUESTS:
        print(pattern, flush=True)  # noqa: T201
        asks_for_media(text_of(*pattern, INSTRUCTION_CHARACTERS))
