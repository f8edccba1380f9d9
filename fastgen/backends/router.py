"""Several endpoints as one backend: each request goes to the healthy endpoint with the least in flight.

Guarantees: an endpoint that gives no HTTP answer `TAKE_OUT_AFTER` times in a row gets no more requests, and gets them
again soon after a small probe in the background succeeds; nothing waits inside a request; when no endpoint is healthy
`complete` fails at once. An endpoint whose answers are faults (5xx, 429, broken bodies) counts as twice as loaded for
every one in a row, until a second has passed since the last: quick errors do not attract the work, and a single one is
soon forgotten. Knows nothing of retries: another attempt is the scheduler's, and finds another endpoint here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastgen.backends import BackendStatistics
from fastgen.errors import BackendUnavailable, InputError, RequestRejected, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastgen.backends.openai import ModelInfo, OpenAIBackend
    from fastgen.backends.prometheus import ServerMetrics
    from fastgen.records import Completion, Request

TAKE_OUT_AFTER = 3
SLOWEST_PROBE_S = 2.0  # upper bound of the pause between probes, hence of the delay until an endpoint is taken back
_GRACE_S = 1.0  # at the start: how long the others may take once the first has answered
_FORGIVEN_AFTER_S = 1.0
_MAX_DOUBLINGS = 10  # 1,024 times as loaded: such an endpoint is asked only when all others are as bad

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Member:
    """One endpoint and its standing.

    ``term`` counts its takeouts, so that late failures of requests from before are told apart.
    """

    backend: OpenAIBackend
    healthy: bool = True
    term: int = 0
    unreached_in_a_row: int = 0
    faults_in_a_row: int = 0
    forgiven_at_s: float = 0.0
    probing: asyncio.Task[None] | None = field(default=None, repr=False)

    def load(self, now_s: float) -> int:
        """Return what is in flight and one more, doubled for every recent fault in a row."""
        doublings = min(self.faults_in_a_row, _MAX_DOUBLINGS) if now_s < self.forgiven_at_s else 0
        return (self.backend.counters.in_flight + 1) << doublings


class Router:
    """A `Backend` over at least one endpoint; owns the backends it is given and closes them."""

    def __init__(self, backends: Sequence[OpenAIBackend], *, first_probe_s: float = 0.25) -> None:
        if not backends:
            raise InputError("--base-url: at least one is needed")
        self._members = [_Member(backend) for backend in backends]
        self._first_probe_s = first_probe_s
        self._turn = 0
        self._all_down_since_s: float | None = None

    @property
    def backends(self) -> tuple[OpenAIBackend, ...]:
        """The endpoints' backends, in the order given."""
        return tuple(member.backend for member in self._members)

    @property
    def all_down_since_s(self) -> float | None:
        """Since when (``time.monotonic``) no endpoint has been healthy; ``None`` while one is."""
        return self._all_down_since_s

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Backend.complete`; with no healthy endpoint a `TransientError` of kind ``all_down`` at once."""
        member = self._pick()
        term = member.term
        try:
            completions = await member.backend.complete(request)
        except TransientError as error:
            if term == member.term:
                self._saw_failure(member, error)
            raise
        except RequestRejected:
            self._saw_answer(member)
            raise
        self._saw_answer(member)
        return completions

    def statistics(self) -> BackendStatistics:
        """See `Backend.statistics`."""
        snapshots = tuple(member.backend.snapshot(healthy=member.healthy) for member in self._members)
        return BackendStatistics(snapshots, self._all_down_since_s)

    async def metrics(self) -> tuple[ServerMetrics | None, ...]:
        """Each server's own figures, in the order of `backends`; ``None`` where it has none or does not answer."""
        return tuple(await asyncio.gather(*(member.backend.metrics() for member in self._members)))

    async def wait_until_answering(self, timeout_s: float, report: Callable[[str], None]) -> ModelInfo:
        """Wait until the first endpoint answers; those that are not there soon after are taken out until they are.

        :raises BackendUnavailable: none did within ``timeout_s``.
        :raises InputError: one answered, and something must be mended first.
        """
        waits = [asyncio.create_task(m.backend.wait_until_answering(timeout_s, report)) for m in self._members]
        try:
            answered = await _first_answers(waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for wait, member in zip(waits, self._members, strict=True):
            if wait not in answered:
                report(f"going on without {member.backend.endpoint.display_url} until it answers")
                self._take_out(member)
        return answered[0].result()

    async def close(self) -> None:
        """See `Backend.close`."""
        probes = [member.probing for member in self._members if member.probing is not None]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        for member in self._members:
            await member.backend.close()

    def _pick(self) -> _Member:
        """Return the least loaded healthy member; among equals the next in turn."""
        members, turn = self._members, self._turn
        self._turn = (turn + 1) % len(members)
        healthy = [member for member in (*members[turn:], *members[:turn]) if member.healthy]
        if not healthy:
            raise TransientError("no server answers; waiting for one", kind="all_down", reached_server=False)
        now_s = time.monotonic()
        return min(healthy, key=lambda member: member.load(now_s))

    def _saw_answer(self, member: _Member) -> None:
        member.unreached_in_a_row = member.faults_in_a_row = 0

    def _saw_failure(self, member: _Member, error: TransientError) -> None:
        if error.reached_server:
            member.unreached_in_a_row = 0
            member.faults_in_a_row += 1
            member.forgiven_at_s = time.monotonic() + _FORGIVEN_AFTER_S
            return
        member.unreached_in_a_row += 1
        if member.healthy and member.unreached_in_a_row >= TAKE_OUT_AFTER:
            log.warning("%s: taken out until it answers", error)
            self._take_out(member)

    def _take_out(self, member: _Member) -> None:
        member.healthy = False
        member.term += 1
        if not any(other.healthy for other in self._members):
            self._all_down_since_s = time.monotonic()
        member.probing = asyncio.create_task(self._watch(member))

    async def _watch(self, member: _Member) -> None:
        """Probe until the endpoint answers, then take it back."""
        pause_s = self._first_probe_s
        while True:
            await asyncio.sleep(pause_s)
            if await member.backend.is_answering():
                break
            pause_s = min(2 * pause_s, SLOWEST_PROBE_S)
        log.warning("%s answers again: taken back", member.backend.endpoint.display_url)
        self._saw_answer(member)
        member.healthy, member.probing, self._all_down_since_s = True, None, None


async def _first_answers(waits: Sequence[asyncio.Task[ModelInfo]]) -> list[asyncio.Task[ModelInfo]]:
    """Return the tasks that succeed, from the first one on and a moment longer; input errors are raised at once."""
    answered: list[asyncio.Task[ModelInfo]] = []
    failure: BackendUnavailable | None = None
    pending = set(waits)
    while pending:
        grace_s = _GRACE_S if answered else None
        done, pending = await asyncio.wait(pending, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        for wait in done:
            try:
                wait.result()
                answered.append(wait)
            except BackendUnavailable as error:
                failure = error
    if failure is not None and not answered:
        raise failure
    return answered
