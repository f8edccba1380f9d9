"""What stands between the scheduler and the servers: one small contract, and the figures every backend gives.

Knows nothing of HTTP and imports nothing heavy; `fastgen.backends.openai` and `fastgen.backends.router` hold the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastgen.records import Completion, Request


@dataclass(slots=True)
class EndpointCounters:
    """What one endpoint has seen; changed by its backend only. Times are of ``time.monotonic``."""

    in_flight: int = 0
    sequences: int = 0
    completed: int = 0
    failed: int = 0
    completions: int = 0
    refused: int = 0
    generated_tokens: int = 0
    last_answer_s: float | None = None


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """A snapshot of one endpoint.

    ``url`` carries no credentials. ``completed`` and ``failed`` count requests since the start (cancelled ones are
    neither). ``last_answer_s`` is the ``time.monotonic`` of the last HTTP answer, ``None`` before the first.
    ``sequences`` are the completions that the requests in flight ask for, ``completions`` those that came since the
    start, ``refused`` those that met 429, 503 or their timeout; ``generated_tokens`` is what the server stated for good
    answers.
    """

    url: str
    in_flight: int
    completed: int
    failed: int
    healthy: bool
    last_answer_s: float | None
    sequences: int = 0
    completions: int = 0
    refused: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BackendStatistics:
    """A snapshot of all endpoints.

    ``all_down_since_s`` is on the ``time.monotonic`` clock, ``None`` while an endpoint is up.
    """

    endpoints: tuple[EndpointStatistics, ...]
    all_down_since_s: float | None = None


class Backend(Protocol):
    """Turns requests into completions.

    Any number of calls may run at the same time, in one event loop; they finish in any order. A backend never retries
    by itself: one call is at most one request for completions. Cancelling a call closes its connection, which frees
    the sequence on the server. `close` may be called once, when no call is running; nothing may be called after it.
    """

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        """Return one completion per choice (``request.sequences`` of them), in choice order.

        :raises TransientError: another attempt may succeed.
        :raises PromptTooLong: prompt and completion do not fit the model's context, or several prompts in one request
            were refused; a smaller request may succeed.
        :raises RequestRejected: the server will never accept this request.
        :raises InputError: a person must mend something (key, model, URL, API) before anything can succeed.
        """

    async def close(self) -> None:
        """Close every connection."""

    def statistics(self) -> BackendStatistics:
        """Return a snapshot; cheap enough to be asked for several times a second."""
