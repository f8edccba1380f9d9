"""One endpoint of a router and its standing there. Decides nothing: that is the router's.

Times are of ``time.monotonic``.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastgen.backends.calls import Calls
from fastgen.errors import FastgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.backends.openai import OpenAIBackend

_MAX_DOUBLINGS = 10  # 1,024 times as loaded: such an endpoint is asked only when all others are as bad


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint.

    ``limit`` is how many completions in flight fit it (a request may ask for several). ``term`` counts its takeouts, so
    that late failures of requests from before are told apart. ``refusals`` and ``misses`` count in a row, as the other
    two do: takeouts for a refusal that a person must mend, and checks of its health that brought no answer.
    """

    backend: OpenAIBackend
    limit: int = 1
    healthy: bool = True
    term: int = 0
    refusals: int = 0
    misses: int = 0
    unreached_in_a_row: int = 0
    faults_in_a_row: int = 0
    forgiven_at_s: float = 0.0
    calls: Calls = field(default_factory=Calls, repr=False)
    probing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Its address without credentials."""
        return self.backend.endpoint.display_url

    @property
    def worked(self) -> bool:
        """Whether it gave a good answer, or joined a run that went on without it."""
        return self.backend.counters.completed > 0 or self.term > 0

    def load(self, now_s: float) -> float:
        """Return the share of its limit with one completion more, doubled for every recent fault in a row."""
        doublings = min(self.faults_in_a_row, _MAX_DOUBLINGS) if now_s < self.forgiven_at_s else 0
        return ((self.backend.counters.sequences + 1) << doublings) / self.limit

    def answered_since(self, moment_s: float) -> bool:
        """Tell whether it has answered anything since."""
        last_s = self.backend.counters.last_answer_s
        return last_s is not None and last_s >= moment_s

    async def accepts(self) -> bool:
        """Tell whether a server that refused lets us ask again, as far as its list of models tells."""
        try:
            models = (await self.backend.probe()).ids
        except FastgenError:
            return False
        return not models or self.backend.endpoint.model in models


async def ask(members: Sequence[Member], within_s: float) -> None:
    """Ask for their health, for so long at most; their counters remember who answered."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(member.backend.is_answering() for member in members))
