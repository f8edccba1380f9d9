"""Continuous batching as vLLM's V1 scheduler does it, over simulated time.

Each step gives every running sequence its next token, spends what is left of ``max_num_batched_tokens`` on prefill
(running prompts first, then the waiting queue in order of arrival), and admits only while a seat (``max_num_seqs``) and
cache blocks are there. When the cache is full the youngest running sequence is preempted: its blocks are freed, and
it goes to the queue's head to be computed again. Nobody is admitted in a step that preempted.

Steps of one composition are taken as one span, so that the work is proportional to arrivals and endings, not to
tokens. What is simpler than in vLLM: a prompt's blocks are all taken when it is admitted, the output's blocks are not
kept for later prompts, and attention during prefill is part of the cost of a token.

Guarantees: the result depends only on the sequences and on the times they were added at; a step that has begun is
never changed. Knows nothing of clocks, requests or text.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastgen.testing.accounts import Accounts
from fastgen.testing.blocks import BlockPool
from fastgen.testing.growth import BlockGrowth
from fastgen.testing.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastgen.testing.timeline import Timeline
    from fastgen.testing.timing import EngineModel


@dataclass(slots=True)
class _Span:
    """Steps of one composition, not yet over."""

    start_s: float
    steps: int
    end_s: float
    full: bool  # nobody more could have been in it


class Batch:
    """The engine's state; ``on_end`` is told of each sequence whose last token is there, at its time."""

    def __init__(
        self,
        model: EngineModel,
        on_end: Callable[[Sequence], None],
        *,
        now_s: float = 0.0,
        timeline: Timeline | None = None,
    ) -> None:
        self.model = model
        self._accounts = Accounts(now_s, timeline)
        self.counts, self.timeline = self._accounts.counts, self._accounts.timeline
        self._on_end = on_end
        self._pool = BlockPool(model.kv_blocks)
        self._running: dict[Sequence, None] = {}  # the oldest first
        self._prefilling: dict[Sequence, None] = {}  # those of them whose prompt is not yet computed
        self._waiting: deque[Sequence] = deque()
        self._ends: list[tuple[int, int, Sequence]] = []  # (number of steps, tie-breaker, sequence)
        self._tie = 0
        self._steps = 0
        self._context_tokens = 0  # cached tokens of the decoding sequences
        self._growth = BlockGrowth(model.block_tokens)
        self._span: _Span | None = None

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that sequences hold."""
        return min(1.0, self._pool.used / self._pool.total)

    def next_change_s(self) -> float | None:
        """Return when the present composition ends if nothing comes in between; ``None`` when idle."""
        return None if self._span is None else self._span.end_s

    # -- what happens to it --------------------------------------------------------------------------------------------

    def advance(self, to_s: float) -> None:
        """Carry out every step that is over by ``to_s``."""
        while self._span is not None and self._span.end_s <= to_s:
            span, self._span = self._span, None
            self._carry_out(span, span.steps, span.end_s)
            self._begin(span.end_s)

    def settle(self, to_s: float) -> None:
        """`advance`, and leave only the step in progress undone: now the figures are exact, and things may change."""
        self.advance(to_s)
        span = self._span
        if span is not None and span.steps > 1:
            done = self._steps_within(span, to_s - span.start_s)
            over_s = span.start_s + self._lasts_s(done)
            self._carry_out(span, done, over_s)
            self._span = _Span(over_s, 1, over_s + self._lasts_s(1), span.full)
        self._account(to_s)

    def add(self, sequences: Iterable[Sequence], now_s: float) -> None:
        """Queue them up.

        :raises ValueError: one is longer than the model's ``max_model_len``, and might never fit.
        """
        self.settle(now_s)
        for sequence in sequences:
            if (tokens := sequence.prompt_tokens + sequence.output_tokens) > self.model.max_model_len:
                raise ValueError(f"a sequence of {tokens} tokens is beyond max_model_len {self.model.max_model_len}")
            sequence.arrived_s = now_s
            self._waiting.append(sequence)
        if self._span is None:
            self._begin(now_s)

    def remove(self, sequence: Sequence, now_s: float) -> None:
        """Forget one that nobody waits for any more; what has ended stays ended."""
        self.settle(now_s)
        if sequence in self._running:
            self._leave(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def change(self, model: EngineModel, now_s: float) -> None:
        """Go on with another model (of the same block size) from the next step on.

        Whoever has no room in the cache any more is preempted; whoever has no seat stays to the end.
        """
        self.settle(now_s)
        self.model = model
        self._pool.total = model.kv_blocks

    # -- a step --------------------------------------------------------------------------------------------------------

    def _begin(self, now_s: float) -> None:
        """Schedule what comes next."""
        preempted = self._make_room()
        budget = self.model.max_num_batched_tokens - self._decoding
        for sequence in self._prefilling:
            budget -= self._assign(sequence, budget)
        if not preempted:
            self._admit(budget, now_s)
        if not self._running:
            return
        steps = 1 if self._prefilling else min(self._ends_in(), self._growth.steps_for(self._steps, self._pool.free))
        lasts_s = self._lasts_s(steps, sum(sequence.chunk for sequence in self._prefilling))
        full = bool(self._waiting) or len(self._running) >= self.model.max_num_seqs
        self._span = _Span(now_s, steps, now_s + lasts_s, full)

    def _make_room(self) -> bool:
        """Preempt the youngest until there are blocks for the next step."""
        preempted = False
        while self._running and self._growth.at(self._steps) > self._pool.free:
            self._preempt(next(reversed(self._running)))
            preempted = True
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        if sequence.decoding:
            sequence.generated = sequence.output_tokens - (sequence.ends_at - self._steps)
        self._leave(sequence)
        self._waiting.appendleft(sequence)
        self.counts.preemptions += 1

    def _admit(self, budget: int, now_s: float) -> None:
        spare = self._pool.free - self._growth.at(self._steps)
        while self._waiting and budget > 0 and len(self._running) < self.model.max_num_seqs:
            sequence = self._waiting[0]
            tokens = sequence.prompt_tokens + sequence.generated
            needed = self._pool.unheld(sequence.hashes) + self._private_blocks(sequence, tokens)
            if needed > spare:
                return
            spare -= needed
            self._waiting.popleft()
            self._look_up(sequence, tokens)
            self._pool.hold(sequence.hashes)
            self._pool.take(self._private_blocks(sequence, tokens))
            self._running[sequence] = self._prefilling[sequence] = None
            if sequence.admitted_s is None:
                sequence.admitted_s = now_s
            budget -= self._assign(sequence, budget)

    def _look_up(self, sequence: Sequence, tokens: int) -> None:
        """Take what the cache has of a prompt; the last token is always computed."""
        hits = 0
        if self.model.prefix_caching:
            known = self._pool.known(sequence.hashes) * self.model.block_tokens
            hits = min(max(known, sequence.cached_tokens), tokens - 1)
            if sequence.admitted_s is None:
                sequence.hit_tokens = hits
                self.counts.prefix_queries_tokens += sequence.prompt_tokens
                self.counts.prefix_hits_tokens += hits
        if sequence.admitted_s is not None:
            self.counts.recomputed_tokens += tokens - hits
        sequence.to_prefill = tokens - hits

    def _assign(self, sequence: Sequence, budget: int) -> int:
        sequence.chunk = min(sequence.to_prefill, budget)
        return sequence.chunk

    def _carry_out(self, span: _Span, steps: int, end_s: float) -> None:
        """What so many steps of a span bring about, at the end of the last of them."""
        if not steps:
            return
        decoding = self._decoding
        self._account(end_s)
        lasted_s = (span.start_s, end_s)
        self._accounts.steps(self.model, steps, len(self._running), lasted_s, full=span.full)
        self._accounts.tokens(decoding * steps, lasted_s)
        self._pool.take(self._growth.within(self._steps, steps))
        self._steps += steps
        self._context_tokens += decoding * steps
        while self._ends and self._ends[0][0] <= self._steps:
            at, _, sequence = heapq.heappop(self._ends)
            if sequence.decoding and sequence.ends_at == at:
                self._end(sequence, end_s)
        for sequence in tuple(self._prefilling):
            self._prefilled(sequence, lasted_s)

    def _prefilled(self, sequence: Sequence, step_s: tuple[float, float]) -> None:
        """Take one step's chunk off a prompt; a computed prompt gives the first token in the same step."""
        sequence.to_prefill -= sequence.chunk
        if sequence.to_prefill:
            return
        del self._prefilling[sequence]
        cached = sequence.prompt_tokens + sequence.generated
        sequence.generated += 1
        self._accounts.tokens(1, step_s)
        if sequence.first_token_s is None:
            sequence.first_token_s = step_s[1]
            self.counts.prompt_tokens += sequence.prompt_tokens
        sequence.decoding = True
        sequence.offset = cached - self._steps
        sequence.ends_at = self._steps + sequence.output_tokens - sequence.generated
        self._context_tokens += cached
        self._growth.add(sequence.offset)
        if sequence.ends_at == self._steps:
            self._end(sequence, step_s[1])
        else:
            self._tie += 1
            heapq.heappush(self._ends, (sequence.ends_at, self._tie, sequence))

    def _end(self, sequence: Sequence, now_s: float) -> None:
        sequence.ended_s = now_s
        self._leave(sequence)
        self._on_end(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch and free what it holds."""
        tokens = sequence.prompt_tokens + sequence.generated
        if sequence.decoding:
            tokens = sequence.offset + self._steps
            self._context_tokens -= tokens
            self._growth.drop(sequence.offset)
        del self._running[sequence]
        self._prefilling.pop(sequence, None)
        sequence.decoding = False
        self._pool.release(sequence.hashes)
        self._pool.take(-self._private_blocks(sequence, tokens))

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    @property
    def _decoding(self) -> int:
        return len(self._running) - len(self._prefilling)

    def _private_blocks(self, sequence: Sequence, tokens: int) -> int:
        shared = max(len(sequence.hashes), sequence.cached_tokens // self.model.block_tokens)
        return max(0, self.model.blocks(tokens) - shared)

    def _lasts_s(self, steps: int, prefill_tokens: int = 0) -> float:
        return self.model.steps_s(steps, prefill_tokens, self._decoding, self._context_tokens)

    def _steps_within(self, span: _Span, elapsed_s: float) -> int:
        """Return how many of a decoding span's steps are over, but for the last."""
        low, high = 0, span.steps - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._lasts_s(middle) <= elapsed_s else (low, middle - 1)
        return low

    def _ends_in(self) -> int:
        """Return the number of steps until a decoding sequence ends."""
        while True:
            at, _, sequence = self._ends[0]
            if sequence.decoding and sequence.ends_at == at:
                return at - self._steps
            heapq.heappop(self._ends)

    def _account(self, now_s: float) -> None:
        self._accounts.pass_time(now_s, len(self._running), len(self._waiting), self.model.max_num_seqs)
