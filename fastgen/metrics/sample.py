"""The figures of one look at a run: plain values, to and from JSON; docs/metrics.md explains each.

Shares are 0..1 of the window's time, so that shares of one thread add up; means are over the window. Counts without
another word are since the start of the run, over all its sessions. A field that an older fastgen did not write has
its default, one that a newer one wrote is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from math import isfinite
from typing import Any, Final, Self

from fastgen.metrics.rates import Rates

_HIGHEST: Final = 1e15
"""No figure of a run is above it, and doubles and 64-bit integers hold it."""
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
    """Requests of one stage that were answered in the window; times from sending to the last byte, one attempt."""

    requests: int = 0
    mean_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerSample:
    """One server at the end of the window; ``url`` without credentials; ``None``: it does not say.

    ``in_flight`` counts completions; ``completed`` and ``failed`` requests of this session; ``limit`` is how many
    completions it is meant to have in flight, and ``reason`` why, where it is steered; where it is not, ``waiting`` is
    the least of the last five looks, one a second, since what has just arrived waits for the server's next step.
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
    """One look at a run over the ``window_s`` seconds that end at ``time_s`` (Unix time)."""

    time_s: float = 0.0
    window_s: float = 0.0
    session_s: float = 0.0
    """Since this session's servers answered; it falls where a run was resumed."""

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
    """The committer had a batch in hand; made of judge, append, apply, and waiting for a thread."""
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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, floats to six digits; `from_dict` is the inverse."""
        values: dict[str, Any] = _bounded(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """:raises KeyError, TypeError, ValueError, AttributeError: not what `as_dict` gave, or no figures of a run."""
        known: dict[str, Any] = _known(cls, values)
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
