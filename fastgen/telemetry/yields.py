"""Watches what the generated tokens bring: the yield over a window, its best, when to warn and when to stop.

The window is the last ``window`` instruction completions (fewer until there have been so many in this session), with
everything that was committed meanwhile: it advances only while new instructions are written, and depends on the order
of the commits alone, not on time. Two figures: the *yield* is kept instructions per 1,000 generated tokens of all
stages, which is what a GPU hour is paid for; the *novelty* is kept instructions per 1,000 tokens of the instruction
stage, which does not move with how many instances happen to be written and therefore tells the decay.

Pure; fed with ledgers. On a resume the window begins empty and the best novelty is that of the run so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fastgen.store.ledger import Ledger
from fastgen.telemetry.figures import DECAYED

_MARKS = 50  # of the window, at most: it moves in steps of a fiftieth
LEVERS = (
    "more and other seed tasks (--seed-tasks), a higher --instruction.temperature, --demonstrations, a stronger "
    "--model, or a smaller target; the rejects: fastgen export --format rejected"
)


@dataclass(frozen=True, slots=True)
class Yield:
    """The window's figures; all 0 before anything was generated."""

    kept_per_1000_tokens: float = 0.0
    complete_per_1000_tokens: float = 0.0
    novelty: float = 0.0
    best_novelty: float = 0.0
    full: bool = False


@dataclass(frozen=True, slots=True)
class _Mark:
    written: int  # instruction completions
    kept: int
    complete: int
    instruction_tokens: int
    tokens: int


class YieldWatch:
    """See the module's docstring; ``stop_below`` 0 never stops."""

    def __init__(self, ledger: Ledger, *, window: int, stop_below: float = 0.0) -> None:
        self._window = window
        self._stop_below = stop_below
        self._step = max(1, window // _MARKS)
        self._now = _mark(ledger)
        self._marks = deque([self._now])
        whole = self._now.written >= window
        self._best = _per_1000(self._now.kept, self._now.instruction_tokens) if whole else 0.0
        self._warned = False

    def see(self, ledger: Ledger) -> None:
        """Take in the counts after a batch of commits."""
        self._now = now = _mark(ledger)
        marks = self._marks
        if now.written - marks[-1].written >= self._step:
            marks.append(now)
        while len(marks) > 1 and now.written - marks[1].written >= self._window:
            marks.popleft()
        if self.is_full:
            self._best = max(self._best, self._novelty())

    @property
    def is_full(self) -> bool:
        """Whether the window has so many completions that it may be judged."""
        return self._now.written - self._marks[0].written >= self._window

    def figures(self) -> Yield:
        """The window now."""
        then, now = self._marks[0], self._now
        tokens = now.tokens - then.tokens
        return Yield(
            kept_per_1000_tokens=_per_1000(now.kept - then.kept, tokens),
            complete_per_1000_tokens=_per_1000(now.complete - then.complete, tokens),
            novelty=self._novelty(),
            best_novelty=self._best,
            full=self.is_full,
        )

    def stop_reason(self) -> str | None:
        """One line that says why the user's rule ends the run, if it does."""
        if not self._stop_below or not self.is_full:
            return None
        brought = self.figures().kept_per_1000_tokens
        if brought >= self._stop_below:
            return None
        return (
            f"--stop-when-yield-below {self._stop_below:g}: the last {self._window:,} instruction completions kept "
            f"{brought:.2f} instructions per 1,000 generated tokens"
        )

    def warning(self) -> str | None:
        """Once, when novelty has fallen below half of its best: one line with what can be done."""
        if self._warned or not self.is_full or self._novelty() >= DECAYED * self._best:
            return None
        self._warned = True
        return (
            f"novelty decays: the last {self._window:,} instruction completions kept {self._novelty():.2f} instructions"
            f" per 1,000 tokens that wrote them, it was {self._best:.2f}; what helps in a new run: {LEVERS}"
        )

    def _novelty(self) -> float:
        then, now = self._marks[0], self._now
        return _per_1000(now.kept - then.kept, now.instruction_tokens - then.instruction_tokens)


class YieldRule:
    """Tells a run's user of the yield, and ends the run when it falls below what the user asked for.

    To be called after every batch of commits. ``begin_nothing_new`` is called once, when the rule holds: what is on its
    way is still finished.
    """

    def __init__(
        self, watch: YieldWatch, ledger: Ledger, begin_nothing_new: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._watch = watch
        self._ledger = ledger
        self._begin_nothing_new = begin_nothing_new
        self._say = say
        self.ended_by: str | None = None
        """Why the rule ended the run, once it did."""

    def __call__(self) -> None:
        """Look at the counts as they are now."""
        self._watch.see(self._ledger)
        if (warning := self._watch.warning()) is not None:
            self._say(warning)
        if self.ended_by is None and (reason := self._watch.stop_reason()) is not None:
            self.ended_by = reason
            self._say(f"{reason}; nothing new is asked for, what is on its way is finished")
            self._begin_nothing_new()

    def figures(self) -> Yield:
        """The window now."""
        return self._watch.figures()


def _mark(ledger: Ledger) -> _Mark:
    return _Mark(
        *(ledger.completions["instruction"], ledger.kept, ledger.complete),
        *(ledger.completion_tokens["instruction"], ledger.generated_tokens),
    )


def _per_1000(count: int, tokens: int) -> float:
    return 1000 * count / tokens if tokens else 0.0
