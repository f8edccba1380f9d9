"""Reads a run back: its configuration, seeds and rules, and its finished and rejected instructions.

`finished_instructions` is a fold with bounded memory: it holds only instructions whose instances are still missing.
Since the log only grows, each reading yields what earlier readings yielded, at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastgen.errors import RunFolderError
from fastgen.methods.base import (
    Answered,
    Commit,
    Continued,
    Created,
    Drawn,
    Ended,
    Kept,
    Labelled,
    Rejected,
    Turn,
    task_with_input,
)
from fastgen.methods.catalogue import SELF_INSTRUCT, item_text_of
from fastgen.methods.self_instruct.rules import RULES_OF_EARLIER_RUNS, Rules
from fastgen.methods.self_instruct.seeds import load_seed_tasks, seed_fingerprint
from fastgen.store.ledger import Ledger
from fastgen.store.run_folder import RunFolder
from fastgen.text import reasoning_of
from fastgen.types import Completion, Instance, Neighbour, SeedTask, Span


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder and what is needed to read its commits."""

    folder: RunFolder
    configuration: dict[str, Any]
    seeds: tuple[SeedTask, ...]
    rules: Rules
    item_text: Callable[[str, Span], str]
    documents: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The name of the run's method. Runs of earlier versions do not have it."""
        return str(self.configuration.get("method", SELF_INSTRUCT))

    @property
    def is_self_instruct(self) -> bool:
        """Whether the method is `SELF_INSTRUCT`."""
        return self.method == SELF_INSTRUCT

    def instances(self, ledger: Ledger) -> int:
        """How many instances the run has to export and to judge. A conversation is one, as is a document."""
        has_one_each = bool(self.documents) or self.configuration.get("turns", 1) > 1
        return ledger.complete if has_one_each else ledger.instances


def open_run(run_dir: Path) -> OpenRun:
    """:raises InputError: there is no run, it is damaged or newer than this version, or its seed file was changed."""
    folder = RunFolder(run_dir)
    configuration = folder.header().configuration
    for name, value in RULES_OF_EARLIER_RUNS.items():
        configuration.setdefault(name, value)
    seeds = load_seed_tasks(folder.seeds_path) if folder.seeds_path.stat().st_size else ()
    if configuration.get("seed_tasks", expected := seed_fingerprint(seeds)) != expected:
        raise RunFolderError(
            f"{folder.seeds_path}: is not what the run was made with, so its pool indexes mean other texts; restore it "
            f"from a copy"
        )
    saved: dict[str, Any] = {f.name: configuration[f.name] for f in fields(Rules) if f.name in configuration}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    rules = Rules(**values)
    item_text = item_text_of(str(configuration.get("method", SELF_INSTRUCT)), rules)
    return OpenRun(folder, configuration, seeds, rules, item_text, folder.texts("documents"))


def unfinished(complete: int, target: int | None) -> str:
    """A note that the run has not reached its target. Empty for a run that has, or whose target is unknown."""
    if target is None or complete >= target:
        return ""
    return f"the run is not finished: {complete} of {target} instructions"


@dataclass(frozen=True, slots=True)
class FinishedInstruction:
    """An instruction that the run has finished. Without instances, it is empty.

    ``nearest_seed``, ``nearest_checked`` and ``demonstrations`` are pool indexes (see `pool_id`), or ``demonstrations``
    is the number of its document. ``turns`` is the whole conversation where it has more than one turn. ``labels`` are
    by step, ``drawn`` is what its prompt drew. ``reasoning`` is what the model thought before it wrote the instances.
    """

    number: int
    instruction: str
    is_classification: bool
    instances: tuple[Instance, ...]
    nearest_seed: Neighbour | None
    nearest_checked: tuple[Neighbour, ...]
    request: int
    demonstrations: tuple[int, ...]
    turns: tuple[Turn, ...] = ()
    labels: Mapping[str, bool | int | str] = field(default_factory=dict)
    drawn: Drawn = field(default_factory=dict)
    reasoning: str = ""


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
    input: str
    made_by: Commit
    labels: dict[str, bool | int | str] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    message: str = ""

    def answer(self, completion: Completion, spans: Sequence[tuple[Span, Span]]) -> None:
        raw = completion.text
        instances = tuple(Instance(raw[a:b] or self.input, raw[c:d]) for (a, b), (c, d) in spans)
        if not instances:
            return
        if not self.instances:
            self.instances = instances
        asked = self.message or task_with_input(self.text, self.input)
        self.turns.append(Turn(asked, instances[0].output, reasoning_of(completion)))

    def finish(self, ended: Ended, documents: Sequence[str]) -> FinishedInstruction:
        sources, instances = self.made_by.demonstrations, self.instances
        if documents and sources and not instances:
            instances = (Instance("", documents[sources[0] % len(documents)]),)  # of whichever pass over them
        return FinishedInstruction(
            number=self.kept.number,
            instruction=self.text,
            is_classification=self.labels.get("classification") is True,
            instances=instances if ended == "complete" else (),
            nearest_seed=self.kept.nearest_seed,
            nearest_checked=self.kept.nearest_checked,
            request=self.made_by.request,
            demonstrations=sources,
            turns=tuple(self.turns) if len(self.turns) > 1 else (),
            labels=self.labels,
            drawn=self.made_by.drawn or {},
            reasoning=self.turns[0].reasoning if self.turns else "",
        )


class Finishing:
    """Puts instructions together from commits, which come one by one and in the order of the log."""

    def __init__(self, run: OpenRun) -> None:
        self._run = run
        self._pending: dict[int, _Unfinished] = {}

    def add(self, commit: Commit) -> FinishedInstruction | None:
        """Take the next commit, and return the instruction that it finishes, if it does."""
        text, outcome = commit.completion.text, commit.outcome
        if isinstance(outcome, Created):
            for kept in outcome.kept:
                given = "" if kept.input is None else text[slice(*kept.input)]
                self._pending[kept.number] = _Unfinished(kept, self._run.item_text(text, kept.span), given, commit)
            return None
        if commit.subject is None:  # a creating request that failed
            return None
        match outcome:
            case Labelled(value):
                self._pending[commit.subject].labels[commit.step] = value
            case Rejected(_, value) if value is not None:
                self._pending[commit.subject].labels[commit.step] = value
            case Continued((start, end)):
                self._pending[commit.subject].message = text[start:end]
            case Answered(spans):
                self._pending[commit.subject].answer(commit.completion, spans)
        if ended := commit.ended:
            return self._pending.pop(commit.subject).finish(ended, self._run.documents)
        return None


def finished_instructions(commits: Iterable[Commit], run: OpenRun) -> Iterator[FinishedInstruction]:
    """Every finished instruction, in the order in which they were finished."""
    finishing = Finishing(run)
    return (finished for commit in commits if (finished := finishing.add(commit)) is not None)


def rejected_instructions(commits: Iterable[Commit], run: OpenRun) -> Iterator[RejectedInstruction]:
    """Every rejected instruction, in log order."""
    for commit in commits:
        if isinstance(commit.outcome, Created):
            for rejection in commit.outcome.rejected:
                text = run.item_text(commit.completion.text, rejection.span)
                yield RejectedInstruction(text, rejection.rule, rejection.neighbour, commit.request)


def pool_id(index: int, seeds: Sequence[SeedTask]) -> str:
    """The id of a pool index in exports: a seed's id, or ``machine_N``."""
    return seeds[index].id if index < len(seeds) else f"machine_{index - len(seeds)}"
