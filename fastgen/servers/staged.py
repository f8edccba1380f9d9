"""Servers by stage: a router of its own for each stage that has servers of its own, the main one for the rest.

The scheduler has one number of requests in flight for all of them, and whoever steers it sees all endpoints as one
list: the main router's first, then each stage's, in the order given. What keeps a stage with few servers from taking
every slot is that nothing is asked of a router that is full: `RoomFirst` tells the plan which stages to leave out, and
`StagedRouter.reserve` tells the scheduler which requests cannot be asked again yet, so that the slots that are free
go to servers that are free. This cannot stall: a router is full only while requests are in flight there, and each of
them ends in an answer or a failure, after which the scheduler asks again; a router whose servers are all down has room,
so its requests fail, wait for another attempt, and hold the run open. What keeps them from becoming all that waits is
that of a router whose requests pause, so many as twice what fits it, nothing new is asked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from fastgen.engine.backend import BackendStatistics
from fastgen.types import Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from fastgen.engine.backend import ServerMetrics
    from fastgen.servers.openai import OpenAIBackend
    from fastgen.servers.router import Router
    from fastgen.types import Completion, Request


_MOST_PAUSING = 2  # times what fits a router, as the scheduler has it for all of them


class StagedRouter:
    """A `Backend` over the routers of all stages; owns and closes them. A stage without one uses ``main``."""

    def __init__(self, main: Router, own: Mapping[Stage, Router] | None = None) -> None:
        self._by_stage = {stage: (own or {}).get(stage, main) for stage in Stage}
        self._routers = (main, *(own or {}).values())
        self._fits = {router: len(router.backends) for router in self._routers}
        # Completions by request number:
        self._expected: dict[Router, dict[int, int]] = {router: {} for router in self._routers}
        self._pausing: dict[Router, dict[int, int]] = {router: {} for router in self._routers}

    @property
    def backends(self) -> tuple[OpenAIBackend, ...]:
        """Every endpoint's backend, in the order of `statistics` and `metrics`."""
        return tuple(backend for router in self._routers for backend in router.backends)

    @property
    def is_staged(self) -> bool:
        """Whether any stage has servers of its own."""
        return len(self._routers) > 1

    def set_limits(self, limits: Sequence[int]) -> None:
        """See `Router.set_limits`; one limit for each of `backends`."""
        if len(limits) != len(self.backends):
            raise ValueError(f"{len(limits)} limits for {len(self.backends)} endpoints")
        first = 0
        for router in self._routers:
            its = limits[first : first + len(router.backends)]
            router.set_limits(its)
            self._fits[router] = sum(its)
            first += len(its)

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Router.complete`."""
        router = self._by_stage[request.stage]
        self._expected[router].pop(request.number, None)
        return await router.complete(request)

    def statistics(self) -> BackendStatistics:
        """See `Backend.statistics`; all is down since the servers of any stage are."""
        seen = [router.statistics() for router in self._routers]
        down = [one.all_down_since_s for one in seen if one.all_down_since_s is not None]
        return BackendStatistics(tuple(endpoint for one in seen for endpoint in one.endpoints), min(down, default=None))

    async def metrics(self) -> tuple[ServerMetrics | None, ...]:
        """Each server's own figures, in the order of `backends`; ``None`` where it has none or does not answer."""
        seen = await asyncio.gather(*(router.metrics() for router in self._routers))
        return tuple(figures for one in seen for figures in one)

    async def close(self) -> None:
        """See `Backend.close`."""
        for router in self._routers:
            await router.close()

    def full_stages(self) -> frozenset[Stage]:
        """The stages whose servers take nothing new now; none where all stages share their servers."""
        if not self.is_staged:
            return frozenset()
        full = {router for router in self._routers if self._is_full(router) or self._pauses_enough(router)}
        return frozenset(stage for stage, router in self._by_stage.items() if router in full)

    def _is_full(self, router: Router) -> bool:
        return router.is_full(sum(self._expected[router].values()))

    def _pauses_enough(self, router: Router) -> bool:
        return sum(self._pausing[router].values()) >= _MOST_PAUSING * self._fits[router]

    def expect(self, request: Request) -> None:
        """Count a request that will be asked soon; until then it takes room as one in flight does."""
        self._expected[self._by_stage[request.stage]][request.number] = request.sequences

    def reserve(self, request: Request) -> bool:
        """Expect a request that is asked again, if its servers have room; see `fastgen.engine.requests.Capacity`."""
        router = self._by_stage[request.stage]
        if self._is_full(router):
            return False
        self._pausing[router].pop(request.number, None)
        self.expect(request)
        return True

    def backs_off(self, request: Request) -> None:
        """A request failed and waits for another attempt; see `fastgen.engine.requests.Capacity`."""
        self._pausing[self._by_stage[request.stage]][request.number] = request.sequences

    def no_longer_expect(self, request: Request) -> None:
        """A request will not be asked; harmless where it was."""
        router = self._by_stage[request.stage]
        self._expected[router].pop(request.number, None)
        self._pausing[router].pop(request.number, None)


class StageSource(Protocol):
    """A scheduler's source that can leave stages out."""

    def next(self, without: Collection[Stage] = ()) -> Request | None:
        """The next request of a stage that is not in ``without``."""

    def give_back(self, request: Request) -> None:
        """A request taken from `next` will not be answered."""

    def shrink(self, request: Request) -> Request | None:
        """A shorter form of a request whose prompt was too long, if there is one."""


class RoomFirst:
    """A scheduler's `Source` that gives only what the servers of its stage have room for."""

    def __init__(self, source: StageSource, backend: StagedRouter) -> None:
        self._source = source
        self._backend = backend

    def next(self) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        request = self._source.next(self._backend.full_stages())
        if request is not None:
            self._backend.expect(request)
        return request

    def give_back(self, request: Request) -> None:
        """See `fastgen.engine.requests.Source`."""
        self._backend.no_longer_expect(request)
        self._source.give_back(request)

    def shrink(self, request: Request) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        return self._source.shrink(request)
