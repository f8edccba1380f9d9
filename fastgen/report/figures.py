"""One reading of a run's log: every figure that the page shows, and bounded samples of what was kept and rejected.

Guarantees: memory does not grow with the run (counts, capped distributions, reservoirs of a stated size, only the
instructions on their way); the same log and seed give the same figures. Works on a run that goes on: it shows what was
there when it was read. Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fastgen.commits import Commit, InstanceOutcome, InstructionOutcome
from fastgen.ledger import Ledger
from fastgen.records import SeedTask
from fastgen.report.sampling import Reservoir, SampleSizes, Spread
from fastgen.report.timeline import Timeline
from fastgen.runs import OpenRun
from fastgen.settled import RejectedInstruction, Settled, rejected_instructions, settled_instructions
from fastgen.storage.log.format import TornTail

ROUGE_BINS: Final = 20
EXAMPLES_PER_RULE: Final = 5


@dataclass(slots=True)
class RougeSpread:
    """ROUGE-L F1 values (0..1) in `ROUGE_BINS` equal bins, the last one closed."""

    bins: list[int] = field(default_factory=lambda: [0] * ROUGE_BINS)
    total: int = 0
    _sum: float = 0.0

    def add(self, score: float) -> None:
        """Count one value."""
        self.bins[min(int(score * ROUGE_BINS), ROUGE_BINS - 1)] += 1
        self.total += 1
        self._sum += score

    @property
    def mean(self) -> float:
        """0 where there are none."""
        return self._sum / self.total if self.total else 0.0


class RunFigures:
    """What `gather` found."""

    def __init__(self, seeds: Sequence[SeedTask], sizes: SampleSizes, seed: int) -> None:
        self.seeds = tuple(seeds)
        self.ledger = Ledger(seeds=len(self.seeds))
        self.timeline = Timeline()
        self.instruction_words, self.input_words, self.output_words = Spread(), Spread(), Spread()
        self.empty_inputs = 0
        self.nearest_seed, self.nearest_any = RougeSpread(), RougeSpread()
        self.classification = 0  # of the complete instructions
        self.instances_each = Spread(20)
        self.kept: Reservoir[Settled] = Reservoir(sizes.kept, seed)
        self.rejected: Reservoir[RejectedInstruction] = Reservoir(sizes.rejected, seed + 1)
        self.measured: Reservoir[str] = Reservoir(sizes.measured, seed + 2)
        self.examples: dict[str, Reservoir[RejectedInstruction]] = {}
        self.torn = False
        self._seed = seed

    @property
    def complete(self) -> int:
        """Instructions with at least one valid instance."""
        return self.ledger.complete

    def add_commit(self, commit: Commit) -> None:
        """Count one commit; what settles by it comes through `add_settled`."""
        self.ledger.apply(commit)
        bin_ = self.timeline.at(commit.time_s)
        bin_.completions += 1
        bin_.generated_tokens += commit.completion.completion_tokens
        bin_.prompt_tokens += commit.completion.prompt_tokens
        if isinstance(commit.outcome, InstructionOutcome):
            bin_.kept += len(commit.outcome.kept)
            bin_.rejected += len(commit.outcome.rejected)
            for kept in commit.outcome.kept:
                self._add_nearest(kept.nearest_seed, kept.nearest_checked)
        elif isinstance(commit.outcome, InstanceOutcome):
            bin_.complete += bool(commit.outcome.instances)

    def _add_nearest(self, seed: tuple[int, float] | None, checked: Iterable[tuple[int, float]]) -> None:
        to_seed = seed[1] if seed is not None else 0.0
        self.nearest_seed.add(to_seed)
        self.nearest_any.add(max([to_seed, *(score for _, score in checked)]))

    def add_rejected(self, rejected: RejectedInstruction) -> None:
        """Take a rejected instruction into the samples."""
        self.rejected.add(rejected)
        if (examples := self.examples.get(rejected.rule)) is None:
            examples = self.examples[rejected.rule] = Reservoir(EXAMPLES_PER_RULE, self._seed + len(self.examples) + 3)
        examples.add(rejected)

    def add_settled(self, settled: Settled) -> None:
        """Take an instruction that nothing more will happen to into the figures; empty ones are only counted."""
        if not settled.instances:
            return
        self.classification += settled.is_classification
        self.instances_each.add(len(settled.instances))
        self.instruction_words.add(len(settled.instruction.split()))
        for instance in settled.instances:
            words = len(instance.input.split())
            self.empty_inputs += words == 0
            if words:
                self.input_words.add(words)
            self.output_words.add(len(instance.output.split()))
        self.kept.add(settled)
        self.measured.add(settled.instruction)


def gather(run: OpenRun, sizes: SampleSizes, seed: int) -> RunFigures:
    """Read the run once.

    :raises DamagedLogError: the run's log is damaged.
    """
    figures = RunFigures(run.seeds, sizes, seed)
    for settled in settled_instructions(_watched(run, figures), run.rules):
        figures.add_settled(settled)
    return figures


def _watched(run: OpenRun, figures: RunFigures) -> Iterator[Commit]:
    for item in run.folder.commits():
        if isinstance(item, TornTail):
            figures.torn = True
            continue
        commit = item[0]
        figures.add_commit(commit)
        if isinstance(commit.outcome, InstructionOutcome):
            for rejected in rejected_instructions((commit,), run.rules):
                figures.add_rejected(rejected)
        yield commit
