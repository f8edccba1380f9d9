"""What a test server keeps to be asked about afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class ServerCounters:
    """What a server has seen since its start.

    ``requests`` are those for completions, ``gone`` the clients that left before their answer, tokens are counted by
    the fake tokenizer, ``finished`` counts sequences by finish_reason and ``injected`` faults by name.
    """

    connections: int = 0
    open_connections: int = 0
    health_checks: int = 0
    requests: int = 0
    answered: int = 0
    gone: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For ``/faults``."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Received:
    """One request for completions, as it came."""

    path: str
    authorization: str
    body: bytes
