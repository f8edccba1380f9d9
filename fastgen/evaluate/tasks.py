"""Benchmarks and how their files are read: Super-NaturalInstructions and the user-oriented tasks of Self-Instruct.

Sources: Wang et al., "Super-NaturalInstructions", EMNLP 2022 (arXiv 2204.07705), in its own layout ``tasks/*.json`` and
``splits/default/test_tasks.txt``. The evaluation takes the first 100 instances of each test task with its definition
and no examples (zero-shot). Wang et al., "Self-Instruct", ACL 2023, section 5.4: 252 tasks that people would bring to
an assistant, as JSON lines of ``id``, ``motivation_app``, ``instruction`` and ``instances``. Many answers to them are
right, so people or a model judge them.

Every defect of a file is an `InputError` of one line that names the file and, in JSON lines, the line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import InputError


@dataclass(frozen=True, slots=True)
class EvaluationInstance:
    """One input, with every answer that counts as right."""

    id: str
    input: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """A task of a benchmark. ``is_classification``: its authors measure tasks of this category by exact match."""

    name: str
    category: str
    definition: str
    instances: tuple[EvaluationInstance, ...]
    is_classification: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """An instance with its task. ``number`` is its place in the whole benchmark, from 0."""

    number: int
    task: EvaluationTask
    instance: EvaluationInstance

    @property
    def key(self) -> tuple[str, str]:
        """Its name in files: the task's name and the instance's id."""
        return self.task.name, self.instance.id


def cases(tasks: Iterable[EvaluationTask]) -> Iterator[Case]:
    """Every instance of every task, in order."""
    pairs = ((task, instance) for task in tasks for instance in task.instances)
    return (Case(number, task, instance) for number, (task, instance) in enumerate(pairs))


def fingerprint(tasks: Sequence[EvaluationTask]) -> str:
    """SHA-256 (64 hex digits) of all questions and all right answers."""
    digest = hashlib.sha256()
    for case in cases(tasks):
        texts = (*case.key, case.task.category, case.task.definition, case.instance.input, *case.instance.references)
        digest.update("\0".join(texts).encode("utf-8", "surrogatepass") + b"\1")
    return digest.hexdigest()


Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number, object) of each row: the line's number of JSON lines, the place in one JSON array, both from 1.

    JSON lines are read one at a time, an array as a whole. Blank lines are skipped.

    :raises InputError: the file cannot be read, or a row is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            first = next(lines, None)
            if first is None:
                return
            if first[1].lstrip().startswith(b"["):
                values = _parse(b"".join((first[1], *(line for _, line in lines))), str(path))
                for number, value in enumerate(values, start=1):
                    yield number, _object(value, f"{path}: row {number}")
                return
            for number, line in chain((first,), lines):
                yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file of JSON lines") from None


def _parse(text: bytes, where: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: broken JSON ({error.msg}); fix or remove it") from None


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed")
    return value


def text_of(row: Row, field: str, where: str) -> str:
    """The row's text under ``field``.

    :raises InputError: there is none.
    """
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is missing or not a text; add it")
    return value


_USER_ORIENTED_FILE: Final = "user_oriented_instructions.jsonl"
_EXACT_MATCH_CATEGORIES: Final = frozenset(
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


def load_superni(folder: Path, *, per_task: int = 100) -> list[EvaluationTask]:
    """The test tasks in the folder, in the order of their list, each with its first ``per_task`` instances.

    Listed tasks without a file are skipped, since the folder may hold only a part of the benchmark.

    :raises InputError: no such layout, or a broken task file.
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
    task = _object(task, str(path))
    category, definition = _first_text(task, "Categories", path), _first_text(task, "Definition", path)
    rows = task.get("Instances")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: 'Instances' is missing or empty")
    instances = tuple(_instance(row, number, path) for number, row in enumerate(rows[:per_task], 1))
    return EvaluationTask(path.stem, category, definition, instances, category in _EXACT_MATCH_CATEGORIES)


def _first_text(task: Row, field: str, path: Path) -> str:
    """The field's text, or the first of its texts. The benchmark's files have both."""
    value = task.get(field)
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str) or not first.strip():
        raise InputError(f"{path}: {field!r} is missing or empty")
    return first.strip()


def _instance(row: object, number: int, path: Path) -> EvaluationInstance:
    if isinstance(row, dict):
        text, outputs = row.get("input"), row.get("output")
        outputs = [outputs] if isinstance(outputs, str) else outputs
        if isinstance(text, str) and isinstance(outputs, list) and outputs and all(isinstance(o, str) for o in outputs):
            return EvaluationInstance(str(row.get("id", f"{path.stem}-{number}")), text, tuple(outputs))
    raise InputError(f"{path}: instance {number} needs an 'input' text and a list of 'output' texts")


def load_user_oriented(path: Path) -> list[EvaluationTask]:
    """The tasks of a file (or of the authors' file in a folder), in order, named by their ids, one instance each.

    ``category`` is the application that a task was written for.

    :raises InputError: unreadable, broken JSON, a missing field, or two tasks of one id.
    """
    file = path / _USER_ORIENTED_FILE if path.is_dir() else path
    tasks: dict[str, EvaluationTask] = {}
    for number, row in read_rows(file):
        where = f"{file}:{number}"
        task = _user_oriented_task(row, where)
        if task.name in tasks:
            raise InputError(f"{where}: id {task.name!r} is used twice; give each task its own")
        tasks[task.name] = task
    if not tasks:
        raise InputError(f"{file}: has no task; --data names the JSON lines of the user-oriented tasks")
    return list(tasks.values())


def _user_oriented_task(row: Row, where: str) -> EvaluationTask:
    name, instruction = text_of(row, "id", where), text_of(row, "instruction", where).strip()
    instances = row.get("instances")
    if not instruction or not isinstance(instances, list) or not instances:
        raise InputError(f"{where}: a task needs an 'instruction' and a list of 'instances'")
    where = f"{where}: instance 1"
    first = instances[0]
    if not isinstance(first, dict):
        raise InputError(f"{where} is not a JSON object")
    instance = EvaluationInstance(name, text_of(first, "input", where), (text_of(first, "output", where),))
    app = row.get("motivation_app")
    return EvaluationTask(name, app if isinstance(app, str) and app.strip() else "other", instruction, (instance,))
