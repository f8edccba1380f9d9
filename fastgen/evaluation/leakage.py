"""How much the training text overlaps with a benchmark: what a good score may owe to having seen the test.

Two measures: the ROUGE-L F1 of each test task's definition to its nearest training instruction (exact, over all of
them), and the instances whose input shares 8 or 13 words in a row with any training text (`fastgen.evaluation.ngrams`).
The first is also given against the run's seed tasks: Wang et al. (ACL 2023) report a mean of 0.21 for SuperNI and 0.34
for the user-oriented set. Only reads; memory is bounded whatever the size of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fastgen.errors import InputError
from fastgen.evaluation.nearest import Nearest, NearestSearch
from fastgen.evaluation.ngrams import NgramOverlap, NgramSearch
from fastgen.evaluation.tasks import EvaluationTask, cases
from fastgen.evaluation.training_data import TrainingData, TrainingRow, open_training_data

SIMILAR = 0.7
"""The similarity filter's own threshold: above it an instruction counts as the same."""
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Leakage:
    """``nearest`` and ``nearest_seed`` are in the order of ``tasks`` (names); the latter is empty without seeds."""

    training_data: str
    instructions: int
    tasks: tuple[str, ...]
    nearest: tuple[Nearest, ...]
    nearest_seed: tuple[Nearest, ...]
    ngrams: tuple[NgramOverlap, ...]

    @property
    def mean_rouge_l(self) -> float:
        """Mean over the tasks of the ROUGE-L F1 (0..1) to the nearest training instruction."""
        return fmean(nearest.rouge_l for nearest in self.nearest)

    @property
    def mean_seed_rouge_l(self) -> float | None:
        """The same to the nearest seed task; ``None`` where the seeds are not known."""
        return fmean(nearest.rouge_l for nearest in self.nearest_seed) if self.nearest_seed else None

    @property
    def similar(self) -> tuple[str, ...]:
        """Tasks with a training instruction above `SIMILAR`."""
        return tuple(task for task, near in zip(self.tasks, self.nearest, strict=True) if near.rouge_l > SIMILAR)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        scores = [nearest.rouge_l for nearest in self.nearest]
        return {
            "training_data": self.training_data,
            "instructions": self.instructions,
            "rouge_l": {"mean": self.mean_rouge_l, "median": median(scores), "max": max(scores)},
            "seed_rouge_l_mean": self.mean_seed_rouge_l,
            f"tasks_above_{SIMILAR}": list(self.similar),
            "ngrams": [
                {"n": g.n, "instances": g.long_enough, "shared": len(g.shared), "share": g.share, "ids": list(g.shared)}
                for g in self.ngrams
            ],
            "nearest": [
                {"task": task, "rouge_l": near.rouge_l, "instruction": near.text}
                for task, near in zip(self.tasks, self.nearest, strict=True)
            ],
        }

    def __str__(self) -> str:
        scores = [nearest.rouge_l for nearest in self.nearest]
        mean, highest = fmean(scores), max(scores)
        similar = f"above {SIMILAR}: {len(self.similar)} of {len(scores)}"
        lines = [
            f"Leakage from {self.training_data} ({self.instructions:,} instructions):",
            f"- ROUGE-L of a test instruction to the nearest: mean {mean:.3f}, highest {highest:.3f}; {similar}",
        ]
        if self.mean_seed_rouge_l is not None:
            lines.append(f"- to the nearest seed task: mean {self.mean_seed_rouge_l:.3f}")
        lines += [
            f"- {g.n} words in a row of the input found in the training text: {len(g.shared):,} of {g.long_enough:,} "
            f"instances that are long enough ({g.share:.1%})"
            for g in self.ngrams
        ]
        return "\n".join(lines)


def leakage(training_data: Path, tasks: Sequence[EvaluationTask]) -> Leakage:
    """Compare a run folder, or an exported file, with a benchmark's tasks (at least one).

    :raises InputError: the data cannot be read, or has no instruction.
    """
    data = open_training_data(training_data)
    found = _Comparison(tasks)
    for row in data.rows:
        found.add(row)
    return found.result(data)


class _Comparison:
    def __init__(self, tasks: Sequence[EvaluationTask]) -> None:
        self._tasks = tuple(task.name for task in tasks)
        self._definitions = [task.definition for task in tasks]
        self._nearest = NearestSearch(self._definitions)
        self._ngrams = NgramSearch(("/".join(case.key), case.instance.input) for case in cases(tasks))
        self._batch: list[str] = []
        self._last: str | None = None
        self._instructions = 0

    def add(self, row: TrainingRow) -> None:
        """Meet one more row; rows of one instruction follow each other."""
        texts: Iterable[str] = row.texts
        if row.instruction != self._last:  # instances of one instruction follow each other
            self._last = row.instruction
            self._instructions += 1
            self._nearest.meet(row.instruction)
        self._batch.extend(texts)
        if len(self._batch) >= _BATCH_ROWS:
            self._look_at_batch()

    def result(self, data: TrainingData) -> Leakage:
        """What was found in all rows. :raises InputError: there was none."""
        if not self._instructions:
            raise InputError(f"{data.name}: has no instruction with an instance yet, so nothing can be compared")
        self._look_at_batch()
        return Leakage(
            training_data=data.name,
            instructions=self._instructions,
            tasks=self._tasks,
            nearest=self._nearest.found(),
            nearest_seed=self._nearest_seeds(data.seeds),
            ngrams=self._ngrams.found(),
        )

    def _look_at_batch(self) -> None:
        self._ngrams.meet(self._batch)
        self._batch = []

    def _nearest_seeds(self, seeds: Sequence[str]) -> tuple[Nearest, ...]:
        if not seeds:
            return ()
        search = NearestSearch(self._definitions)
        for seed in seeds:
            search.meet(seed)
        return search.found()
