"""Reads a run's commits as what people care about: settled instructions with their instances, in the order of settling.

A fold with bounded memory: only instructions whose instances are still to come are held. Since the log only grows,
what was yielded once is yielded again, at the same place, by every later reading. Knows nothing of files and formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fastgen.commits import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome, Kept, Rejection
from fastgen.method.rules import Rules
from fastgen.records import Failure, Instance, Neighbour, SeedTask
from fastgen.stages.instruction import item_text


@dataclass(frozen=True, slots=True)
class Settled:
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


def settled_instructions(commits: Iterable[Commit], rules: Rules) -> Iterator[Settled]:
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


def _settle(pending: _Pending, commit: Commit) -> Settled:
    spans = commit.outcome.instances if isinstance(commit.outcome, InstanceOutcome) else ()
    text = commit.completion.text
    return Settled(
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
