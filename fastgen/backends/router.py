"""Several endpoints as one backend: each request goes to the healthy endpoint with the least in flight.

Guarantees: an endpoint that gives no HTTP answer `TAKE_OUT_AFTER` times in a row gets no more requests, and gets them again
soon after a small probe in the background succeeds; nothing waits inside a request; when no endpoint is healthy `complete`
fails at once. An endpoint that answers only errors (5xx, 429) counts as twice as loaded for every failure in a row, so quick
errors do not attract the work. Knows nothing of retries: another attempt is the scheduler's, and finds another endpoint here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastgen.backends import BackendStatistics
from fastgen.backends.openai import ModelInfo, OpenAIBackend
from fastgen.backends.prometheus import ServerMetrics
from fastgen.errors import BackendUnavailable, InputError, RequestRejected, TransientError
from fastgen.records import Completion, Request

TAKE_OUT_AFTER = 3
SLOWEST_PROBE_S = 2.0  # upper bound of the pause between probes, hence of the delay until an endpoint is taken back
_GRACE_S = 1.0  # at the start: how long the others may take once the first has answered
_MAX_PENALTY = 10  # 2**10 times as loaded: below it in practice only when all endpoints fail

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Member:
    """One endpoint and its standing. ``term`` counts its returns, so that late failures of an earlier term are told apart."""

    backend: OpenAIBackend
    healthy: bool = True
    term: int = 0
    unreached_in_a_row: int = 0
    failures_in_a_row: int = 0
    probing: asyncio.Task[None] | None = field(default=None, repr=False)

    def load(self) -> int:
        """In flight, doubled for every failure in a row."""
        return (self.backend.counters.in_flight + 1) << min(self.failures_in_a_row, _MAX_PENALTY)


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
        waits = {asyncio.create_task(m.backend.wait_until_answering(timeout_s, report)): m for m in self._members}
        try:
            answers = await _first_answers(waits)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for task, member in waits.items():
            if task not in answers:
                report(f"going on without {member.backend.endpoint.display_url} until it answers")
                self._take_out(member)
        return answers[0].result()

    async def close(self) -> None:
        """See `Backend.close`."""
        probes = [member.probing for member in self._members if member.probing is not None]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        for member in self._members:
            await member.backend.close()

    def _pick(self) -> _Member:
        """The least loaded healthy member; among equals the next in turn."""
        best, best_load, count = None, 0, len(self._members)
        for offset in range(count):
            member = self._members[(self._turn + offset) % count]
            if member.healthy and (best is None or member.load() < best_load):
                best, best_load = member, member.load()
        self._turn = (self._turn + 1) % count
        if best is None:
            raise TransientError("no server answers; waiting for one", kind="all_down", reached_server=False)
        return best

    def _saw_answer(self, member: _Member) -> None:
        member.unreached_in_a_row = member.failures_in_a_row = 0

    def _saw_failure(self, member: _Member, error: TransientError) -> None:
        member.failures_in_a_row += 1
        member.unreached_in_a_row = 0 if error.reached_server else member.unreached_in_a_row + 1
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


async def _first_answers(waits: Sequence[asyncio.Task[ModelInfo]] | dict[asyncio.Task[ModelInfo], _Member]) -> list[asyncio.Task[ModelInfo]]:
    """The tasks that succeed, from the first one on and a moment longer; input errors are raised at once."""
    pending = set(waits)
    answers: list[asyncio.Task[ModelInfo]] = []
    failure: BackendUnavailable | None = None
    while pending:
        done, pending = await asyncio.wait(
            pending, timeout=_GRACE_S if answers else None, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            try:
                task.result()
                answers.append(task)
            except BackendUnavailable as error:
                failure = error
        if not done or (answers and not pending):
            return answers
    if not answers and failure is not None:
        raise failure
    return answers
