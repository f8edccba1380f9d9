"""The limit for a server that tells its running and waiting sequences (vLLM): a full batch with a short queue.

A closed loop with limit ``L`` keeps ``L`` completions in flight; they run, wait in the server's queue, or are on their
way: ``L = running + waiting + unseen``. What the server can run at once (max_num_seqs, or what its KV cache holds at
the moment) is not known and changes with the work; it shows itself by ``waiting > 0``. So the law steers ``waiting``,
as TCP Vegas steers the packets that a path queues (Brakmo & Peterson, "TCP Vegas: End to End Congestion Avoidance on a
Global Internet", IEEE JSAC 13(8), 1995), with a queue that is read instead of inferred from delays:

    target = max(1, TARGET * running)          band = [LOW * target, HIGH * target]

- *Above the band* in three samples on end, while ``running`` does not rise (else it is a burst being prefilled):
  ``L = in flight - (least waiting - target)``, since ``in flight - waiting`` is what the server holds and what is on
  its way: one exact step. Nothing more is cut before the excess has drained, so that old figures do not cut twice.
- *Below the band*, with the whole limit in use and sent requests visible at the server: ``L`` grows by ``step``, which
  is 50 % from cold. Once the batch has been full it is 5 %, taken after three samples on end, then doubled at every
  further sample up to 50 %: a dip costs nothing, a server that grew is followed in a second or two.
- *Visible*: at least half of what the last growth added shows (or two seconds have passed), and the share of the
  completions in flight that the server shows has not fallen below 3/4 of the best share of the last minute. So figures
  that lag (a long engine step, a slow network) slow the growth down instead of letting it overshoot.
- *Inside the band* nothing changes.

With several clients on one server each takes the share of the queue that its own requests have in all of them.
Preemptions are `thrash`'s to see. Pure: no clock, no I/O.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from fastgen.backends.prometheus import ServerMetrics
from fastgen.concurrency.signals import Observation, Reason, in_use

TARGET = 0.05
LOW, HIGH = 0.4, 1.6
COLD_STEP, CALM_STEP = 0.5, 0.05
_SAMPLES = 3
_VISIBLE = 0.75
_FORGETTING_S = 60.0
_EFFECT_WITHIN_S = 2.0
NEARLY_FULL = 0.95  # of the KV cache: more sequences would only push others out


@dataclass(frozen=True, slots=True)
class _Sample:
    """The part of the server's running and waiting sequences that is this client's."""

    running: float
    waiting: float

    @property
    def target(self) -> float:
        """Sequences that should wait: a share of those that run, at least 1."""
        return max(1.0, TARGET * self.running)


class QueueLaw:
    """The law of this module; ``limit`` is in completions, at least 1, and may be lowered from outside."""

    def __init__(self, limit: float) -> None:
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)
        self._seen_s = 0.0
        self._tokens = 0
        self.restart(limit)

    @property
    def settled(self) -> bool:
        """Whether the last sample was inside the band."""
        return self.reason is Reason.FULL

    def follow(self, seen: Observation, server: ServerMetrics) -> None:
        """Take one more sample into account."""
        if server.generation_tokens < self._tokens:  # its counters began anew, and so do we
            self.restart(self.limit)
        self._tokens = server.generation_tokens
        self._watch_drain(seen)
        self._samples.append(sample := _own(seen, server))
        visible = self._is_visible(seen, server)
        least = min(one.waiting for one in self._samples)
        if least > max(HIGH * sample.target, sample.target + 1) and self._is_flat():
            self._shorten(seen, least - sample.target)
        elif sample.waiting >= LOW * sample.target:
            self._rest()
        elif not in_use(seen, self.limit):
            self._starved_in_a_row, self.reason = 0, Reason.OWN_WORK
        elif not visible:
            self.reason = Reason.NOT_SEEN
        else:
            self._grow(seen, server)

    def restart(self, limit: float) -> None:
        """Go on from ``limit`` as from cold: another server may be there now."""
        self.limit = limit
        self.reason = Reason.STARTING
        self._step = COLD_STEP
        self._starved_in_a_row = 0
        self._best_share = 0.0
        self._expected: tuple[float, float] | None = None  # sequences that shall show, and until when
        self._draining: float | None = None  # in flight, while the excess over a lower limit becomes less
        self._samples.clear()

    def lowered(self, limit: float) -> None:
        """Take a lower limit from outside; growth from there is calm."""
        self.limit, self._step, self._starved_in_a_row = limit, CALM_STEP, 0
        self._draining = math.inf

    def _shorten(self, seen: Observation, excess: float) -> None:
        self.limit = max(1.0, min(self.limit, seen.in_flight - excess))
        self._draining = seen.in_flight
        self._step, self._starved_in_a_row, self.reason = CALM_STEP, 0, Reason.QUEUE_TOO_LONG

    def _rest(self) -> None:
        self._starved_in_a_row, self.reason = 0, Reason.FULL
        if self._is_flat():
            self._step = CALM_STEP

    def _grow(self, seen: Observation, server: ServerMetrics) -> None:
        self._starved_in_a_row += 1
        self.reason = Reason.FILLING
        if self._step <= CALM_STEP and self._starved_in_a_row < _SAMPLES:
            return
        step = CALM_STEP if server.kv_cache_usage > NEARLY_FULL else self._step
        added = max(1.0, step * self.limit)
        self.limit += added
        self._expected = (server.running + server.waiting + added / 2, seen.now_s + _EFFECT_WITHIN_S)
        self._step = min(COLD_STEP, 2 * self._step)
        self._samples.clear()

    def _watch_drain(self, seen: Observation) -> None:
        """Begin the samples anew until the excess is gone, or becomes no less (requests of several completions)."""
        if self._draining is None:
            return
        self._samples.clear()
        over = seen.in_flight <= self.limit + 1 or seen.in_flight >= self._draining
        self._draining = None if over else seen.in_flight

    def _is_flat(self) -> bool:
        """Whether enough samples show that no more run than before."""
        first, last = self._samples[0].running, self._samples[-1].running
        return len(self._samples) == _SAMPLES and last <= first + max(1.0, 0.02 * first)

    def _is_visible(self, seen: Observation, server: ServerMetrics) -> bool:
        shown = server.running + server.waiting
        if self._expected is not None and (shown >= self._expected[0] or seen.now_s >= self._expected[1]):
            self._expected = None
        share = min(1.0, shown / max(seen.in_flight, 1))
        faded = self._best_share * max(0.0, 1.0 - (seen.now_s - self._seen_s) / _FORGETTING_S)
        self._best_share, self._seen_s = max(share, faded), seen.now_s
        return self._expected is None and share > 0 and share >= _VISIBLE * self._best_share


def _own(seen: Observation, server: ServerMetrics) -> _Sample:
    share = min(1.0, seen.in_flight / max(server.running + server.waiting, 1))
    return _Sample(share * server.running, share * server.waiting)
