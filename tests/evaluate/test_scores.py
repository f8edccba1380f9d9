"""Evaluation without a model: loading benchmarks, scores equal to the reference scorer's, comparison, bad input."""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from fastgen.errors import how_to_install
from fastgen.evaluate import scoring
from fastgen.evaluate.results import read_results
from fastgen.evaluate.run import clean_up
from fastgen.evaluate.scoring import exact_match, interval, interval_of_difference, normalise, rouge_l
from fastgen.evaluate.tasks import load_superni
from tests.evaluation_help import TASKS, call, superni, write_lines

WORDS = st.lists(st.sampled_from(["the", "Cats", "running", "ran", "no.", "42", "naïve", "-", "it's"]), max_size=12)
SUPERNI = Path(__file__).parents[3] / "shared" / "data" / "superni"


def reference_figures(predictions: dict[str, str], tasks: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """The benchmark's scorer as its authors describe it, written out once more: (exact match, ROUGE-L) in percent."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    exact, rouge = [], []
    for task in tasks:
        for instance in task["Instances"]:
            said = predictions[instance["id"]]
            flat = [
                re.sub(r"\s+", " ", "".join(c for c in text.lower() if c not in string.punctuation)).strip()
                for text in (said, *instance["output"])
            ]
            exact.append(float(any(flat[0] == right for right in flat[1:])))
            rouge.append(max(scorer.score(target=o, prediction=said)["rougeL"].fmeasure for o in instance["output"]))
    return {"all": (100 * sum(exact) / len(exact), 100 * sum(rouge) / len(rouge))}


def predictions_of(tasks: list[dict[str, Any]]) -> dict[str, str]:
    """Right, partly right and wrong ones."""
    given = {}
    for task in tasks:
        for number, instance in enumerate(task["Instances"]):
            right = instance["output"][-1]
            given[instance["id"]] = [right.upper() + "!", " ".join(right.split()[:2]), "nothing of it"][number % 3]
    return given


def test_the_figures_of_given_predictions_are_the_reference_scorers(tmp_path: Path) -> None:
    given = predictions_of(TASKS)
    rows = [{"id": name, "prediction": text} for name, text in given.items()]
    file = write_lines(tmp_path / "given.jsonl", rows)
    said = call("--data", superni(tmp_path), "--predictions", file, "--output", tmp_path / "out")
    assert said.code == 0, said.err
    figures = json.loads((tmp_path / "out" / "scores.json").read_bytes())["overall"]
    exact, rouge = reference_figures(given, TASKS)["all"]
    assert figures["exact_match"]["mean"] == pytest.approx(exact, abs=1e-9)
    assert figures["rouge_l"]["mean"] == pytest.approx(rouge, abs=1e-9)
    assert 0 < exact < rouge < 100
    assert f"| {rouge:.1f} [" in said.out
    assert said.out.strip() == (tmp_path / "out" / "scores.md").read_text().strip()


@pytest.mark.skipif(not SUPERNI.exists(), reason="needs the benchmark's files")
def test_scores_on_the_real_benchmark_are_the_reference_scorers() -> None:
    loaded = load_superni(SUPERNI, per_task=3)
    tasks = [{"Instances": [{"id": i.id, "output": list(i.references)} for i in task.instances]} for task in loaded]
    given = predictions_of(tasks)
    instances = [i for task in loaded for i in task.instances]
    exact, rouge = reference_figures(given, tasks)["all"]
    assert 100 * sum(exact_match(given[i.id], i.references) for i in instances) / len(instances) == pytest.approx(exact)
    assert 100 * sum(rouge_l(given[i.id], i.references) for i in instances) / len(instances) == pytest.approx(rouge)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_a_score_is_the_best_over_the_references(words: list[str], references: list[list[str]]) -> None:
    prediction, texts = " ".join(words), [" ".join(reference) for reference in references]
    for score in (rouge_l, exact_match):
        assert score(prediction, texts) == max(score(prediction, [text]) for text in texts)


def test_exact_match_ignores_case_punctuation_and_white_space() -> None:
    assert normalise("  The  answer:\n“Yes”, it-is! ") == "the answer “yes” itis"
    assert exact_match("YES.", ["no", "yes"]) == 1.0


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=8), min_size=1, max_size=4))
def test_an_interval_contains_its_mean_and_is_deterministic(groups: list[list[float]]) -> None:
    found = interval(groups)
    values = [value for group in groups for value in group]
    assert found.mean == pytest.approx(100 * sum(values) / len(values))
    assert 100 * min(values) - 1e-6 <= found.low <= found.high <= 100 * max(values) + 1e-6
    assert found == interval(groups)


def test_an_interval_has_the_width_that_the_central_limit_theorem_gives() -> None:
    values = [float(i % 2) for i in range(400)]
    found = interval([values])
    half_width = 100 * 1.96 * 0.5 / 400**0.5
    assert found.high - found.mean == pytest.approx(half_width, rel=0.1)
    assert found.mean - found.low == pytest.approx(half_width, rel=0.1)


def test_tasks_of_one_instance_are_resampled_as_tasks() -> None:
    values = [float(i % 2) for i in range(40)]
    assert interval([[value] for value in values]) == interval([values])


def test_a_paired_difference_is_narrower_than_two_separate_intervals() -> None:
    a = [[i / 100 for i in range(100)]]
    b = [[value + 0.01 for value in a[0]]]
    found = interval_of_difference(a, b)
    assert found.mean == pytest.approx(1.0)
    assert found.high - found.low < 1e-6 < interval(a).high - interval(a).low


@pytest.mark.parametrize(
    ("wrote", "counts"),
    [
        (" Paris\n\nInput: Rome\n\nOutput: x", "Paris"),
        ("\n\nParis\n \nIt is big.", "Paris"),
        ("Output: Paris", "Paris"),
        ("one\ntwo\nInput:", "one\ntwo"),
        ("Input: again", ""),
        ("The Output: of it", "The Output: of it"),
        ("", ""),
    ],
)
def test_the_answer_is_the_first_paragraph_before_a_next_example(wrote: str, counts: str) -> None:
    assert clean_up(wrote, "superni") == counts


def test_user_oriented_answers_keep_their_paragraphs() -> None:
    assert clean_up("Dear all,\n\nbye\n\nTask: next", "user-oriented") == "Dear all,\n\nbye"


def test_a_comparison_is_paired_and_marks_clear_differences(tmp_path: Path) -> None:
    data = superni(tmp_path)
    right = {i["id"]: i["output"][0] for task in TASKS for i in task["Instances"]}
    for name, answers in (("a", predictions_of(TASKS)), ("b", right)):
        rows = [{"id": i, "prediction": text} for i, text in answers.items()]
        file = write_lines(tmp_path / f"{name}.jsonl", rows)
        assert call("--data", data, "--predictions", file, "--output", tmp_path / name).code == 0
    said = call("--compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "c" / "comparison.json").read_bytes())["differences"]
    a, b = read_results(tmp_path / "a").predictions, read_results(tmp_path / "b").predictions
    expected = 100 * sum(y.rouge_l - x.rouge_l for x, y in zip(a, b, strict=True)) / len(a)
    overall = next(d for d in found if d["group"] == "all" and d["measure"] == "rouge_l")
    assert overall["difference"]["mean"] == pytest.approx(expected)
    assert overall["difference"]["low"] > 0
    assert {d["group"] for d in found} == {"all", "Title Generation", "Word Analogy"}
    assert "(!)" in said.out


def test_folders_of_other_instances_are_not_compared(tmp_path: Path) -> None:
    data = superni(tmp_path)
    for name, count in (("a", 1), ("b", 2)):
        ids = [i["id"] for task in TASKS for i in task["Instances"][:count]]
        file = write_lines(tmp_path / f"{name}.jsonl", [{"id": i, "prediction": "x"} for i in ids])
        flags = ("--data", data, "--per-task", str(count), "--predictions", file, "--output", tmp_path / name)
        assert call(*flags).code == 0
    said = call("--compare", tmp_path / "a", tmp_path / "b")
    assert said.code == 2
    assert "do not have the same instances (0 only in the first, 2 only in the second, such as t1-1)" in said.err


def test_missing_predictions_count_as_empty_and_are_noted(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "given.jsonl", [{"id": "t1-0", "prediction": TASKS[0]["Instances"][0]["output"][0]}])
    said = call("--data", superni(tmp_path), "--predictions", file, "--output", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "scores.json").read_bytes())
    assert (figures["instances"], figures["failed"]) == (8, 7)
    assert figures["overall"]["exact_match"]["mean"] == pytest.approx(12.5)
    assert "7 instances have no answer and count as empty (first reason: missing)" in said.out


def _broken(tmp_path: Path, name: str, content: str) -> Path:
    data = superni(tmp_path)
    (data / name).write_text(content)
    return data


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("tasks/task1_titles.json", "{broken", "task1_titles.json: not JSON"),
        ("tasks/task1_titles.json", "[]", "a JSON object is needed"),
        ("tasks/task1_titles.json", '{"Categories": ["x"]}', "'Definition' is missing or empty"),
        ("tasks/task1_titles.json", '{"Definition": "d", "Categories": ["x"]}', "'Instances' is missing or empty"),
        (
            "tasks/task1_titles.json",
            '{"Definition": "d", "Categories": ["x"], "Instances": [{"input": "i", "output": []}]}',
            "instance 1 needs an 'input' text and a list of 'output' texts",
        ),
        ("splits/default/test_tasks.txt", "other\n", "has none of the 1 tasks that"),
    ],
)
def test_broken_benchmark_files_are_errors_of_one_line(tmp_path: Path, file: str, content: str, told: str) -> None:
    given = write_lines(tmp_path / "given.jsonl", [{"id": "x", "prediction": "y"}])
    data = _broken(tmp_path, file, content)
    said = call("--data", data, "--predictions", given, "--output", tmp_path / "out")
    assert said.code == 2
    assert told in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "--output: name a folder"),
        (("--output", "out"), "--data: name the benchmark's data"),
        (("--output", "out", "--data", "nowhere"), "test_tasks.txt: cannot be read"),
        (("--output", "out", "--data", "superni", "--task", "task9"), "--task task9: is not among the 2 tasks"),
        (("--output", "out", "--per-task", "0"), "--per-task: 0 is below 1"),
        (("--output", "out", "--benchmark", "user-oriented", "--data", "nowhere"), "nowhere: cannot be read"),
        (("--compare", "a", "b"), "a: has no scores.json"),
        (("--output", "out", "--data", "superni", "--predictions", "bad.jsonl"), "bad.jsonl:2: broken JSON"),
        (("--output", "out", "--data", "superni", "--predictions", "foreign.jsonl"), "no instance has the id 'zzz'"),
        (("--output", "out", "--data", "superni", "--predictions", "twice.jsonl"), "a second prediction for 't1-0'"),
        (("--output", "out", "--data", "superni", "--predictions", "empty.jsonl"), "has no prediction"),
        (("--output", "out", "--data", "superni", "--training-data", "empty.jsonl"), "has no instruction with"),
        (("--output", "out", "--data", "superni", "--training-data", "superni"), "there is no run here"),
        (("--output", "out", "--judge-model", "m"), "name its server with --judge-base-url"),
    ],
)
def test_bad_input_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    superni(tmp_path)
    Path("bad.jsonl").write_text('{"id": "t1-0", "prediction": "x"}\n{\n')
    Path("foreign.jsonl").write_text('{"id": "zzz", "prediction": "x"}\n')
    Path("twice.jsonl").write_text('{"id": "t1-0", "prediction": "x"}\n' * 2)
    Path("empty.jsonl").write_text("\n")
    said = call(*flags)
    assert said.code == 2
    assert told in said.err
    assert len(said.err.splitlines()) == 1


def test_a_missing_scorer_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    scoring._rouge_l_f1.cache_clear()
    said = call("--data", superni(tmp_path), "--output", tmp_path / "out", "--base-url", "http://127.0.0.1:9/v1")
    assert (said.code, said.err) == (
        2,
        f"fastgen: evaluate needs rouge-score, which is not installed: {how_to_install('evaluate')}\n",
    )
