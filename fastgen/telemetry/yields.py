"""Watches what the generated tokens bring: the yield over a window, when to warn and when to stop.

The window is the last ``window`` instruction completions (fewer until there have been that many in this session), with
everything that was committed meanwhile. It advances only while new instructions are written, and depends on the order
of the commits alone, not on time. Two figures: the *yield* is kept instructions per 1,000 generated tokens of all
stages, which is what a GPU hour is paid for. The *novelty* is kept instructions per 1,000 tokens of the instruction
stage, which does not move with how many instances happen to be written and therefore shows the decay.

On a resume the window begins empty and the best novelty is that of the run so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from fastgen.methods.base import CREATION
from fastgen.store.ledger import Ledger
from fastgen.telemetry.figures import DECAYED

_STEPS: Final = 50  # the window moves in steps of a fiftieth
LEVERS: Final = (
    "more and other seed tasks (--seed-tasks), a higher --instruction.temperature, --demonstrations, a stronger "
    "--model, or a smaller target; the rejects: fastgen export --format rejected"
)


class _Counts(NamedTuple):
    written: int  # instruction completions
    kept: int
    complete: int
    instruction_tokens: int
    tokens: int


class YieldWatch:
    """The yield of a run in one session. Warns of its decay, and ends the run below ``stop_below`` (0: never).

    Call it after every batch of commits. ``say`` gets each message, and ``stop_asking`` the instruction stage, once,
    when the yield falls below ``stop_below``: requests that are on their way are still finished.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        window: int,
        stop_below: float,
        say: Callable[[str], None],
        stop_asking: Callable[[Collection[str]], None],
    ) -> None:
        self.ended_by: str | None = None
        """Why the yield ended the run, once it did."""
        self._ledger = ledger
        self._window = window
        self._stop_below = stop_below
        self._say = say
        self._stop_asking = stop_asking
        self._now = self._count()
        self._marks = deque([self._now])
        whole = self._now.written >= window
        self._best_novelty = _per_1000(self._now.kept, self._now.instruction_tokens) if whole else 0.0
        self._warned = False

    def __call__(self) -> None:
        """Take in the counts after a batch of commits."""
        self._advance()
        if (warning := self._warning()) is not None:
            self._say(warning)
        if self.ended_by is None and (reason := self._stop_reason()) is not None:
            self.ended_by = reason
            self._say(f"{reason}; no new requests are sent, and those in progress are finished")
            self._stop_asking((CREATION,))

    @property
    def is_full(self) -> bool:
        """Whether the window has enough completions to be judged."""
        return self._now.written - self._marks[0].written >= self._window

    @property
    def kept_per_1000_tokens(self) -> float:
        """Kept instructions per 1,000 generated tokens of all stages."""
        return _per_1000(self._now.kept - self._marks[0].kept, self._now.tokens - self._marks[0].tokens)

    @property
    def complete_per_1000_tokens(self) -> float:
        """Complete instructions per 1,000 generated tokens of all stages."""
        return _per_1000(self._now.complete - self._marks[0].complete, self._now.tokens - self._marks[0].tokens)

    @property
    def novelty(self) -> float:
        """Kept instructions per 1,000 tokens of the instruction stage."""
        then, now = self._marks[0], self._now
        return _per_1000(now.kept - then.kept, now.instruction_tokens - then.instruction_tokens)

    @property
    def best_novelty(self) -> float:
        """The highest novelty of a full window."""
        return self._best_novelty

    def _advance(self) -> None:
        self._now = now = self._count()
        marks = self._marks
        if now.written - marks[-1].written >= max(1, self._window // _STEPS):
            marks.append(now)
        while len(marks) > 1 and now.written - marks[1].written >= self._window:
            marks.popleft()
        if self.is_full:
            self._best_novelty = max(self._best_novelty, self.novelty)

    def _count(self) -> _Counts:
        ledger = self._ledger
        return _Counts(
            *(ledger.completions[CREATION], ledger.kept, ledger.complete),
            *(ledger.completion_tokens[CREATION], ledger.generated_tokens),
        )

    def _warning(self) -> str | None:
        """Once, when novelty has fallen below half of its best: one line with what can be done."""
        if self._warned or not self.is_full or self.novelty >= DECAYED * self._best_novelty:
            return None
        self._warned = True
        return (
            f"novelty decays: the last {self._window:,} instruction completions kept {self.novelty:.2f} instructions"
            f" per 1,000 tokens that wrote them, it was {self._best_novelty:.2f}; what helps in a new run: {LEVERS}"
        )

    def _stop_reason(self) -> str | None:
        """One line that says why the user's rule ends the run, if it does."""
        if not self._stop_below or not self.is_full or self.kept_per_1000_tokens >= self._stop_below:
            return None
        return (
            f"--stop-when-yield-below {self._stop_below:g}: the last {self._window:,} instruction completions kept "
            f"{self.kept_per_1000_tokens:.2f} instructions per 1,000 generated tokens"
        )


def _per_1000(count: int, tokens: int) -> float:
    return 1000 * count / tokens if tokens else 0.0
