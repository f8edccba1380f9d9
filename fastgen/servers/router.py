"""Calls that are under way at one endpoint, which can be broken off together. Knows nothing of HTTP or of health.

Breaking off works as `asyncio.timeout` does: the task is cancelled, and where the cancellation arrives it is taken back
and becomes an ordinary error. A cancellation by anybody else passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from fastgen.engine.backend import BackendStatistics
from fastgen.errors import BackendUnavailable, FastgenError, InputError, RequestRejected, StoppedError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from fastgen.engine.backend import ServerMetrics
    from fastgen.servers.openai import ModelInfo, OpenAIBackend
    from fastgen.types import Completion, Request


T = TypeVar("T")


class BrokenOffError(Exception):
    """The call was broken off by `Calls.break_off`."""


class Calls:
    """The calls under way at one endpoint, each in a task of its own."""

    def __init__(self) -> None:
        self._cancelled: dict[asyncio.Task[object], bool] = {}

    async def run(self, call: Awaitable[T]) -> T:
        """Return what ``call`` does.

        :raises BrokenOffError: `break_off` was called meanwhile.
        """
        task = asyncio.current_task()
        assert task is not None, "a coroutine is always run by a task"  # noqa: S101  # asyncio's own rule
        cancelling = task.cancelling()
        self._cancelled[task] = False
        try:
            return await call
        except asyncio.CancelledError:
            if self._cancelled[task] and task.uncancel() <= cancelling:
                raise BrokenOffError from None
            raise
        finally:
            del self._cancelled[task]

    def break_off(self) -> int:
        """Cancel every call under way; return how many."""
        for task, cancelled in self._cancelled.items():
            if not cancelled:
                self._cancelled[task] = True
                task.cancel()
        return len(self._cancelled)


_MAX_DOUBLINGS = 10  # 1,024 times as loaded: such an endpoint is asked only when all others are as bad


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint.

    ``limit`` is how many completions in flight fit it (a request may ask for several). ``term`` counts its takeouts, so
    that late failures of requests from before are told apart. ``refusals`` and ``misses`` count in a row, as the other
    two do: takeouts for a refusal that a person must mend, and checks of its health that brought no answer.
    """

    backend: OpenAIBackend
    limit: int = 1
    healthy: bool = True
    term: int = 0
    refusals: int = 0
    misses: int = 0
    unreached_in_a_row: int = 0
    faults_in_a_row: int = 0
    forgiven_at_s: float = 0.0
    calls: Calls = field(default_factory=Calls, repr=False)
    probing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Its address without credentials."""
        return self.backend.endpoint.display_url

    @property
    def worked(self) -> bool:
        """Whether it gave a good answer, or joined a run that went on without it."""
        return self.backend.counters.completed > 0 or self.term > 0

    def load(self, now_s: float) -> float:
        """Return the share of its limit with one completion more, doubled for every recent fault in a row."""
        doublings = min(self.faults_in_a_row, _MAX_DOUBLINGS) if now_s < self.forgiven_at_s else 0
        return ((self.backend.counters.sequences + 1) << doublings) / self.limit

    def answered_since(self, moment_s: float) -> bool:
        """Tell whether it has answered anything since."""
        last_s = self.backend.counters.last_answer_s
        return last_s is not None and last_s >= moment_s

    async def accepts(self) -> bool:
        """Tell whether a server that refused lets us ask again, as far as its list of models tells."""
        try:
            models = (await self.backend.probe()).ids
        except FastgenError:
            return False
        return not models or self.backend.endpoint.model in models


async def ask(members: Sequence[Member], within_s: float) -> None:
    """Ask for their health, for so long at most; their counters remember who answered."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(member.backend.is_answering() for member in members))


TAKE_OUT_AFTER = 3
SLOWEST_PROBE_S = 2.0  # upper bound of the pause between probes, hence of the delay until an endpoint is taken back
CHECK_EVERY_S = 1.0
CHECK_WITHIN_S = 2.0
MISSES_ALLOWED = 3  # 6 to 9 s without any answer at all; a busy vLLM answers /health within 1 s
REFUSED_PAUSE_S, LONGEST_REFUSED_PAUSE_S = 30.0, 600.0
_GRACE_S = 1.0  # at the start: how long the others may take once the first has answered
_FORGIVEN_AFTER_S = 1.0
_ON_PROBATION = 6  # doublings of an endpoint that refused, until it gives a good answer: one request at a time, about

log = logging.getLogger(__name__)


class Router:
    """A `Backend` over at least one endpoint; owns the backends it is given and closes them.

    ``first_probe_s`` and ``check_every_s`` are in seconds: until an endpoint that was taken out is first asked again,
    and between looks at those that are in. :raises InputError: there is no endpoint.
    """

    def __init__(
        self, backends: Sequence[OpenAIBackend], *, first_probe_s: float = 0.25, check_every_s: float = CHECK_EVERY_S
    ) -> None:
        if not backends:
            raise InputError("--base-url: at least one is needed")
        self._members = [Member(backend) for backend in backends]
        self._first_probe_s = first_probe_s
        self._check_every_s = check_every_s
        self._checking: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None  # of a task in the background; the next request raises it
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

    def set_limits(self, limits: Sequence[int]) -> None:
        """Say how many completions in flight fit each endpoint (at least 1), in the order of `backends`.

        They weigh, they do not bound: how much is asked at once is the scheduler's.
        """
        for member, limit in zip(self._members, limits, strict=True):
            member.limit = max(1, limit)

    def is_full(self, expected: int = 0) -> bool:
        """Whether endpoints that answer have no room beyond ``expected`` completions; never where none answers."""
        healthy = [member for member in self._members if member.healthy]
        return bool(healthy) and sum(m.limit - m.backend.counters.sequences for m in healthy) <= expected

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Backend.complete`; with no healthy endpoint a `TransientError` of kind ``all_down`` at once.

        :raises StoppedError: the last endpoint that worked refuses now, and a person must mend that.
        """
        if self._failure is not None:
            raise self._failure
        if self._checking is None and len(self._members) > 1:
            self._checking = self._begin(self._check_for_silence())
        member = self._pick()
        term = member.term
        try:
            completions = await member.calls.run(member.backend.complete(request))
        except TransientError as error:
            if term == member.term:
                self._saw_failure(member, error)
            raise
        except RequestRejected:
            self._saw_answer(member, term)
            raise
        except InputError as error:
            refusal = self._refused(member, error, late=term != member.term)
        except BrokenOffError:
            refusal = TransientError(f"{member.url}: broken off, it had gone silent", kind="hung", reached_server=False)
        else:
            self._saw_answer(member, term)
            return completions
        raise refusal

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
                report(f"going on without {member.url} until it answers")
                self._take_out(member)
        return answered[0].result()

    def begin_without(self, absent: Iterable[str]) -> None:
        """Take the endpoints with these ``display_url`` out until they answer; call it in the event loop."""
        absent = set(absent)
        for member in self._members:
            if member.url in absent and member.healthy:
                self._take_out(member)

    async def close(self) -> None:
        """See `Backend.close`."""
        probes = [task for task in (self._checking, *(m.probing for m in self._members)) if task is not None]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        for member in self._members:
            await member.backend.close()

    def _pick(self) -> Member:
        """Return the least loaded healthy member; among equals the next in turn."""
        members, turn = self._members, self._turn
        self._turn = (turn + 1) % len(members)
        healthy = [member for member in (*members[turn:], *members[:turn]) if member.healthy]
        if not healthy:
            raise TransientError("no server answers; waiting for one", kind="all_down", reached_server=False)
        now_s = time.monotonic()
        return min(healthy, key=lambda member: member.load(now_s))

    def _others_than(self, member: Member) -> list[Member]:
        return [other for other in self._members if other.healthy and other is not member]

    # -- standing ------------------------------------------------------------------------------------------------------

    def _saw_answer(self, member: Member, term: int) -> None:
        if term == member.term:  # one of before a takeout says nothing of now
            member.unreached_in_a_row = member.faults_in_a_row = member.refusals = 0
            member.forgiven_at_s = 0.0

    def _saw_failure(self, member: Member, error: TransientError) -> None:
        if error.reached_server:
            member.unreached_in_a_row = 0
            member.faults_in_a_row += 1
            member.forgiven_at_s = max(member.forgiven_at_s, time.monotonic() + _FORGIVEN_AFTER_S)
            return
        member.unreached_in_a_row += 1
        if member.healthy and member.unreached_in_a_row >= TAKE_OUT_AFTER and member.probing is None:
            if self._others_than(member):
                self._warn(member, f"{error}: taken out until it answers")
                self._take_out(member)
            else:
                member.probing = self._begin(self._probe_the_last(member, str(error)))

    def _refused(self, member: Member, error: InputError, *, late: bool) -> FastgenError:
        """What a refusal means that a person must mend; the endpoint is taken out if the run can go on without it."""
        if not member.worked:
            return error
        others = [other for other in self._members if other is not member]
        if not late and all(other.refusals and not other.healthy for other in others):
            return StoppedError(f"{error}; the run is kept: mend that and run the same command again")
        if not late:
            self._warn(member, f"{error}: going on without it, tried again now and then")
            member.refusals += 1
            self._take_out(member)
        return TransientError(str(error), kind="refused", reached_server=False)

    def _warn(self, member: Member, message: str) -> None:
        """The first takeout of an endpoint is news; a server that comes and goes must not fill the screen."""
        log.log(logging.INFO if member.term else logging.WARNING, "%s", message)

    def _take_out(self, member: Member) -> None:
        if member.probing is not None:
            member.probing.cancel()
        member.healthy = False
        member.term += 1
        if not any(other.healthy for other in self._members):
            self._all_down_since_s = time.monotonic()
        member.probing = self._begin(self._watch(member))

    def _take_back(self, member: Member) -> None:
        log.info("%s answers again: taken back", member.url)
        member.unreached_in_a_row = member.faults_in_a_row = member.misses = 0
        if member.refusals:
            member.faults_in_a_row, member.forgiven_at_s = _ON_PROBATION, math.inf
        member.healthy, member.probing, self._all_down_since_s = True, None, None

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task of the router's own, which `close` ends."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._keep_failure)
        return task

    def _keep_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    # -- watching ------------------------------------------------------------------------------------------------------

    async def _probe_the_last(self, member: Member, why: str) -> None:
        """Take the only healthy endpoint out if it does not answer a probe either; else its count begins anew."""
        answers = await member.backend.is_answering()
        member.probing = None
        if answers or not member.healthy:
            member.unreached_in_a_row = 0
            return
        self._warn(member, f"{why}: taken out until it answers")
        self._take_out(member)

    async def _watch(self, member: Member) -> None:
        """Probe until the endpoint answers, then take it back."""
        pause_s, longest_s = self._first_probe_s, SLOWEST_PROBE_S
        if member.refusals:
            longest_s = LONGEST_REFUSED_PAUSE_S
            pause_s = min(longest_s, REFUSED_PAUSE_S * 2.0 ** min(member.refusals - 1, 16))
        while True:
            await asyncio.sleep(pause_s)
            if await (member.accepts() if member.refusals else member.backend.is_answering()):
                break
            pause_s = min(2 * pause_s, longest_s)
        self._take_back(member)

    async def _check_for_silence(self) -> None:
        while True:
            await asyncio.sleep(self._check_every_s)
            await asyncio.gather(*(self._check(member) for member in self._members if member.healthy))

    async def _check(self, member: Member) -> None:
        """Count a miss if the endpoint has work, and for all of `CHECK_WITHIN_S` it says nothing while another does."""
        began_s, counters = time.monotonic(), member.backend.counters
        if not counters.in_flight or member.answered_since(began_s - self._check_every_s):
            member.misses = 0
            return
        await ask([member], CHECK_WITHIN_S)
        others = self._others_than(member)
        if not member.answered_since(began_s) and not any(other.answered_since(began_s) for other in others):
            await ask(others, CHECK_WITHIN_S)
        if member.answered_since(began_s):
            member.misses = 0
        elif any(other.answered_since(began_s) for other in others):
            member.misses += 1
        if member.misses >= MISSES_ALLOWED and member.healthy:
            self._warn(member, f"{member.url} has gone silent with {counters.in_flight} requests: taken out")
            self._take_out(member)
            member.calls.break_off()


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
