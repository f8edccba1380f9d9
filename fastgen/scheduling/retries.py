"""Requests that are asked again: how often each was tried, how long it waits, which may begin now.

A request that waits holds no slot. The pause is exponential with full jitter, after AWS's "Exponential Backoff And
Jitter"; the server's Retry-After is obeyed. Guarantees: those whose pause is over begin in that order, and one whose
servers have no room holds up none of another stage. Knows nothing of what is asked, nor how much at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fastgen.errors import TransientError
from fastgen.records import Request, Stage
from fastgen.scheduling.limits import Limits
from fastgen.scheduling.outage import OutageWatch


@dataclass(slots=True)
class _Attempts:
    last_s: float  # when the attempt before this one began
    tries: int = 0
    counted: int = 0  # those where a server was alive


class Retries:
    """``outage`` says which attempts count; ``ready`` is called when a request's pause is over."""

    def __init__(self, limits: Limits, outage: OutageWatch, jitter: random.Random, ready: Callable[[], None]) -> None:
        self._limits = limits
        self._outage = outage
        self._jitter = jitter
        self._tell = ready
        self._attempts: dict[int, _Attempts] = {}  # by request number, as the next one
        self._backing_off: dict[int, tuple[Request, asyncio.TimerHandle]] = {}
        self._ready: dict[Stage, deque[tuple[int, Request]]] = {}  # with the place in the order; never empty ones
        self._arrivals = 0

    @property
    def backing_off(self) -> int:
        """Requests whose pause is not over."""
        return len(self._backing_off)

    @property
    def waiting(self) -> int:
        """Requests that are to be asked again."""
        return len(self._backing_off) + sum(map(len, self._ready.values()))

    def count(self, request: Request, error: TransientError, started_s: float) -> int | None:
        """Count an attempt that failed; how many there were where that is the last that is allowed, else ``None``."""
        attempts = self._attempts.setdefault(request.number, _Attempts(started_s))
        now_s = asyncio.get_running_loop().time()
        attempts.tries += 1
        attempts.counted += self._outage.is_requests_own(error, attempts.last_s, now_s)
        attempts.last_s = started_s
        return attempts.tries if attempts.counted >= self._limits.max_attempts else None

    def back_off(self, request: Request, error: TransientError) -> None:
        """Ask a counted request again after a pause."""
        pause_s = self.pause_s(self._attempts[request.number].tries, error)
        timer = asyncio.get_running_loop().call_later(pause_s, self._is_over, request)
        self._backing_off[request.number] = (request, timer)

    def pause_s(self, tries: int, error: TransientError) -> float:
        """How long to wait after so many attempts, the last of which ended so."""
        cap_s = self._limits.backoff_cap_s if error.reached_server else self._limits.reconnect_cap_s
        ceiling_s = min(cap_s, self._limits.backoff_base_s * 2.0 ** min(tries - 1, 16))
        pause_s = self._jitter.uniform(0.1 * ceiling_s, ceiling_s)
        if error.retry_after_s is not None:
            pause_s = max(pause_s, min(error.retry_after_s, self._limits.retry_after_cap_s))
        return pause_s

    def _is_over(self, request: Request) -> None:
        del self._backing_off[request.number]
        self.add(request)
        self._tell()

    def add(self, request: Request) -> None:
        """Ask a request again as soon as there is a slot, and room."""
        self._arrivals += 1
        self._ready.setdefault(request.stage, deque()).append((self._arrivals, request))

    def take(self, has_room: Callable[[Request], bool]) -> Request | None:
        """The request that has been ready longest of those that find room; room that was found is to be used."""
        for _, stage in sorted((queue[0][0], stage) for stage, queue in self._ready.items()):
            request = self._ready[stage][0][1]
            if has_room(request):
                self._remove_first(stage)
                return request
        return None

    def _remove_first(self, stage: Stage) -> None:
        queue = self._ready[stage]
        queue.popleft()
        if not queue:
            del self._ready[stage]

    def forget(self, request: Request) -> None:
        """A request is answered, or given up: its attempts are of no interest any more."""
        self._attempts.pop(request.number, None)

    def clear(self) -> list[Request]:
        """Every request that waits; none is asked again."""
        dropped = [request for request, _ in self._backing_off.values()]
        for _, timer in self._backing_off.values():
            timer.cancel()
        dropped += [request for _, request in sorted(one for queue in self._ready.values() for one in queue)]
        self._backing_off.clear()
        self._ready.clear()
        return dropped
