"""Opens a run folder for readers: its seeds, rules and configuration, as they were when the run was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastgen.errors import RunFolderError
from fastgen.methods.base import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome, Kept, Rejection
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.rules import RULES_OF_EARLIER_RUNS, Rules
from fastgen.methods.self_instruct.seeds import load_seed_tasks, seed_fingerprint
from fastgen.store.run_folder import RunFolder
from fastgen.types import Failure, Instance, Neighbour, SeedTask


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder and what is needed to make sense of its commits."""

    folder: RunFolder
    configuration: dict[str, Any]
    seeds: tuple[SeedTask, ...]
    rules: Rules


def unfinished(complete: int, target: int | None) -> str:
    """What a person should know of a run that is not at its end; empty for one that is, or of no known target."""
    if target is None or complete >= target:
        return ""
    return f"the run is not finished: {complete} of {target} instructions"


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
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    rules = Rules(**values)
    return OpenRun(folder, configuration, seeds, rules)


@dataclass(frozen=True, slots=True)
class FinishedInstruction:
    """An instruction that nothing more will happen to; no instances means that it is empty.

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
    """An instruction that a rule rejected; ``neighbour`` is set when the rule is similarity."""

    instruction: str
    rule: str
    neighbour: Neighbour | None
    request: int


@dataclass(slots=True)
class _Pending:
    kept: Kept
    text: str
    request: int
    demonstrations: tuple[int, ...]
    is_classification: bool = False


def finished_instructions(commits: Iterable[Commit], rules: Rules) -> Iterator[FinishedInstruction]:
    """Every settled instruction, in the order of settling."""
    pending: dict[int, _Pending] = {}
    for commit in commits:
        match commit.outcome:
            case InstructionOutcome(kept, _):
                for k in kept:
                    text = item_text(commit.completion.text, k.span, rules)
                    pending[k.number] = _Pending(k, text, commit.request, commit.demonstrations)
            case ClassificationOutcome(is_classification):
                pending[_subject(commit)].is_classification = is_classification
            case InstanceOutcome():
                yield _settle(pending.pop(_subject(commit)), commit)
            case Failure(_, _, settles):
                if settles:
                    yield _settle(pending.pop(_subject(commit)), commit)


def rejected_instructions(commits: Iterable[Commit], rules: Rules) -> Iterator[RejectedInstruction]:
    """Every rejected instruction, in log order."""
    for commit in commits:
        if isinstance(commit.outcome, InstructionOutcome):
            for rejection in commit.outcome.rejected:
                yield _rejected(rejection, commit, rules)


def pool_id(index: int, seeds: Sequence[SeedTask]) -> str:
    """The name that a pool index has outside: a seed's id, or ``machine_N``."""
    return seeds[index].id if index < len(seeds) else f"machine_{index - len(seeds)}"


def _subject(commit: Commit) -> int:
    if commit.subject is None:
        raise ValueError(f"request {commit.request}: a {commit.stage} commit without a subject")
    return commit.subject


def _settle(pending: _Pending, commit: Commit) -> FinishedInstruction:
    spans = commit.outcome.instances if isinstance(commit.outcome, InstanceOutcome) else ()
    text = commit.completion.text
    return FinishedInstruction(
        number=pending.kept.number,
        instruction=pending.text,
        is_classification=pending.is_classification,
        instances=tuple(Instance(text[a:b], text[c:d]) for (a, b), (c, d) in spans),
        nearest_seed=pending.kept.nearest_seed,
        nearest_checked=pending.kept.nearest_checked,
        request=pending.request,
        demonstrations=pending.demonstrations,
    )


def _rejected(rejection: Rejection, commit: Commit, rules: Rules) -> RejectedInstruction:
    text = item_text(commit.completion.text, rejection.span, rules)
    return RejectedInstruction(text, rejection.rule, rejection.neighbour, commit.request)
