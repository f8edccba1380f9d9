"""What goes wrong on a test server, and when: by a script, or by chance with a seed. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


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
"""What `FaultPlan` draws from by default: everything that does not wait for a timeout and does not blame the
request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A scripted answer, given as it stands."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


Event = Fault | Reply | None
"""What happens to one request; ``None`` is a good answer."""


class FaultPlan:
    """Decides by the order in which requests arrive: first the script, one event a request, then chance.

    With ``rate`` (0..1) a share of the later requests gets a fault drawn from ``kinds``; the draws depend on ``seed``
    and on the number of the arrival only.
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
