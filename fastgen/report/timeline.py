"""How a run went over its time: sums in equal bins whose width doubles when they become too many.

Time is working time: a gap of more than a minute between two commits (a stopped run, an outage) counts as none, so that
a run that was resumed after a night is not drawn as a night.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

MOST_BINS = 240
LONGEST_GAP_S = 60.0


@dataclass(slots=True)
class Bin:
    """What was committed in a stretch of time."""

    kept: int = 0
    rejected: int = 0
    complete: int = 0
    completions: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0

    def take(self, other: Bin) -> None:
        """Add the counts of another bin."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def acceptance(self) -> float | None:
        """Kept share of the instructions written; ``None``: none was."""
        written = self.kept + self.rejected
        return self.kept / written if written else None

    @property
    def kept_per_1000_tokens(self) -> float | None:
        """Yield; ``None``: nothing was generated."""
        return 1000 * self.kept / self.generated_tokens if self.generated_tokens else None


class Timeline:
    """Bins of ``width_s`` seconds each from the run's start; at most `MOST_BINS`, at first of one second."""

    def __init__(self) -> None:
        self.width_s = 1.0
        self.bins: list[Bin] = []
        self.working_s = 0.0
        self._last_s: float | None = None

    def at(self, time_s: float) -> Bin:
        """The bin of a commit at this Unix time; times that go back (another machine's clock) count as no time."""
        if self._last_s is not None:
            gap = time_s - self._last_s
            self.working_s += gap if 0 < gap <= LONGEST_GAP_S else 0.0
        self._last_s = time_s
        place = int(self.working_s / self.width_s)
        while place >= MOST_BINS:
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
            whole.take(self.bins[back])
            seconds += self.seconds_of(back)
            if place - back + 1 >= least_bins and whole.kept + whole.rejected >= written:
                break
        return whole, seconds

    def seconds_of(self, place: int) -> float:
        """How much working time the bin covers: the last one may not be over."""
        return max(min(self.width_s, self.working_s - place * self.width_s), 0.0) or self.width_s

    def _widen(self) -> None:
        pairs = [self.bins[i : i + 2] for i in range(0, len(self.bins), 2)]
        self.bins = [_joined(pair) for pair in pairs]
        self.width_s *= 2


def _joined(bins: list[Bin]) -> Bin:
    whole = Bin()
    for one in bins:
        whole.take(one)
    return whole
