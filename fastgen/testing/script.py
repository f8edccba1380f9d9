"""What is to happen to a simulated server, and when: lines such as ``20:slow=3`` read into values. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError
from fastgen.testing.faults import USUAL_FAULTS, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Change:
    """What changes at a simulated server; ``None`` leaves a thing as it is.

    ``stop_s``: the process dies, connections are refused for so many simulated seconds, then it is back with nothing in
    its memory. ``slow``: every step takes so many times as long as the model says. ``fault_rate``: such a share (0..1)
    of the requests gets one of ``faults``.
    """

    slow: float | None = None
    stop_s: float | None = None
    max_num_seqs: int | None = None
    kv_blocks: int | None = None
    fault_rate: float | None = None
    faults: tuple[Fault, ...] = USUAL_FAULTS


@dataclass(frozen=True, slots=True)
class Timed:
    """A change at ``at_s`` simulated seconds after the first request."""

    at_s: float
    change: Change


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
    """Return what ``slow=3,max-num-seqs=128`` says.

    :raises InputError: an unknown key, or a value that does not fit it.
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


def read_timed(text: str) -> Timed:
    """Return what ``20:slow=3`` says.

    :raises InputError: no time, an unknown key, or a value that does not fit it.
    """
    when, _, what = text.partition(":")
    try:
        at_s = float(when)
    except ValueError:
        at_s = math.nan
    if not 0 <= at_s < math.inf:
        raise InputError(f"--at {text!r}: use SECONDS:KEY=VALUE, such as 20:slow=3")
    try:
        return Timed(at_s, read_change(what))
    except InputError as error:
        raise InputError(f"--at {text!r}: {error}") from None
