"""The 252 user-oriented tasks: JSON lines of ``id``, ``motivation_app``, ``instruction`` and ``instances``.

Source: Wang et al., "Self-Instruct", ACL 2023, section 5.4: tasks that people would bring to an assistant, written by
people, each with one worked instance. Answers are judged by people (or a model), since many are right. Only reads.
"""

from __future__ import annotations

from pathlib import Path

from fastgen.errors import InputError
from fastgen.evaluation.rows import Row, read_rows, text_of
from fastgen.evaluation.tasks import EvaluationInstance, EvaluationTask

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
        instances=tuple(_instance(one, name, place, where) for place, one in enumerate(instances[:per_task])),
    )


def _instance(value: object, name: str, place: int, where: str) -> EvaluationInstance:
    if not isinstance(value, dict):
        raise InputError(f"{where}: instance {place + 1} is no JSON object")
    named = f"{where}: instance {place + 1}"
    return EvaluationInstance(
        f"{name}/{place}" if place else name, text_of(value, "input", named), (text_of(value, "output", named),)
    )
