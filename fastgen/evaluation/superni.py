"""Super-NaturalInstructions in its own layout: ``tasks/*.json`` and ``splits/default/test_tasks.txt``.

Source: Wang et al., "Super-NaturalInstructions", EMNLP 2022 (arXiv 2204.07705); the evaluation takes the first 100
instances of each test task with its definition and no examples (zero-shot). Only reads files; asks and scores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from fastgen.errors import InputError
from fastgen.evaluation.tasks import EvaluationInstance, EvaluationTask

INSTANCES_PER_TASK = 100
EXACT_MATCH_CATEGORIES = frozenset(
    {
        "Textual Entailment",
        "Cause Effect Classification",
        "Coreference Resolution",
        "Dialogue Act Recognition",
        "Answerability Classification",
        "Word Analogy",
    }
)
"""Categories of the benchmark whose answers are one of a few labels, which exact match fits better than ROUGE-L."""


def load_superni(folder: Path, *, per_task: int = INSTANCES_PER_TASK) -> list[EvaluationTask]:
    """The test tasks in the folder, in the order of their list, each with its first ``per_task`` instances.

    A list that names tasks which are not there is normal: the folder may hold a part of the benchmark.

    :raises InputError: no such layout, or a task file that does not hold; names the file and what is wrong.
    """
    listed = folder / "splits" / "default" / "test_tasks.txt"
    try:
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{listed}: cannot be read ({error}); --data names a folder in the layout of Super-NaturalInstructions"
        ) from None
    paths = [path for name in names if (path := folder / "tasks" / f"{name}.json").exists()]
    if not paths:
        raise InputError(f"{folder / 'tasks'}: has none of the {len(names)} tasks that {listed} lists")
    return [_load_task(path, per_task) for path in paths]


def _load_task(path: Path, per_task: int) -> EvaluationTask:
    try:
        task = orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); restore the file from the benchmark") from None
    if not isinstance(task, dict):
        raise InputError(f"{path}: a JSON object is needed")
    category = _first_text(task, "Categories", path)
    return EvaluationTask(
        name=path.stem,
        category=category,
        definition=_first_text(task, "Definition", path),
        instances=tuple(_instances(task.get("Instances"), path, per_task)),
        is_classification=category in EXACT_MATCH_CATEGORIES,
    )


def _first_text(task: dict[str, Any], field: str, path: Path) -> str:
    """The field's text, or the first of its texts, as the benchmark's files have both."""
    value = task.get(field)
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str) or not first.strip():
        raise InputError(f"{path}: {field!r} is missing or empty")
    return first.strip()


def _instances(rows: object, path: Path, per_task: int) -> Sequence[EvaluationInstance]:
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: 'Instances' is missing or empty")
    return [_instance(row, number, path) for number, row in enumerate(rows[:per_task], 1)]


def _instance(row: object, number: int, path: Path) -> EvaluationInstance:
    if isinstance(row, dict):
        text, outputs = row.get("input"), row.get("output")
        outputs = [outputs] if isinstance(outputs, str) else outputs
        if isinstance(text, str) and isinstance(outputs, list) and outputs and all(isinstance(o, str) for o in outputs):
            return EvaluationInstance(str(row.get("id", f"{path.stem}-{number}")), text, tuple(outputs))
    raise InputError(f"{path}: instance {number} needs an 'input' text and a list of 'output' texts")
