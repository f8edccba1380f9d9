"""The rates of a run that people see, and the time that is left. Each is defined here and nowhere else.

A rate is of what was committed. It is over the last `WINDOW_S`, or over as much longer as it takes to have `ENOUGH`
events, and it begins with the first event of its kind in this session at the earliest: the time until the first answers
come says nothing about how fast they come then. Where all came at once, it is over the last `WINDOW_S` of the session.
Time in which the process was stopped (Ctrl-Z) does not count.

The time that is left is what is missing by the rate of complete instructions. Its range holds for 95 of 100 runs in
which instructions come independently of each other or in bursts like those of the window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pvariance
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
ENOUGH: Final = 30
_MOST_LOOKS: Final = 600
_PIECES: Final = 8  # of the window, to see whether instructions come in bursts
_TWO_SIDED: Final = 1.96  # standard deviations for 95 %


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates at one moment, and the time that is left.

    ``eta_s`` is ``None`` while nothing can be said, ``eta_high_s`` also where there is no upper bound yet.
    """

    over_s: float = 0.0
    """Length of the window of complete instructions; 0: nothing was measured."""
    complete_per_min: float = 0.0
    generated_tokens_per_s: float = 0.0
    kept_per_server_s: float = 0.0
    """Kept instructions by the seconds of the servers in use, together."""
    eta_s: float | None = None
    eta_low_s: float | None = None
    eta_high_s: float | None = None


class Look(NamedTuple):
    """Counts that only grow, at one moment of a steady clock; ``server_s`` are seconds of servers in use, together."""

    at_s: float
    server_s: float
    complete: int
    kept: int
    tokens: int


class RateMeter:
    """Gives the rates; to be shown the counts about once a second."""

    def __init__(self, begin: Look) -> None:
        self._looks = [begin]  # the first stays; of the others those that a window reaches

    def restart(self, begin: Look) -> None:
        """Forget what was before: the process was stopped in between."""
        self._looks = [begin]

    def see(self, now: Look, missing: int) -> Rates:
        """The rates now; ``missing`` instructions are still to be completed."""
        looks = self._looks
        looks.append(now)
        places = [
            self._window([look.complete for look in looks]),
            self._window([look.kept for look in looks]),
            self._window([look.tokens for look in looks]),
        ]
        complete, kept, tokens = (looks[place] for place in places)
        eta_s, low_s, high_s = self._eta(complete, missing)
        if min(places) > 1:
            del looks[1 : min(places)]
        elif len(looks) > _MOST_LOOKS:
            del looks[1 : self._place(now.at_s - WINDOW_S) : 2]
        return Rates(
            over_s=now.at_s - complete.at_s,
            complete_per_min=60 * _per_s(now.complete - complete.complete, now.at_s - complete.at_s),
            generated_tokens_per_s=_per_s(now.tokens - tokens.tokens, now.at_s - tokens.at_s),
            kept_per_server_s=_per_s(now.kept - kept.kept, now.server_s - kept.server_s),
            eta_s=eta_s,
            eta_low_s=low_s,
            eta_high_s=high_s,
        )

    def _window(self, counts: Sequence[int]) -> int:
        """The look at which the window of a count begins, 0 for the session's begin."""
        long_ago = max(0, self._place(self._looks[-1].at_s - WINDOW_S))
        first = bisect_right(counts, counts[0])
        if first == len(counts) or counts[first] == counts[-1]:  # none yet, or all of them at once
            return long_ago
        return max(first, min(long_ago, bisect_right(counts, counts[-1] - ENOUGH) - 1))

    def _place(self, at_s: float) -> int:
        """The last look up to that time, -1 if there is none."""
        return bisect_right(self._looks, at_s, key=lambda look: look.at_s) - 1

    def _eta(self, since: Look, missing: int) -> tuple[float | None, float | None, float | None]:
        """Seconds until nothing is missing, and their range."""
        now = self._looks[-1]
        count, seconds = now.complete - since.complete, now.at_s - since.at_s
        if missing <= 0:
            return 0.0, 0.0, 0.0
        if count <= 0 or since.complete == self._looks[0].complete:  # nothing since the first one
            return None, None, None
        either_way = _TWO_SIDED * (self._burstiness(since) / count) ** 0.5
        eta_s = missing * seconds / count
        return eta_s, eta_s / (1 + either_way), eta_s / (1 - either_way) if either_way < 1 else None

    def _burstiness(self, since: Look) -> float:
        """Variance by mean of the counts in equal parts of the window; 1, as of independent events, is the least."""
        now = self._looks[-1]
        ends = [since.at_s + (now.at_s - since.at_s) * part / _PIECES for part in range(1, _PIECES + 1)]
        counts = [since.complete, *(self._looks[self._place(end)].complete for end in ends)]
        parts = [later - earlier for earlier, later in pairwise(counts)]
        return max(1.0, pvariance(parts) / fmean(parts)) if any(parts) else 1.0


def _per_s(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
