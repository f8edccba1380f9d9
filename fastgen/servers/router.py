"""Several endpoints as one backend: each request goes to the endpoint where it fills the smallest share of the limit.

A role with separate servers or a separate model has a group of endpoints. All other roles share the main group. The
endpoints of all groups are one list: the main group's first, then each role's, in the order given.

The share is ``(completions in flight + 1) / limit``, with the limits of `Router.set_limits` (all equal before). A
server with twice the headroom gets twice the requests, and a slow one keeps no more than its share. No call waits
inside the router, and the router never repeats a request: the scheduler retries it, and it reaches another endpoint.

- *Dead.* An endpoint that gives no HTTP answer `TAKE_OUT_AFTER` times in a row is taken out: it gets no requests until
  a probe in the background succeeds. The last healthy endpoint of a group is probed first: one that resets connections
  but answers probes stays. With no healthy endpoint in the group, `Router.complete` fails at once.
- *Silent.* An endpoint that has requests in flight and answers nothing, not even `MISSES_ALLOWED` checks of its health
  in a row, is taken out, and its requests are broken off so that they are retried elsewhere. This happens only while
  another endpoint of the group answers, because otherwise the fault may be on this side. Any answer, also to a
  completion, resets the count, so a busy server with a slow health page is safe.
- *Faulty.* An endpoint whose answers are faults (5xx, 429, broken bodies) counts as twice as loaded for each fault in a
  row, until a second has passed since the last one. Quick errors do not attract the work.
- *Refusing.* A refusal that the user must fix (a key, no credit, a model or route that is gone) ends the run while
  nothing has worked yet. From an endpoint that worked it is a fault: the endpoint is taken out, tried again after
  `REFUSED_PAUSE_S` and then less and less often, with few requests until one succeeds. When all others of the group
  refuse too, the run stops and can be resumed.

The scheduler has one number of requests in flight for all groups. So that a group with few servers does not take every
slot, nothing is asked of a full group: `RoomAwareSource` tells the plan which roles to leave out, and `Router.reserve`
tells the scheduler which retries must wait. This cannot stall. A group is full only while requests are in flight there,
and each of them ends in an answer or a failure, after which the scheduler asks again. A group whose endpoints are all
down has room, so its requests fail, wait for another attempt, and keep the run open. They cannot fill the retry queue,
because a group gets nothing new while retries worth twice its limits are waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fastgen.engine.backend import BackendStatistics
from fastgen.engine.requests import Source
from fastgen.errors import BackendUnavailable, FastgenError, InputError, RequestRejected, StoppedError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

    from fastgen.engine.backend import ServerMetrics
    from fastgen.servers.openai import OpenAIBackend
    from fastgen.types import Completion, Request


TAKE_OUT_AFTER = 3
FIRST_PROBE_S = 0.25
SLOWEST_PROBE_S = 2.0  # upper bound of the pause between probes, hence of the delay until an endpoint is taken back
CHECK_EVERY_S = 1.0
CHECK_WITHIN_S = 2.0
MISSES_ALLOWED = 3  # 6 to 9 s without any answer; a busy vLLM answers /health within 1 s
REFUSED_PAUSE_S, LONGEST_REFUSED_PAUSE_S = 30.0, 600.0
FORGIVEN_AFTER_S = 1.0
_GRACE_S = 1.0  # at the start: how long the others may take once the first has answered
_MOST_DOUBLINGS = 10  # 1,024 times as loaded: such an endpoint is asked only when all others are as bad
_ON_PROBATION = 6  # doublings of an endpoint that refused, until it gives a good answer: about one request at a time
_MOST_PAUSING = 2  # times the limits of a group, as the scheduler has it for all of them

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Group:
    """The endpoints of some roles, and the completions that will be asked of them, by request number.

    ``fits`` is how many completions in flight fit them.
    """

    members: list[_Member]
    fits: int
    turn: int = 0
    checking: asyncio.Task[None] | None = None
    expected: dict[int, int] = field(default_factory=dict)
    pausing: dict[int, int] = field(default_factory=dict)

    def is_full(self) -> bool:
        """Whether the healthy endpoints have no room beyond what is expected. False where none is healthy."""
        free = [member.limit - member.backend.counters.sequences for member in self.members if member.healthy]
        return bool(free) and sum(free) <= sum(self.expected.values())


@dataclass(slots=True, eq=False)
class _Member:
    """An endpoint of a group.

    ``limit`` is how many completions in flight fit it. ``term`` counts its takeouts, so that failures of requests that
    began before one can be told apart. ``refusals``, ``misses``, ``unreached`` and ``faults`` count in a row: takeouts
    for a refusal that the user must fix, health checks without an answer, requests without an HTTP answer, and answers
    that are faults. ``calls`` are the tasks of its requests, with whether the router has cancelled them.
    """

    backend: OpenAIBackend
    group: _Group = field(init=False, repr=False)
    limit: int = 1
    healthy: bool = True
    term: int = 0
    refusals: int = 0
    misses: int = 0
    unreached: int = 0
    faults: int = 0
    forgiven_at_s: float = 0.0
    calls: dict[asyncio.Task[object], bool] = field(default_factory=dict, repr=False)
    probing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return self.backend.endpoint.display_url

    @property
    def others(self) -> list[_Member]:
        return [other for other in self.group.members if other is not self]

    def load(self, now_s: float) -> float:
        """The share of its limit with one completion more, doubled for every recent fault in a row."""
        doublings = min(self.faults, _MOST_DOUBLINGS) if now_s < self.forgiven_at_s else 0
        return ((self.backend.counters.sequences + 1) << doublings) / self.limit

    def answered_since(self, moment_s: float) -> bool:
        last_s = self.backend.counters.last_answer_s
        return last_s is not None and last_s >= moment_s

    async def accepts(self) -> bool:
        """Whether an endpoint that refused can be asked again, as far as its list of models shows."""
        try:
            models = await self.backend.probe()
        except FastgenError:
            return False
        return not models or self.backend.endpoint.model in models


class Router:
    """A `Backend` over at least one endpoint. Owns the backends it is given and closes them.

    ``by_role`` has the endpoints of the roles that do not use ``main``. The other arguments are in seconds: until an
    endpoint that was taken out is first probed, between looks at those that are in, how long one may take to answer a
    check of its health, until a fault is forgotten, and until an endpoint that refused is first tried again.

    :raises InputError: there is no endpoint.
    """

    def __init__(
        self,
        main: Sequence[OpenAIBackend],
        by_role: Mapping[str, Sequence[OpenAIBackend]] | None = None,
        *,
        first_probe_s: float = FIRST_PROBE_S,
        check_every_s: float = CHECK_EVERY_S,
        check_within_s: float = CHECK_WITHIN_S,
        forgiven_after_s: float = FORGIVEN_AFTER_S,
        refused_pause_s: float = REFUSED_PAUSE_S,
    ) -> None:
        self._main = self._group(main)
        self._by_role = {role: self._group(backends) for role, backends in (by_role or {}).items()}
        self._groups = (self._main, *self._by_role.values())
        self._members = [member for group in self._groups for member in group.members]
        self._first_probe_s = first_probe_s
        self._check_every_s = check_every_s
        self._check_within_s = check_within_s
        self._forgiven_after_s = forgiven_after_s
        self._refused_pause_s = refused_pause_s
        self._failure: BaseException | None = None  # of a task in the background; the next request raises it

    @staticmethod
    def _group(backends: Sequence[OpenAIBackend]) -> _Group:
        if not backends:
            raise InputError("--base-url: at least one is needed")
        group = _Group([_Member(backend) for backend in backends], fits=len(backends))
        for member in group.members:
            member.group = group
        return group

    @property
    def backends(self) -> tuple[OpenAIBackend, ...]:
        """Every endpoint's backend, in the order of `statistics` and `metrics`."""
        return tuple(member.backend for member in self._members)

    def member(self, role: str) -> OpenAIBackend:
        """One endpoint of a role, one that is healthy if there is any."""
        members = self._by_role.get(role, self._main).members
        return next((one for one in members if one.healthy), members[0]).backend

    @property
    def is_split(self) -> bool:
        """Whether any role has separate endpoints."""
        return bool(self._by_role)

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """See `Backend.complete`. With no healthy endpoint a `TransientError` of kind ``all_down`` at once.

        A request that the router breaks off ends as `asyncio.timeout` does it: its task is cancelled, and where the
        cancellation arrives it is taken back and becomes a `TransientError` of kind ``hung``. A cancellation by anyone
        else passes through.

        :raises StoppedError: the last endpoint that worked refuses now, and the user must fix that.
        """
        group = self._by_role.get(request.server_role, self._main)
        group.expected.pop(request.number, None)
        if self._failure is not None:
            raise self._failure
        if group.checking is None and len(group.members) > 1:
            group.checking = self._begin(self._check_for_silence(group))
        member = self._pick(group)
        term = member.term
        task = asyncio.current_task()
        assert task is not None, "a coroutine is always run by a task"  # noqa: S101  # asyncio's own rule
        cancelling = task.cancelling()
        member.calls[task] = False
        try:
            completions = await member.backend.complete(request)
        except TransientError as error:
            if term == member.term:
                self._saw_failure(member, error)
            raise
        except RequestRejected:
            self._saw_answer(member, term)
            raise
        except InputError as error:
            failure = self._refused(member, error, late=term != member.term)
        except asyncio.CancelledError:
            if not member.calls[task] or task.uncancel() > cancelling:
                raise
            failure = TransientError(
                f"{member.url}: cancelled, it had stopped answering", kind="hung", reached_server=False
            )
        else:
            self._saw_answer(member, term)
            return completions
        finally:
            del member.calls[task]
        raise failure

    def _pick(self, group: _Group) -> _Member:
        """The least loaded healthy member. Among equals the next in turn."""
        members, turn = group.members, group.turn
        group.turn = (turn + 1) % len(members)
        healthy = [member for member in (*members[turn:], *members[:turn]) if member.healthy]
        if not healthy:
            raise TransientError("no server answers; waiting for one", kind="all_down", reached_server=False)
        now_s = time.monotonic()
        return min(healthy, key=lambda member: member.load(now_s))

    def statistics(self) -> BackendStatistics:
        """See `Backend.statistics`."""
        return BackendStatistics(tuple(member.backend.snapshot(healthy=member.healthy) for member in self._members))

    async def metrics(self) -> tuple[ServerMetrics | None, ...]:
        """Each server's own figures, in the order of `backends`, or ``None`` where it has none or does not answer."""
        return tuple(await asyncio.gather(*(member.backend.metrics() for member in self._members)))

    async def close(self) -> None:
        """See `Backend.close`."""
        background = [group.checking for group in self._groups] + [member.probing for member in self._members]
        tasks = [task for task in background if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members:
            await member.backend.close()

    # -- the start -----------------------------------------------------------------------------------------------------

    async def wait_until_answering(self, timeout_s: float, report: Callable[[str], None]) -> tuple[str, ...]:
        """Wait until the first endpoint answers, and return the names of its models.

        Endpoints that do not answer soon after it are taken out until they do.

        :raises BackendUnavailable: none did within ``timeout_s``.
        :raises InputError: one answered, and the user must fix something first.
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
                report(f"continuing without {member.url} until it answers")
                self._take_out(member)
        return answered[0].result()

    def begin_without(self, absent: Collection[OpenAIBackend]) -> None:
        """Take these of `backends` out until they answer. Call it in the event loop."""
        for member in self._members:
            if member.backend in absent and member.healthy:
                self._take_out(member)

    # -- room ----------------------------------------------------------------------------------------------------------

    def set_limits(self, limits: Sequence[int]) -> None:
        """Set how many completions in flight fit each endpoint (at least 1), in the order of `backends`.

        They weigh the endpoints. The scheduler decides how much is asked at once.

        :raises ValueError: there is not one limit for each endpoint.
        """
        if len(limits) != len(self._members):
            raise ValueError(f"{len(limits)} limits for {len(self._members)} endpoints")
        for group in self._groups:
            group.fits = 0
        for member, limit in zip(self._members, limits, strict=True):
            member.limit = max(1, limit)
            member.group.fits += limit

    def is_full_for(self, role: str) -> bool:
        """Whether the servers of a role take nothing new now. Never where all roles share their servers."""
        if not self._by_role:
            return False
        group = self._by_role.get(role, self._main)
        return group.is_full() or sum(group.pausing.values()) >= _MOST_PAUSING * group.fits

    def expect(self, request: Request) -> None:
        """Count a request that will be asked soon. Until then it takes room as one in flight does."""
        self._by_role.get(request.server_role, self._main).expected[request.number] = request.sequences

    def no_longer_expect(self, request: Request) -> None:
        """Forget a request that will not be asked. No effect where it was."""
        group = self._by_role.get(request.server_role, self._main)
        group.expected.pop(request.number, None)
        group.pausing.pop(request.number, None)

    def reserve(self, request: Request) -> bool:
        """Expect a retry, if its servers have room. See `fastgen.engine.requests.Capacity`."""
        group = self._by_role.get(request.server_role, self._main)
        if group.is_full():
            return False
        group.pausing.pop(request.number, None)
        group.expected[request.number] = request.sequences
        return True

    def backs_off(self, request: Request) -> None:
        """A request failed and waits for another attempt. See `fastgen.engine.requests.Capacity`."""
        self._by_role.get(request.server_role, self._main).pausing[request.number] = request.sequences

    # -- standing ------------------------------------------------------------------------------------------------------

    def _saw_answer(self, member: _Member, term: int) -> None:
        if term == member.term:  # an answer to a request from before a takeout says nothing about now
            member.unreached = member.faults = member.refusals = 0
            member.forgiven_at_s = 0.0

    def _saw_failure(self, member: _Member, error: TransientError) -> None:
        if error.reached_server:
            member.unreached = 0
            member.faults += 1
            member.forgiven_at_s = max(member.forgiven_at_s, time.monotonic() + self._forgiven_after_s)
            return
        member.unreached += 1
        if member.healthy and member.unreached >= TAKE_OUT_AFTER and member.probing is None:
            if any(other.healthy for other in member.others):
                self._warn(member, f"{error}: taken out until it answers")
                self._take_out(member)
            else:
                member.probing = self._begin(self._probe_the_last(member, str(error)))

    def _refused(self, member: _Member, error: InputError, *, late: bool) -> FastgenError:
        """The error for a refusal that the user must fix. Takes the endpoint out if the run can continue without it."""
        if not (member.backend.counters.completed or member.term):  # it neither worked nor joined a run that did
            return error
        if not late and all(other.refusals and not other.healthy for other in member.others):
            return StoppedError(f"{error}; the run is kept: fix that and run the same command again")
        if not late:
            self._warn(member, f"{error}: continuing without it, tried again from time to time")
            member.refusals += 1
            self._take_out(member)
        return TransientError(str(error), kind="refused", reached_server=False)

    def _warn(self, member: _Member, message: str) -> None:
        """Only the first takeout of an endpoint is a warning: a server that comes and goes must not fill the screen."""
        log.log(logging.INFO if member.term else logging.WARNING, "%s", message)

    def _take_out(self, member: _Member) -> None:
        if member.probing is not None:
            member.probing.cancel()
        member.healthy = False
        member.term += 1
        member.probing = self._begin(self._watch(member))

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task that `close` ends. Its failure is raised by the next request."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._keep_failure)
        return task

    def _keep_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    # -- watching ------------------------------------------------------------------------------------------------------

    async def _probe_the_last(self, member: _Member, why: str) -> None:
        """Take the only healthy endpoint out if it does not answer a probe either. Else its count begins anew."""
        answers = await member.backend.is_answering()
        member.probing = None
        if answers or not member.healthy:
            member.unreached = 0
            return
        self._warn(member, f"{why}: taken out until it answers")
        self._take_out(member)

    async def _watch(self, member: _Member) -> None:
        """Probe until the endpoint answers, then take it back."""
        pause_s, longest_s = self._first_probe_s, SLOWEST_PROBE_S
        if member.refusals:
            longest_s = LONGEST_REFUSED_PAUSE_S
            pause_s = min(longest_s, self._refused_pause_s * 2.0 ** min(member.refusals - 1, 16))
        while True:
            await asyncio.sleep(pause_s)
            if await (member.accepts() if member.refusals else member.backend.is_answering()):
                break
            pause_s = min(2 * pause_s, longest_s)
        log.info("%s answers again: taken back", member.url)
        member.unreached = member.faults = member.misses = 0
        if member.refusals:
            member.faults, member.forgiven_at_s = _ON_PROBATION, math.inf
        member.healthy, member.probing = True, None

    async def _check_for_silence(self, group: _Group) -> None:
        while True:
            await asyncio.sleep(self._check_every_s)
            await asyncio.gather(*(self._check(member) for member in group.members if member.healthy))

    async def _check(self, member: _Member) -> None:
        """Count a miss if the endpoint has work and stays silent during a check while another one answers."""
        began_s, counters = time.monotonic(), member.backend.counters
        if not counters.in_flight or member.answered_since(began_s - self._check_every_s):
            member.misses = 0
            return
        await self._ask_for_health([member])
        others = [other for other in member.others if other.healthy]
        if not member.answered_since(began_s) and not any(other.answered_since(began_s) for other in others):
            await self._ask_for_health(others)
        if member.answered_since(began_s):
            member.misses = 0
        elif any(other.answered_since(began_s) for other in others):
            member.misses += 1
        if member.misses >= MISSES_ALLOWED and member.healthy:
            self._warn(member, f"{member.url} has stopped answering with {counters.in_flight} requests: taken out")
            self._take_out(member)
            self._break_off(member)

    async def _ask_for_health(self, members: Sequence[_Member]) -> None:
        """Give them `CHECK_WITHIN_S` to answer. Their counters show who did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._check_within_s):
                await asyncio.gather(*(member.backend.is_answering() for member in members))

    def _break_off(self, member: _Member) -> None:
        """Cancel every request in flight at an endpoint. See `complete`."""
        for task, cancelled in member.calls.items():
            if not cancelled:
                member.calls[task] = True
                task.cancel()


async def _first_answers(waits: Sequence[asyncio.Task[tuple[str, ...]]]) -> list[asyncio.Task[tuple[str, ...]]]:
    """The tasks that succeed, up to a moment after the first one. Input errors are raised at once."""
    answered: list[asyncio.Task[tuple[str, ...]]] = []
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


class RoleSource(Source, Protocol):
    """A scheduler's source that can leave roles out."""

    def next(self, is_full: Callable[[str], bool] = ...) -> Request | None:
        """The next request of a role for which ``is_full`` is false."""


class RoomAwareSource:
    """A scheduler's `Source` that gives only requests that the servers of their role have room for."""

    def __init__(self, source: RoleSource, router: Router) -> None:
        self._source = source
        self._router = router
        self.shrink = source.shrink

    def next(self) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        request = self._source.next(self._router.is_full_for)
        if request is not None:
            self._router.expect(request)
        return request

    def give_back(self, request: Request) -> None:
        """See `fastgen.engine.requests.Source`."""
        self._router.no_longer_expect(request)
        self._source.give_back(request)
