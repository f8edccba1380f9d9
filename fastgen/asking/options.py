"""Flags that `judge` and `evaluate` share: how fast they ask, and whom. Knows nothing of what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cyclopts import Group, Parameter

from fastgen.config import refuse_credentials
from fastgen.options import Options, ServerOptions, SpeedOptions, plain

_SPEED = Group("Speed and faults", sort_key=3)
_WHOM = ("base_url", "model", "api", "api_key_env", "api_key_file", "server_args", "server_timeout")


@Parameter(name="*", group=_SPEED)
@dataclass(frozen=True, slots=True, kw_only=True)
class AskSpeed:
    """How fast and how stubbornly; none of it changes what an answer means."""

    concurrency: int | Literal["auto"] = "auto"
    """Answers in flight on all servers together; auto follows what each server can hold (docs/concurrency.md)."""
    max_concurrency: int = 4096
    """Most answers in flight on one server under --concurrency auto."""
    requests_per_minute: int | None = None
    """Most requests begun in any minute, evenly spread, for services that count them."""
    tokens_per_minute: int | None = None
    """Most tokens a minute, prompts and answers."""
    max_attempts: int = 8
    """Attempts of one request before it is recorded as failed; the next call asks again."""
    outage_timeout: float = 600.0
    """Seconds without any answer from any server before the command stops (resumable, exit code 3)."""
    drain_timeout: float = 60.0
    """Seconds that requests in flight get to finish after the first Ctrl-C."""
    request_timeout: float | None = None
    """Seconds one request may take; default: derived from --max-tokens."""

    def __post_init__(self) -> None:
        self.speed()

    def speed(self) -> SpeedOptions:
        """The same in the words of ``generate``. :raises InputError: a figure that makes no sense."""
        return SpeedOptions(**plain(self))


def options_of(whom: Any, extra_body: str, speed: SpeedOptions) -> Options:  # noqa: ANN401 - what names an endpoint
    """What `fastgen.serving.serve` needs to know of ``whom``, an options dataclass with the fields of ``_WHOM``.

    ``extra_body`` is a JSON object for every request.

    :raises InputError: a value is out of range.
    """
    server = ServerOptions(**{name: getattr(whom, name) for name in _WHOM}, extra_body=extra_body)
    options = Options(server=server, speed=speed)
    refuse_credentials(options)
    return options
