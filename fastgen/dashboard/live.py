"""The figures of a run that goes: the report's, folded from the commits of this session, and the newest texts.

`observe` costs an append; the folding is done by `take_up`, which a worker thread may call (one call at a time). What
was committed before this session is not in the charts, only in the counts, which come with the run's samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fastgen.commits import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome
from fastgen.records import Failure, Instance
from fastgen.report.figures import RunFigures
from fastgen.report.sampling import SampleSizes
from fastgen.rules import Rules
from fastgen.settled import RejectedInstruction, Settled, rejected_instructions, settled_instructions

NEWEST = 12
_BACKLOG = 200_000  # commits; beyond it the oldest are left out of the charts rather than fill the memory


@dataclass(frozen=True, slots=True)
class NewInstruction:
    """A complete instruction with its first instance."""

    text: str
    is_classification: bool
    first: Instance


class LiveFigures:
    """What was seen so far."""

    def __init__(self, rules: Rules) -> None:
        self.figures = RunFigures((), SampleSizes(kept=0, rejected=0, measured=0), seed=0)
        self.newest_kept: deque[NewInstruction] = deque(maxlen=NEWEST)
        self.newest_rejected: deque[RejectedInstruction] = deque(maxlen=NEWEST)
        self._rules = rules
        self._waiting: deque[Commit] = deque(maxlen=_BACKLOG)
        self._pending: dict[int, list[Commit]] = {}  # what was committed about an instruction on its way

    def observe(self, commit: Commit) -> None:
        """Hand over one commit, in order."""
        self._waiting.append(commit)

    def take_up(self) -> None:
        """Fold what was handed over."""
        for _ in range(len(self._waiting)):
            self._fold(self._waiting.popleft())

    def _fold(self, commit: Commit) -> None:
        self.figures.add_commit(commit)
        if isinstance(commit.outcome, InstructionOutcome):
            for rejected in rejected_instructions((commit,), self._rules):
                self.figures.add_rejected(rejected)
                self.newest_rejected.append(rejected)
        for settled in self._settled_by(commit):
            self.figures.add_settled(settled)
            if settled.instances:
                new = NewInstruction(settled.instruction, settled.is_classification, settled.instances[0])
                self.newest_kept.append(new)

    def _settled_by(self, commit: Commit) -> Iterator[Settled]:
        """The instruction that the commit settles, if it was kept in this session."""
        match commit.outcome:
            case InstructionOutcome(kept, _):
                for one in kept:
                    self._pending[one.number] = [commit._replace(outcome=InstructionOutcome((one,), ()))]
            case ClassificationOutcome():
                if commit.subject in self._pending:
                    self._pending[commit.subject].append(commit)
            case InstanceOutcome() | Failure():
                settles = isinstance(commit.outcome, InstanceOutcome) or commit.outcome.settles
                if settles and commit.subject in self._pending:
                    yield from settled_instructions([*self._pending.pop(commit.subject), commit], self._rules)
