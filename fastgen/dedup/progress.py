"""How far a ``fastgen dedup`` is: figures once a second for the reporters of `fastgen.progress`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from fastgen.progress import Reporter

_TICK_S = 1.0
_WINDOW_TICKS = 60


@dataclass(frozen=True, slots=True)
class DedupProgress:
    """One look: rows decided, rows there will be by the share of the input read, rate over the last minute."""

    complete: int
    target: int
    kept: int
    rejected: int
    rows_per_s: float

    @property
    def eta(self) -> str:
        """Time to the end, as hours:minutes:seconds, or a dash."""
        if self.rows_per_s <= 0:
            return "-"
        return str(timedelta(seconds=round((self.target - self.complete) / self.rows_per_s)))

    def details(self) -> str:
        """Everything but the count and the ETA, for people."""
        return f"{self.rows_per_s:,.0f} rows/s · kept {self.kept:,} · rejected {self.rejected:,}"

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.complete:,} of about {self.target:,} rows · {self.details()} · ETA {self.eta}"


class DedupMeter:
    """Shows figures about once a second; ``share_read`` tells how much of the input has been read, 0..1."""

    def __init__(self, reporter: Reporter, share_read: Callable[[], float]) -> None:
        self._reporter = reporter
        self._share_read = share_read
        self._past = deque([(time.monotonic(), 0)], maxlen=_WINDOW_TICKS)

    def tick(self, rows: int, *, kept: int) -> bool:
        """Show the figures if it is time; whether it was."""
        now_s = time.monotonic()
        if now_s - self._past[-1][0] < _TICK_S:
            return False
        then_s, then_rows = self._past[0]
        self._past.append((now_s, rows))
        share = self._share_read()
        progress = DedupProgress(
            complete=rows,
            target=max(rows, round(rows / share)) if share else rows,
            kept=kept,
            rejected=rows - kept,
            rows_per_s=(rows - then_rows) / (now_s - then_s),
        )
        self._reporter.show(progress)
        return True
