"""What a benchmark consists of: tasks with a definition, instances, and what counts as right. Pure values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from fastgen.errors import InputError

BenchmarkName = Literal["superni", "user-oriented"]


@dataclass(frozen=True, slots=True)
class EvaluationInstance:
    """One thing to answer, with every answer that counts as right."""

    id: str
    input: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """A task as the benchmark states it.

    ``is_classification``: exact match is the measure that the benchmark's authors give for its category.
    """

    name: str
    category: str
    definition: str
    instances: tuple[EvaluationInstance, ...]
    is_classification: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """An instance together with its task; ``number`` is its place in the whole benchmark, from 0."""

    number: int
    task: EvaluationTask
    instance: EvaluationInstance

    @property
    def key(self) -> tuple[str, str]:
        """What names it in files: the task's name and the instance's id."""
        return self.task.name, self.instance.id


def cases(tasks: Iterable[EvaluationTask]) -> Iterator[Case]:
    """Every instance of every task, in order."""
    pairs = ((task, instance) for task in tasks for instance in task.instances)
    return (Case(number, task, instance) for number, (task, instance) in enumerate(pairs))


def fingerprint(tasks: Sequence[EvaluationTask]) -> str:
    """SHA-256 (64 hex digits) of everything that is asked and everything that counts as right."""
    digest = hashlib.sha256()
    for case in cases(tasks):
        texts = (*case.key, case.task.category, case.task.definition, case.instance.input, *case.instance.references)
        digest.update("\0".join(texts).encode("utf-8", "surrogatepass") + b"\1")
    return digest.hexdigest()


Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number, object) of each row: the line's number of JSON lines, the place in one JSON array, both from 1.

    JSON lines are read one at a time, an array as a whole. Blank lines are passed over.

    :raises InputError: unreadable, or not JSON objects.
    """
    try:
        with path.open("rb") as file:
            yield from _rows(path, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file of JSON lines") from None


def text_of(row: Row, field: str, where: str) -> str:
    """The row's text under ``field``.

    :raises InputError: there is none.
    """
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is missing or no text; add it")
    return value


def _rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith(b"["):
        values = _parse(b"".join((first[1], *(line for _, line in lines))), str(path))
        yield from ((number, _object(value, f"{path}: row {number}")) for number, value in enumerate(values, start=1))
        return
    for number, line in chain((first,), lines):
        yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _parse(text: bytes, where: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: broken JSON ({error.msg}); mend or remove it") from None


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed")
    return value


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


_FILE_NAME = "user_oriented_instructions.jsonl"


def load_user_oriented(path: Path, *, per_task: int = 1) -> list[EvaluationTask]:
    """The tasks of a file (or of the file of the authors' name in a folder), in order, named by their ids.

    ``category`` is the application that a task was written for.

    :raises InputError: unreadable, broken JSON, a missing field, two tasks of one id; names file, line and field.
    """
    file = path / _FILE_NAME if path.is_dir() else path
    tasks: dict[str, EvaluationTask] = {}
    for number, row in read_rows(file):
        task = _task(row, f"{file}:{number}", per_task)
        if task.name in tasks:
            raise InputError(f"{file}:{number}: id {task.name!r} was there before; give each task its own")
        tasks[task.name] = task
    if not tasks:
        raise InputError(f"{file}: has no task; --data names the JSON lines of the user-oriented tasks")
    return list(tasks.values())


def _task(row: Row, where: str, per_task: int) -> EvaluationTask:
    name, instruction = text_of(row, "id", where), text_of(row, "instruction", where).strip()
    instances = row.get("instances")
    if not instruction or not isinstance(instances, list) or not instances:
        raise InputError(f"{where}: a task needs an 'instruction' and a list of 'instances'")
    app = row.get("motivation_app")
    return EvaluationTask(
        name=name,
        category=app if isinstance(app, str) and app.strip() else "other",
        definition=instruction,
        instances=tuple(_user_instance(one, name, place, where) for place, one in enumerate(instances[:per_task])),
    )


def _user_instance(value: object, name: str, place: int, where: str) -> EvaluationInstance:
    if not isinstance(value, dict):
        raise InputError(f"{where}: instance {place + 1} is no JSON object")
    named = f"{where}: instance {place + 1}"
    return EvaluationInstance(
        f"{name}/{place}" if place else name, text_of(value, "input", named), (text_of(value, "output", named),)
    )
