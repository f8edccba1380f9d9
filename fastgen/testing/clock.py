"""Two clocks behind one contract: the event loop's, and one that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


_TICK_S: Final = 0.001  # uvloop counts milliseconds and may call one early, which would not be "or a little later"


class Clock(Protocol):
    """Simulated seconds, and a way to be called when they have come."""

    def now_s(self) -> float:
        """Return the time; it never goes back."""

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call once at ``when_s`` or a little later; the returned function cancels."""


class LoopClock:
    """The running event loop's time, ``speed`` simulated seconds in a real one."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return asyncio.get_running_loop().time() * self.speed

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Clock.call_at`."""
        return asyncio.get_running_loop().call_at(when_s / self.speed + _TICK_S, callback).cancel


class VirtualClock:
    """Time that passes only in `run_until`: deterministic, as fast as the callbacks are, without an event loop.

    Callbacks for the same moment are called in the order in which they were asked for.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._asked = 0
        self._calls: list[tuple[float, int]] = []
        self._callbacks: dict[int, Callable[[], None]] = {}

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return self._now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Clock.call_at`."""
        number = self._asked
        self._asked += 1
        self._callbacks[number] = callback
        heapq.heappush(self._calls, (when_s, number))
        return lambda: self._cancel(number)

    def run_until(self, when_s: float) -> None:
        """Let time pass up to ``when_s``, calling what falls due."""
        while self._calls and self._calls[0][0] <= when_s:
            self._step()
        self._now_s = max(self._now_s, when_s)

    def run(self) -> None:
        """Let time pass until nobody waits to be called."""
        while self._calls:
            self._step()

    def _cancel(self, number: int) -> None:
        self._callbacks.pop(number, None)

    def _step(self) -> None:
        due_s, number = heapq.heappop(self._calls)
        callback = self._callbacks.pop(number, None)
        if callback is not None:
            self._now_s = max(self._now_s, due_s)
            callback()
