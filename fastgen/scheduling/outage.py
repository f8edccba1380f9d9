"""Whether servers work: when they last gave a good answer, and for how long nothing but faults has come.

Guarantees: an outage uses up no request's attempts, since a fault counts against its request only where a server works;
a server that counts requests (429) may take any time, and one that names a time (Retry-After) gets that time once more
than the timeout; time that this process did not run (Ctrl-Z, a machine
asleep) is no outage. Pure: every call is told the time, in seconds of any one monotonic clock. Knows nothing of what is
asked.
"""

from __future__ import annotations

import logging
import math
from collections import Counter

from fastgen.errors import BackendUnavailable, TransientError

log = logging.getLogger(__name__)
BEAT_S = 1.0  # `OutageWatch.beat` is to be called so often
_MOST_PATIENCE_S = 300.0
_ALIVE_S = 60.0  # servers work if a good answer came within this: then a fault counts against its request


class OutageWatch:
    """Sees every answer and every fault; ``timeout_s`` is how long nothing but faults may come."""

    def __init__(self, timeout_s: float) -> None:
        self.faults: Counter[str] = Counter()
        """By `TransientError.kind`, since the start."""
        self._timeout_s = timeout_s
        self._last_answer_s = -math.inf
        self._failing_since_s: float | None = None
        self._patience_s = 0.0  # the longest Retry-After since then
        self._beat_s = math.inf

    def saw_answer(self, now_s: float) -> None:
        """A server did what it was asked, or said why it will not."""
        self._last_answer_s = now_s
        self._failing_since_s = None

    def saw_fault(self, error: TransientError, now_s: float) -> None:
        """:raises BackendUnavailable: nothing but faults has come for the timeout."""
        if math.isfinite(self._beat_s):
            self.beat(now_s)  # what was cut off by a sleep may be seen before the beat that is late
        self.faults[error.kind] += 1
        if self.faults[error.kind] == 1:
            log.warning("first fault of its kind, retried: %s", error)
        if error.kind == "http_429":
            self._failing_since_s = None
            return
        if self._failing_since_s is None:
            self._failing_since_s, self._patience_s = now_s, 0.0
        self._patience_s = max(self._patience_s, min(error.retry_after_s or 0.0, _MOST_PATIENCE_S))
        if (failing_s := now_s - self._failing_since_s) >= self._timeout_s + self._patience_s:
            raise BackendUnavailable(
                f"no server has given a good answer for {failing_s:.0f} s (last fault: {error}); "
                f"the run is kept: bring a server back and run the same command again"
            )

    def is_requests_own(self, error: TransientError, last_attempt_s: float, now_s: float) -> bool:
        """Whether servers work, so that the attempt counts; ``last_attempt_s`` is when the one before it began."""
        if error.kind == "all_down":  # nobody was asked; other stages' servers may well answer meanwhile
            return False
        if error.reached_server:
            return now_s - self._last_answer_s < _ALIVE_S
        return self._last_answer_s > last_attempt_s

    def beat(self, now_s: float) -> None:
        """Notice by a late beat that this process did not run."""
        asleep_s = now_s - self._beat_s - BEAT_S
        if self._failing_since_s is not None and asleep_s > BEAT_S:
            self._failing_since_s += asleep_s
        self._beat_s = now_s
