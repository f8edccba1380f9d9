"""What a method makes of answers: outcomes, and the commit that records one of them.

A `Commit` is one judged choice of one completion (or one failed request) and becomes one log line. It carries the raw
completion and, as spans of it, everything that was decided about it. Replaying commits therefore rebuilds a run's state
without applying the rules again, and the rules can be applied again later from the raw text. A replay makes millions of
these values, so most are named tuples, which cost a third of a frozen dataclass. `fastgen.store.records` has the JSON
form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastgen.types import Completion, Failure, Neighbour, Span, Stage


class Kept(NamedTuple):
    """A kept instruction: the span of its text, its machine number, and its nearest neighbours.

    ``nearest_checked`` are the most similar texts among those that the similarity filter compared it with.
    """

    span: Span
    number: int
    nearest_seed: Neighbour | None
    nearest_checked: tuple[Neighbour, ...]


class Rejection(NamedTuple):
    """A rejected instruction. ``neighbour`` is set where the rule compares it with other texts."""

    span: Span
    rule: str
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class InstructionOutcome:
    """The instructions of a completion."""

    kept: tuple[Kept, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class ClassificationOutcome:
    """Whether the subject is a classification task.

    ``unread`` says why an answer is neither a yes nor a no. Such an answer counts as a no.
    """

    is_classification: bool
    unread: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceOutcome:
    """Instances as (input span, output span), and the rules that rejected others.

    A subject without an instance is finished as empty.
    """

    instances: tuple[tuple[Span, Span], ...]
    rejected: tuple[str, ...]


Outcome = InstructionOutcome | ClassificationOutcome | InstanceOutcome | Failure


class Commit(NamedTuple):
    """One judged choice of one completion, or one failed request.

    ``subject`` is the machine instruction number that a downstream stage worked on. ``shown`` is how many
    demonstrations the prompt had where ``demonstrations`` does not list all of them.
    """

    request: int
    choice: int
    stage: Stage
    subject: int | None
    demonstrations: tuple[int, ...]
    completion: Completion
    outcome: Outcome
    time_s: float
    shown: int | None = None

    @property
    def demonstrations_shown(self) -> int:
        """How many demonstrations the prompt had."""
        return len(self.demonstrations) if self.shown is None else self.shown
