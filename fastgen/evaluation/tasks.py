"""What a benchmark consists of: tasks with a definition, instances, and what counts as right. Pure values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

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
