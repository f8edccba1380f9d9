"""Leakage: the true nearest training instruction and shared runs of words, for every kind of training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.evaluate.leakage import NgramIndex, leakage, nearest_texts
from fastgen.evaluate.tasks import EvaluationTask, load_superni
from fastgen.similarity.rouge import rouge_l_f1, tokenise
from tests.evaluation_help import TASKS, call, superni, write_lines
from tests.export_help import Task, make_run
from tests.export_help import call as export

TEXT = st.lists(st.sampled_from(list("abcdefg")), max_size=9).map(" ".join)
STORY = TASKS[0]["Instances"][2]["input"]


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12), st.lists(TEXT, min_size=1, max_size=4), st.integers(1, 5))
def test_the_nearest_is_the_best_of_all_pairs(texts: list[str], queries: list[str], chunk: int) -> None:
    found = nearest_texts(queries, texts, chunk=chunk)
    for query, near in zip(queries, found, strict=True):
        scores = [rouge_l_f1(tokenise(text), tokenise(query)) for text in texts]
        assert near.rouge_l == max(scores)
        assert near.text == (texts[scores.index(max(scores))] if max(scores) else None)


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = tokenise(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@given(st.lists(TEXT, max_size=5), st.lists(TEXT, max_size=5))
def test_shared_ngrams_are_those_of_plain_sets(tests: list[str], training: list[str]) -> None:
    index = NgramIndex(((str(i), text) for i, text in enumerate(tests)), lengths=(2, 3))
    for batch in (training[:2], training[2:]):
        index.match(batch)
    for found in index.overlaps():
        seen = set().union(*(_grams(text, found.n) for text in training))
        assert found.shared == tuple(str(i) for i, text in enumerate(tests) if _grams(text, found.n) & seen)
        assert found.long_enough == sum(bool(_grams(text, found.n)) for text in tests)


def test_words_are_compared_without_case_and_punctuation() -> None:
    index = NgramIndex([("x", "One two, three FOUR five six seven eight.")])
    index.match(["zero one TWO three four (five) six", "seven eight"])
    assert index.overlaps()[0].shared == ()
    index.match(["... one TWO three four (five) six seven: eight nine"])
    assert index.overlaps()[0].shared == ("x",)
    assert index.overlaps()[1].long_enough == 0


def run_with_leaks(folder: Path) -> Path:
    return make_run(
        folder / "run",
        [
            Task("Write a title for this story.", [(f"Once more: {STORY}", "A title")]),
            Task("Name a colour.", [("", "red")]),
            Task("Not settled yet.", None),
        ],
    )


def loaded(folder: Path) -> list[EvaluationTask]:
    return load_superni(superni(folder))


def test_a_run_that_copied_a_test_input_is_found(tmp_path: Path) -> None:
    found = leakage(run_with_leaks(tmp_path), loaded(tmp_path))
    assert found.instructions == 2
    assert found.tasks == ("task1_titles", "task2_analogies")
    expected = rouge_l_f1(tokenise("Write a title for this story."), tokenise("Write a title for the story."))
    assert found.nearest[0].rouge_l == expected > 0.7
    assert found.nearest[0].text == "Write a title for this story."
    assert found.similar == ("task1_titles",)
    assert "task1_titles/t1-2" in found.ngrams[1].shared
    assert found.mean_seed_rouge_l is not None


@pytest.mark.parametrize("form", ["raw", "instances", "alpaca", "messages", "prompt-completion", "parquet"])
def test_every_export_shows_the_same_leak(tmp_path: Path, form: str) -> None:
    run, file = run_with_leaks(tmp_path), tmp_path / "exported"
    assert export(run, file, "--format", form).code == 0
    found = leakage(file, loaded(tmp_path))
    assert found.instructions == 2
    assert found.ngrams[1].shared == leakage(run, loaded(tmp_path / "other")).ngrams[1].shared
    assert found.nearest[0].rouge_l > 0.2
    assert found.nearest_seed == ()


def test_the_command_prints_and_keeps_the_overlap(tmp_path: Path) -> None:
    rows = [{"id": i["id"], "prediction": "x"} for task in TASKS for i in task["Instances"]]
    given = write_lines(tmp_path / "given.jsonl", rows)
    flags = ("--data", superni(tmp_path), "--predictions", given, "--training-data", run_with_leaks(tmp_path))
    said = call(*flags, "--output", tmp_path / "out")
    assert said.code == 0, said.err
    assert "above 0.7: 1 of 2" in said.out
    kept = json.loads((tmp_path / "out" / "scores.json").read_bytes())["leakage"]
    assert kept["tasks_above_0.7"] == ["task1_titles"]
    assert "task1_titles/t1-2" in kept["ngrams"][0]["ids"]


@pytest.mark.parametrize(
    ("content", "told"),
    [("{}\n", "1: no 'instruction', 'prompt' or 'messages'"), ("3\n", "1: a JSON object"), ("{\n", "1: broken JSON")],
)
def test_unusable_training_data_is_an_error_with_its_line(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=told):
        leakage(file, loaded(tmp_path))


def test_an_empty_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no instruction with an instance yet"):
        leakage(make_run(tmp_path / "run", []), loaded(tmp_path))
