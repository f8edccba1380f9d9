"""How many completions one server should be asked for at once: chooses the law, keeps it to what the server can hold.

- With the server's own figures: `QueueLaw` (a full batch with a short queue).
- Without, or where hardly anything of what is in flight ever shows there (all the time goes to the network or to the
  server's front end): `GradientLaw` (as much as brings throughput).
- Preemption thrash and refusals (429, 503) set a `Ceiling` over either. What brings throughput says nothing of
  refusals, so under a fresh ceiling the second law rests and the limit follows the ceiling's curve.
- A server that is taken out keeps half of the limit at which it was last full, and comes back with that, growing as
  from cold: it may have been restarted, or replaced by a smaller one.
- Figures that are missing for a while hold the limit; after `BLIND_S` the other law takes over.

A pure, deterministic state machine: observations with their times in, a limit out; no clock, no I/O.
"""

from __future__ import annotations

from fastgen.backends.prometheus import ServerMetrics
from fastgen.concurrency.gradient_law import GradientLaw
from fastgen.concurrency.queue_law import QueueLaw
from fastgen.concurrency.signals import Observation, Reason, in_use
from fastgen.concurrency.thrash import Ceiling, Lifetime, Refusals, Thrash

BLIND_S = 10.0
TELLING = 0.25  # share of what is in flight that a server's figures must show to be steered by
_MUTE_SAMPLES = 12
_PREEMPTING_SHARE, _REFUSING_SHARE, _OVERRUN_SHARE = 0.9, 0.9, 0.7
_FEW_REFUSALS, _OVERRUN = 0.02, 0.5
_SLOWLY, _QUICKLY = 0.5, 0.25


class ConcurrencyController:
    """Steers one server between 1 and ``maximum`` completions in flight, from ``initial`` on."""

    def __init__(self, initial: int, maximum: int) -> None:
        self.limit = max(1, min(initial, maximum))
        self.reason = Reason.STARTING
        self.changed_s: float | None = None
        self._first = float(self.limit)
        self._maximum = maximum
        self._queue = QueueLaw(self._first)
        self._gradient: GradientLaw | None = None
        self._ceiling = Ceiling()
        self._lifetime = Lifetime()
        self._thrash = Thrash()
        self._refusals = Refusals()
        self._too_much = Reason.REFUSED
        self._last: Observation | None = None
        self._told_s: float | None = None  # when the server last gave figures
        self._mute = 0
        self._last_full: float | None = None

    @property
    def law(self) -> str:
        """``"queue"`` or ``"gradient"``."""
        return "queue" if self._gradient is None else "gradient"

    @property
    def pause_s(self) -> float:
        """When to look again: sooner while the limit moves."""
        return _SLOWLY if self.reason in (Reason.FULL, Reason.OWN_WORK, Reason.AT_MAXIMUM) else _QUICKLY

    def observe(self, seen: Observation) -> int:
        """The limit after ``seen``, which must not be older than what was seen before."""
        last, self._last = self._last, seen
        before = self.limit
        if not seen.healthy:
            self._take_out()
        elif last is not None and not last.healthy:
            self._take_back()
        else:
            self._follow(seen)
        if self.limit != before:
            self.changed_s = seen.now_s
        return self.limit

    def _take_out(self) -> None:
        self.limit = max(1, round((self._last_full or self._first) / 2))
        self.reason = Reason.TAKEN_OUT

    def _take_back(self) -> None:
        self.reason = Reason.STARTING
        self._gradient, self._mute = None, 0
        self._queue.restart(self.limit)
        self._ceiling, self._lifetime, self._refusals = Ceiling(), Lifetime(), Refusals()
        self._thrash.forget()

    def _follow(self, seen: Observation) -> None:
        lifetime_s = self._lifetime.follow(seen)
        law = self._choose_law(seen)
        if law is None:
            self.reason = Reason.NO_FIGURES
            return
        if isinstance(law, GradientLaw):
            law.follow(seen)
        elif seen.server is not None:
            law.follow(seen, seen.server)
        self.reason = law.reason
        if self._is_too_much(seen, lifetime_s):
            law.lowered(min(law.limit, self._ceiling.at(seen.now_s)))
            self.reason = self._too_much
        self._bound(seen, law)
        if self.reason is Reason.FULL:
            self._last_full = law.limit

    def _choose_law(self, seen: Observation) -> QueueLaw | GradientLaw | None:
        if seen.server is None:
            if self._told_s is not None and seen.now_s - self._told_s < BLIND_S:
                return self._gradient
            return self._by_throughput()
        self._told_s = seen.now_s
        if self._is_mute(seen, seen.server):
            return self._by_throughput()
        if self._gradient is not None:
            self._gradient = None
            self._queue.restart(self.limit)
        return self._queue

    def _is_mute(self, seen: Observation, server: ServerMetrics) -> bool:
        """Whether the server has for long shown next to nothing of what is in flight."""
        shown = server.running + server.waiting
        if server.waiting or shown > 2 * TELLING * seen.in_flight:
            self._mute = 0
        elif shown < TELLING * seen.in_flight and in_use(seen, self.limit):
            self._mute += 1
        return self._mute >= _MUTE_SAMPLES

    def _by_throughput(self) -> GradientLaw:
        if self._gradient is None:
            self._gradient = GradientLaw(self.limit)
        return self._gradient

    def _is_too_much(self, seen: Observation, lifetime_s: float) -> bool:
        """Whether the server just showed that it cannot hold so much; then the ceiling is set."""
        if self._ceiling.is_fresh(seen.now_s):
            self._thrash.forget()
            return False
        if seen.server is not None and self._thrash.is_on(seen, seen.server):
            held = max(1, seen.in_flight - seen.server.waiting)
            self._ceiling.hit(seen.now_s, held, _PREEMPTING_SHARE, lifetime_s)
            self._too_much = Reason.PREEMPTIONS
            return True
        share = self._refusals.share(seen, lifetime_s)
        if share <= _FEW_REFUSALS:
            return False
        allowed = _REFUSING_SHARE if share < _OVERRUN else _OVERRUN_SHARE
        self._ceiling.hit(seen.now_s, min(seen.in_flight, self.limit), allowed, lifetime_s)
        self._too_much = Reason.REFUSED
        return True

    def _bound(self, seen: Observation, law: QueueLaw | GradientLaw) -> None:
        ceiling = self._ceiling.at(seen.now_s)
        follows = isinstance(law, GradientLaw) and self._ceiling.is_near(seen.now_s) and in_use(seen, law.limit)
        if follows or law.limit > ceiling:
            law.limit = ceiling
            self.reason = self._too_much
        if law.limit > self._maximum:
            law.limit = float(self._maximum)
            self.reason = Reason.AT_MAXIMUM
        self.limit = max(1, round(law.limit))
