"""Concurrency control: how many completions each server should have in flight.

Signals
    An observation is a copy of a `ServerState` with its time and, where the server has a metrics page, its figures.
    `Signals` derives from a series of them how long a request stays in flight, how much is refused, and whether the
    KV cache thrashes. A few preemptions are cheap, since a preempted sequence is computed again from its prompt. Many
    are not. Lifetimes follow Little's law (Little, "A Proof for the Queuing Formula L = λW", 1961).

Laws
    `QueueLaw` controls a server that states its running and waiting sequences (vLLM) to a full batch with a short
    queue. `GradientLaw` controls a server without metrics: it raises the limit while that increases throughput.
    `Ceiling` bounds either after thrash or refusals. It gives way by multiplicative decrease (Chiu & Jain, "Analysis of
    the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks", 1989) and returns along CUBIC's
    curve (RFC 9438): fast at first, flat around the level at which it was hit, ever faster beyond.

Controller
    `ConcurrencyController` chooses the law for one server and keeps it within the ceiling. Signals, laws and
    controllers are deterministic: they read no clock and do no I/O.

Governor
    `Governor` observes every server a few times a second and applies the limits. Each server has one task, so a slow
    metrics page does not delay the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from enum import Enum, StrEnum, auto
from typing import Final, Protocol

from fastgen.engine.backend import BackendStatistics, ServerMetrics, ServerState


class Reason(StrEnum):
    """Why a limit is what it is. The values are for people and stable."""

    STARTING = "starting"
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


# -- signals -----------------------------------------------------------------------------------------------------------

MANY_PREEMPTIONS: Final = 0.1  # for each completion
_MIN_PREEMPTIONS: Final = 8
_KV_CROWDED: Final = 0.85
_WINDOW_S, _MIN_WINDOW_S = 10.0, 2.0
_LIFETIME_WINDOW_S: Final = 5.0
_MIN_LIFETIME_S, _MAX_LIFETIME_S = 1.0, 20.0


def in_use(seen: ServerState, limit: float) -> bool:
    """Whether the client keeps ``limit`` completions in flight, except for a few that are just being replaced.

    Below its limit a client learns nothing about the server, so the limit must not grow then (RFC 7661, "Updating TCP
    to Support Rate-Limited Traffic").
    """
    return seen.sequences >= 0.95 * limit - 0.5


class Signals:
    """What the last observations of a server show."""

    def __init__(self) -> None:
        self.lifetime_s = _MIN_LIFETIME_S
        """How long a request stays in flight, within 1 to 20 seconds."""
        self._recent: deque[ServerState] = deque()
        self._refused_from: ServerState | None = None
        self._thrash_from: tuple[float, int, int] | None = None  # time, completions, preemptions

    def observe(self, seen: ServerState) -> None:
        """Take in one more observation."""
        self._recent.append(seen)
        while len(self._recent) > 2 and seen.at_s - self._recent[1].at_s >= _LIFETIME_WINDOW_S:  # noqa: PLR2004 - a span
            self._recent.popleft()
        first = self._recent[0]
        completed = seen.completions - first.completions
        mean_in_flight = sum(one.sequences for one in self._recent) / len(self._recent)
        lifetime_s = mean_in_flight * (seen.at_s - first.at_s) / completed if completed > 0 else 0.0
        self.lifetime_s = min(max(lifetime_s, _MIN_LIFETIME_S), _MAX_LIFETIME_S)

    def refused_share(self, seen: ServerState) -> float:
        """The share of the recent completions that were refused. 0 while there are too few of them."""
        since = self._refused_from
        if since is None or seen.at_s - since.at_s > max(_MIN_WINDOW_S, self.lifetime_s):
            self._refused_from = seen
            return 0.0
        refused, completed = seen.refused - since.refused, seen.completions - since.completions
        if refused < max(2.0, 0.02 * seen.sequences):
            return 0.0
        self._refused_from = seen
        return refused / (refused + completed)

    def is_thrashing(self, seen: ServerState, server: ServerMetrics) -> bool:
        """Whether, with a full KV cache, more than `MANY_PREEMPTIONS` fell on each completion of the window."""
        began_s, completions, preemptions = self._thrash_from or (-math.inf, 0, 0)
        if server.preemptions < preemptions or seen.at_s - began_s > _WINDOW_S:
            self._thrash_from = seen.at_s, seen.completions, server.preemptions
            return False
        preempted = server.preemptions - preemptions
        return (
            server.kv_cache_usage >= _KV_CROWDED
            and seen.at_s - began_s >= _MIN_WINDOW_S
            and preempted >= _MIN_PREEMPTIONS
            and preempted > MANY_PREEMPTIONS * (seen.completions - completions)
        )

    def restart_thrash_window(self) -> None:
        """Begin a new window for `is_thrashing`."""
        self._thrash_from = None


# -- laws --------------------------------------------------------------------------------------------------------------

TARGET: Final = 0.05
LOW, HIGH = 0.4, 1.6
COLD_STEP, CALM_STEP = 0.5, 0.05
_SAMPLES: Final = 3
_VISIBLE: Final = 0.75
_FORGETTING_S: Final = 60.0
_EFFECT_WITHIN_S: Final = 2.0
NEARLY_FULL: Final = 0.95  # of the KV cache: more sequences would only push others out


class QueueLaw:
    """A full batch with a short queue. ``limit`` is in completions, at least 1, and may be lowered from outside.

    A closed loop with limit ``L`` keeps ``L`` completions in flight. They run, wait in the server's queue, or are on
    their way: ``L = running + waiting + unseen``. How much the server can run at once (max_num_seqs, or what its KV
    cache holds) is not known and changes with the work. It shows by ``waiting > 0``. So the law controls ``waiting``,
    as TCP Vegas controls the packets that a path queues (Brakmo & Peterson, "TCP Vegas: End to End Congestion Avoidance
    on a Global Internet", IEEE JSAC 13(8), 1995), with a queue that is read instead of inferred from delays::

        target = max(1, TARGET * running)          band = [LOW * target, HIGH * target]

    - *Above the band* in three samples on end, while ``running`` does not rise (else a burst is being prefilled):
      ``L = in flight - (least waiting - target)``, since ``in flight - waiting`` is what the server holds and what is
      on its way: one exact step. Nothing more is cut before the excess has drained.
    - *Below the band*, with the whole limit in use and sent requests visible at the server: ``L`` grows by ``step``,
      which is 50 % from cold. Once the batch has been full it is 5 %, taken after three samples on end, then doubled
      at every further sample up to 50 %: a dip costs nothing, a server that grew is followed in a second or two.
    - *Visible*: at least half of what the last growth added shows (or two seconds have passed), and the share of the
      completions in flight that the server shows has not fallen below 3/4 of the best share of the last minute. So
      figures that lag (a long engine step, a slow network) slow the growth down instead of letting it overshoot.
    - *Inside the band* nothing changes.

    With several clients on one server each takes the share of the queue that its own requests have in all of them.
    """

    def __init__(self, limit: float) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)  # running and waiting, of this client
        self._seen_s = 0.0
        self._tokens = 0
        self.restart(limit)

    def restart(self, limit: float) -> None:
        """Continue from ``limit`` as from cold: another server may be there now."""
        self.limit = limit
        self.reason = Reason.STARTING
        self._step = COLD_STEP
        self._starved_in_a_row = 0
        self._best_share = 0.0
        self._expected: tuple[float, float] | None = None  # sequences that should show, and until when
        self._draining: float | None = None  # in flight, while the excess over a lower limit decreases
        self._samples.clear()

    def observe(self, seen: ServerState, server: ServerMetrics) -> None:
        """Take in one more observation."""
        if server.generation_tokens < self._tokens:  # its counters were reset: it was restarted
            self.restart(self.limit)
        self._tokens = server.generation_tokens
        self._watch_drain(seen)
        own_share = min(1.0, seen.sequences / max(server.running + server.waiting, 1))
        running, waiting = own_share * server.running, own_share * server.waiting
        self._samples.append((running, waiting))
        visible = self._is_visible(seen, server)
        target = max(1.0, TARGET * running)
        least_waiting = min(waiting for _, waiting in self._samples)
        if least_waiting > max(HIGH * target, target + 1) and self._is_flat():
            self._shorten(seen, least_waiting - target)
        elif waiting >= LOW * target:
            self._rest()
        elif not in_use(seen, self.limit):
            self._starved_in_a_row, self.reason = 0, Reason.OWN_WORK
        elif not visible:
            self.reason = Reason.NOT_SEEN
        else:
            self._grow(seen, server)

    def lower(self, limit: float) -> None:
        """Set a lower limit from outside. Growth from there is slow."""
        self.limit, self._step, self._starved_in_a_row = limit, CALM_STEP, 0
        self._draining = math.inf

    def _shorten(self, seen: ServerState, excess: float) -> None:
        self.limit = max(1.0, min(self.limit, seen.sequences - excess))
        self._draining = seen.sequences
        self._step, self._starved_in_a_row, self.reason = CALM_STEP, 0, Reason.QUEUE_TOO_LONG

    def _rest(self) -> None:
        self._starved_in_a_row, self.reason = 0, Reason.FULL
        if self._is_flat():
            self._step = CALM_STEP

    def _grow(self, seen: ServerState, server: ServerMetrics) -> None:
        self._starved_in_a_row += 1
        self.reason = Reason.FILLING
        if self._step <= CALM_STEP and self._starved_in_a_row < _SAMPLES:
            return
        step = CALM_STEP if server.kv_cache_usage > NEARLY_FULL else self._step
        added = max(1.0, step * self.limit)
        self.limit += added
        self._expected = (server.running + server.waiting + added / 2, seen.at_s + _EFFECT_WITHIN_S)
        self._step = min(COLD_STEP, 2 * self._step)
        self._samples.clear()

    def _watch_drain(self, seen: ServerState) -> None:
        """Drop the samples until the excess is gone, or stops decreasing (requests of several completions)."""
        if self._draining is None:
            return
        self._samples.clear()
        over = seen.sequences <= self.limit + 1 or seen.sequences >= self._draining
        self._draining = None if over else seen.sequences

    def _is_flat(self) -> bool:
        """Whether enough samples show that no more run than before."""
        first, last = self._samples[0][0], self._samples[-1][0]
        return len(self._samples) == _SAMPLES and last <= first + max(1.0, 0.02 * first)

    def _is_visible(self, seen: ServerState, server: ServerMetrics) -> bool:
        shown = server.running + server.waiting
        if self._expected is not None and (shown >= self._expected[0] or seen.at_s >= self._expected[1]):
            self._expected = None
        share = min(1.0, shown / max(seen.sequences, 1))
        faded = self._best_share * max(0.0, 1.0 - (seen.at_s - self._seen_s) / _FORGETTING_S)
        self._best_share, self._seen_s = max(share, faded), seen.at_s
        return self._expected is None and share > 0 and share >= _VISIBLE * self._best_share


START_GAIN: Final = 0.25
UP, DOWN = 1.25, 0.8
FLOOR: Final = 16
UP_GAIN: Final = 0.1 * (UP - 1.0)
_CRUISE_ROUNDS: Final = 4
_FEW: Final = 32  # completions: enough to tell a quarter more from nothing
_MIN_ROUND_S: Final = 0.5


class _Phase(Enum):
    START = auto()
    CRUISE = auto()
    TRY_MORE = auto()
    TRY_LESS = auto()


class GradientLaw:
    """The limit up to which throughput rises. ``limit`` is in completions, at least 1, and may be lowered from outside.

    In a closed loop throughput follows ``limit / latency`` (Little's law) and rises with the limit until the server is
    full. Beyond, only latency rises. A continuous-batching server's latency rises well before that, because larger
    batches take longer steps, so the law looks at the throughput and not, as TCP Vegas and Netflix's gradient limits
    do, at the latency. It moves in rounds: pass over the completions of requests from before the last change, then
    measure.

    - *Start*: double the limit while that brings at least a quarter more, which is how BBR finds a path's capacity
      (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016). At the first doubling that
      does not, return to the limit at which the last figure would have been reached without waiting, plus a tenth.
    - *Cruise*: every fourth round try a quarter more, or four fifths, in turn. More stays if it brings a tenth of the
      step in throughput. Less stays if nothing is lost. Trials never lead below `FLOOR`: only refusals do.

    Throughput is in generated tokens, or in completions where the server states no usage. A round in which the limit
    was not in use is not judged.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.reason = Reason.STARTING
        self._phase = _Phase.START
        self._before: tuple[float, float] | None = None  # limit and throughput a second of the last round
        self._rounds = 0
        self._began: ServerState | None = None  # of the round's measured part
        self._passing_over: int | None = None  # completions at which that part begins

    def observe(self, seen: ServerState) -> None:
        """Take in one more observation."""
        if not in_use(seen, self.limit):
            self._begin_round()
            self.reason = Reason.OWN_WORK
        elif self._began is None:
            self._pass_over(seen)
        elif self._is_over(self._began, seen):
            self._judge(_throughput_per_s(self._began, seen))
            self._begin_round()
        elif self.reason in (Reason.OWN_WORK, Reason.STARTING):
            self.reason = Reason.MEASURING

    def lower(self, limit: float) -> None:
        """Set a lower limit from outside. The law starts anew from there."""
        self.limit, self._phase, self._rounds, self._before = limit, _Phase.START, 0, None
        self._begin_round()

    def _begin_round(self) -> None:
        self._began = self._passing_over = None

    def _pass_over(self, seen: ServerState) -> None:
        if self._passing_over is None:
            self._passing_over = seen.completions + seen.sequences
        if seen.completions >= self._passing_over:
            self._began = seen

    def _is_over(self, began: ServerState, seen: ServerState) -> bool:
        starting = self._phase is _Phase.START
        wanted = max(_FEW, 0.25 * self.limit) if starting else max(2 * _FEW, 2.0 * self.limit)
        return seen.completions - began.completions >= wanted and seen.at_s - began.at_s >= _MIN_ROUND_S

    def _judge(self, per_s: float) -> None:
        limit, before = self.limit, self._before
        self._before = limit, per_s
        if before is None:
            self.reason = Reason.MEASURING
            if self._phase is _Phase.START:
                self.limit = 2 * limit
        elif self._phase is _Phase.START:
            self._judge_start(*before, per_s)
        elif self._phase is _Phase.CRUISE:
            self._cruise()
        else:
            self._judge_trial(*before, per_s)

    def _judge_start(self, limit_before: float, per_s_before: float, per_s: float) -> None:
        gain = per_s / per_s_before
        if gain >= 1 + START_GAIN:
            self.limit, self.reason = 2 * self.limit, Reason.FASTER_WITH_MORE
        else:
            knee = 1.1 * limit_before * max(gain, 1.0)
            self.limit, self.reason = min(max(knee, limit_before), self.limit), Reason.NO_FASTER_WITH_MORE
            self._phase, self._before = _Phase.CRUISE, None

    def _cruise(self) -> None:
        self._rounds += 1
        if self._rounds % _CRUISE_ROUNDS:
            return
        more = self._rounds % (2 * _CRUISE_ROUNDS) != 0 or DOWN * self.limit < FLOOR
        self._phase = _Phase.TRY_MORE if more else _Phase.TRY_LESS
        self.limit *= UP if more else DOWN

    def _judge_trial(self, limit_before: float, per_s_before: float, per_s: float) -> None:
        more = self._phase is _Phase.TRY_MORE
        self._phase = _Phase.CRUISE
        if per_s < (1 + UP_GAIN if more else 1.0) * per_s_before:
            self.limit, self.reason, self._before = limit_before, Reason.NO_FASTER_WITH_MORE, None
        elif more:
            self.reason = Reason.FASTER_WITH_MORE
            self._rounds = _CRUISE_ROUNDS - 1  # what helped is tried again at once
        else:
            self.reason = Reason.NO_FASTER_WITH_MORE


def _throughput_per_s(began: ServerState, seen: ServerState) -> float:
    tokens = seen.generated_tokens - began.generated_tokens
    return (tokens or seen.completions - began.completions) / (seen.at_s - began.at_s)


RETURN_LIFETIMES: Final = 3.0
_NEAR_TURNS: Final = 3.0  # by then it is almost twice the level at which it was hit


class Ceiling:
    """The highest limit allowed now. It is infinite until it is first hit.

    Its time is measured in durations of a request, since a change shows only after earlier requests ended.
    """

    def __init__(self) -> None:
        self._level = math.inf
        self._share = 1.0
        self._hit_s = -math.inf
        self._lifetime_s = _MIN_LIFETIME_S

    def hit(self, now_s: float, level: float, share: float, lifetime_s: float) -> None:
        """Allow ``share`` (0..1) of a ``level`` that was too much, and the level again after `RETURN_LIFETIMES`."""
        self._level, self._share, self._hit_s, self._lifetime_s = level, share, now_s, lifetime_s

    def at(self, now_s: float) -> float:
        """The ceiling at that time, at least 1."""
        if self._level == math.inf:
            return math.inf
        turns = (now_s - self._hit_s) / (RETURN_LIFETIMES * self._lifetime_s)
        return max(1.0, self._level * (1.0 + (1.0 - self._share) * (turns - 1.0) ** 3))

    def is_near(self, now_s: float) -> bool:
        """Whether it was hit so recently that the limit should return along the curve."""
        return now_s - self._hit_s < _NEAR_TURNS * RETURN_LIFETIMES * self._lifetime_s

    def is_fresh(self, now_s: float) -> bool:
        """Whether requests from before the hit may still be in flight, whose fate says nothing new."""
        return now_s - self._hit_s < self._lifetime_s


# -- the controller ----------------------------------------------------------------------------------------------------

BLIND_S: Final = 10.0
TELLING: Final = 0.25  # share of what is in flight that a server's figures must show to be steered by
_MUTE_SAMPLES: Final = 12
_PREEMPTING_SHARE, _REFUSING_SHARE, _OVERRUN_SHARE = 0.9, 0.9, 0.7
_FEW_REFUSALS, _OVERRUN = 0.02, 0.5
_SLOWLY_S, _QUICKLY_S = 0.5, 0.25


class ConcurrencyController:
    """Controls one server between 1 and ``maximum`` completions in flight, from ``initial`` on.

    - With the server's own figures it follows `QueueLaw`.
    - Without them, or if they show almost none of the requests in flight (the time goes to the network or to the
      server's front end), it follows `GradientLaw`.
    - Preemption thrash and refusals (429, 503) set a `Ceiling` over either. Throughput says nothing about refusals, so
      under a recent ceiling the gradient law pauses and the limit follows the ceiling's curve.
    - A server that is taken out keeps half of the limit at which it was last full, and returns with that, growing as
      at the start: it may have been restarted, or replaced by a smaller one.
    - Figures that are missing for a while hold the limit. After `BLIND_S` the gradient law takes over.
    """

    def __init__(self, initial: int, maximum: int) -> None:
        self.limit = max(1, min(initial, maximum))
        self.reason = Reason.STARTING
        self._first = float(self.limit)
        self._maximum = maximum
        self._signals = Signals()
        self._queue = QueueLaw(self._first)
        self._gradient: GradientLaw | None = None
        self._ceiling = Ceiling()
        self._ceiling_reason = Reason.REFUSED
        self._was_healthy = True
        self._figures_s: float | None = None  # when the server last gave figures
        self._mute = 0
        self._last_full: float | None = None

    @property
    def law(self) -> str:
        """``"queue"`` or ``"gradient"``."""
        return "queue" if self._gradient is None else "gradient"

    @property
    def pause_s(self) -> float:
        """Seconds until the next observation. Fewer while the limit moves."""
        return _SLOWLY_S if self.reason in (Reason.FULL, Reason.OWN_WORK, Reason.AT_MAXIMUM) else _QUICKLY_S

    def observe(self, seen: ServerState) -> int:
        """Return the limit after ``seen``, which must not be older than the last observation."""
        was_healthy, self._was_healthy = self._was_healthy, seen.healthy
        if not seen.healthy:
            self.limit = max(1, round((self._last_full or self._first) / 2))
            self.reason = Reason.TAKEN_OUT
        elif not was_healthy:
            self._take_back()
        else:
            self._follow(seen)
        return self.limit

    def _take_back(self) -> None:
        self.reason = Reason.STARTING
        self._gradient, self._mute = None, 0
        self._queue.restart(self.limit)
        self._ceiling, self._signals = Ceiling(), Signals()

    def _follow(self, seen: ServerState) -> None:
        self._signals.observe(seen)
        law = self._choose_law(seen)
        if law is None:
            self.reason = Reason.NO_FIGURES
            return
        if isinstance(law, GradientLaw):
            law.observe(seen)
        elif seen.metrics is not None:
            law.observe(seen, seen.metrics)
        self.reason = law.reason
        if self._is_too_much(seen):
            law.lower(min(law.limit, self._ceiling.at(seen.at_s)))
            self.reason = self._ceiling_reason
        self._bound(seen, law)
        if self.reason is Reason.FULL:
            self._last_full = law.limit

    def _choose_law(self, seen: ServerState) -> QueueLaw | GradientLaw | None:
        if seen.metrics is None:
            if self._figures_s is not None and seen.at_s - self._figures_s < BLIND_S:
                return self._gradient
            return self._by_throughput()
        self._figures_s = seen.at_s
        if self._is_mute(seen, seen.metrics):
            return self._by_throughput()
        if self._gradient is not None:
            self._gradient = None
            self._queue.restart(self.limit)
        return self._queue

    def _is_mute(self, seen: ServerState, server: ServerMetrics) -> bool:
        """Whether the server's metrics have long shown almost none of the requests in flight."""
        shown = server.running + server.waiting
        if server.waiting or shown > 2 * TELLING * seen.sequences:
            self._mute = 0
        elif shown < TELLING * seen.sequences and in_use(seen, self.limit):
            self._mute += 1
        return self._mute >= _MUTE_SAMPLES

    def _by_throughput(self) -> GradientLaw:
        if self._gradient is None:
            self._gradient = GradientLaw(self.limit)
        return self._gradient

    def _is_too_much(self, seen: ServerState) -> bool:
        """Whether the server has just shown that it cannot hold this many. If so, the ceiling is set."""
        signals = self._signals
        if self._ceiling.is_fresh(seen.at_s):
            signals.restart_thrash_window()
            return False
        if seen.metrics is not None and signals.is_thrashing(seen, seen.metrics):
            held = max(1, seen.sequences - seen.metrics.waiting)
            self._ceiling.hit(seen.at_s, held, _PREEMPTING_SHARE, signals.lifetime_s)
            self._ceiling_reason = Reason.PREEMPTIONS
            return True
        share = signals.refused_share(seen)
        if share <= _FEW_REFUSALS:
            return False
        allowed = _REFUSING_SHARE if share < _OVERRUN else _OVERRUN_SHARE
        self._ceiling.hit(seen.at_s, min(seen.sequences, self.limit), allowed, signals.lifetime_s)
        self._ceiling_reason = Reason.REFUSED
        return True

    def _bound(self, seen: ServerState, law: QueueLaw | GradientLaw) -> None:
        ceiling = self._ceiling.at(seen.at_s)
        follows = isinstance(law, GradientLaw) and self._ceiling.is_near(seen.at_s) and in_use(seen, law.limit)
        if follows or law.limit > ceiling:
            law.limit = ceiling
            self.reason = self._ceiling_reason
        if law.limit > self._maximum:
            law.limit = float(self._maximum)
            self.reason = Reason.AT_MAXIMUM
        self.limit = max(1, round(law.limit))


# -- the governor ------------------------------------------------------------------------------------------------------

_PAGE_WITHIN_S: Final = 2.0
_DRAINS_BY: Final = 0.8  # an observation
_MUTE_AFTER: Final = 4  # missing pages of a server that is up and never had one
_ASK_MUTE_EVERY_S: Final = 15.0  # a hosted service has no such page; it is not asked for it four times a second


class MetricsPage(Protocol):
    """Where one server's own figures come from."""

    async def metrics(self) -> ServerMetrics | None:
        """The figures now, or ``None`` if there are none."""


class SteeredBackend(Protocol):
    """A backend whose servers can be given limits, such as `fastgen.servers.router.Router`."""

    @property
    def backends(self) -> Sequence[MetricsPage]:
        """Each server, always in the same order."""

    def statistics(self) -> BackendStatistics:
        """The state of each server."""

    def set_limits(self, limits: Sequence[int]) -> None:
        """Weigh the servers by how much fits each."""


class Governor:
    """Runs one controller for each server of ``servers`` and hands their total to ``set_total``. Use once.

    ``initial`` is where each server's limit begins, ``maximum`` what none exceeds, in completions in flight. The total
    is the sum of the limits of the servers that are up. Two things are added for a second or two, or they would take
    slots from the other servers: what a server has in flight beyond its limit while it drains, and what a server that
    was taken out has not given back.
    """

    def __init__(
        self,
        servers: SteeredBackend,
        set_total: Callable[[int], None],
        *,
        initial: Sequence[int],
        maximum: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.controllers = [ConcurrencyController(first, maximum) for first in initial]
        self._servers = servers
        self._set_total = set_total
        self._clock = clock
        self._pages: list[ServerMetrics | None] = [None] * len(initial)
        self._excess = [0.0] * len(initial)
        self.total = self._apply()

    async def run(self) -> None:
        """Steer until cancelled."""
        await asyncio.gather(*(self._steer(*numbered) for numbered in enumerate(self._servers.backends)))

    def states(self) -> tuple[ServerState, ...]:
        """Every server with its newest figures, its limit and the reason for it."""
        return tuple(
            replace(seen, metrics=page, limit=controller.limit, reason=str(controller.reason))
            for seen, controller, page in zip(
                self._servers.statistics().endpoints, self.controllers, self._pages, strict=True
            )
        )

    async def _steer(self, number: int, server: MetricsPage) -> None:
        controller, had_page, without_page, asked_s = self.controllers[number], False, 0, 0.0
        while True:
            if without_page < _MUTE_AFTER or self._clock() - asked_s >= _ASK_MUTE_EVERY_S:
                asked_s = self._clock()
                self._pages[number] = page = await _within(server.metrics(), _PAGE_WITHIN_S)
                had_page, without_page = had_page or page is not None, without_page + 1
            if had_page or not self._servers.statistics().endpoints[number].healthy:
                without_page = 0
            self.observe(number)
            await asyncio.sleep(controller.pause_s)

    def observe(self, number: int) -> None:
        """Show one server to its controller, with its last page, and set the limits anew."""
        state, controller = self._servers.statistics().endpoints[number], self.controllers[number]
        before = controller.limit
        controller.observe(replace(state, at_s=self._clock(), metrics=self._pages[number]))
        over = max(0, state.sequences - controller.limit)
        self._excess[number] = over if controller.limit < before else min(over, _DRAINS_BY * self._excess[number])
        self.total = self._apply()

    def _apply(self) -> int:
        self._servers.set_limits([controller.limit for controller in self.controllers])
        total = sum(self._share(*numbered) for numbered in enumerate(self._servers.statistics().endpoints))
        self._set_total(total := max(1, total))
        return total

    def _share(self, number: int, seen: ServerState) -> int:
        """A server's part of the total. Its excess counts only if another server takes the slots that become free."""
        if not seen.healthy:
            return seen.sequences
        return self.controllers[number].limit + (int(self._excess[number]) if len(self.controllers) > 1 else 0)


async def _within(page: Awaitable[ServerMetrics | None], seconds: float) -> ServerMetrics | None:
    try:
        async with asyncio.timeout(seconds):
            return await page
    except TimeoutError:
        return None
