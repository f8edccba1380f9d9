"""A judge's session in figures, for the reporters of :mod:`fastgen.progress`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastgen.asking import Reply
from fastgen.progress import duration
from fastgen.scheduler import SchedulerStatistics


@dataclass(frozen=True, slots=True)
class JudgeProgress:
    """One look at a session; rates are since it began, ``target`` is an estimate while the run grows."""

    complete: int
    target: int
    in_flight: int
    waiting_retries: int
    unreadable: int
    failed: int
    per_s: float
    tokens_per_s: float

    @property
    def eta(self) -> str:
        """Time to the last answer, or a dash."""
        return duration(max(0, self.target - self.complete) / self.per_s) if self.per_s > 0 else "-"

    def details(self) -> str:
        """Rates and what went wrong."""
        retrying = f" · retrying {self.waiting_retries}" if self.waiting_retries else ""
        return (
            f"{60 * self.per_s:,.1f} answers/min · {self.tokens_per_s:,.0f} tokens/s · unreadable {self.unreadable} · "
            f"failed {self.failed} · in flight {self.in_flight}{retrying}"
        )

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.complete}/{self.target} answers · {self.details()} · ETA {self.eta}"


class JudgeMeter:
    """Counts what comes; ``answered`` were there before, ``expected`` is what all of them will be."""

    def __init__(self, answered: int, expected: int) -> None:
        self._began_s = time.monotonic()
        self._before, self._expected = answered, expected
        self._answered = self._unreadable = self._failed = self._tokens = 0

    def count(self, replies: Sequence[Reply], unreadable: int) -> None:
        """Some more replies, of which so many could not be read."""
        failed = sum(reply.failure is not None for reply in replies)
        self._failed += failed
        self._unreadable += unreadable
        self._answered += len(replies) - failed
        self._tokens += sum(reply.completion_tokens for reply in replies)

    def look(self, now: SchedulerStatistics) -> JudgeProgress:
        """The figures now."""
        elapsed_s = max(time.monotonic() - self._began_s, 1e-9)
        complete = self._before + self._answered
        return JudgeProgress(
            *(complete, max(self._expected, complete), now.in_flight, now.waiting_retries),
            *(self._unreadable, self._failed, self._answered / elapsed_s, self._tokens / elapsed_s),
        )
