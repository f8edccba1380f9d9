"""Rate limits in an event loop: the gate that requests pass before they take a slot, and the timer that opens it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastgen.records import Completion, Request
from fastgen.scheduling.rate_limits import RateLimits, RateStatistics


class RateGate:
    """Without ``rates`` it is always open; ``opened`` is called when requests that found it shut may try again."""

    def __init__(self, rates: RateLimits | None, opened: Callable[[], None]) -> None:
        self._rates = rates
        self._tell = opened
        self._timer: asyncio.TimerHandle | None = None

    @property
    def will_open(self) -> bool:
        """Whether a timer runs that will open it."""
        return self._timer is not None

    def is_shut(self) -> bool:
        """Whether the next request has to wait; then a timer opens the gate."""
        if self._rates is None:
            return False
        loop = asyncio.get_running_loop()
        if (wait_s := self._rates.wait_s(loop.time())) <= 0:
            return False
        if self._timer is None:
            self._timer = loop.call_later(wait_s, self._open)
        return True

    def _open(self) -> None:
        self._timer = None
        self._tell()

    def leave(self) -> None:
        """Nobody will try again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def began(self, request: Request) -> None:
        """See `RateLimits.began`."""
        if self._rates is not None:
            self._rates.began(asyncio.get_running_loop().time(), request)

    def ended(self, request: Request, completions: tuple[Completion, ...] | None) -> None:
        """See `RateLimits.ended`."""
        if self._rates is not None:
            self._rates.ended(asyncio.get_running_loop().time(), request, completions)

    def statistics(self) -> RateStatistics:
        """See `RateLimits.statistics`."""
        if self._rates is None:
            return RateStatistics()
        return self._rates.statistics(asyncio.get_running_loop().time())
