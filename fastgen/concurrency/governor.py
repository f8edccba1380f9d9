"""Beside the scheduler: looks at every server a few times a second, asks its controller, and sets the limits.

One task for each server, so that a slow metrics page delays no other. The scheduler's total is the sum of the limits
of the servers that are up. What a server has in flight beyond its limit, while it drains, is added for a second or two,
and what one that was taken out has not given back: else it would take slots from the others. Knows nothing of HTTP or
of why a limit is what it is; `ConcurrencyController` decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastgen.backends import BackendStatistics, EndpointStatistics
from fastgen.backends.prometheus import ServerMetrics
from fastgen.concurrency.controller import ConcurrencyController
from fastgen.concurrency.signals import Observation

_PAGE_WITHIN_S = 2.0
_DRAINS_BY = 0.8  # a look
_MUTE_AFTER = 4  # pages that were none, of a server that is up and never had one
_ASK_MUTE_EVERY_S = 15.0  # a hosted service has no such page, and need not say so four times a second


class Endpoint(Protocol):
    """One server's own figures."""

    async def metrics(self) -> ServerMetrics | None:
        """The figures now; ``None`` where there are none."""


class Steered(Protocol):
    """The servers: `fastgen.backends.router.Router`."""

    @property
    def backends(self) -> Sequence[Endpoint]:
        """Each server, always in the same order."""

    def statistics(self) -> BackendStatistics:
        """What each has in flight and has done."""

    def set_limits(self, limits: Sequence[int]) -> None:
        """Weigh the servers by how much fits each."""


@dataclass(frozen=True, slots=True)
class ServerLimit:
    """One server: its limit and what it has in flight (both in completions), and why.

    ``running``, ``waiting`` and ``kv_cache_usage`` (0..1) are the server's last word, ``None`` where it has none.
    ``changed_s`` is on the governor's clock, ``None`` before the first change.
    """

    url: str
    limit: int
    in_flight: int
    reason: str
    law: str
    changed_s: float | None
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None


@dataclass(frozen=True, slots=True)
class GovernorStatistics:
    """The scheduler's total and each server's part in it."""

    total: int
    servers: tuple[ServerLimit, ...]


class Governor:
    """Runs one controller for each server of ``servers``; hands the total to ``set_total``. Use once.

    ``initial`` says for each server where its limit begins, ``maximum`` what none exceeds, in completions in flight.
    """

    def __init__(
        self,
        servers: Steered,
        set_total: Callable[[int], None],
        *,
        initial: Sequence[int],
        maximum: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = servers
        self._set_total = set_total
        self._clock = clock
        self._controllers = [ConcurrencyController(first, maximum) for first in initial]
        self._pages: list[ServerMetrics | None] = [None] * len(initial)
        self._excess = [0.0] * len(initial)
        self.total = self._apply()

    async def run(self) -> None:
        """Steer until cancelled."""
        await asyncio.gather(*(self._steer(*numbered) for numbered in enumerate(self._servers.backends)))

    def statistics(self) -> GovernorStatistics:
        """A snapshot."""
        seen = self._servers.statistics().endpoints
        return GovernorStatistics(
            self.total,
            tuple(
                ServerLimit(
                    *(one.url, controller.limit, one.sequences, str(controller.reason), controller.law),
                    controller.changed_s,
                    *((page.running, page.waiting, page.kv_cache_usage) if page is not None else ()),
                )
                for one, controller, page in zip(seen, self._controllers, self._pages, strict=True)
            ),
        )

    async def _steer(self, number: int, endpoint: Endpoint) -> None:
        controller, told, without, asked_s = self._controllers[number], False, 0, 0.0
        while True:
            if without < _MUTE_AFTER or self._clock() - asked_s >= _ASK_MUTE_EVERY_S:
                asked_s = self._clock()
                self._pages[number] = page = await _page(endpoint)
                told, without = told or page is not None, without + 1
            if told or not self._servers.statistics().endpoints[number].healthy:
                without = 0
            self.look(number)
            await asyncio.sleep(controller.pause_s)

    def look(self, number: int) -> None:
        """Show one server to its controller, with its last page, and set the limits anew."""
        seen = self._servers.statistics().endpoints[number]
        controller = self._controllers[number]
        before = controller.limit
        controller.observe(
            Observation(
                *(self._clock(), seen.sequences, seen.completions),
                *(seen.refused, seen.generated_tokens, seen.healthy),
                self._pages[number],
            )
        )
        over = max(0, seen.sequences - controller.limit)
        self._excess[number] = over if controller.limit < before else min(over, _DRAINS_BY * self._excess[number])
        self.total = self._apply()

    def _apply(self) -> int:
        limits = [controller.limit for controller in self._controllers]
        self._servers.set_limits(limits)
        total = sum(self._share(*numbered) for numbered in enumerate(self._servers.statistics().endpoints))
        self._set_total(total := max(1, total))
        return total

    def _share(self, number: int, seen: EndpointStatistics) -> int:
        """A server's part of the total; its excess only where another takes the slots that become free."""
        if not seen.healthy:
            return seen.sequences
        return self._controllers[number].limit + (int(self._excess[number]) if len(self._controllers) > 1 else 0)


async def _page(endpoint: Endpoint) -> ServerMetrics | None:
    try:
        async with asyncio.timeout(_PAGE_WITHIN_S):
            return await endpoint.metrics()
    except TimeoutError:
        return None
