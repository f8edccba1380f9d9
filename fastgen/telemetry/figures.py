"""The figures of a run: what is measured, the rates that people see, and what limits it. Values and pure functions.

docs/metrics.md explains each figure. Shares are 0..1 of the window's time, so that shares of one thread add up. Means
are over the window. Counts are since the start of the run, over all its sessions, unless something else is said.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from math import isfinite
from statistics import fmean, pvariance
from typing import Any, Final, NamedTuple, Self

import orjson

from fastgen.telemetry.instruments import Instruments

WINDOW_S: Final = 60.0
ENOUGH: Final = 30
_MOST_SEEN: Final = 600
_PIECES: Final = 8  # of the window, to see whether instructions come in bursts
_TWO_SIDED: Final = 1.96  # standard deviations for 95 %


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates at one moment, and the time that is left.

    ``eta_s`` is ``None`` while nothing can be said, ``eta_high_s`` also where there is no upper bound yet.
    """

    over_s: float = 0.0
    """Length of the window of complete instructions; 0: nothing was measured."""
    complete_per_min: float = 0.0
    generated_tokens_per_s: float = 0.0
    kept_per_server_s: float = 0.0
    """Kept instructions by the seconds of the servers in use, together."""
    eta_s: float | None = None
    eta_low_s: float | None = None
    eta_high_s: float | None = None


class Counts(NamedTuple):
    """Counts that only grow, at one moment of a steady clock. ``server_s`` are seconds of servers in use, together."""

    at_s: float
    server_s: float
    complete: int
    kept: int
    tokens: int


class RateMeter:
    """Gives the rates that people see. Show it the counts about once a second.

    A rate is of what was committed. It is over the last `WINDOW_S`, or over as much longer as it takes to have `ENOUGH`
    events, and it begins with the first event of its kind in this session at the earliest: the time until the first
    answers come says nothing about how fast they come then. If all came at once, it is over the last `WINDOW_S` of the
    session.

    The time that is left is what is missing by the rate of complete instructions. Its range holds for 95 of 100 runs in
    which instructions come independently of each other or in bursts like those of the window.
    """

    def __init__(self, begin: Counts) -> None:
        self._seen = [begin]  # the first stays; of the others those that a window reaches

    def restart(self, begin: Counts) -> None:
        """Forget the past: the process was stopped in between."""
        self._seen = [begin]

    def update(self, now: Counts, missing: int) -> Rates:
        """The rates now. ``missing`` instructions are still to be completed."""
        seen = self._seen
        seen.append(now)
        begins = [
            self._window([one.complete for one in seen]),
            self._window([one.kept for one in seen]),
            self._window([one.tokens for one in seen]),
        ]
        complete, kept, tokens = (seen[begin] for begin in begins)
        eta_s, low_s, high_s = self._eta(complete, missing)
        if min(begins) > 1:
            del seen[1 : min(begins)]
        elif len(seen) > _MOST_SEEN:
            del seen[1 : self._index_at(now.at_s - WINDOW_S) : 2]
        return Rates(
            over_s=now.at_s - complete.at_s,
            complete_per_min=60 * _per_s(now.complete - complete.complete, now.at_s - complete.at_s),
            generated_tokens_per_s=_per_s(now.tokens - tokens.tokens, now.at_s - tokens.at_s),
            kept_per_server_s=_per_s(now.kept - kept.kept, now.server_s - kept.server_s),
            eta_s=eta_s,
            eta_low_s=low_s,
            eta_high_s=high_s,
        )

    def _window(self, counts: Sequence[int]) -> int:
        """The index at which the window of a count begins, 0 for the session's begin."""
        long_ago = max(0, self._index_at(self._seen[-1].at_s - WINDOW_S))
        first = bisect_right(counts, counts[0])
        if first == len(counts) or counts[first] == counts[-1]:  # none yet, or all of them at once
            return long_ago
        return max(first, min(long_ago, bisect_right(counts, counts[-1] - ENOUGH) - 1))

    def _index_at(self, at_s: float) -> int:
        """The index of the last counts up to that time, -1 if there are none."""
        return bisect_right(self._seen, at_s, key=lambda one: one.at_s) - 1

    def _eta(self, since: Counts, missing: int) -> tuple[float | None, float | None, float | None]:
        """Seconds until nothing is missing, and their range."""
        now = self._seen[-1]
        count, seconds = now.complete - since.complete, now.at_s - since.at_s
        if missing <= 0:
            return 0.0, 0.0, 0.0
        if count <= 0 or since.complete == self._seen[0].complete:  # nothing since the first one
            return None, None, None
        either_way = _TWO_SIDED * (self._burstiness(since) / count) ** 0.5
        eta_s = missing * seconds / count
        return eta_s, eta_s / (1 + either_way), eta_s / (1 - either_way) if either_way < 1 else None

    def _burstiness(self, since: Counts) -> float:
        """Variance by mean of the counts in equal parts of the window. 1, as of independent events, is the least."""
        now = self._seen[-1]
        ends = [since.at_s + (now.at_s - since.at_s) * part / _PIECES for part in range(1, _PIECES + 1)]
        counts = [since.complete, *(self._seen[self._index_at(end)].complete for end in ends)]
        parts = [later - earlier for earlier, later in pairwise(counts)]
        return max(1.0, pvariance(parts) / fmean(parts)) if any(parts) else 1.0


def _per_s(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


_HIGHEST: Final = 1e15
"""The highest figure of a run; doubles and 64-bit integers hold it."""
_LAST_TIME_S: Final = 253_402_300_799.0  # the end of the year 9999


class Limit(StrEnum):
    """What limits a run."""

    SERVER = "server"
    CLIENT_CPU = "client CPU"
    FILTER = "filter"
    DISK = "disk"
    YIELD = "yield"
    USER = "user limit"
    RAMP_UP = "ramp-up"
    DRAIN = "drain"
    NO_SERVER = "no server"


@dataclass(frozen=True, slots=True)
class StageSample:
    """Requests of one stage that were answered in the window. Times from sending to the last byte, one attempt."""

    requests: int = 0
    mean_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerSample:
    """One server at the end of the window; ``url`` without credentials; ``None``: it does not say.

    ``in_flight`` counts completions, ``completed`` and ``failed`` requests of this session. A steered server has its
    ``limit`` of completions in flight and the ``reason`` for it. Of one that is not steered ``waiting`` is the least of
    the last five polls, one a second, since what has just arrived waits for the server's next step.
    """

    url: str
    healthy: bool = True
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    preemptions: int | None = None
    limit: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of a run over the ``window_s`` seconds that end at ``time_s`` (Unix time).

    A sample with a ``window_s`` of 0 is of a moment: it has the counts and gauges of that moment and the ``counters``,
    from which `fastgen.telemetry.monitor.between` makes the rates, shares and means of a window.
    """

    time_s: float = 0.0
    window_s: float = 0.0
    session_s: float = 0.0
    """Since this session's servers answered; it falls where a run was resumed."""

    method: str = ""
    """The method's name, empty for Self-Instruct."""
    target: int = 0
    complete: int = 0
    kept: int = 0
    pending: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Instructions by the rule that rejected them."""

    completions_per_s: float = 0.0
    generated_tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    kept_per_s: float = 0.0
    complete_per_s: float = 0.0
    acceptance: float | None = None
    """Kept share of the instructions written in the window; ``None``: none was."""
    kept_per_server_s: float = 0.0
    """Kept in the window by the seconds that servers in use spent on it, together."""

    kept_per_1000_tokens: float = 0.0
    """Over the yield window (``--yield-window`` instruction completions), all stages' generated tokens."""
    complete_per_1000_tokens: float = 0.0
    novelty: float = 0.0
    """Kept instructions per 1,000 tokens of the instruction stage alone, over the yield window."""
    best_novelty: float = 0.0
    yield_window_full: bool = False
    trouble: str = ""
    """The step most of whose last answers bring nothing, with figures; empty while there is none."""

    in_flight: float = 0.0
    concurrency: float = 0.0
    concurrency_set_by: str = ""
    """The flag that set it; empty where it is steered."""
    rate_limit: str = ""
    rate_limited_share: float = 0.0
    waiting_retries: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    """Of this session, by kind."""
    faults_in_window: int = 0
    refusals_in_window: int = 0
    """Those of them that asked for patience (429)."""
    asked_for_nothing: bool = False
    """The plan had nothing to ask when it was last asked."""
    stopping: bool = False

    queued_answers: float = 0.0
    queued_answers_max: int = 0
    loop_lag_mean_ms: float = 0.0
    loop_lag_max_ms: float = 0.0
    cores: int = 1
    process_cores: float = 0.0
    """CPU seconds of the whole process a second."""
    loop_cpu_share: float = 0.0
    judge_cpu_share: float = 0.0
    rss_mb: float = 0.0

    commits_share: float = 0.0
    """A batch of answers was in work: judge, append, apply, checkpoints, and waiting for a thread."""
    judge_share: float = 0.0
    append_share: float = 0.0
    apply_share: float = 0.0
    sync_share: float = 0.0
    batch_answers: float = 0.0

    recent: Rates = field(default_factory=Rates)
    """The rates that people see, over the last minute or so."""

    stages: Mapping[str, StageSample] = field(default_factory=dict)
    servers: tuple[ServerSample, ...] = ()

    limit: Limit = Limit.RAMP_UP
    limit_reason: str = ""

    counters: Instruments | None = field(default=None, repr=False, compare=False)
    """Those of this session, in a sample of a moment; never written."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, floats to six digits. `from_dict` is the inverse."""
        values: dict[str, Any] = _bounded(asdict(self))
        del values["counters"]
        if not self.method:
            del values["method"]
        return values

    def as_line(self) -> bytes:
        """A line of JSON."""
        return orjson.dumps(self.as_dict(), option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The sample of a line. A missing field has its default, an unknown one is ignored.

        :raises KeyError, TypeError, ValueError, AttributeError: it is not what `as_dict` gave, or no figures of a run.
        """
        known: dict[str, Any] = _known(cls, values)
        known.pop("counters", None)
        if "limit" in known:
            known["limit"] = Limit(known["limit"])
        known["recent"] = Rates(**_known(Rates, values.get("recent") or {}))
        if not 0 <= known.get("time_s", 0.0) <= _LAST_TIME_S:
            raise ValueError("time_s is no time")
        known["stages"] = {n: StageSample(**_known(StageSample, s)) for n, s in values.get("stages", {}).items()}
        known["servers"] = tuple(ServerSample(**_known(ServerSample, one)) for one in values.get("servers", ()))
        return cls(**known)


_Kind = type[Sample | StageSample | ServerSample | Rates]


def _known(cls: _Kind, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``cls`` that ``values`` has. :raises TypeError, ValueError: one is no such figure."""
    known = {one.name: (one.type, values[one.name]) for one in fields(cls) if one.name in values}
    return {name: _checked(str(kind), value) for name, (kind, value) in known.items()}


def _checked(kind: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if kind.startswith("Mapping[str, int]"):
        return {name: _checked("int", one) for name, one in value.items()}
    types = _TYPES.get(kind)
    if types is not None and (type(value) not in types):
        raise TypeError(f"{value!r:.40} is not of {kind}")
    if isinstance(value, int | float) and not abs(value) <= _HIGHEST:
        raise ValueError(f"{value!r:.40} is no figure of a run")
    return value


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "str": (str,),
}


def _bounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return round(max(-_HIGHEST, min(value, _HIGHEST)), 6) if isfinite(value) else 0.0
    if isinstance(value, int):
        return max(-int(_HIGHEST), min(value, int(_HIGHEST)))
    if isinstance(value, dict):
        return {name: _bounded(one) for name, one in value.items()}
    return [_bounded(one) for one in value] if isinstance(value, list | tuple) else value


RAMP_UP_S = 5.0
BUSY_SHARE = 0.5
DISK_SHARE = 0.5
BACKLOG = 32.0  # answers in the queue, on average
COMMITTING_SHARE = 0.85  # of the time, before a queue counts as backed up
OWN_CORE = 0.6  # CPU time by wall time while judging: below, the thread waits for the interpreter lock or for a core
LOOP_FULL = 0.9
CORES_FULL = 0.95
LATE_MS = 25.0
RATE_LIMITED_SHARE = 0.25
REFUSED_SHARE = 0.05
IN_USE = 0.9  # of the limit in flight
DECAYED = 0.5
FULL_CACHE = 0.9
_MAXIMUM: Final = "--max-concurrency"  # as in `fastgen.engine.concurrency.Reason.AT_MAXIMUM`


def limit_of(seen: Sample) -> tuple[Limit, str]:
    """What limits a run in the window of ``seen``, and the reason in one line, with the numbers that show it.

    The first of these that holds is the answer, so each assumes that those above it do not hold:

    ============ =======================================================================================================
    drain        the run was stopped, by its user or by ``--stop-when-yield-below``, and finishes the requests in flight
    no server    no server is up, or no request was answered while many wait for another attempt
    ramp-up      nothing has been answered in this session yet, or it is younger than `RAMP_UP_S`, or no answer of the
                 run has been judged yet
    disk         batches are in work more than `BUSY_SHARE` of the time, and at least `DISK_SHARE` of that is writing
                 commits
    filter       `BACKLOG` answers wait to be judged, batches are always in work, and the judging thread has a core for
                 itself
    client CPU   the same, but the judging thread shares its core; or the loop's thread fills its core; or the process
                 fills all cores; or the loop is late by `LATE_MS` on average
    user limit   a rate limit held requests back for `RATE_LIMITED_SHARE` of the time
    server       of the requests, `REFUSED_SHARE` were refused with 429, or slots are free because too many faults wait
    ramp-up      slots are free because the pool is smaller than the limit in flight, or because answers have to come
                 before more can be asked
    yield        slots are free because the plan has nothing to ask: the target is nearly reached
    yield        most of a step's last answers are unusable
    yield        novelty is below `DECAYED` of its best, so more speed brings ever fewer new instructions
    user limit   a fixed concurrency is used up and the servers have room (an empty queue, KV cache below `FULL_CACHE`),
                 or the concurrency control would exceed ``--max-concurrency``
    ramp-up      the limit in flight is still growing: the servers have room
    server       no other limit applies: the servers are full
    ============ =======================================================================================================
    """
    return next(_findings(seen))


def _findings(seen: Sample) -> Iterator[tuple[Limit, str]]:
    """What limits the run, the decisive finding first."""
    yield from _not_at_work(seen)
    yield from _client(seen)
    yield from _refusing_servers(seen)
    yield from _too_little_to_ask(seen)
    yield from _concurrency(seen)
    yield Limit.SERVER, _server_figures(seen)


def _not_at_work(seen: Sample) -> Iterator[tuple[Limit, str]]:
    if seen.stopping:
        yield Limit.DRAIN, f"stopping: {seen.in_flight:.0f} still in flight, {seen.queued_answers:.0f} to commit"
    if seen.servers and not any(server.healthy for server in seen.servers):
        yield Limit.NO_SERVER, f"none of {len(seen.servers)} answers; {seen.waiting_retries} requests wait"
    if not seen.completions_per_s and seen.faults_in_window and seen.waiting_retries > seen.in_flight:
        kinds = ", ".join(sorted(seen.faults))
        yield Limit.NO_SERVER, f"no good answer, {seen.faults_in_window} faults ({kinds}) in {seen.window_s:.0f} s"
    if not any(server.completed for server in seen.servers):
        yield Limit.RAMP_UP, f"{seen.in_flight:.0f} in flight, nothing answered yet"
    if seen.session_s < RAMP_UP_S:
        yield Limit.RAMP_UP, f"began {seen.session_s:.0f} s ago"
    if not seen.completions:  # of a resumed run the filter was ready before it began
        yield Limit.RAMP_UP, "the first answers wait until the similarity filter is ready"


def _client(seen: Sample) -> Iterator[tuple[Limit, str]]:
    if seen.commits_share >= BUSY_SHARE and seen.append_share >= DISK_SHARE * seen.commits_share:
        writing = seen.append_share + seen.sync_share
        yield Limit.DISK, f"writing commits takes {seen.append_share:.0%} of the time, with syncing {writing:.0%}"
    cpu = f"the event loop fills {seen.loop_cpu_share:.0%} of a core, fastgen {seen.process_cores:.1f} of {seen.cores}"
    if seen.queued_answers >= BACKLOG and seen.commits_share >= COMMITTING_SHARE:
        waiting = f"{seen.queued_answers:.0f} answers wait to be judged"
        own_core = seen.judge_cpu_share >= OWN_CORE * seen.judge_share
        if own_core and seen.judge_share >= BUSY_SHARE:
            yield Limit.FILTER, f"{waiting}, judging takes {seen.judge_share:.0%} of the time"
        yield Limit.CLIENT_CPU, f"{waiting}, the judging thread gets {seen.judge_cpu_share:.2f} of a core; {cpu}"
    if seen.loop_cpu_share >= LOOP_FULL or seen.process_cores >= CORES_FULL * seen.cores:
        yield Limit.CLIENT_CPU, cpu
    if seen.loop_lag_mean_ms >= LATE_MS:
        yield Limit.CLIENT_CPU, f"the event loop is late by {seen.loop_lag_mean_ms:.0f} ms on average; {cpu}"
    if seen.rate_limited_share >= RATE_LIMITED_SHARE:
        flag = seen.rate_limit or "a rate limit"
        yield Limit.USER, f"{flag} holds requests back for {seen.rate_limited_share:.0%} of the time"


def _refusing_servers(seen: Sample) -> Iterator[tuple[Limit, str]]:
    asked = seen.completions_per_s * seen.window_s + seen.faults_in_window
    if seen.refusals_in_window > REFUSED_SHARE * asked:
        yield Limit.SERVER, f"{seen.refusals_in_window} requests refused (429) in {seen.window_s:.0f} s"
    if not _in_use(seen) and seen.waiting_retries > (1 - IN_USE) * seen.concurrency:
        yield Limit.SERVER, f"{seen.waiting_retries} requests wait for another attempt after faults"


def _too_little_to_ask(seen: Sample) -> Iterator[tuple[Limit, str]]:
    if seen.asked_for_nothing and not _in_use(seen):
        if seen.kept < min(seen.concurrency, seen.target):
            how_many = "which limits how many instruction requests are sent at once"
            yield Limit.RAMP_UP, f"the pool has {seen.kept} instructions, {how_many}"
        missing = seen.target - seen.complete
        slots = f"{seen.in_flight:.0f} of {seen.concurrency:.0f} slots in use"
        if missing > seen.pending + seen.in_flight:
            yield Limit.RAMP_UP, f"no more can be asked until more answers come: {seen.pending} on the way, {slots}"
        yield Limit.YIELD, f"the target is nearly reached: {missing} to go, {seen.pending} on the way, {slots}"
    if seen.trouble:
        yield Limit.YIELD, seen.trouble
    if seen.yield_window_full and seen.novelty < DECAYED * seen.best_novelty:
        now, best = f"{seen.novelty:.2f}", f"{seen.best_novelty:.2f}"
        yield Limit.YIELD, f"novelty decays: {now} kept per 1,000 instruction tokens, it was {best}"


def _concurrency(seen: Sample) -> Iterator[tuple[Limit, str]]:
    if _in_use(seen) and any(_MAXIMUM in server.reason for server in seen.servers):
        yield Limit.USER, f"{_MAXIMUM}: {seen.in_flight:.0f} are in flight, and the servers have room for more"
    cache = max((server.kv_cache_usage or 0.0 for server in seen.servers), default=0.0)
    if cache >= FULL_CACHE or any(server.waiting for server in seen.servers):
        return
    if seen.concurrency_set_by and _in_use(seen):
        known = any(server.waiting is not None for server in seen.servers)
        servers = "the servers have room" if known else "the servers give no figures; try more"
        yield Limit.USER, f"{seen.concurrency_set_by}: all are in flight, {servers}"
    growing = [one for one in seen.servers if one.reason.startswith(("filling", "starting"))]
    if growing and not seen.concurrency_set_by:
        yield Limit.RAMP_UP, f"{seen.in_flight:.0f} in flight and growing, {len(growing)} servers have room"


def _in_use(seen: Sample) -> bool:
    return seen.in_flight >= IN_USE * seen.concurrency


def _of_the_limit(seen: Sample) -> str:
    """Completions in flight. They may exceed the limit after it has fallen."""
    if round(seen.in_flight) > round(seen.concurrency):
        return f"{seen.in_flight:.0f} in flight, the limit fell to {seen.concurrency:.0f}"
    return f"{seen.in_flight:.0f} of {seen.concurrency:.0f} in flight"


def _server_figures(seen: Sample) -> str:
    known = [server for server in seen.servers if server.running is not None]
    sent = _of_the_limit(seen)
    if not known:
        return f"{sent}; the servers give no figures"
    running, waiting = sum(one.running or 0 for one in known), sum(one.waiting or 0 for one in known)
    cache = max(one.kv_cache_usage or 0.0 for one in known)
    return f"{sent}, {running} running, {waiting} waiting there, KV cache {cache:.0%}"
