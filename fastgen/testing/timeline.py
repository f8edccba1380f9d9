"""What an engine did in each second of simulated time: integrals, exact however long a step was. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SECOND_S = 1.0
KEPT_SECONDS = 100_000


@dataclass(slots=True)
class Timeline:
    """Seconds are counted from ``origin_s``; every list has one entry a second and grows as time passes.

    ``tokens`` are output tokens. ``running`` and ``waiting`` are mean numbers of sequences. ``saturation`` (0..1) is
    the time that a full batch would have needed for the work done, so that it does not depend on which lengths
    happened to come up. ``capacity`` is `max_num_seqs` at the second's end.
    """

    origin_s: float
    tokens: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    saturation: list[float] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)

    def spread(self, series: list[float], amount: float, from_s: float, to_s: float) -> None:
        """Add ``amount`` to a series, evenly over a span."""
        length_s = to_s - from_s
        if length_s <= 0 or not amount:
            return
        first, last = int(from_s - self.origin_s), int(to_s - self.origin_s)
        if first == last < len(series):  # the common case
            series[first] += amount
            return
        for second in range(first, min(last, len(series) - 1) + 1):
            start_s = self.origin_s + second * SECOND_S
            share = (min(to_s, start_s + SECOND_S) - max(from_s, start_s)) / length_s
            series[second] += amount * max(0.0, share)

    def reach(self, to_s: float, capacity: int) -> None:
        """Have entries up to a time."""
        wanted = min(int(to_s - self.origin_s) + 1, KEPT_SECONDS)
        for series in (self.tokens, self.running, self.waiting, self.saturation):
            series.extend(0.0 for _ in range(wanted - len(series)))
        self.capacity.extend(capacity for _ in range(wanted - len(self.capacity)))
        self.capacity[-1] = capacity

    def as_dict(self) -> dict[str, Any]:
        """For ``/sim/stats``."""
        return {name: getattr(self, name) for name in ("tokens", "running", "waiting", "saturation", "capacity")}
