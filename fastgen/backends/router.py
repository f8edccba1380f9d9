"""Several endpoints as one backend: each request goes where it fills the smallest share of what fits there.

The share is ``(completions in flight + 1) / limit``, by the limits that `Router.set_limits` was last given (all equal
before): a server with twice the headroom gets twice the requests, and one that is slow keeps no more than its share
while the others go on. Nothing waits inside a request, and nothing is asked twice here: another attempt is the
scheduler's, and finds another endpoint.

- *Dead.* An endpoint that gives no HTTP answer `TAKE_OUT_AFTER` times in a row is taken out: it gets no more requests
  until a small probe in the background succeeds. The last healthy one is probed first, since without it there is
  nothing to go on with: one that resets connections but answers stays. With none left, `complete` fails at once.
- *Silent.* An endpoint that has requests in flight and answers nothing, not even `MISSES_ALLOWED` checks in a row of
  its health, is taken out, and its requests are broken off, to be asked elsewhere; only while another answers, else
  the fault may well be on this side. Any answer, also to a completion, begins the count anew: a busy server that
  is slow to tell its health is safe.
- *Faulty.* One whose answers are faults (5xx, 429, broken bodies) counts as twice as loaded for every one in a row,
  until a second has passed since the last: quick errors do not attract the work, a single one is soon forgotten.
- *Refusing.* A refusal that a person must mend (a key, no credit, a model or route that is gone) ends the run while
  nothing has worked yet. Of an endpoint that worked it is a fault: taken out, tried again after `REFUSED_PAUSE_S` and
  then ever more seldom, with few requests until one succeeds. When all others refuse too, the run stops, resumable.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING

from fastgen.backends import BackendStatistics
from fastgen.backends.calls import BrokenOffError
from fastgen.backends.member import Member, ask
from fastgen.errors import BackendUnavailable, FastgenError, InputError, RequestRejected, StoppedError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from fastgen.backends.openai import ModelInfo, OpenAIBackend
    from fastgen.backends.prometheus import ServerMetrics
    from fastgen.records import Completion, Request

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
