"""What the log says: one ``Commit`` per judged choice of one completion, and its JSON form.

A commit carries the raw completion and, as spans of it, everything that was decided about it, so that replaying commits
rebuilds the whole state of a run without asking the rules again, and the rules can be asked again later from the raw
text. What a replay makes most of are named tuples, which cost a third of a frozen dataclass. Knows nothing of files,
checksums or asyncio.

JSON keys of a line (the store adds ``crc``)::

    req, choice, stage, t          request number, choice index, stage, Unix time (s)
    subject                        machine instruction number that the request works on (downstream stages)
    demos                          pool indexes of the demonstrations (instruction stage)
    shown                          how many demonstrations the prompt had, where a rebuilt run does not have them all
    text, finish, tokens           raw completion, finish reason, [prompt tokens, completion tokens]
    first                          machine instruction number of the first kept one; the others follow it
    kept                           [[start, end, nearest seed | null, rouge_l | null, pool index, rouge_l, ...], ...]
    rejected                       instruction stage: [[start, end, rule], [start, end, rule, rouge_l, pool index], ...]
                                   instance stage: [rule, ...]
    is_classification              the classification stage's answer
    unread                         why that answer was neither a yes nor a no (then it counts as a no); mostly absent
    instances                      [[input start, input end, output start, output end], ...]
    failed, detail, settles        instead of an outcome: the request failed for good
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastgen.types import Completion, Failure, Neighbour, Span, Stage


class Kept(NamedTuple):
    """A kept instruction: where its text is, its machine number, and what the similarity check met."""

    span: Span
    number: int
    nearest_seed: Neighbour | None
    nearest_checked: tuple[Neighbour, ...]


class Rejection(NamedTuple):
    """A rejected instruction; ``neighbour`` and its ROUGE-L are set when the rule is similarity."""

    span: Span
    rule: str
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class InstructionOutcome:
    """What an instruction completion gave."""

    kept: tuple[Kept, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class ClassificationOutcome:
    """Whether the subject is a classification task; ``unread`` says why the answer is none and counts as a no."""

    is_classification: bool
    unread: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceOutcome:
    """Instances as (input span, output span), and the rules that rejected others. None left: the subject is empty."""

    instances: tuple[tuple[Span, Span], ...]
    rejected: tuple[str, ...]


Outcome = InstructionOutcome | ClassificationOutcome | InstanceOutcome | Failure


class Commit(NamedTuple):
    """One judged choice of one completion (or one failed request): one log line.

    ``shown`` is how many demonstrations the prompt had, where ``demonstrations`` does not list all of them.
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
