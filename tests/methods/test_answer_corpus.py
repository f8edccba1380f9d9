"""The ``default`` parsers against raw completions whose expected parse was written down and reviewed one by one.

``tests/data/README.md`` says where the completions come from, and how the expected parses were made.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.types import Completion

DATA = Path(__file__).parents[1] / "data"
DEFAULT = PRESETS["default"]
FIRST_NUMBER = 9  # the prompts show eight instructions


def _rows(name: str) -> list[dict[str, Any]]:
    lines = (DATA / name).read_bytes().rstrip().split(b"\n")
    return [{"name": f"{name.partition('_')[0]}-{number}", **json.loads(line)} for number, line in enumerate(lines, 1)]


REAL, WRITTEN = _rows("real_completions.jsonl"), _rows("written_completions.jsonl")


def _parse(row: dict[str, Any]) -> object:
    """The parse of a row in the form of its ``expected``."""
    text = row["text"]
    completion = Completion(text, row["finish_reason"])
    if row["stage"] == "instruction":
        items = instruction.parse(completion, DEFAULT, first_number=FIRST_NUMBER)
        return [[item.text, item.rule] for item in items]
    if row["stage"] == "classification":
        return classification.parse(completion, DEFAULT).value
    parsed = instance.parse(completion, row["stage"] == "output_first", DEFAULT)
    return {
        "instances": [[text[slice(*one.input)], text[slice(*one.output)]] for one in parsed.instances],
        "rejected": [one.rule for one in parsed.rejected],
        "discarded": parsed.discarded,
    }


@pytest.mark.parametrize("row", REAL + WRITTEN, ids=lambda row: row["name"])
def test_a_completion_is_read_as_expected(row: dict[str, Any]) -> None:
    assert _parse(row) == row["expected"], row.get("note")


def test_the_corpus_covers_every_stage_with_both_apis_and_cut_completions() -> None:
    assert sum(row.get("times", 1) for row in REAL) >= 300
    assert len(WRITTEN) >= 60
    stages = {"instruction", "classification", "input_first", "output_first"}
    covered = Counter((row["stage"], row["api"]) for row in REAL)
    assert all(covered[stage, api] >= 2 for stage in stages for api in ("completions", "chat"))
    assert {row["stage"] for row in REAL if row["finish_reason"] == "length"} == stages
    texts = [(row["stage"], row["api"], row["finish_reason"], row["text"]) for row in WRITTEN]
    assert len(set(texts)) == len(texts)


HUGE_CHARACTERS = 2_000_000
PARSERS: dict[str, Callable[[Completion], object]] = {
    "instruction": lambda completion: instruction.parse(completion, DEFAULT, first_number=FIRST_NUMBER),
    "classification": lambda completion: classification.parse(completion, DEFAULT),
    "input_first": lambda completion: instance.parse(completion, is_classification=False, rules=DEFAULT),
    "output_first": lambda completion: instance.parse(completion, is_classification=True, rules=DEFAULT),
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("piece", ["\n\n** ", "x\n", "9. a\n", "Example 1\n", "| a ", "\ud800\0"], ids=ascii)
def test_two_megabytes_of_anything_are_read_in_two_seconds(piece: str, parser: str) -> None:
    completion = Completion("9. Sing.\n" + piece * (HUGE_CHARACTERS // len(piece)), "length")
    start = time.process_time()
    PARSERS[parser](completion)
    assert time.process_time() - start < 2
