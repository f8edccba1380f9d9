"""The limit for a server that tells nothing of itself: as much as still brings throughput.

In a closed loop throughput follows ``limit / latency`` (Little's law) and rises with the limit until the server is
full; beyond, only latency rises. A continuous-batching server's latency rises well before that, because larger batches
take longer steps, so the law looks at the throughput and not, as TCP Vegas and Netflix's gradient limits do, at the
latency. It moves in rounds: pass over the completions of requests from before the last change, then measure.

- *Start*: double the limit while that brings at least a quarter more, which is how BBR finds a path's capacity
  (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016); at the first doubling that does
  not, go back to the limit at which the last figure would have been reached without waiting, plus a tenth.
- *Cruise*: every fourth round try a quarter more, or four fifths, in turn. More stays if it brings a tenth of the step
  in throughput; less stays if nothing is lost. Trials never lead below `FLOOR`: only refusals do.

Throughput is in generated tokens, or in completions where the server states no usage. A round in which the limit was
not in use is not judged. Pure: no clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from fastgen.concurrency.signals import Observation, Reason, in_use

START_GAIN = 0.25
UP, DOWN = 1.25, 0.8
FLOOR = 16
UP_GAIN = 0.1 * (UP - 1.0)
_CRUISE_ROUNDS = 4
_FEW = 32  # completions: enough to tell a quarter more from nothing
_MIN_ROUND_S = 0.5


class _Phase(Enum):
    START = auto()
    CRUISE = auto()
    TRY_MORE = auto()
    TRY_LESS = auto()


@dataclass(frozen=True, slots=True)
class _Measured:
    limit: float
    per_s: float


class GradientLaw:
    """The law of this module; ``limit`` is in completions, at least 1, and may be lowered from outside."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.reason = Reason.STARTING
        self._phase = _Phase.START
        self._before: _Measured | None = None
        self._rounds = 0
        self._began: Observation | None = None  # of the round's measured part
        self._passing_over: int | None = None  # completed at which that part begins

    def follow(self, seen: Observation) -> None:
        """Take one more observation into account."""
        if not in_use(seen, self.limit):
            self._begin_round()
            self.reason = Reason.OWN_WORK
        elif self._began is None:
            self._pass_over(seen)
        elif self._is_over(self._began, seen):
            self._judge(_Measured(self.limit, _throughput_per_s(self._began, seen)))
            self._begin_round()
        elif self.reason in (Reason.OWN_WORK, Reason.STARTING):
            self.reason = Reason.MEASURING

    def lowered(self, limit: float) -> None:
        """Take a limit from outside; from there it starts anew."""
        self.limit, self._phase, self._rounds, self._before = limit, _Phase.START, 0, None
        self._begin_round()

    def _begin_round(self) -> None:
        self._began = self._passing_over = None

    def _pass_over(self, seen: Observation) -> None:
        if self._passing_over is None:
            self._passing_over = seen.completed + seen.in_flight
        if seen.completed >= self._passing_over:
            self._began = seen

    def _is_over(self, began: Observation, seen: Observation) -> bool:
        starting = self._phase is _Phase.START
        wanted = max(_FEW, 0.25 * self.limit) if starting else max(2 * _FEW, 2.0 * self.limit)
        return seen.completed - began.completed >= wanted and seen.now_s - began.now_s >= _MIN_ROUND_S

    def _judge(self, now: _Measured) -> None:
        before = self._before
        self._before = now
        if before is None:
            self._after_first(now)
        elif self._phase is _Phase.START:
            self._judge_start(before, now)
        elif self._phase is _Phase.CRUISE:
            self._cruise()
        else:
            self._judge_trial(before, now)

    def _after_first(self, now: _Measured) -> None:
        self.reason = Reason.MEASURING
        if self._phase is _Phase.START:
            self.limit = 2 * now.limit

    def _judge_start(self, before: _Measured, now: _Measured) -> None:
        gain = now.per_s / before.per_s
        if gain >= 1 + START_GAIN:
            self.limit, self.reason = 2 * now.limit, Reason.FASTER_WITH_MORE
        else:
            knee = 1.1 * before.limit * max(gain, 1.0)
            self.limit, self.reason = min(max(knee, before.limit), now.limit), Reason.NO_FASTER_WITH_MORE
            self._phase, self._before = _Phase.CRUISE, None

    def _cruise(self) -> None:
        self._rounds += 1
        if self._rounds % _CRUISE_ROUNDS:
            return
        more = self._rounds % (2 * _CRUISE_ROUNDS) != 0 or DOWN * self.limit < FLOOR
        self._phase = _Phase.TRY_MORE if more else _Phase.TRY_LESS
        self.limit *= UP if more else DOWN

    def _judge_trial(self, before: _Measured, now: _Measured) -> None:
        least = 1 + UP_GAIN if self._phase is _Phase.TRY_MORE else 1.0
        if now.per_s >= least * before.per_s:
            more = self._phase is _Phase.TRY_MORE
            self.reason = Reason.FASTER_WITH_MORE if more else Reason.NO_FASTER_WITH_MORE
            self._rounds = _CRUISE_ROUNDS - 1 if more else self._rounds  # what helped is tried again at once
        else:
            self.limit, self.reason = before.limit, Reason.NO_FASTER_WITH_MORE
            self._before = None
        self._phase = _Phase.CRUISE


def _throughput_per_s(began: Observation, seen: Observation) -> float:
    tokens = seen.generated_tokens - began.generated_tokens
    return (tokens or seen.completed - began.completed) / (seen.now_s - began.now_s)
