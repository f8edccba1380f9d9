"""Continuous batching as vLLM's V1 scheduler does it, in simulated time: the model of an engine, and its scheduler.

Each step gives every running sequence its next token and spends the rest of ``max_num_batched_tokens`` on prefill:
first the prompts that are already running, then the waiting queue in order of arrival. A sequence is admitted only when
a seat (``max_num_seqs``) and cache blocks are free. When the cache is full, the youngest running sequence is preempted:
its blocks are freed, and it returns to the head of the queue and is computed again. A step that preempts admits none.

A step in which ``D`` sequences decode one token each, ``P`` prompt tokens are prefilled and the decoding sequences
attend to ``K`` cached tokens together takes ``base + P * prefill + D * decode + K * attention`` seconds. That is the
shape of a roofline: the weights are read once a step whatever its size (``base``), arithmetic grows with the tokens,
and the cache is read once for every token attended to.

Steps of one composition are computed as one span, so the work is proportional to arrivals and endings, not to tokens.
Simpler than in vLLM: a prompt takes all its blocks when it is admitted, blocks of the output are not kept for later
prompts, and attention during prefill is part of the cost of a token.

The result depends only on the sequences and the times at which they were added. A step that has begun never changes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from itertools import cycle
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError, flag_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class EngineModel:
    """An engine: vLLM's limits under vLLM's names, and the cost of a step.

    :raises InputError: when vLLM would refuse to start with a limit, or a cost is not a positive time.
    """

    max_num_seqs: int = 256
    """Sequences that run at the same time."""
    max_num_batched_tokens: int = 8192
    """Tokens of one step, prefilled and decoded; longer prompts are prefilled in chunks."""
    kv_blocks: int = 22_500
    """Blocks of the key-value cache."""
    block_tokens: int = 16
    """Tokens in a block."""
    max_model_len: int = 8192
    """Prompt and output of one sequence, in tokens."""
    prefix_caching: bool = True
    """Whether a prompt takes the whole blocks that it shares with an earlier prompt's beginning from the cache."""
    base_s: float = 0.010
    prefill_s_per_token: float = 28e-6
    decode_s_per_sequence: float = 42e-6
    attention_s_per_token: float = 0.063e-6
    slowdown: float = 1.0
    """All costs are multiplied by this."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise InputError(f"{flag_name(name)} {getattr(self, name)}: use at least 1")
        for name in ("prefill_s_per_token", "decode_s_per_sequence", "attention_s_per_token"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)}: use a number of seconds from 0 up")
        for name in ("base_s", "slowdown"):  # time would not advance in a step without duration
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)}: use a number above 0")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens}: use at least --max-num-seqs"
                f" {self.max_num_seqs}, so that every running sequence gets its token"
            )
        if self.max_model_len > self.kv_blocks * self.block_tokens:
            raise InputError(
                f"--kv-blocks {self.kv_blocks}: one sequence of --max-model-len {self.max_model_len} tokens does not"
                f" fit; use at least {self.blocks(self.max_model_len)}"
            )

    def blocks(self, tokens: int) -> int:
        """Return the blocks that ``tokens`` of one sequence take."""
        return -(-tokens // self.block_tokens)

    def steps_s(self, steps: int, prefill_tokens: int, decoding: int, context_tokens: int) -> float:
        """Return the seconds that ``steps`` steps of one composition take.

        The first step attends to ``context_tokens``, each further step to ``decoding`` more.
        """
        attended = steps * context_tokens + decoding * (steps * (steps - 1) // 2)
        each_s = self.base_s + prefill_tokens * self.prefill_s_per_token + decoding * self.decode_s_per_sequence
        return self.slowdown * (steps * each_s + attended * self.attention_s_per_token)

    def resized(self, *, max_num_seqs: int | None = None, kv_blocks: int | None = None) -> EngineModel:
        """Return the model with other limits. ``None`` keeps a limit.

        :raises InputError: the new limits do not go together.
        """
        seqs = self.max_num_seqs if max_num_seqs is None else max_num_seqs
        return replace(
            self,
            max_num_seqs=seqs,
            max_num_batched_tokens=max(self.max_num_batched_tokens, seqs),
            kv_blocks=self.kv_blocks if kv_blocks is None else kv_blocks,
        )


ENGINES: Final[Mapping[str, EngineModel]] = MappingProxyType(
    {
        "h100-8b": EngineModel(),
        "h100-0.6b": EngineModel(
            max_num_seqs=512,
            kv_blocks=37_000,
            base_s=0.004,
            prefill_s_per_token=4e-6,
            decode_s_per_sequence=22.5e-6,
            attention_s_per_token=0.05e-6,
        ),
        "cpu-135m": EngineModel(
            max_num_seqs=32,
            max_num_batched_tokens=2048,
            kv_blocks=1456,
            block_tokens=32,
            max_model_len=4096,
            base_s=0.0301,
            prefill_s_per_token=0.9e-3,
            decode_s_per_sequence=3.6e-3,
            attention_s_per_token=1.5e-6,
        ),
    }
)
"""Calibrated engines by name.

``h100-8b``: an 8B model of Qwen3's shape in bf16 on one H100 with 80 GB. Weights of 16.4 GB at 70 % of 3.35 TB/s are
7 ms a step, and the engine adds 3 ms; 16.4 GFLOP a token at 600 TFLOP/s are 28 us, and a decoding sequence costs
14 us more for sampling and bookkeeping; 147 KB of cache a token at 2.3 TB/s are 63 ns. 53 GB are left for 360,000
cached tokens. With Self-Instruct's prompts and lengths a full batch of 256 writes about 6,400 tokens/s, which is what
is published for Qwen3-8B on one H100 with vLLM 0.15 (6,338 by default, 6,443 tuned).

``h100-0.6b``: Qwen3-0.6B's shape. Weights are read in 0.5 ms, so the engine's overhead dominates; the cache of a
token is 115 KB. With the same prompts a full batch of 512 writes about 14,000 tokens/s (published: 13,527 and 14,069).

``cpu-135m``: vLLM's CPU build with SmolLM2-135M on one core and 1 GB of cache: 27, 97, 123 and 132 output tokens/s were
measured at 1, 8, 32 and 64 requests in flight with prompts of 207 tokens and 64 output tokens; the model gives within
5 % of each. How the time divides between prefill and decoding is an assumption.

The published figures do not state their lengths, so only one number of each model can be fitted. The order of
magnitude of each cost and the total are meant to be right, not more.
"""


@dataclass(slots=True, eq=False)
class EngineSequence:
    """One sequence in the engine: what it asks for, and its progress.

    ``hashes`` are those of the prompt's whole blocks. ``cached_tokens`` of the prompt cost nothing, as if they were
    always in the cache. Times are ``None`` before the event.
    """

    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    cached_tokens: int = 0
    arrived_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    hit_tokens: int = 0  # when it was first admitted
    decoding: bool = field(default=False, repr=False)
    generated: int = field(default=0, repr=False)  # up to the last preemption
    to_prefill: int = field(default=0, repr=False)
    chunk: int = field(default=0, repr=False)  # of the step in progress
    offset: int = field(default=0, repr=False)  # tokens in the cache = offset + number of steps
    ends_at: int = field(default=-1, repr=False)  # number of steps


@dataclass(slots=True)
class Counts:
    """Totals since the engine's start. ``busy_s`` is the sum over all sequences of the time they ran."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    busy_s: float = 0.0

    def vllm_counters(self) -> dict[str, float]:
        """Return those that vLLM has, under its names without ``vllm:`` and ``_total``."""
        return {
            "prefix_cache_queries": self.prefix_queries_tokens,
            "prefix_cache_hits": self.prefix_hits_tokens,
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
        }


SECOND_S = 1.0
KEPT_SECONDS = 100_000


@dataclass(slots=True)
class Timeline:
    """What an engine did in each second from ``origin_s`` on, restarts included. Exact for steps of any length.

    ``tokens`` are output tokens. ``running`` and ``waiting`` are mean numbers of sequences. ``saturation`` (0..1) is
    the share of the second that a full batch would have needed for the same work. It does not depend on the lengths of
    the sequences. ``capacity`` is `max_num_seqs` at the end of the second.
    """

    origin_s: float
    tokens: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    saturation: list[float] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)

    def spread(self, series: list[float], amount: float, from_s: float, to_s: float) -> None:
        """Add ``amount`` to a series, spread evenly over a span."""
        length_s = to_s - from_s
        if length_s <= 0 or not amount:
            return
        first, last = int(from_s - self.origin_s), int(to_s - self.origin_s)
        if first == last < len(series):  # the common case
            series[first] += amount
            return
        for second in range(first, min(last, len(series) - 1) + 1):
            start_s = self.origin_s + second * SECOND_S
            share = (min(to_s, start_s + SECOND_S) - max(from_s, start_s)) / length_s
            series[second] += amount * max(0.0, share)

    def reach(self, to_s: float, capacity: int) -> None:
        """Add entries up to a time."""
        wanted = min(int(to_s - self.origin_s) + 1, KEPT_SECONDS)
        for series in (self.tokens, self.running, self.waiting, self.saturation):
            series.extend(0.0 for _ in range(wanted - len(series)))
        self.capacity.extend(capacity for _ in range(wanted - len(self.capacity)))
        self.capacity[-1] = capacity

    def as_dict(self) -> dict[str, Any]:
        """Return the series by name."""
        return {name: getattr(self, name) for name in ("tokens", "running", "waiting", "saturation", "capacity")}


@dataclass(slots=True)
class _Span:
    """Steps of one composition that are not over."""

    start_s: float
    steps: int
    end_s: float
    full: bool  # no further sequence could have been in it


class Batch:
    """The engine's state. Calls ``on_end`` for each sequence when its last token is there. Times must not go back."""

    def __init__(
        self,
        model: EngineModel,
        on_end: Callable[[EngineSequence], None],
        *,
        now_s: float = 0.0,
        timeline: Timeline | None = None,
    ) -> None:
        self.model = model
        self.counts = Counts()
        self.timeline = timeline or Timeline(now_s)
        self._on_end = on_end
        self._accounted_s = now_s
        self._pool = BlockPool(model.kv_blocks)
        self._running: dict[EngineSequence, None] = {}  # the oldest first
        self._prefilling: dict[EngineSequence, None] = {}  # those of them whose prompt is not yet computed
        self._waiting: deque[EngineSequence] = deque()
        self._ends: list[tuple[int, int, EngineSequence]] = []  # (number of steps, tie-breaker, sequence)
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
        """Return when the present composition ends unless something happens before, or ``None`` when idle."""
        return None if self._span is None else self._span.end_s

    # -- events --------------------------------------------------------------------------------------------------------

    def advance(self, to_s: float) -> None:
        """Take every step that is over by ``to_s``."""
        while self._span is not None and self._span.end_s <= to_s:
            span, self._span = self._span, None
            self._carry_out(span, span.steps, span.end_s)
            self._begin(span.end_s)

    def settle(self, to_s: float) -> None:
        """`advance`, and end the span at the step in progress: figures are exact, and the batch may be changed."""
        self.advance(to_s)
        span = self._span
        if span is not None and span.steps > 1:
            done = self._steps_within(span, to_s - span.start_s)
            over_s = span.start_s + self._lasts_s(done)
            self._carry_out(span, done, over_s)
            self._span = _Span(over_s, 1, over_s + self._lasts_s(1), span.full)
        self._account(to_s)

    def add(self, sequences: Iterable[EngineSequence], now_s: float) -> None:
        """Queue them up.

        :raises ValueError: when one is longer than the model's ``max_model_len`` and might never fit.
        """
        self.settle(now_s)
        for sequence in sequences:
            if (tokens := sequence.prompt_tokens + sequence.output_tokens) > self.model.max_model_len:
                raise ValueError(f"a sequence of {tokens} tokens is beyond max_model_len {self.model.max_model_len}")
            sequence.arrived_s = now_s
            self._waiting.append(sequence)
        if self._span is None:
            self._begin(now_s)

    def remove(self, sequence: EngineSequence, now_s: float) -> None:
        """Remove a sequence whose client has gone. One that has ended is ignored."""
        self.settle(now_s)
        if sequence in self._running:
            self._leave(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def change(self, model: EngineModel, now_s: float) -> None:
        """Use another model (of the same block size) from the next step on.

        Sequences for which the cache has no room are preempted. Running ones beyond ``max_num_seqs`` finish.
        """
        self.settle(now_s)
        self.model = model
        self._pool.total = model.kv_blocks

    # -- a step --------------------------------------------------------------------------------------------------------

    def _begin(self, now_s: float) -> None:
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

    def _preempt(self, sequence: EngineSequence) -> None:
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

    def _look_up(self, sequence: EngineSequence, tokens: int) -> None:
        """Take a prompt's blocks from the cache. The last token is always computed."""
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

    def _assign(self, sequence: EngineSequence, budget: int) -> int:
        sequence.chunk = min(sequence.to_prefill, budget)
        return sequence.chunk

    def _carry_out(self, span: _Span, steps: int, end_s: float) -> None:
        """Take the first ``steps`` steps of a span, which end at ``end_s``."""
        if not steps:
            return
        decoding = self._decoding
        self._account(end_s)
        self.counts.steps += steps
        self.counts.generation_tokens += decoding * steps
        idle_s = 0.0
        if not span.full:  # a full batch shares the fixed cost of a step among more sequences
            free_share = max(0.0, 1 - len(self._running) / self.model.max_num_seqs)
            idle_s = steps * self.model.base_s * self.model.slowdown * free_share
        timeline = self.timeline
        timeline.spread(timeline.saturation, end_s - span.start_s - idle_s, span.start_s, end_s)
        timeline.spread(timeline.tokens, decoding * steps, span.start_s, end_s)
        self._pool.take(self._growth.within(self._steps, steps))
        self._steps += steps
        self._context_tokens += decoding * steps
        while self._ends and self._ends[0][0] <= self._steps:
            at, _, sequence = heapq.heappop(self._ends)
            if sequence.decoding and sequence.ends_at == at:
                self._end(sequence, end_s)
        for sequence in tuple(self._prefilling):
            self._prefilled(sequence, span.start_s, end_s)

    def _prefilled(self, sequence: EngineSequence, start_s: float, end_s: float) -> None:
        """Prefill one chunk of a prompt. Its last chunk gives the first output token in the same step."""
        sequence.to_prefill -= sequence.chunk
        if sequence.to_prefill:
            return
        del self._prefilling[sequence]
        cached = sequence.prompt_tokens + sequence.generated
        sequence.generated += 1
        self.counts.generation_tokens += 1
        self.timeline.spread(self.timeline.tokens, 1, start_s, end_s)
        if sequence.first_token_s is None:
            sequence.first_token_s = end_s
            self.counts.prompt_tokens += sequence.prompt_tokens
        sequence.decoding = True
        sequence.offset = cached - self._steps
        sequence.ends_at = self._steps + sequence.output_tokens - sequence.generated
        self._context_tokens += cached
        self._growth.add(sequence.offset)
        if sequence.ends_at == self._steps:
            self._end(sequence, end_s)
        else:
            self._tie += 1
            heapq.heappush(self._ends, (sequence.ends_at, self._tie, sequence))

    def _end(self, sequence: EngineSequence, now_s: float) -> None:
        sequence.ended_s = now_s
        self._leave(sequence)
        self._on_end(sequence)

    def _leave(self, sequence: EngineSequence) -> None:
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

    def _private_blocks(self, sequence: EngineSequence, tokens: int) -> int:
        shared = max(len(sequence.hashes), sequence.cached_tokens // self.model.block_tokens)
        return max(0, self.model.blocks(tokens) - shared)

    def _lasts_s(self, steps: int, prefill_tokens: int = 0) -> float:
        return self.model.steps_s(steps, prefill_tokens, self._decoding, self._context_tokens)

    def _steps_within(self, span: _Span, elapsed_s: float) -> int:
        """Return how many of a decoding span's steps, except its last, are over."""
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
        """Count the time since the last call, in which running and waiting did not change."""
        timeline = self.timeline
        timeline.reach(now_s, self.model.max_num_seqs)
        before_s, lasted_s = self._accounted_s, now_s - self._accounted_s
        if lasted_s <= 0:
            return
        self._accounted_s = now_s
        running_s = len(self._running) * lasted_s
        self.counts.busy_s += running_s
        timeline.spread(timeline.running, running_s, before_s, now_s)
        timeline.spread(timeline.waiting, len(self._waiting) * lasted_s, before_s, now_s)


def block_hashes(text: str, characters: int) -> tuple[int, ...]:
    """Return a number for each whole block of ``characters``. Equal numbers mean equal texts up to the block's end.

    The numbers are valid within one process. Two texts collide with a probability of about 2**-61.
    """
    hashes, chain = [], 0
    for end in range(characters, len(text) + 1, characters):
        chain = hash((chain, text[end - characters : end]))
        hashes.append(chain)
    return tuple(hashes)


class BlockPool:
    """vLLM's block pool and prefix cache: ``total`` blocks of which no more than that are held.

    Private blocks are only counted. Blocks of prompts are known by hash and shared by reference count. A block without
    a holder stays in the cache until others need its room. The least recently used block is evicted first.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0  # private blocks and held blocks of prompts
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # without a holder; the least recently used first

    @property
    def free(self) -> int:
        """Empty blocks and those without a holder. Below 0 after `total` was lowered."""
        return self.total - self.used

    def known(self, hashes: Sequence[int]) -> int:
        """Return how many of the first blocks are in the cache."""
        holders, idle = self._holders, self._idle
        for count, block in enumerate(hashes):
            if block not in holders and block not in idle:
                return count
        return len(hashes)

    def unheld(self, hashes: Sequence[int]) -> int:
        """Return how many blocks `hold` of these would take from the free ones."""
        holders = self._holders
        return sum(block not in holders for block in hashes)

    def hold(self, hashes: Sequence[int]) -> None:
        """Share or fill these blocks. The caller checks that `free` suffices."""
        holders, idle = self._holders, self._idle
        for block in hashes:
            count = holders.get(block, 0)
            holders[block] = count + 1
            if not count:
                self.used += 1
                idle.pop(block, None)
        self._evict()

    def release(self, hashes: Sequence[int]) -> None:
        """Release held blocks. The last block of a prompt is evicted first."""
        holders, idle = self._holders, self._idle
        for block in reversed(hashes):
            count = holders[block] - 1
            if count:
                holders[block] = count
            else:
                del holders[block]
                idle[block] = None
                self.used -= 1

    def take(self, blocks: int) -> None:
        """Take private blocks, or return them if ``blocks`` is negative."""
        self.used += blocks
        if blocks > 0:
            self._evict()

    def _evict(self) -> None:
        while self._idle and len(self._idle) > self.total - self.used:
            self._idle.popitem(last=False)


class BlockGrowth:
    """When decoding sequences need their next block, without a look at each of them.

    A sequence gains one token a step, so it needs a block every ``block_tokens`` steps, always at the same remainder.
    Its offset identifies it: offset + number of steps so far = its tokens in the cache.
    """

    def __init__(self, block_tokens: int) -> None:
        self._period = block_tokens
        self._needs = [0] * block_tokens
        self._sequences = 0

    def add(self, offset: int) -> None:
        """Count a sequence that begins to decode."""
        self._needs[-offset % self._period] += 1
        self._sequences += 1

    def drop(self, offset: int) -> None:
        """Remove a sequence that stops decoding."""
        self._needs[-offset % self._period] -= 1
        self._sequences -= 1

    def at(self, step: int) -> int:
        """Return the blocks needed in a step."""
        return self._needs[step % self._period]

    def within(self, step: int, steps: int) -> int:
        """Return the blocks needed in ``steps`` steps from ``step`` on."""
        rounds, rest = divmod(steps, self._period)
        return rounds * self._sequences + sum(self.at(step + i) for i in range(rest))

    def steps_for(self, step: int, free: int) -> int:
        """Return for how many steps from ``step`` on ``free`` blocks suffice: at least 1; needs a sequence."""
        rounds, free = divmod(max(0, free), self._sequences)
        steps = rounds * self._period
        for i in range(self._period):
            free -= self.at(step + i)
            if free < 0:
                break
            steps += 1
        return max(1, steps)


WARM_ROUNDS = 3
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Lengths:
    """One sequence's tokens: in the prompt, of those in the prefix cache, and in the output."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def ideal_tokens_per_s(model: EngineModel, lengths: Iterable[Lengths]) -> float:
    """Return the output tokens per simulated second of an engine whose queue is never empty.

    It is the ceiling that a client is measured against: the same model, fed with the same lengths. The lengths repeat
    in order until the batch has turned over at least `ROUNDS` times and each was used once. The first `WARM_ROUNDS` do
    not count. Cached tokens cost nothing and need no blocks.

    :raises ValueError: when there are no lengths.
    """
    known = list(lengths)
    if not known:
        raise ValueError("an ideal needs lengths")
    ended: list[EngineSequence] = []
    batch, endless, now_s = Batch(model, ended.append), cycle(known), 0.0
    warm = WARM_ROUNDS * model.max_num_seqs
    wanted = max(ROUNDS * model.max_num_seqs, warm + len(known))
    from_s, before = 0.0, 0
    while len(ended) < wanted:
        missing = 2 * model.max_num_seqs - batch.waiting
        more = (next(endless) for _ in range(missing))
        batch.add([EngineSequence(one.prompt_tokens, one.output_tokens, (), one.cached_tokens) for one in more], now_s)
        now_s = batch.next_change_s() or now_s
        batch.advance(now_s)
        if not before and len(ended) >= warm:
            from_s, before = now_s, batch.counts.generation_tokens
    return (batch.counts.generation_tokens - before) / (now_s - from_s)
