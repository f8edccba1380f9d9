"""The figures of a run as the page shows them: the report's, and the newest texts. A fold over the run's commits.

Guarantees: memory does not grow with the run (see `fastgen.report.figures`); after the last commit the figures are
those of ``fastgen report``. Knows nothing of files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fastgen.commits import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome
from fastgen.method.rules import Rules
from fastgen.records import Failure, Instance, SeedTask
from fastgen.report.figures import RunFigures
from fastgen.report.sampling import SampleSizes
from fastgen.settled import RejectedInstruction, Settled, rejected_instructions, settled_instructions

NEWEST: Final = 12


@dataclass(frozen=True, slots=True)
class NewInstruction:
    """A complete instruction with its first instance."""

    text: str
    is_classification: bool
    first: Instance


class LiveFigures:
    """What the commits up to now have made of a run with these seeds and rules."""

    def __init__(self, seeds: Sequence[SeedTask], rules: Rules) -> None:
        self.figures = RunFigures(seeds, SampleSizes(kept=0, rejected=0, measured=0), seed=0)
        self.newest_kept: deque[NewInstruction] = deque(maxlen=NEWEST)
        self.newest_rejected: deque[RejectedInstruction] = deque(maxlen=NEWEST)
        self._rules = rules
        self._pending: dict[int, list[Commit]] = {}  # what was committed about an instruction on its way

    def take(self, commit: Commit) -> None:
        """Count the next commit."""
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
        """The instruction that the commit settles, if it settles one."""
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
