"""How the test server fails: kinds of faults, when they happen (by script or by chance), and how they look on the wire.

Also the changes of a simulated server at given times, written as ``20:slow=3``.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastgen.errors import InputError
from fastgen.simulator.api import choice, error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fastgen.simulator.protocol import Exchange


class Fault(StrEnum):
    """Everything that can be injected into one request for completions."""

    RESET = "reset"  # the connection is reset without an answer
    DISCONNECT = "disconnect"  # the connection is closed without an answer
    RESET_MID_BODY = "reset-mid-body"
    TRUNCATED_BODY = "truncated-body"  # the connection is closed in the middle of the body
    HANG = "hang"  # no answer, ever
    SLOW = "slow"  # the answer takes `slow_s` longer
    RATE_LIMIT = "429"
    RATE_LIMIT_RETRY_AFTER = "429-retry-after"
    OVERLOADED = "503"
    OVERLOADED_RETRY_AFTER = "503-retry-after"
    SERVER_ERROR = "500"
    BAD_GATEWAY = "502"  # a proxy's HTML page
    INVALID_JSON = "invalid-json"
    EMPTY_CHOICES = "empty-choices"
    MISSING_CHOICE = "missing-choice"
    EXTRA_CHOICE = "extra-choice"
    DUPLICATE_INDEX = "duplicate-index"
    WRONG_TYPES = "wrong-types"
    NULL_TEXT = "null-text"
    NULL_FINISH_REASON = "null-finish-reason"
    NO_USAGE = "no-usage"
    ABORTED = "aborted"  # finish_reason "abort", as vLLM gives while it stops
    HUGE = "huge"  # a completion of 2 MB
    PROMPT_TOO_LONG = "prompt-too-long"


USUAL_FAULTS: tuple[Fault, ...] = tuple(
    fault for fault in Fault if fault not in (Fault.HANG, Fault.SLOW, Fault.PROMPT_TOO_LONG)
)
"""What `FaultPlan` draws from by default: every fault that neither waits for a timeout nor blames the request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A scripted answer, sent unchanged."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


Event = Fault | Reply | None
"""What happens to one request; ``None`` is a good answer."""


class FaultPlan:
    """Decides in the order in which requests arrive: first the script, one event a request, then chance.

    ``rate`` (0..1) is the share of the later requests that get a fault, drawn from ``kinds``. The draws depend only on
    ``seed`` and on the number of the arrival.
    """

    def __init__(
        self, script: Iterable[Event] = (), *, rate: float = 0.0, kinds: Sequence[Fault] = USUAL_FAULTS, seed: int = 0
    ) -> None:
        self.rate = rate
        self.kinds = tuple(kinds)
        self._script = list(reversed(list(script)))
        self._random = random.Random(seed)

    def add(self, *events: Event) -> None:
        """Append to the script."""
        self._script[:0] = reversed(events)

    def next(self) -> Event:
        """Return what happens to the request that arrives now."""
        if self._script:
            return self._script.pop()
        if self.rate and self.kinds and self._random.random() < self.rate:
            return self._random.choice(self.kinds)
        return None


HUGE_BYTES: Final = 2_000_000
RETRY_AFTER_S: Final = 1

_TOO_MANY: Final = error_body(429, "Too many requests.", "RateLimitError")
_QUEUE_FULL: Final = error_body(503, "The request queue is full.", "ServiceUnavailableError")
_WAIT: Final = {"Retry-After": str(RETRY_AFTER_S)}
_REFUSALS: Final[dict[Fault, tuple[int, bytes, dict[str, str]]]] = {
    Fault.RATE_LIMIT: (429, _TOO_MANY, {}),
    Fault.RATE_LIMIT_RETRY_AFTER: (429, _TOO_MANY, _WAIT),
    Fault.OVERLOADED: (503, _QUEUE_FULL, {}),
    Fault.OVERLOADED_RETRY_AFTER: (503, _QUEUE_FULL, _WAIT),
    Fault.SERVER_ERROR: (500, error_body(500, "EngineCore encountered an issue.", "InternalServerError"), {}),
    Fault.BAD_GATEWAY: (502, b"<html><head><title>502 Bad Gateway</title></head></html>", {}),
}


def inject_instead(exchange: Exchange, event: Event) -> bool:
    """Answer with a fault that replaces the work. Return false where the event is not of that kind."""
    if isinstance(event, Reply):
        exchange.respond(event.status, event.body, content_type=event.content_type, headers=event.headers)
    elif event is Fault.RESET:
        exchange.reset()
    elif event is Fault.DISCONNECT:
        exchange.disconnect()
    elif event in _REFUSALS:
        status, body, headers = _REFUSALS[event]
        exchange.respond(status, body, headers=headers)
    else:
        return False
    return True


def inject_into(exchange: Exchange, answer: dict[str, Any], fault: Fault, *, chat: bool) -> None:
    """Send a good answer that a fault has changed, or broken off."""
    if fault in _SPOILERS:
        _SPOILERS[fault](answer, chat)
    body = orjson.dumps(answer)
    if fault in (Fault.RESET_MID_BODY, Fault.TRUNCATED_BODY):
        exchange.break_off(body[: len(body) // 2], len(body), reset=fault is Fault.RESET_MID_BODY)
    elif fault is Fault.INVALID_JSON:
        exchange.respond_json(body[:-1] + b",,")
    else:
        exchange.respond_json(body)


def _set_text(answer: dict[str, Any], chat: bool, text: object) -> None:
    for one in answer["choices"]:
        if chat:
            one["message"]["content"] = text
        else:
            one["text"] = text


def _null_text(answer: dict[str, Any], chat: bool) -> None:
    """Remove the text. In a chat also the finish reason, because a null content with a finish reason is legal."""
    _set_text(answer, chat, None)
    if chat:
        _set_finish_reason(answer, None)


def _set_finish_reason(answer: dict[str, Any], reason: str | None) -> None:
    for one in answer["choices"]:
        one["finish_reason"] = reason


def _add_choice(answer: dict[str, Any], chat: bool) -> None:
    answer["choices"].append(choice(len(answer["choices"]), "", "stop", chat=chat))


def _spoil_index(answer: dict[str, Any], _chat: bool) -> None:
    answer["choices"][-1]["index"] = 0 if len(answer["choices"]) > 1 else 1


_SPOILERS: Final[dict[Fault, Callable[[dict[str, Any], bool], object]]] = {
    Fault.EMPTY_CHOICES: lambda answer, _: answer["choices"].clear(),
    Fault.MISSING_CHOICE: lambda answer, _: answer["choices"].pop(),
    Fault.EXTRA_CHOICE: _add_choice,
    Fault.DUPLICATE_INDEX: _spoil_index,
    Fault.WRONG_TYPES: lambda answer, chat: _set_text(answer, chat, ["text"]),
    Fault.NULL_TEXT: _null_text,
    Fault.NULL_FINISH_REASON: lambda answer, _: _set_finish_reason(answer, None),
    Fault.NO_USAGE: lambda answer, _: answer.pop("usage"),
    Fault.ABORTED: lambda answer, _: _set_finish_reason(answer, "abort"),
    Fault.HUGE: lambda answer, chat: _set_text(answer, chat, "x" * HUGE_BYTES),
}


@dataclass(frozen=True, slots=True)
class Change:
    """What changes at a simulated server. ``None`` keeps a setting.

    ``stop_s``: the process dies, refuses connections for that many simulated seconds, and returns with an empty memory.
    ``slow``: every step takes that many times as long as the model says. ``fault_rate``: that share (0..1) of the
    requests gets one of ``faults``.
    """

    slow: float | None = None
    stop_s: float | None = None
    max_num_seqs: int | None = None
    kv_blocks: int | None = None
    fault_rate: float | None = None
    faults: tuple[Fault, ...] = USUAL_FAULTS


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError("use a number above 0")
    return value


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("use at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("use a share from 0 to 1")
    return value


def _faults(text: str) -> tuple[Fault, ...]:
    try:
        return tuple(Fault(name) for name in text.split("+"))
    except ValueError:
        raise ValueError(f"known are {', '.join(Fault)}, several joined by '+'") from None


_KEYS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "slow": ("slow", _above_zero),
    "stop": ("stop_s", _above_zero),
    "max-num-seqs": ("max_num_seqs", _at_least_one),
    "kv-blocks": ("kv_blocks", _at_least_one),
    "fault-rate": ("fault_rate", _share),
    "faults": ("faults", _faults),
}


def read_change(text: str) -> Change:
    """Read a change such as ``slow=3,max-num-seqs=128``.

    :raises InputError: when a key is unknown, or a value does not fit its key.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in _KEYS:
            raise InputError(f"change {part!r}: unknown; use KEY=VALUE with one of {', '.join(_KEYS)}")
        name, read = _KEYS[key.strip()]
        try:
            values[name] = read(value.strip())
        except ValueError as error:
            raise InputError(f"change {part!r}: {error}") from None
    return Change(**values)


def read_timed(text: str) -> tuple[float, Change]:
    """Read ``20:slow=3`` as (simulated seconds after the first request, change).

    :raises InputError: when the time is missing, a key is unknown, or a value does not fit its key.
    """
    when, _, what = text.partition(":")
    try:
        at_s = float(when)
    except ValueError:
        at_s = math.nan
    if not 0 <= at_s < math.inf:
        raise InputError(f"--at {text!r}: use SECONDS:KEY=VALUE, such as 20:slow=3")
    try:
        return at_s, read_change(what)
    except InputError as error:
        raise InputError(f"--at {text!r}: {error}") from None
