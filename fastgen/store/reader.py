"""Reads a run back: its configuration, seeds and rules, and its finished and rejected instructions.

`finished_instructions` is a fold with bounded memory: it holds only instructions whose instances are still missing.
Since the log only grows, each reading yields what earlier readings yielded, at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastgen.errors import RunFolderError
from fastgen.methods.base import Labelled, Commit, Answered, Created, Kept
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.rules import RULES_OF_EARLIER_RUNS, Rules
from fastgen.methods.self_instruct.seeds import load_seed_tasks, seed_fingerprint
from fastgen.store.run_folder import RunFolder
from fastgen.types import Failure, Instance, Neighbour, SeedTask


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder and what is needed to read its commits."""

    folder: RunFolder
    configuration: dict[str, Any]
    seeds: tuple[SeedTask, ...]
    rules: Rules


def open_run(run_dir: Path) -> OpenRun:
    """:raises InputError: there is no run, it is damaged or newer than this version, or its seed file was changed."""
    folder = RunFolder(run_dir)
    configuration = folder.header().configuration
    for name, value in RULES_OF_EARLIER_RUNS.items():
        configuration.setdefault(name, value)
    seeds = load_seed_tasks(folder.seeds_path)
    if configuration.get("seed_tasks", expected := seed_fingerprint(seeds)) != expected:
        raise RunFolderError(
            f"{folder.seeds_path}: is not what the run was made with, so its pool indexes mean other texts; restore it "
            f"from a copy"
        )
    saved: dict[str, Any] = {f.name: configuration[f.name] for f in fields(Rules) if f.name in configuration}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return OpenRun(folder, configuration, seeds, Rules(**values))


def unfinished(complete: int, target: int | None) -> str:
    """A note that the run has not reached its target. Empty for a run that has, or whose target is unknown."""
    if target is None or complete >= target:
        return ""
    return f"the run is not finished: {complete} of {target} instructions"


@dataclass(frozen=True, slots=True)
class FinishedInstruction:
    """An instruction that the run has finished. Without instances, it is empty.

    ``nearest_seed``, ``nearest_checked`` and ``demonstrations`` are pool indexes (see `pool_id`).
    """

    number: int
    instruction: str
    is_classification: bool
    instances: tuple[Instance, ...]
    nearest_seed: Neighbour | None
    nearest_checked: tuple[Neighbour, ...]
    request: int
    demonstrations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RejectedInstruction:
    """An instruction that a rule rejected. ``neighbour`` is set when the rule is similarity."""

    instruction: str
    rule: str
    neighbour: Neighbour | None
    request: int


@dataclass(slots=True)
class _Unfinished:
    kept: Kept
    text: str
    request: int
    demonstrations: tuple[int, ...]
    is_classification: bool = False

    def finish(self, instances: tuple[Instance, ...]) -> FinishedInstruction:
        return FinishedInstruction(
            number=self.kept.number,
            instruction=self.text,
            is_classification=self.is_classification,
            instances=instances,
            nearest_seed=self.kept.nearest_seed,
            nearest_checked=self.kept.nearest_checked,
            request=self.request,
            demonstrations=self.demonstrations,
        )


def finished_instructions(commits: Iterable[Commit], rules: Rules) -> Iterator[FinishedInstruction]:
    """Every finished instruction, in the order in which they were finished."""
    pending: dict[int, _Unfinished] = {}
    for commit in commits:
        text = commit.completion.text
        match commit.outcome:
            case Created(kept, _):
                for k in kept:
                    item = item_text(text, k.span, rules)
                    pending[k.number] = _Unfinished(k, item, commit.request, commit.demonstrations)
            case Labelled(is_classification):
                pending[_subject(commit)].is_classification = is_classification
            case Answered(spans):
                instances = tuple(Instance(text[a:b], text[c:d]) for (a, b), (c, d) in spans)
                yield pending.pop(_subject(commit)).finish(instances)
            case Failure(_, _, settles):
                if settles:
                    yield pending.pop(_subject(commit)).finish(())


def rejected_instructions(commits: Iterable[Commit], rules: Rules) -> Iterator[RejectedInstruction]:
    """Every rejected instruction, in log order."""
    for commit in commits:
        if isinstance(commit.outcome, Created):
            for rejection in commit.outcome.rejected:
                text = item_text(commit.completion.text, rejection.span, rules)
                yield RejectedInstruction(text, rejection.rule, rejection.neighbour, commit.request)


def pool_id(index: int, seeds: Sequence[SeedTask]) -> str:
    """The id of a pool index in exports: a seed's id, or ``machine_N``."""
    return seeds[index].id if index < len(seeds) else f"machine_{index - len(seeds)}"


def _subject(commit: Commit) -> int:
    if commit.subject is None:
        raise ValueError(f"request {commit.request}: a {commit.step} commit without a subject")
    return commit.subject
