"""What an engine counts, and when: totals since its start and a timeline that outlives restarts. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgen.testing.sequence import Counts
from fastgen.testing.timeline import Timeline

if TYPE_CHECKING:
    from fastgen.testing.timing import EngineModel


class Accounts:
    """The books of one engine; times must not go back."""

    def __init__(self, now_s: float, timeline: Timeline | None = None) -> None:
        self.counts = Counts()
        self.timeline = timeline or Timeline(now_s)
        self._until_s = now_s

    def pass_time(self, now_s: float, running: int, waiting: int, capacity: int) -> None:
        """Book the time since the last booking, in which so many ran and waited."""
        timeline = self.timeline
        timeline.reach(now_s, capacity)
        before_s, lasted_s = self._until_s, now_s - self._until_s
        if lasted_s <= 0:
            return
        self._until_s = now_s
        self.counts.busy_s += running * lasted_s
        timeline.spread(timeline.running, running * lasted_s, before_s, now_s)
        timeline.spread(timeline.waiting, waiting * lasted_s, before_s, now_s)

    def steps(self, model: EngineModel, steps: int, running: int, span_s: tuple[float, float], *, full: bool) -> None:
        """Book steps that are over: their number, and how much of their time a full batch would have needed."""
        self.counts.steps += steps
        from_s, to_s = span_s
        idle_s = 0.0
        if not full:  # a full batch shares the fixed cost of a step among more
            idle_s = steps * model.base_s * model.slowdown * max(0.0, 1 - running / model.max_num_seqs)
        self.timeline.spread(self.timeline.saturation, to_s - from_s - idle_s, from_s, to_s)

    def tokens(self, tokens: int, span_s: tuple[float, float]) -> None:
        """Book output tokens."""
        self.counts.generation_tokens += tokens
        self.timeline.spread(self.timeline.tokens, tokens, *span_s)
