"""What a controller sees of a server at one moment, and the words in which it says why its limit is what it is."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Protocol

from fastgen.engine.backend import BackendStatistics, EndpointStatistics, ServerMetrics


class Reason(StrEnum):
    """Why the limit is what it is; the values are for people and stable."""

    STARTING = "starting"
    FIXED = "fixed by --concurrency"
    FILLING = "filling: the server's queue is empty"
    FULL = "the server is full"
    QUEUE_TOO_LONG = "the server's queue was too long"
    NOT_SEEN = "waiting until the server shows what was sent"
    OWN_WORK = "the run has not enough to ask, or the client is busy"
    PREEMPTIONS = "the server's KV cache was too small for more"
    REFUSED = "the server refused more (429, 503)"
    NO_FIGURES = "the server's figures are missing"
    FASTER_WITH_MORE = "more brought more"
    NO_FASTER_WITH_MORE = "more brought nothing more"
    MEASURING = "measuring the server's throughput"
    TAKEN_OUT = "the server is taken out"
    AT_MAXIMUM = "at --max-concurrency"


@dataclass(frozen=True, slots=True)
class Observation:
    """One server at ``now_s`` (any monotonic clock, seconds). All counts but the last are of completions.

    ``in_flight`` are those that were asked for and have not come. ``completed``, ``refused`` (429, 503, a timeout) and
    ``generated_tokens`` count since the start, as the client saw them. ``server`` is what the server says of itself,
    ``None`` where it says nothing now.
    """

    now_s: float
    in_flight: int
    completed: int
    refused: int = 0
    generated_tokens: int = 0
    healthy: bool = True
    server: ServerMetrics | None = None


def in_use(seen: Observation, limit: float) -> bool:
    """Whether the client really keeps so many in flight, but for a few that are just being replaced.

    Below its limit a client learns nothing about the server: the limit must not grow then (RFC 7661, "Updating TCP to
    Support Rate-Limited Traffic").
    """
    return seen.in_flight >= 0.95 * limit - 0.5


START_GAIN = 0.25
UP, DOWN = 1.25, 0.8
FLOOR = 16
UP_GAIN = 0.1 * (UP - 1.0)
_CRUISE_ROUNDS = 4
_FEW = 32  # completions: enough to tell a quarter more from nothing
_MIN_ROUND_S = 0.5


class _Phase(Enum):
    START = auto()
    CRUISE = auto()
    TRY_MORE = auto()
    TRY_LESS = auto()


@dataclass(frozen=True, slots=True)
class _Measured:
    limit: float
    per_s: float


class GradientLaw:
    """The law of this module; ``limit`` is in completions, at least 1, and may be lowered from outside."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.reason = Reason.STARTING
        self._phase = _Phase.START
        self._before: _Measured | None = None
        self._rounds = 0
        self._began: Observation | None = None  # of the round's measured part
        self._passing_over: int | None = None  # completed at which that part begins

    def follow(self, seen: Observation) -> None:
        """Take one more observation into account."""
        if not in_use(seen, self.limit):
            self._begin_round()
            self.reason = Reason.OWN_WORK
        elif self._began is None:
            self._pass_over(seen)
        elif self._is_over(self._began, seen):
            self._judge(_Measured(self.limit, _throughput_per_s(self._began, seen)))
            self._begin_round()
        elif self.reason in (Reason.OWN_WORK, Reason.STARTING):
            self.reason = Reason.MEASURING

    def lowered(self, limit: float) -> None:
        """Take a limit from outside; from there it starts anew."""
        self.limit, self._phase, self._rounds, self._before = limit, _Phase.START, 0, None
        self._begin_round()

    def _begin_round(self) -> None:
        self._began = self._passing_over = None

    def _pass_over(self, seen: Observation) -> None:
        if self._passing_over is None:
            self._passing_over = seen.completed + seen.in_flight
        if seen.completed >= self._passing_over:
            self._began = seen

    def _is_over(self, began: Observation, seen: Observation) -> bool:
        starting = self._phase is _Phase.START
        wanted = max(_FEW, 0.25 * self.limit) if starting else max(2 * _FEW, 2.0 * self.limit)
        return seen.completed - began.completed >= wanted and seen.now_s - began.now_s >= _MIN_ROUND_S

    def _judge(self, now: _Measured) -> None:
        before = self._before
        self._before = now
        if before is None:
            self._after_first(now)
        elif self._phase is _Phase.START:
            self._judge_start(before, now)
        elif self._phase is _Phase.CRUISE:
            self._cruise()
        else:
            self._judge_trial(before, now)

    def _after_first(self, now: _Measured) -> None:
        self.reason = Reason.MEASURING
        if self._phase is _Phase.START:
            self.limit = 2 * now.limit

    def _judge_start(self, before: _Measured, now: _Measured) -> None:
        gain = now.per_s / before.per_s
        if gain >= 1 + START_GAIN:
            self.limit, self.reason = 2 * now.limit, Reason.FASTER_WITH_MORE
        else:
            knee = 1.1 * before.limit * max(gain, 1.0)
            self.limit, self.reason = min(max(knee, before.limit), now.limit), Reason.NO_FASTER_WITH_MORE
            self._phase, self._before = _Phase.CRUISE, None

    def _cruise(self) -> None:
        self._rounds += 1
        if self._rounds % _CRUISE_ROUNDS:
            return
        more = self._rounds % (2 * _CRUISE_ROUNDS) != 0 or DOWN * self.limit < FLOOR
        self._phase = _Phase.TRY_MORE if more else _Phase.TRY_LESS
        self.limit *= UP if more else DOWN

    def _judge_trial(self, before: _Measured, now: _Measured) -> None:
        least = 1 + UP_GAIN if self._phase is _Phase.TRY_MORE else 1.0
        if now.per_s >= least * before.per_s:
            more = self._phase is _Phase.TRY_MORE
            self.reason = Reason.FASTER_WITH_MORE if more else Reason.NO_FASTER_WITH_MORE
            self._rounds = _CRUISE_ROUNDS - 1 if more else self._rounds  # what helped is tried again at once
        else:
            self.limit, self.reason = before.limit, Reason.NO_FASTER_WITH_MORE
            self._before = None
        self._phase = _Phase.CRUISE


def _throughput_per_s(began: Observation, seen: Observation) -> float:
    tokens = seen.generated_tokens - began.generated_tokens
    return (tokens or seen.completed - began.completed) / (seen.now_s - began.now_s)


TARGET = 0.05
LOW, HIGH = 0.4, 1.6
COLD_STEP, CALM_STEP = 0.5, 0.05
_SAMPLES = 3
_VISIBLE = 0.75
_FORGETTING_S = 60.0
_EFFECT_WITHIN_S = 2.0
NEARLY_FULL = 0.95  # of the KV cache: more sequences would only push others out


@dataclass(frozen=True, slots=True)
class _Sample:
    """The part of the server's running and waiting sequences that is this client's."""

    running: float
    waiting: float

    @property
    def target(self) -> float:
        """Sequences that should wait: a share of those that run, at least 1."""
        return max(1.0, TARGET * self.running)


class QueueLaw:
    """The law of this module; ``limit`` is in completions, at least 1, and may be lowered from outside."""

    def __init__(self, limit: float) -> None:
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)
        self._seen_s = 0.0
        self._tokens = 0
        self.restart(limit)

    @property
    def settled(self) -> bool:
        """Whether the last sample was inside the band."""
        return self.reason is Reason.FULL

    def follow(self, seen: Observation, server: ServerMetrics) -> None:
        """Take one more sample into account."""
        if server.generation_tokens < self._tokens:  # its counters began anew, and so do we
            self.restart(self.limit)
        self._tokens = server.generation_tokens
        self._watch_drain(seen)
        self._samples.append(sample := _own(seen, server))
        visible = self._is_visible(seen, server)
        least = min(one.waiting for one in self._samples)
        if least > max(HIGH * sample.target, sample.target + 1) and self._is_flat():
            self._shorten(seen, least - sample.target)
        elif sample.waiting >= LOW * sample.target:
            self._rest()
        elif not in_use(seen, self.limit):
            self._starved_in_a_row, self.reason = 0, Reason.OWN_WORK
        elif not visible:
            self.reason = Reason.NOT_SEEN
        else:
            self._grow(seen, server)

    def restart(self, limit: float) -> None:
        """Go on from ``limit`` as from cold: another server may be there now."""
        self.limit = limit
        self.reason = Reason.STARTING
        self._step = COLD_STEP
        self._starved_in_a_row = 0
        self._best_share = 0.0
        self._expected: tuple[float, float] | None = None  # sequences that shall show, and until when
        self._draining: float | None = None  # in flight, while the excess over a lower limit becomes less
        self._samples.clear()

    def lowered(self, limit: float) -> None:
        """Take a lower limit from outside; growth from there is calm."""
        self.limit, self._step, self._starved_in_a_row = limit, CALM_STEP, 0
        self._draining = math.inf

    def _shorten(self, seen: Observation, excess: float) -> None:
        self.limit = max(1.0, min(self.limit, seen.in_flight - excess))
        self._draining = seen.in_flight
        self._step, self._starved_in_a_row, self.reason = CALM_STEP, 0, Reason.QUEUE_TOO_LONG

    def _rest(self) -> None:
        self._starved_in_a_row, self.reason = 0, Reason.FULL
        if self._is_flat():
            self._step = CALM_STEP

    def _grow(self, seen: Observation, server: ServerMetrics) -> None:
        self._starved_in_a_row += 1
        self.reason = Reason.FILLING
        if self._step <= CALM_STEP and self._starved_in_a_row < _SAMPLES:
            return
        step = CALM_STEP if server.kv_cache_usage > NEARLY_FULL else self._step
        added = max(1.0, step * self.limit)
        self.limit += added
        self._expected = (server.running + server.waiting + added / 2, seen.now_s + _EFFECT_WITHIN_S)
        self._step = min(COLD_STEP, 2 * self._step)
        self._samples.clear()

    def _watch_drain(self, seen: Observation) -> None:
        """Begin the samples anew until the excess is gone, or becomes no less (requests of several completions)."""
        if self._draining is None:
            return
        self._samples.clear()
        over = seen.in_flight <= self.limit + 1 or seen.in_flight >= self._draining
        self._draining = None if over else seen.in_flight

    def _is_flat(self) -> bool:
        """Whether enough samples show that no more run than before."""
        first, last = self._samples[0].running, self._samples[-1].running
        return len(self._samples) == _SAMPLES and last <= first + max(1.0, 0.02 * first)

    def _is_visible(self, seen: Observation, server: ServerMetrics) -> bool:
        shown = server.running + server.waiting
        if self._expected is not None and (shown >= self._expected[0] or seen.now_s >= self._expected[1]):
            self._expected = None
        share = min(1.0, shown / max(seen.in_flight, 1))
        faded = self._best_share * max(0.0, 1.0 - (seen.now_s - self._seen_s) / _FORGETTING_S)
        self._best_share, self._seen_s = max(share, faded), seen.now_s
        return self._expected is None and share > 0 and share >= _VISIBLE * self._best_share


def _own(seen: Observation, server: ServerMetrics) -> _Sample:
    share = min(1.0, seen.in_flight / max(server.running + server.waiting, 1))
    return _Sample(share * server.running, share * server.waiting)


RETURN_LIFETIMES = 3.0
_NEAR_TURNS = 3.0  # by then it is almost twice the level at which it was hit
MANY_PREEMPTIONS = 0.1  # for each completion
_MIN_PREEMPTIONS = 8
_KV_CROWDED = 0.85
_WINDOW_S = 10.0
_MIN_WINDOW_S = 2.0
_LIFETIME_WINDOW_S = 5.0
_MIN_LIFETIME_S, _MAX_LIFETIME_S = 1.0, 20.0


class Ceiling:
    """The highest limit allowed now; infinite until it is first hit."""

    def __init__(self) -> None:
        self._level = math.inf
        self._share = 1.0
        self._hit_s = -math.inf
        self._lifetime_s = _MIN_LIFETIME_S

    def hit(self, now_s: float, level: float, share: float, lifetime_s: float) -> None:
        """``level`` was too much: allow ``share`` (0..1) of it, and it again after `RETURN_LIFETIMES`."""
        self._level, self._share, self._hit_s, self._lifetime_s = level, share, now_s, lifetime_s

    def at(self, now_s: float) -> float:
        """The ceiling at that time, at least 1."""
        if self._level == math.inf:
            return math.inf
        turns = (now_s - self._hit_s) / (RETURN_LIFETIMES * self._lifetime_s)
        return max(1.0, self._level * (1.0 + (1.0 - self._share) * (turns - 1.0) ** 3))

    def is_near(self, now_s: float) -> bool:
        """Whether it was hit so lately that the limit should come back along the curve and not by itself."""
        return now_s - self._hit_s < _NEAR_TURNS * RETURN_LIFETIMES * self._lifetime_s

    def is_fresh(self, now_s: float) -> bool:
        """Whether requests from before the hit may still be in flight: what they meet says nothing new."""
        return now_s - self._hit_s < self._lifetime_s


class Lifetime:
    """How long a request stays in flight, by Little's law over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[Observation] = deque()

    def follow(self, seen: Observation) -> float:
        """The lifetime in seconds, within 1 to 20; 1 where nothing is known."""
        self._seen.append(seen)
        while len(self._seen) > 2 and seen.now_s - self._seen[1].now_s >= _LIFETIME_WINDOW_S:  # noqa: PLR2004 - a span
            self._seen.popleft()
        first = self._seen[0]
        completed = seen.completed - first.completed
        mean_in_flight = sum(one.in_flight for one in self._seen) / len(self._seen)
        lifetime_s = mean_in_flight * (seen.now_s - first.now_s) / completed if completed > 0 else 0.0
        return min(max(lifetime_s, _MIN_LIFETIME_S), _MAX_LIFETIME_S)


class Refusals:
    """Sees a server refuse more than now and then (429, 503)."""

    def __init__(self) -> None:
        self._since: Observation | None = None

    def share(self, seen: Observation, lifetime_s: float) -> float:
        """What part of the requests that ended lately was refused (0..1); 0 while that is too few to mean anything."""
        since = self._since
        if since is None or seen.now_s - since.now_s > max(_MIN_WINDOW_S, lifetime_s):
            self._since = seen
            return 0.0
        refused, completed = seen.refused - since.refused, seen.completed - since.completed
        if refused < max(2.0, 0.02 * seen.in_flight):
            return 0.0
        self._since = seen
        return refused / (refused + completed)


@dataclass(frozen=True, slots=True)
class _Mark:
    now_s: float
    preemptions: int
    completed: int


class Thrash:
    """Sees a server push sequences out of its KV cache over and over."""

    def __init__(self) -> None:
        self._since: _Mark | None = None

    def forget(self) -> None:
        """Begin a new window."""
        self._since = None

    def is_on(self, seen: Observation, server: ServerMetrics) -> bool:
        """Whether since the window began more than `MANY_PREEMPTIONS` fell on each completion, the cache being full."""
        since = self._since
        if since is None or server.preemptions < since.preemptions or seen.now_s - since.now_s > _WINDOW_S:
            self._since = _Mark(seen.now_s, server.preemptions, seen.completed)
            return False
        preemptions = server.preemptions - since.preemptions
        return (
            server.kv_cache_usage >= _KV_CROWDED
            and seen.now_s - since.now_s >= _MIN_WINDOW_S
            and preemptions >= _MIN_PREEMPTIONS
            and preemptions > MANY_PREEMPTIONS * (seen.completed - since.completed)
        )


BLIND_S = 10.0
TELLING = 0.25  # share of what is in flight that a server's figures must show to be steered by
_MUTE_SAMPLES = 12
_PREEMPTING_SHARE, _REFUSING_SHARE, _OVERRUN_SHARE = 0.9, 0.9, 0.7
_FEW_REFUSALS, _OVERRUN = 0.02, 0.5
_SLOWLY, _QUICKLY = 0.5, 0.25


class ConcurrencyController:
    """Steers one server between 1 and ``maximum`` completions in flight, from ``initial`` on."""

    def __init__(self, initial: int, maximum: int) -> None:
        self.limit = max(1, min(initial, maximum))
        self.reason = Reason.STARTING
        self.changed_s: float | None = None
        self._first = float(self.limit)
        self._maximum = maximum
        self._queue = QueueLaw(self._first)
        self._gradient: GradientLaw | None = None
        self._ceiling = Ceiling()
        self._lifetime = Lifetime()
        self._thrash = Thrash()
        self._refusals = Refusals()
        self._too_much = Reason.REFUSED
        self._last: Observation | None = None
        self._told_s: float | None = None  # when the server last gave figures
        self._mute = 0
        self._last_full: float | None = None

    @property
    def law(self) -> str:
        """``"queue"`` or ``"gradient"``."""
        return "queue" if self._gradient is None else "gradient"

    @property
    def pause_s(self) -> float:
        """When to look again: sooner while the limit moves."""
        return _SLOWLY if self.reason in (Reason.FULL, Reason.OWN_WORK, Reason.AT_MAXIMUM) else _QUICKLY

    def observe(self, seen: Observation) -> int:
        """The limit after ``seen``, which must not be older than what was seen before."""
        last, self._last = self._last, seen
        before = self.limit
        if not seen.healthy:
            self._take_out()
        elif last is not None and not last.healthy:
            self._take_back()
        else:
            self._follow(seen)
        if self.limit != before:
            self.changed_s = seen.now_s
        return self.limit

    def _take_out(self) -> None:
        self.limit = max(1, round((self._last_full or self._first) / 2))
        self.reason = Reason.TAKEN_OUT

    def _take_back(self) -> None:
        self.reason = Reason.STARTING
        self._gradient, self._mute = None, 0
        self._queue.restart(self.limit)
        self._ceiling, self._lifetime, self._refusals = Ceiling(), Lifetime(), Refusals()
        self._thrash.forget()

    def _follow(self, seen: Observation) -> None:
        lifetime_s = self._lifetime.follow(seen)
        law = self._choose_law(seen)
        if law is None:
            self.reason = Reason.NO_FIGURES
            return
        if isinstance(law, GradientLaw):
            law.follow(seen)
        elif seen.server is not None:
            law.follow(seen, seen.server)
        self.reason = law.reason
        if self._is_too_much(seen, lifetime_s):
            law.lowered(min(law.limit, self._ceiling.at(seen.now_s)))
            self.reason = self._too_much
        self._bound(seen, law)
        if self.reason is Reason.FULL:
            self._last_full = law.limit

    def _choose_law(self, seen: Observation) -> QueueLaw | GradientLaw | None:
        if seen.server is None:
            if self._told_s is not None and seen.now_s - self._told_s < BLIND_S:
                return self._gradient
            return self._by_throughput()
        self._told_s = seen.now_s
        if self._is_mute(seen, seen.server):
            return self._by_throughput()
        if self._gradient is not None:
            self._gradient = None
            self._queue.restart(self.limit)
        return self._queue

    def _is_mute(self, seen: Observation, server: ServerMetrics) -> bool:
        """Whether the server has for long shown next to nothing of what is in flight."""
        shown = server.running + server.waiting
        if server.waiting or shown > 2 * TELLING * seen.in_flight:
            self._mute = 0
        elif shown < TELLING * seen.in_flight and in_use(seen, self.limit):
            self._mute += 1
        return self._mute >= _MUTE_SAMPLES

    def _by_throughput(self) -> GradientLaw:
        if self._gradient is None:
            self._gradient = GradientLaw(self.limit)
        return self._gradient

    def _is_too_much(self, seen: Observation, lifetime_s: float) -> bool:
        """Whether the server just showed that it cannot hold so much; then the ceiling is set."""
        if self._ceiling.is_fresh(seen.now_s):
            self._thrash.forget()
            return False
        if seen.server is not None and self._thrash.is_on(seen, seen.server):
            held = max(1, seen.in_flight - seen.server.waiting)
            self._ceiling.hit(seen.now_s, held, _PREEMPTING_SHARE, lifetime_s)
            self._too_much = Reason.PREEMPTIONS
            return True
        share = self._refusals.share(seen, lifetime_s)
        if share <= _FEW_REFUSALS:
            return False
        allowed = _REFUSING_SHARE if share < _OVERRUN else _OVERRUN_SHARE
        self._ceiling.hit(seen.now_s, min(seen.in_flight, self.limit), allowed, lifetime_s)
        self._too_much = Reason.REFUSED
        return True

    def _bound(self, seen: Observation, law: QueueLaw | GradientLaw) -> None:
        ceiling = self._ceiling.at(seen.now_s)
        follows = isinstance(law, GradientLaw) and self._ceiling.is_near(seen.now_s) and in_use(seen, law.limit)
        if follows or law.limit > ceiling:
            law.limit = ceiling
            self.reason = self._too_much
        if law.limit > self._maximum:
            law.limit = float(self._maximum)
            self.reason = Reason.AT_MAXIMUM
        self.limit = max(1, round(law.limit))


_PAGE_WITHIN_S = 2.0
_DRAINS_BY = 0.8  # a look
_MUTE_AFTER = 4  # pages that were none, of a server that is up and never had one
_ASK_MUTE_EVERY_S = 15.0  # a hosted service has no such page, and need not say so four times a second


class Endpoint(Protocol):
    """One server's own figures."""

    async def metrics(self) -> ServerMetrics | None:
        """The figures now; ``None`` where there are none."""


class Steered(Protocol):
    """The servers: `fastgen.servers.router.Router`."""

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
