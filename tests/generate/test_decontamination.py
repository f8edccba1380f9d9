"""Forbidden texts: read from what users have, and never resembled by anything that is kept."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from fastgen.errors import InputError
from fastgen.generate.inputs import filter_of_forbidden, fingerprint, load_forbidden
from fastgen.methods.admission import CONTAMINATED
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.similarity.options import SimilarityOptions
from fastgen.types import Answer, Completion, Instance, SeedTask

TASK = "Translate the proverb into plain modern English and name its origin."


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_texts_come_from_json_lines_and_from_superni_tasks(tmp_path: Path) -> None:
    rows = b"".join(orjson.dumps({"instruction": text}) + b"\n" for text in ("One task.", "Another task."))
    lines = write(tmp_path / "a.jsonl", rows)
    task = write(tmp_path / "task1.json", json.dumps({"Definition": ["Name the river."], "Instances": []}).encode())
    texts = load_forbidden([lines, task])
    assert texts == ("One task.", "Another task.", "Name the river.")
    assert fingerprint(texts) != fingerprint(texts[:2]) != fingerprint(())
    assert fingerprint(()) == ""


@pytest.mark.parametrize(
    ("name", "content"), [("x.json", b"{}"), ("x.json", b"{nonsense"), ("x.jsonl", b'{"a": 1}\n'), ("x.jsonl", b"{\n")]
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        load_forbidden([write(tmp_path / name, content)])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="nowhere"):
        load_forbidden([tmp_path / "nowhere.json"])


def test_what_resembles_a_forbidden_text_is_rejected_with_its_neighbour_and_counts_for_nothing() -> None:
    seeds = [SeedTask("s", "s", "Count the vowels of a word in silence.", (Instance("", "x"),), False)]
    forbidden = filter_of_forbidden(["Something else entirely, about boats.", TASK], SimilarityOptions())
    method = self_instruct(PRESETS["default"], seeds, load_prompts("completions"), SAMPLING_PRESETS["default"])
    novelty = NoveltyFilter(index="exhaustive")
    plan = Plan(method, novelty, target=9, clock=lambda: 0.0, forbidden=forbidden)
    request = plan.next()
    assert request is not None
    near = TASK.replace("modern", "simple")
    text = f" {near}\n3. {near}\n4. Sort the cutlery by weight and material."
    (commit,) = plan.judge([Answer(request, 0, Completion(text, "stop"))])
    outcome = commit.outcome
    assert [(r.rule, r.neighbour[0]) for r in outcome.rejected if r.neighbour] == [(CONTAMINATED, 1)] * 2  # type: ignore[union-attr]
    assert len(outcome.kept) == 1  # type: ignore[union-attr]


def test_without_texts_there_is_no_filter() -> None:
    assert filter_of_forbidden((), SimilarityOptions()) is None
