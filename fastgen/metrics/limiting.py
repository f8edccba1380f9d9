"""What limits a run now: one name and one line with the numbers that say so. A pure function of a `Sample`.

The first of these that holds is the answer, so each assumes that those above it do not hold:

============ ==========================================================================================================
drain        the run was told to stop, by its user or by ``--stop-when-yield-below``, and finishes what is on its way
no server    no server is up, or no request was answered while many wait for another attempt
ramp-up      nothing has been answered in this session yet, or it is younger than `RAMP_UP_S`
disk         writing and syncing commits takes at least `DISK_SHARE` of the time in which the committer is busy, and it
             is busy more than `BUSY_SHARE` of the time
filter       answers queue up before the committer (`BACKLOG` of them, while it is busy), and its thread judges with a
             core of its own
client CPU   the same, without a core of its own; or the loop's thread fills its core; or the process fills all cores;
             or the loop is late by `LATE_MS` on average
user limit   a rate limit held requests back for `RATE_LIMITED_SHARE` of the time
server       of the requests, `REFUSED_SHARE` were refused with 429, or slots are free because so many faults wait
ramp-up      slots are free because the pool is smaller than the limit in flight
yield        slots are free because the plan has nothing to ask: the target is nearly reached
yield        most of a step's last answers bring nothing
yield        novelty is below `DECAYED` of its best: more speed brings less and less
user limit   a fixed concurrency is used up and the servers have room (nobody waits there, KV cache below `FULL_CACHE`),
             or the steering would go beyond ``--max-concurrency``
ramp-up      the limit in flight is still growing: the servers have room
server       the rest: what is in flight is what the servers take
============ ==========================================================================================================

Knows nothing of how the figures were got.
"""

from __future__ import annotations

from collections.abc import Callable

from fastgen.metrics.sample import Limit, Sample, ServerSample

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
_MAXIMUM = "--max-concurrency"  # as the steering's reason names it

Verdict = tuple[Limit, str]


def limit_of(seen: Sample) -> Verdict:
    """What limits the run that ``seen`` is a look at, and why, in one line."""
    for rule in _RULES:
        if (verdict := rule(seen)) is not None:
            return verdict
    return Limit.SERVER, _server_figures(seen)


def _drain(seen: Sample) -> Verdict | None:
    if seen.stopping:
        return Limit.DRAIN, f"stopping: {seen.in_flight:.0f} still in flight, {seen.queued_answers:.0f} to commit"
    return None


def _no_server(seen: Sample) -> Verdict | None:
    if seen.servers and not any(server.healthy for server in seen.servers):
        return Limit.NO_SERVER, f"none of {len(seen.servers)} answers; {seen.waiting_retries} requests wait"
    if not seen.completions_per_s and seen.faults_in_window and seen.waiting_retries > seen.in_flight:
        kinds = ", ".join(sorted(seen.faults))
        return Limit.NO_SERVER, f"no good answer, {seen.faults_in_window} faults ({kinds}) in {seen.window_s:.0f} s"
    return None


def _beginning(seen: Sample) -> Verdict | None:
    if not any(server.completed for server in seen.servers):
        return Limit.RAMP_UP, f"{seen.in_flight:.0f} in flight, nothing answered yet"
    if seen.session_s < RAMP_UP_S:
        return Limit.RAMP_UP, f"{_of_the_limit(seen)} after {seen.session_s:.0f} s"
    return None


def _disk(seen: Sample) -> Verdict | None:
    writing = seen.append_share + seen.sync_share
    if seen.commits_share < BUSY_SHARE or seen.append_share < DISK_SHARE * seen.commits_share:
        return None
    return Limit.DISK, f"writing commits takes {seen.append_share:.0%} of the time, with syncing {writing:.0%}"


def _backlog(seen: Sample) -> Verdict | None:
    if seen.queued_answers < BACKLOG or seen.commits_share < COMMITTING_SHARE:
        return None
    waiting = f"{seen.queued_answers:.0f} answers wait for the committer"
    own_core = seen.judge_cpu_share >= OWN_CORE * seen.judge_share
    if own_core and seen.judge_share >= BUSY_SHARE:
        return Limit.FILTER, f"{waiting}, judging takes {seen.judge_share:.0%} of the time"
    return Limit.CLIENT_CPU, f"{waiting}, which gets {seen.judge_cpu_share:.2f} of a core; {_cpu(seen)}"


def _cpu_full(seen: Sample) -> Verdict | None:
    if seen.loop_cpu_share >= LOOP_FULL or seen.process_cores >= CORES_FULL * seen.cores:
        return Limit.CLIENT_CPU, _cpu(seen)
    if seen.loop_lag_mean_ms >= LATE_MS:
        return Limit.CLIENT_CPU, f"the event loop is late by {seen.loop_lag_mean_ms:.0f} ms on average; {_cpu(seen)}"
    return None


def _cpu(seen: Sample) -> str:
    return f"the event loop fills {seen.loop_cpu_share:.0%} of a core, fastgen {seen.process_cores:.1f} of {seen.cores}"


def _rate_limit(seen: Sample) -> Verdict | None:
    if seen.rate_limited_share < RATE_LIMITED_SHARE:
        return None
    flag = seen.rate_limit or "a rate limit"
    return Limit.USER, f"{flag} holds requests back for {seen.rate_limited_share:.0%} of the time"


def _refused(seen: Sample) -> Verdict | None:
    asked = seen.completions_per_s * seen.window_s + seen.faults_in_window
    if seen.refusals_in_window > REFUSED_SHARE * asked:
        return Limit.SERVER, f"{seen.refusals_in_window} requests refused (429) in {seen.window_s:.0f} s"
    if not _in_use(seen) and seen.waiting_retries > (1 - IN_USE) * seen.concurrency:
        return Limit.SERVER, f"{seen.waiting_retries} requests wait for another attempt after faults"
    return None


def _nothing_to_ask(seen: Sample) -> Verdict | None:
    if _in_use(seen) or not seen.asked_for_nothing:
        return None
    if seen.kept < min(seen.concurrency, seen.target):
        return (
            Limit.RAMP_UP,
            f"the pool has {seen.kept} instructions, which limits how many instruction requests are sent at once",
        )
    missing = seen.target - seen.complete
    slots = f"{seen.in_flight:.0f} of {seen.concurrency:.0f} slots in use"
    return Limit.YIELD, f"the target is nearly reached: {missing} to go, {seen.pending} on the way, {slots}"


def _fruitless(seen: Sample) -> Verdict | None:
    return (Limit.YIELD, seen.trouble) if seen.trouble else None


def _decayed(seen: Sample) -> Verdict | None:
    if not seen.yield_window_full or seen.novelty >= DECAYED * seen.best_novelty:
        return None
    now, best = f"{seen.novelty:.2f}", f"{seen.best_novelty:.2f}"
    return Limit.YIELD, f"novelty decays: {now} kept per 1,000 instruction tokens, it was {best}"


def _fixed(seen: Sample) -> Verdict | None:
    if _in_use(seen) and any(_MAXIMUM in server.reason for server in seen.servers):
        return Limit.USER, f"{_MAXIMUM}: {seen.in_flight:.0f} are in flight, and more would bring more"
    if not seen.concurrency_set_by or not _in_use(seen) or not _have_room(seen.servers):
        return None
    told = any(server.waiting is not None for server in seen.servers)
    servers = "the servers have room" if told else "the servers give no figures; try more"
    return Limit.USER, f"{seen.concurrency_set_by}: all are in flight, {servers}"


def _growing(seen: Sample) -> Verdict | None:
    """Filling, by a steering that has not found the end yet: the loop that measures throughput is not meant."""
    growing = [one for one in seen.servers if one.reason.startswith(("filling", "starting"))]
    if not growing or seen.concurrency_set_by or not _have_room(seen.servers):
        return None
    return Limit.RAMP_UP, f"{seen.in_flight:.0f} in flight and growing, {len(growing)} servers have room"


def _have_room(servers: tuple[ServerSample, ...]) -> bool:
    """Whether servers that tell have an empty queue and a cache that is not full; true where none tells."""
    cache = max((server.kv_cache_usage or 0.0 for server in servers), default=0.0)
    return cache < FULL_CACHE and not any(server.waiting for server in servers)


def _in_use(seen: Sample) -> bool:
    return seen.in_flight >= IN_USE * seen.concurrency


def _of_the_limit(seen: Sample) -> str:
    """What is in flight; it may be more than the limit, which has fallen then."""
    if round(seen.in_flight) > round(seen.concurrency):
        return f"{seen.in_flight:.0f} in flight, the limit fell to {seen.concurrency:.0f}"
    return f"{seen.in_flight:.0f} of {seen.concurrency:.0f} in flight"


def _server_figures(seen: Sample) -> str:
    told = [server for server in seen.servers if server.running is not None]
    sent = _of_the_limit(seen)
    if not told:
        return f"{sent}; the servers give no figures"
    running, waiting = sum(one.running or 0 for one in told), sum(one.waiting or 0 for one in told)
    cache = max(one.kv_cache_usage or 0.0 for one in told)
    return f"{sent}, {running} running, {waiting} waiting there, KV cache {cache:.0%}"


_RULES: tuple[Callable[[Sample], Verdict | None], ...] = (
    *(_drain, _no_server, _beginning, _disk, _backlog, _cpu_full, _rate_limit),
    *(_refused, _nothing_to_ask, _fruitless, _decayed, _fixed, _growing),
)
