"""How hard a scheduler tries: what is in flight at once, how often and how patiently a request is asked again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """``concurrency`` is where it begins, ``max_concurrency`` what `Scheduler.set_concurrency` never exceeds.

    Both count completions; times are in seconds, and the three caps bound the pause before another attempt.
    """

    concurrency: int
    max_concurrency: int | None = None
    max_attempts: int = 8
    outage_timeout_s: float = 600.0
    drain_timeout_s: float = 60.0
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    reconnect_cap_s: float = 5.0
    retry_after_cap_s: float = 300.0
    max_batch: int = 64

    @property
    def most(self) -> int:
        """The most completions that are ever in flight."""
        return self.max_concurrency or self.concurrency
