"""What a server cannot hold: KV-cache thrash, refusals, and a ceiling that is kept for a while after either.

A preempted sequence is computed again from its prompt, so a few preemptions are cheap and many are not. `Ceiling` gives
way by multiplicative decrease (Chiu & Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance
in Computer Networks", 1989) and comes back along CUBIC's curve (RFC 9438): fast at first, flat around the level
where it was hit, ever faster beyond. Time is measured in lifetimes of a request (mean in flight / completions per
second: Little, "A Proof for the Queuing Formula L = λW", 1961), since a change shows only after the old ones ended.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from fastgen.backends.prometheus import ServerMetrics
from fastgen.concurrency.signals import Observation

RETURN_LIFETIMES = 3.0
_NEAR_TURNS = 3.0  # by then it is almost twice the level at which it was hit
MANY_PREEMPTIONS = 0.1  # for each completion
_MIN_PREEMPTIONS = 8
_KV_CROWDED = 0.85
_WINDOW_S = 10.0
_MIN_WINDOW_S = 2.0
_LIFETIME_WINDOW_S = 5.0
_MIN_LIFETIME_S, _MAX_LIFETIME_S = 1.0, 20.0


class Ceiling:
    """The highest limit allowed now; infinite until it is first hit."""

    def __init__(self) -> None:
        self._level = math.inf
        self._share = 1.0
        self._hit_s = -math.inf
        self._lifetime_s = _MIN_LIFETIME_S

    def hit(self, now_s: float, level: float, share: float, lifetime_s: float) -> None:
        """``level`` was too much: allow ``share`` (0..1) of it, and it again after `RETURN_LIFETIMES`."""
        self._level, self._share, self._hit_s, self._lifetime_s = level, share, now_s, lifetime_s

    def at(self, now_s: float) -> float:
        """The ceiling at that time, at least 1."""
        if self._level == math.inf:
            return math.inf
        turns = (now_s - self._hit_s) / (RETURN_LIFETIMES * self._lifetime_s)
        return max(1.0, self._level * (1.0 + (1.0 - self._share) * (turns - 1.0) ** 3))

    def is_near(self, now_s: float) -> bool:
        """Whether it was hit so lately that the limit should come back along the curve and not by itself."""
        return now_s - self._hit_s < _NEAR_TURNS * RETURN_LIFETIMES * self._lifetime_s

    def is_fresh(self, now_s: float) -> bool:
        """Whether requests from before the hit may still be in flight: what they meet says nothing new."""
        return now_s - self._hit_s < self._lifetime_s


class Lifetime:
    """How long a request stays in flight, by Little's law over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[Observation] = deque()

    def follow(self, seen: Observation) -> float:
        """The lifetime in seconds, within 1 to 20; 1 where nothing is known."""
        self._seen.append(seen)
        while len(self._seen) > 2 and seen.now_s - self._seen[1].now_s >= _LIFETIME_WINDOW_S:  # noqa: PLR2004 - a span
            self._seen.popleft()
        first = self._seen[0]
        completed = seen.completed - first.completed
        mean_in_flight = sum(one.in_flight for one in self._seen) / len(self._seen)
        lifetime_s = mean_in_flight * (seen.now_s - first.now_s) / completed if completed > 0 else 0.0
        return min(max(lifetime_s, _MIN_LIFETIME_S), _MAX_LIFETIME_S)


class Refusals:
    """Sees a server refuse more than now and then (429, 503)."""

    def __init__(self) -> None:
        self._since: Observation | None = None

    def share(self, seen: Observation, lifetime_s: float) -> float:
        """What part of the requests that ended lately was refused (0..1); 0 while that is too few to mean anything."""
        since = self._since
        if since is None or seen.now_s - since.now_s > max(_MIN_WINDOW_S, lifetime_s):
            self._since = seen
            return 0.0
        refused, completed = seen.refused - since.refused, seen.completed - since.completed
        if refused < max(2.0, 0.02 * seen.in_flight):
            return 0.0
        self._since = seen
        return refused / (refused + completed)


@dataclass(frozen=True, slots=True)
class _Mark:
    now_s: float
    preemptions: int
    completed: int


class Thrash:
    """Sees a server push sequences out of its KV cache over and over."""

    def __init__(self) -> None:
        self._since: _Mark | None = None

    def forget(self) -> None:
        """Begin a new window."""
        self._since = None

    def is_on(self, seen: Observation, server: ServerMetrics) -> bool:
        """Whether since the window began more than `MANY_PREEMPTIONS` fell on each completion, the cache being full."""
        since = self._since
        if since is None or server.preemptions < since.preemptions or seen.now_s - since.now_s > _WINDOW_S:
            self._since = _Mark(seen.now_s, server.preemptions, seen.completed)
            return False
        preemptions = server.preemptions - since.preemptions
        return (
            server.kv_cache_usage >= _KV_CROWDED
            and seen.now_s - since.now_s >= _MIN_WINDOW_S
            and preemptions >= _MIN_PREEMPTIONS
            and preemptions > MANY_PREEMPTIONS * (seen.completed - since.completed)
        )
