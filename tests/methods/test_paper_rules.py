"""The ``paper`` preset against a second, plain implementation of the released code's behaviour, on random texts.

The reference below works on strings, without spans, rules or names: it is written from the method's
description, with the same regular expressions because those *are* the rules.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.types import Completion

PAPER = PRESETS["paper"]
CASES = 12_000
WORDS_NOT_WANTED = [
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
]

PIECES = {
    "list": [
        *(
            "\n10. ",
            "\n11 . ",
            "\n9.",
            "\n12) ",
            " 13. ",
            "\n\n",
            "\n",
            "\n7\t. ",
            "\n8\u00a0. ",
            "\n\uff11\uff12. ",
            "\n 14. ",
        ),
        *(
            "Write a program ",
            "write A PROGRAM",
            "Write a poem about rain ",
            "name three rivers in Peru",
            "Say it again, Sam. ",
        ),
        *(
            "image",
            " Images ",
            "draw",
            "go to",
            " Go To ",
            "go  to",
            "plotted",
            "(map)",
            "file_",
            "fileſ",
            " graph-like ",
        ),
        *(
            "!",
            "-",
            '"',
            "_",
            "é",
            "É",
            "ß",
            "ŉa",
            "İ",
            "ǆ",
            "字",
            "1",
            " ",
            "  ",
            "\t",
            "\u2003",
            "\x1c",
            "\x85",
            "NASA's",
            "x",
        ),
        *(" a b c", " a b c d", " w" * 146, " w" * 151),
    ],
    "generation": [
        *("Example 1", "Example 2.", "Example", "Example\n3", "Example  4", "example 5", "Examples", "\n\n", "\n", " "),
        *(
            "Input:",
            "Input 1 :",
            "Input\n:",
            "Inputs:",
            "input:",
            "Output:",
            "Output 2:",
            "Output \n 3 \n:",
            "output:",
            "Outputs:",
        ),
        *("cat", "dog", "7", "a: b", ":", "x:", "\uff1a", "\u2003", "List: [1, 2]", ".", "N/A", "**"),
    ],
    "classification": [
        *(
            "Class label:",
            "Class label :",
            "class label:",
            "Class label:\n",
            "\nClass label: ",
            "Class\u00a0label:",
            "\n",
            "\n\n",
        ),
        *(
            "Positive",
            "Negative",
            "Yes",
            "No",
            "the film was dull",
            "the food was good",
            "Input:",
            "x:",
            ":",
            " ",
            "\t",
            "\r\n",
            "\x0b",
        ),
    ],
    "answer": ["Yes", "yes", "YES", "yEs", "No", "no", ".", " ", "\n", "\u00a0", "**", "Answer:", ""],
}


def random_text(pieces: list[str], draw: random.Random) -> str:
    return "".join(draw.choices(pieces, k=draw.randrange(14)))


def random_completions(kind: str) -> list[Completion]:
    draw = random.Random(kind)
    reasons = ("stop", "stop", "length", None, "abort")
    return [Completion(random_text(PIECES[kind], draw), draw.choice(reasons)) for _ in range(CASES)]


def reference_instructions(text: str, finish_reason: str | None) -> list[str]:
    if finish_reason == "length":
        return []
    accepted = []
    for piece in re.split(r"\n\d+\s?\. ", text):
        one_line = re.sub(r"\s+", " ", piece).strip().capitalize()
        count = len(one_line.split())
        unwanted = any(re.search(rf"\b({word})\b", one_line, re.IGNORECASE) for word in [*WORDS_NOT_WANTED, "go to"])
        if count < 4 or count > 150 or unwanted or one_line.startswith("Write a program"):
            continue
        if one_line[0] in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or ord(one_line[0]) > 127:
            continue
        accepted.append(one_line)
    return accepted


def reference_pair(piece: str) -> tuple[str, str]:
    around = re.split(r"Output\s*\d*\s*:", piece)
    given, wanted = (around[0], around[1]) if len(around) > 1 else ("", piece)
    wanted = re.split(r"Input\s*\d*\s*:", wanted.strip())[0].strip()
    return re.sub(r"^Input\s*\d*\s*:", "", given.strip()).strip(), wanted


def reference_generation(text: str) -> list[tuple[str, str]]:
    text = text.strip()
    if re.search(r"Example\s?\d*\.?", text):
        pieces = re.split(r"Example\s?\d*\.?", text)
        return [reference_pair(piece.strip()) for piece in pieces if piece.strip()]
    return [reference_pair(text)] if re.search(r"Output\s*\d*\s*:", text) else []


def reference_classification(text: str) -> list[tuple[str, str]]:
    pairs = []
    for piece in text.split("Class label:")[1:]:
        label, _, rest = piece.strip().partition("\n")
        pairs.append((rest.strip(), label.strip()))
    return pairs


def reference_valid(pairs: list[tuple[str, str]], finish_reason: str | None) -> list[tuple[str, str]]:
    if finish_reason == "length":
        pairs = pairs[:-1]
    pairs = [(i, o) for i, o in pairs if i != o and o and not i.endswith(":") and not o.endswith(":")]
    if any(i and i == j and o != p for i, o in pairs for j, p in pairs):
        return []
    return list(dict.fromkeys(pairs))[:5]


def test_instructions_are_those_of_the_released_code() -> None:
    accepted = 0
    for completion in random_completions("list"):
        items = instruction.parse(completion, PAPER, first_number=9)
        kept = [item.text for item in items if item.rule is None and check_instruction(item.text, PAPER) is None]
        assert kept == reference_instructions(completion.text, completion.finish_reason), completion
        accepted += len(kept)
    assert accepted > CASES // 10  # the texts do exercise both outcomes


@pytest.mark.parametrize(
    ("kind", "is_classification", "reference"),
    [("generation", False, reference_generation), ("classification", True, reference_classification)],
)
def test_instances_are_those_of_the_released_code(
    kind: str, is_classification: bool, reference: Callable[[str], list[tuple[str, str]]]
) -> None:
    accepted = 0
    for completion in random_completions(kind):
        parsed = instance.parse(completion, is_classification, PAPER, "cat")  # which is an output of many
        kept = [(completion.text[slice(*i.input)], completion.text[slice(*i.output)]) for i in parsed.instances]
        pairs = reference(completion.text)
        assert kept == reference_valid(pairs, completion.finish_reason), completion
        assert len(parsed.instances) + len(parsed.rejected) == len(pairs)
        accepted += len(kept)
    assert accepted > CASES // 10


def test_the_answer_is_that_of_the_released_code() -> None:
    answers = [
        (c.text.strip() in ("Yes", "yes", "YES"), classification.parse(c, PAPER).value)
        for c in random_completions("answer")
    ]
    assert all(expected == got for expected, got in answers)
    assert {expected for expected, _ in answers} == {True, False}


@pytest.mark.parametrize("text", ["Explain what NASA's DNA lab does.", "write about Rome", "ÉTÉ in Paris is hot"])
def test_capitalising_lower_cases_all_but_the_first_letter(text: str) -> None:
    (item,) = instruction.parse(Completion(text, "stop"), PAPER, first_number=9)
    assert item.text == text[0].upper() + text[1:].lower()
