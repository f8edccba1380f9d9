"""One reading of a run's log: the figures that a page shows, and bounded samples of what was kept and rejected.

Guarantees: memory does not grow with the run (counts, capped distributions, reservoirs of a stated size, the newest
few texts, only the instructions on their way). The same log and seed give the same figures. A run that is running is
shown as it was when it was read.

Time is working time: a gap of more than a minute between two commits (a stopped run, an outage) counts as none, so that
a run that was resumed after a night is not drawn as a night.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import floor, log, log1p
from typing import Final, Generic, TypeVar

from fastgen.methods.base import Commit, Created
from fastgen.report.options import ReportOptions
from fastgen.store.ledger import Ledger
from fastgen.store.log import TornTail
from fastgen.store.reader import (
    FinishedInstruction,
    OpenRun,
    RejectedInstruction,
    finished_instructions,
    rejected_instructions,
)

T = TypeVar("T")
SPREAD_CAP: Final = 2_000
ROUGE_BINS: Final = 20
MAX_BINS: Final = 240
LONGEST_GAP_S: Final = 60.0
EXAMPLES_PER_RULE: Final = 5
MOST_VALUES: Final = 200
"""Different labels of a step, or topics, that are counted by themselves."""
OTHER_VALUES: Final = "others"
_VALUE_LETTERS: Final = 200
NEWEST: Final = 12
"""Of the complete and of the rejected instructions, for the live page."""


class Reservoir(Generic[T]):
    """A uniform sample of at most ``size`` (at least 0) of the items added, the same for the same seed and order.

    Source: algorithm L of Li, "Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))", 1994. It draws a
    number only for items that it takes, so a long stream costs a comparison for each item that it passes over.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = random.Random(seed)
        self._items: list[tuple[int, T]] = []
        self.seen = 0
        self._weight = 1.0
        self._next = size

    def add(self, item: T) -> None:
        """Offer the next item."""
        if len(self._items) < self._size:
            self._items.append((self.seen, item))
            if len(self._items) == self._size:
                self._skip()
        elif self._size and self.seen == self._next:
            self._items[self._random.randrange(self._size)] = (self.seen, item)
            self._skip()
        self.seen += 1

    def __iter__(self) -> Iterator[T]:
        """The sample in the order of the stream."""
        return (item for _, item in sorted(self._items, key=lambda pair: pair[0]))

    def __len__(self) -> int:
        return len(self._items)

    def _skip(self) -> None:
        """Draw the place of the next item to take. ``seen`` is the place of the present one."""
        self._weight *= (1.0 - self._random.random()) ** (1.0 / self._size)
        passed = log(1.0 - self._random.random()) / log1p(-self._weight) if self._weight < 1.0 else 0.0
        self._next = self.seen + floor(passed) + 1


class Spread:
    """How whole numbers (0 or more) are distributed: exact counts up to `SPREAD_CAP`, one count for all above."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.total = 0
        self._sum = 0
        self.highest = 0

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[min(value, SPREAD_CAP)] += 1
        self.total += 1
        self._sum += value
        self.highest = max(self.highest, value)

    @property
    def mean(self) -> float:
        """Exact, also of values above the cap. 0 where there are none."""
        return self._sum / self.total if self.total else 0.0

    def quantile(self, share: float) -> int:
        """The smallest value that ``share`` (0..1) of all are not above (at most the cap). 0: there is none."""
        reached = 0
        for value in sorted(self.counts):
            reached += self.counts[value]
            if reached >= share * self.total:
                return value
        return 0

    def bins(self, width: int, bins: int) -> list[int]:
        """Counts of ``bins`` ranges of ``width`` values each from 0. The last has everything above too."""
        found = [0] * bins
        for value, count in self.counts.items():
            found[min(value // width, bins - 1)] += count
        return found


@dataclass(slots=True)
class Bin:
    """What was committed in a stretch of time."""

    kept: int = 0
    rejected: int = 0
    complete: int = 0
    generated_tokens: int = 0

    def add(self, other: Bin) -> None:
        """Add the counts of another bin."""
        self.kept += other.kept
        self.rejected += other.rejected
        self.complete += other.complete
        self.generated_tokens += other.generated_tokens

    @property
    def acceptance(self) -> float | None:
        """Kept share of the instructions written. ``None``: none was."""
        written = self.kept + self.rejected
        return self.kept / written if written else None

    @property
    def kept_per_1000_tokens(self) -> float | None:
        """Yield. ``None``: nothing was generated."""
        return 1000 * self.kept / self.generated_tokens if self.generated_tokens else None


class Timeline:
    """Bins of ``width_s`` seconds each from the run's start. At most `MAX_BINS`, at first of one second."""

    def __init__(self) -> None:
        self.width_s = 1.0
        self.bins: list[Bin] = []
        self.working_s = 0.0
        self._last_s: float | None = None

    def at(self, time_s: float) -> Bin:
        """The bin of a commit at this Unix time. A time before the last one (another clock) counts as no time."""
        if self._last_s is not None:
            gap = time_s - self._last_s
            self.working_s += gap if 0 < gap <= LONGEST_GAP_S else 0.0
        self._last_s = time_s
        place = int(self.working_s / self.width_s)
        while place >= MAX_BINS:
            self._widen()
            place = int(self.working_s / self.width_s)
        while len(self.bins) <= place:
            self.bins.append(Bin())
        return self.bins[place]

    def joined(self, most: int) -> Timeline:
        """The same in at most ``most`` bins."""
        other = Timeline()
        other.width_s, other.working_s = self.width_s, self.working_s
        other.bins = list(self.bins)
        while len(other.bins) > most:
            other._widen()
        return other

    def trailing(self, place: int, written: int, least_bins: int) -> tuple[Bin, float]:
        """The sum of the bins that end with this one, and their seconds, for a line that is not mostly noise.

        At least ``least_bins`` of them, and as many more as it takes to have ``written`` instructions.
        """
        whole, seconds = Bin(), 0.0
        for back in range(place, -1, -1):
            whole.add(self.bins[back])
            seconds += self.seconds_of(back)
            if place - back + 1 >= least_bins and whole.kept + whole.rejected >= written:
                break
        return whole, seconds

    def seconds_of(self, place: int) -> float:
        """How much working time the bin covers: the last one may not be over."""
        return max(min(self.width_s, self.working_s - place * self.width_s), 0.0) or self.width_s

    def _widen(self) -> None:
        wide = [replace(one) for one in self.bins[::2]]
        for one, other in zip(wide, self.bins[1::2], strict=False):
            one.add(other)
        self.bins = wide
        self.width_s *= 2


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
    """What the commits up to now have made of a run. Sample sizes are the options'."""

    def __init__(self, run: OpenRun, options: ReportOptions) -> None:
        self.seeds = run.seeds
        self.ledger = Ledger(seeds=len(self.seeds))
        self.timeline = Timeline()
        self.instruction_words, self.input_words, self.output_words = Spread(), Spread(), Spread()
        self.empty_inputs = 0
        self.nearest_seed, self.nearest_any = RougeSpread(), RougeSpread()
        self.classification = 0  # of the complete instructions
        self.method, self.is_self_instruct = run.method, run.is_self_instruct
        self.has_documents = bool(run.documents)
        self.turns = Spread()  # of the complete instructions
        self.labels: dict[str, Counter[str]] = {}  # by step, of the complete instructions
        self.drawn: dict[str, Counter[str]] = {}  # by name: how many kept instructions have each value
        self.kept: Reservoir[FinishedInstruction] = Reservoir(options.sample, options.seed)
        self.rejected: Reservoir[RejectedInstruction] = Reservoir(options.rejected_sample, options.seed + 1)
        self.measured: Reservoir[str] = Reservoir(options.parse_sample, options.seed + 2)
        self.examples: dict[str, Reservoir[RejectedInstruction]] = {}
        self.newest_kept: deque[FinishedInstruction] = deque(maxlen=NEWEST)
        self.newest_rejected: deque[RejectedInstruction] = deque(maxlen=NEWEST)
        self._run = run
        self._seed = options.seed

    @property
    def complete(self) -> int:
        """Instructions with at least one valid instance."""
        return self.ledger.complete

    @property
    def written(self) -> int:
        """Instructions that the model wrote, kept and rejected."""
        return self.ledger.kept + self.ledger.rejected.total()

    def add_commit(self, commit: Commit) -> None:
        """Count one commit. What it finishes comes through `add_finished`."""
        self.ledger.apply(commit)
        bin_ = self.timeline.at(commit.time_s)
        bin_.generated_tokens += commit.completion.completion_tokens
        if isinstance(commit.outcome, Created):
            bin_.kept += len(commit.outcome.kept)
            bin_.rejected += len(commit.outcome.rejected)
            if commit.outcome.kept:
                _count(self.drawn, commit.drawn or {}, len(commit.outcome.kept))
            for kept in commit.outcome.kept:
                to_seed = kept.nearest_seed[1] if kept.nearest_seed is not None else 0.0
                self.nearest_seed.add(to_seed)
                self.nearest_any.add(max([to_seed, *(score for _, score in kept.nearest_checked)]))
            for rejected in rejected_instructions((commit,), self._run):
                self._add_rejected(rejected)
        bin_.complete += commit.ended == "complete"

    def _add_rejected(self, rejected: RejectedInstruction) -> None:
        self.rejected.add(rejected)
        self.newest_rejected.append(rejected)
        if (examples := self.examples.get(rejected.rule)) is None:
            examples = self.examples[rejected.rule] = Reservoir(EXAMPLES_PER_RULE, self._seed + len(self.examples) + 3)
        examples.add(rejected)

    def add_finished(self, finished: FinishedInstruction) -> None:
        """Take a finished instruction into the figures. One without instances is left out."""
        if not finished.instances:
            return
        self.classification += finished.is_classification
        self.turns.add(len(finished.turns) or 1)
        _count(self.labels, finished.labels)
        self.instruction_words.add(len(finished.instruction.split()))
        for instance in finished.instances:
            words = len(instance.input.split())
            self.empty_inputs += words == 0
            if words:
                self.input_words.add(words)
            self.output_words.add(len(instance.output.split()))
        self.kept.add(finished)
        self.measured.add(finished.instruction)
        self.newest_kept.append(finished)


def _count(counters: dict[str, Counter[str]], values: Mapping[str, object], times: int = 1) -> None:
    """Count the values by name. A name has at most `MOST_VALUES`, the rest are counted as `OTHER_VALUES`."""
    for name, value in values.items():
        counter = counters.setdefault(name, Counter())
        text = str(value)[:_VALUE_LETTERS]
        counter[text if text in counter or len(counter) < MOST_VALUES else OTHER_VALUES] += times


def gather(run: OpenRun, options: ReportOptions) -> RunFigures:
    """Read the run once.

    :raises DamagedLogError: the run's log is damaged.
    """
    figures = RunFigures(run, options)

    def commits() -> Iterator[Commit]:
        for item in run.folder.commits():
            if not isinstance(item, TornTail):
                figures.add_commit(item[0])
                yield item[0]

    for finished in finished_instructions(commits(), run):
        figures.add_finished(finished)
    return figures
