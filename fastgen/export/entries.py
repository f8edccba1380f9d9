"""Which instructions an export writes: seed tasks, finished instructions, and of them a seeded, nested sample.

Guarantees: seed tasks come first, then machine instructions in the order in which they were finished. Memory is bounded
by the sample's size (16 bytes for each instruction asked for), not by the run. A sample reads the log twice, up to the
same place.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from fastgen.export.options import ChoiceOptions, draw
from fastgen.store.reader import FinishedInstruction, OpenRun, finished_instructions, pool_id
from fastgen.types import Instance, SeedTask

_MACHINE = 1 << 63


class InstanceScores(Protocol):
    """The scores that a judge gave the instances of a run. They must not change while they are read."""

    def score(self, number: int, index: int) -> float | None:
        """The score of instance ``index`` (from 0) of machine instruction ``number``, or ``None``."""


@dataclass(frozen=True, slots=True)
class ScoredInstance:
    """An instance with its place among the instruction's instances (from 0) and its score, if it was judged."""

    index: int
    instance: Instance
    score: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One instruction to write. ``finished`` is what a run knows of it, ``None`` for a seed task."""

    id: str
    instruction: str
    is_classification: bool
    instances: tuple[ScoredInstance, ...]
    finished: FinishedInstruction | None


def entries(run: OpenRun, options: ChoiceOptions, scores: InstanceScores | None) -> Iterator[Entry]:
    """Every instruction that the options ask for, with the instances that they ask for.

    :raises DamagedLogError: the run's log is damaged.
    """

    def read() -> Iterator[Entry]:
        return _eligible(run, options, scores)

    if options.max_instructions is None:
        return read()
    return _sample(read, options.max_instructions, options.seed)


def _eligible(run: OpenRun, options: ChoiceOptions, scores: InstanceScores | None) -> Iterator[Entry]:
    if options.include_seeds:
        yield from map(_seed_entry, run.seeds)
    commits = run.folder.whole_commits()
    for finished in finished_instructions(commits, run):
        if (entry := machine_entry(finished, run, options, scores)) is not None:
            yield entry


def _seed_entry(seed: SeedTask) -> Entry:
    instances = tuple(ScoredInstance(i, instance, None) for i, instance in enumerate(seed.instances))
    return Entry(seed.id, seed.instruction, seed.is_classification, instances, None)


def machine_entry(
    finished: FinishedInstruction, run: OpenRun, options: ChoiceOptions, scores: InstanceScores | None
) -> Entry | None:
    """A finished instruction with the instances that the options ask for. ``None`` if they do not ask for it."""
    least = options.min_judge_score
    scored = (
        ScoredInstance(i, instance, None if scores is None else scores.score(finished.number, i))
        for i, instance in enumerate(finished.instances)
    )
    instances = tuple(s for s in scored if least is None or (s.score is not None and s.score >= least))
    if not (instances or options.include_empty):
        return None
    name = pool_id(len(run.seeds) + finished.number, run.seeds)
    return Entry(name, finished.instruction, finished.is_classification, instances, finished)


def _sample(read: Callable[[], Iterator[Entry]], size: int, seed: int) -> Iterator[Entry]:
    """The entries of the ``size`` lowest ranks, in the order of the run.

    A rank depends on the entry alone, so a smaller sample is part of a larger one. The second reading ends where the
    first one did, since the run may have grown.
    """
    ranks, seen = array("Q"), 0  # the lowest ones, in at most twice their room
    for seen, entry in enumerate(read(), 1):  # noqa: B007 - the count is used below
        ranks.append(_rank(entry, seed))
        if len(ranks) >= 2 * size + 1024:
            ranks = _lowest(ranks, size)
    if not seen:
        return iter(())
    last = max(_lowest(ranks, size))
    return islice((entry for entry in islice(read(), seen) if _rank(entry, seed) <= last), size)


def _rank(entry: Entry, seed: int) -> int:
    """64 bits. Every seed task comes before every machine instruction."""
    return draw(seed, "sample", entry.id) >> 1 | (0 if entry.finished is None else _MACHINE)


def _lowest(ranks: array[int], size: int) -> array[int]:
    if len(ranks) <= size:
        return ranks
    import numpy as np

    return array("Q", np.partition(np.frombuffer(ranks, dtype=np.uint64), size - 1)[:size].tobytes())
