"""The model of continuous batching: held against a naive one that takes every step of every sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.simulator.batching import (
    ENGINES,
    Batch,
    BlockPool,
    EngineModel,
    EngineSequence,
    Lengths,
    block_hashes,
    ideal_tokens_per_s,
)

SMALL = EngineModel(
    max_num_seqs=4,
    max_num_batched_tokens=16,
    kv_blocks=12,
    block_tokens=4,
    max_model_len=40,
    base_s=1.0,
    prefill_s_per_token=0.1,
    decode_s_per_sequence=0.01,
    attention_s_per_token=0.001,
)


def ended(batch: Batch) -> list[EngineSequence]:
    """Run to the end; return what ended, in order."""
    while (change_s := batch.next_change_s()) is not None:
        batch.advance(change_s)
    return collected


collected: list[EngineSequence] = []


def new_batch(model: EngineModel = SMALL) -> Batch:
    collected.clear()
    return Batch(model, collected.append)


# -- the naive model ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Naive:
    """One sequence, with everything counted anew in every step."""

    number: int
    arrives_s: float
    prompt: int
    output: int
    hashes: tuple[int, ...]
    generated: int = 0
    computed: int = 0  # tokens in the cache


class NaiveEngine:
    """Steps through time; blocks are counted from scratch in every step."""

    def __init__(self, model: EngineModel, sequences: list[Naive]) -> None:
        self.model = model
        self.coming = sorted(sequences, key=lambda one: one.arrives_s)
        self.waiting: list[Naive] = []
        self.running: list[Naive] = []
        self.target: dict[Naive, int] = {}  # tokens to compute before it decodes
        self.blocks: dict[Naive, int] = {}
        self.known: list[int] = []  # hashes in the cache, the least recently let go first
        self.preemptions = 0
        self.ends: dict[int, float] = {}

    def used(self) -> int:
        held = {block for one in self.running for block in one.hashes}
        return len(held) + sum(self.blocks[one] for one in self.running)

    def evict(self) -> None:
        held = {block for one in self.running for block in one.hashes}
        idle = [block for block in self.known if block not in held]
        for block in idle[: max(0, len(idle) - (self.model.kv_blocks - self.used()))]:
            self.known.remove(block)

    def let_go(self, one: Naive) -> None:
        self.running.remove(one)
        still = {block for other in self.running for block in other.hashes}
        for block in reversed(one.hashes):
            if block not in still:
                self.known.remove(block)
                self.known.append(block)

    def run(self) -> None:
        now_s = 0.0
        while self.coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                now_s = max(now_s, self.coming[0].arrives_s)
                self.waiting.append(self.coming.pop(0))
            now_s += self.step(now_s)
            while self.coming and self.coming[0].arrives_s < now_s:
                self.waiting.append(self.coming.pop(0))

    def step(self, now_s: float) -> float:
        model = self.model
        decoding = [one for one in self.running if one not in self.target]
        preempted = False
        while self.running and self.need() > model.kv_blocks - self.used():
            youngest = self.running[-1]
            self.let_go(youngest)
            self.target.pop(youngest, None)
            youngest.computed = 0
            self.waiting.insert(0, youngest)
            self.preemptions += 1
            preempted = True
        decoding = [one for one in self.running if one not in self.target]
        budget = model.max_num_batched_tokens - len(decoding)
        chunks: dict[Naive, int] = {}
        for one in self.target:
            chunks[one] = min(budget, self.target[one] - one.computed)
            budget -= chunks[one]
        while not preempted and self.waiting and budget > 0 and len(self.running) < model.max_num_seqs:
            one = self.waiting[0]
            tokens = one.prompt + one.generated
            held = {block for other in self.running for block in other.hashes}
            private = max(0, math.ceil(tokens / model.block_tokens) - len(one.hashes))
            if private + len(set(one.hashes) - held) > model.kv_blocks - self.used() - self.need():
                break
            self.waiting.pop(0)
            hits = 0
            while hits < len(one.hashes) and one.hashes[hits] in self.known:
                hits += 1
            self.known += [block for block in one.hashes if block not in self.known]
            self.running.append(one)
            self.blocks[one] = private
            self.evict()
            one.computed = min(hits * model.block_tokens, tokens - 1)
            self.target[one] = tokens
            chunks[one] = min(budget, tokens - one.computed)
            budget -= chunks[one]
        context = sum(one.computed for one in decoding)
        lasts_s = (
            model.base_s
            + sum(chunks.values()) * model.prefill_s_per_token
            + len(decoding) * model.decode_s_per_sequence
            + context * model.attention_s_per_token
        ) * model.slowdown
        for one in decoding:
            self.blocks[one] += one.computed % model.block_tokens == 0
            one.computed += 1
            one.generated += 1
        self.evict()
        over = [one for one in decoding if one.generated == one.output]
        for one, chunk in chunks.items():
            one.computed += chunk
            if one.computed == self.target[one]:
                del self.target[one]
                one.generated += 1
                over += [one] if one.generated == one.output else []
        for one in sorted(over, key=lambda done: done not in decoding):
            self.let_go(one)
            self.ends[one.number] = now_s + lasts_s
        return lasts_s

    def need(self) -> int:
        decoding = [one for one in self.running if one not in self.target]
        return sum(one.computed % self.model.block_tokens == 0 for one in decoding)


HEADS = ("", "a" * 4, "a" * 8, "b" * 8, "a" * 4 + "c" * 8)
work = st.tuples(
    st.floats(0.01, 30.0), st.sampled_from(HEADS), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8)
)


@given(
    asked=st.lists(work, min_size=1, max_size=14, unique_by=lambda one: one[0]),
    blocks=st.sampled_from([10, 12, 16, 1000]),
    looks=st.lists(st.floats(0.0, 60.0), max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_every_sequence_ends_when_a_model_that_takes_every_step_says_so(
    asked: list[tuple[float, str, int, int, int]], blocks: int, looks: list[float]
) -> None:
    model = replace(SMALL, kv_blocks=blocks, max_model_len=40)
    naive, events = [], []
    for number, (arrives_s, head, rest, output, tail) in enumerate(asked):
        text = head + chr(200 + tail) * rest
        hashes = block_hashes(text, model.block_tokens)
        naive.append(Naive(number, arrives_s, len(text), output, hashes))
        events.append((arrives_s, EngineSequence(len(text), output, hashes)))
    oracle = NaiveEngine(model, naive)
    oracle.run()
    batch = new_batch(model)
    sequences = [sequence for _, sequence in events]
    for at_s, sequence in sorted([*events, *((look_s, None) for look_s in looks)], key=lambda event: event[0]):
        if sequence is None:
            batch.settle(at_s)  # a look must change nothing
        else:
            batch.add([sequence], at_s)
    ended(batch)
    assert [sequence.ended_s for sequence in sequences] == pytest.approx([oracle.ends[i] for i in range(len(asked))])
    assert batch.counts.preemptions == oracle.preemptions
    assert batch.counts.generation_tokens == sum(sequence.output_tokens for sequence in sequences)
    assert sum(batch.timeline.tokens) == pytest.approx(batch.counts.generation_tokens)
    assert (batch.running, batch.waiting, batch.kv_cache_usage) == (0, 0, 0.0)


# -- rules one by one --------------------------------------------------------------------------------------------------


def test_one_sequence_costs_a_prefill_step_and_a_step_for_each_further_token() -> None:
    batch = new_batch()
    batch.add([EngineSequence(8, 3)], 5.0)
    (only,) = ended(batch)
    assert only.first_token_s == pytest.approx(5.0 + 1.0 + 8 * 0.1)
    assert only.ended_s == pytest.approx(6.8 + 2 * (1.0 + 0.01) + (8 + 9) * 0.001)


def test_a_prompt_beyond_the_token_budget_is_prefilled_in_chunks_with_the_decoding_ones() -> None:
    batch = new_batch()
    batch.add([EngineSequence(1, 20)], 0.0)
    batch.advance(1.1)
    batch.add([EngineSequence(31, 1)], 1.2)
    first, second = sorted(ended(batch), key=lambda one: one.output_tokens)
    assert batch.counts.steps == 20  # the long prompt took three of them, in which the other got its tokens too
    assert first.admitted_s == pytest.approx(1.1 + 1.011)
    assert first.ended_s is not None
    assert first.ended_s == pytest.approx(2.111 + 3 * 1.01 + 3.1 + (2 + 3 + 4) * 0.001)
    assert second.ended_s is not None
    assert second.ended_s > first.ended_s


def test_the_queue_is_served_in_order_of_arrival_as_seats_become_free() -> None:
    batch = new_batch(replace(SMALL, kv_blocks=100))
    batch.add([EngineSequence(1, 2 + number) for number in range(6)], 0.0)
    assert (batch.running, batch.waiting) == (4, 2)
    assert [one.output_tokens for one in ended(batch)] == [2, 3, 4, 5, 6, 7]


def test_the_youngest_is_preempted_when_the_cache_is_full_and_computed_again() -> None:
    batch = new_batch(replace(SMALL, kv_blocks=10, max_num_seqs=2))
    old, young = EngineSequence(12, 20), EngineSequence(12, 20)
    batch.add([old, young], 0.0)
    assert ended(batch) == [old, young]
    assert batch.counts.preemptions == 1
    assert batch.counts.recomputed_tokens > 12
    assert batch.counts.prompt_tokens == 24  # a prompt counts once
    assert batch.counts.generation_tokens == 40


def test_a_prompt_that_does_not_fit_with_the_others_waits() -> None:
    batch = new_batch(replace(SMALL, max_num_batched_tokens=100))
    batch.add([EngineSequence(32, 2), EngineSequence(20, 2), EngineSequence(1, 2)], 0.0)
    assert (batch.running, batch.waiting) == (1, 2)  # nor does a later one that would fit go first
    assert [one.prompt_tokens for one in ended(batch)] == [32, 20, 1]


def test_a_removed_sequence_frees_its_seat_and_its_blocks() -> None:
    batch = new_batch(replace(SMALL, max_num_seqs=1))
    running, waiting, other = EngineSequence(8, 10), EngineSequence(8, 10), EngineSequence(4, 1)
    batch.add([running, waiting, other], 0.0)
    batch.remove(running, 3.0)
    batch.remove(waiting, 3.0)
    batch.remove(EngineSequence(1, 1), 3.0)
    assert batch.kv_cache_usage == 0.0
    assert ended(batch) == [other]


def test_a_sequence_that_could_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len 40"):
        new_batch().add([EngineSequence(39, 2)], 0.0)


def test_slower_steps_begin_after_the_one_in_progress() -> None:
    batch = new_batch()
    batch.add([EngineSequence(8, 2)], 0.0)
    batch.change(replace(SMALL, slowdown=3.0), 0.5)
    (only,) = ended(batch)
    assert only.first_token_s == pytest.approx(1.8)
    assert only.ended_s == pytest.approx(1.8 + 3 * (1.0 + 0.01 + 0.008))


def test_with_fewer_seats_running_sequences_finish_and_none_is_admitted_meanwhile() -> None:
    batch = new_batch(replace(SMALL, kv_blocks=100))
    batch.add([EngineSequence(1, 5) for _ in range(6)], 0.0)
    batch.change(batch.model.resized(max_num_seqs=1), 0.5)
    batch.settle(2.0)
    assert (batch.running, batch.waiting) == (4, 2)
    batch.settle(6.0)
    assert (batch.running, batch.waiting) == (1, 1)
    assert len(ended(batch)) == 6


def test_a_smaller_cache_preempts_until_what_runs_fits() -> None:
    batch = new_batch(replace(SMALL, kv_blocks=100))
    batch.add([EngineSequence(12, 20) for _ in range(4)], 0.0)
    batch.settle(9.0)
    batch.change(batch.model.resized(kv_blocks=10), 9.5)
    batch.settle(11.0)
    assert (batch.running, batch.waiting, batch.kv_cache_usage) == (2, 2, 0.8)  # of up to five blocks each
    assert len(ended(batch)) == 4


def test_a_thousand_sequences_of_ten_thousand_tokens_are_a_handful_of_events() -> None:
    model = EngineModel(max_num_seqs=1000, kv_blocks=10_000_000, max_model_len=20_000, max_num_batched_tokens=10_000)
    batch = new_batch(model)
    batch.add([EngineSequence(10, 10_000) for _ in range(1000)], 0.0)
    events = 0
    while (change_s := batch.next_change_s()) is not None:
        batch.advance(change_s)
        events += 1
    assert (len(collected), batch.counts.steps, events) == (1000, 10_000, 2)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_prompt_that_begins_like_an_earlier_one_computes_only_the_rest() -> None:
    batch = new_batch()
    batch.add([EngineSequence(14, 1, block_hashes("abcdefgh1234xy", 4))], 0.0)
    ended(batch)
    second = EngineSequence(15, 1, block_hashes("abcdefgh5678xyz", 4))
    batch.add([second], 10.0)
    ended(batch)
    assert second.hit_tokens == 8
    assert second.ended_s == pytest.approx(10.0 + 1.0 + 7 * 0.1)
    assert (batch.counts.prefix_queries_tokens, batch.counts.prefix_hits_tokens) == (29, 8)


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token() -> None:
    batch = new_batch()
    batch.add(
        [EngineSequence(8, 1, block_hashes("abcdefgh", 4)), EngineSequence(8, 1, block_hashes("abcdefgh", 4))], 0.0
    )
    assert [one.hit_tokens for one in ended(batch)] == [0, 7]


def test_kept_blocks_make_room_for_others_the_least_recently_used_first() -> None:
    pool = BlockPool(4)
    pool.hold((1, 2))
    pool.release((1, 2))
    pool.hold((3,))
    pool.release((3,))
    assert (pool.used, pool.free, pool.known((1, 2)), pool.known((3,))) == (0, 4, 2, 1)
    pool.take(2)
    assert pool.known((1, 2)) == 1  # a prompt's end goes before its beginning
    pool.hold((1,))
    pool.take(1)
    assert (pool.used, pool.known((3,)), pool.known((1,))) == (4, 0, 1)


def test_held_blocks_are_shared_and_free_only_without_a_holder() -> None:
    pool = BlockPool(10)
    pool.hold((1, 2))
    pool.hold((1, 3))
    assert (pool.used, pool.unheld((1, 2, 4))) == (3, 1)
    pool.release((1, 2))
    assert pool.used == 2
    pool.release((1, 3))
    assert pool.used == 0


def test_hashes_are_equal_exactly_as_far_as_the_texts_are() -> None:
    one, other = block_hashes("abcdefghij", 2), block_hashes("abcdeXghij", 2)
    assert (len(one), one[:2] == other[:2]) == (5, True)
    assert not set(one[2:]) & set(other[2:])
    assert block_hashes("a", 2) == ()


# -- calibration and ideal ---------------------------------------------------------------------------------------------

MIX = (
    [Lengths(250, 128, 190), Lengths(250, 128, 210)]
    + [Lengths(650, 608, 1), Lengths(650, 608, 2)] * 6
    + [Lengths(725, 688, 60), Lengths(725, 688, 105)] * 5
    + [Lengths(1007, 960, 75)] * 3
)
"""About what Self-Instruct asks with the shipped prompts: instructions, classification, both kinds of instances."""


@pytest.mark.parametrize(("engine", "published"), [("h100-8b", 6390), ("h100-0.6b", 13_800)])
def test_the_gpu_engines_reach_what_is_published_for_them(engine: str, published: float) -> None:
    assert ideal_tokens_per_s(ENGINES[engine], MIX) == pytest.approx(published, rel=0.08)


@pytest.mark.parametrize(("in_flight", "measured"), [(1, 27), (8, 97), (32, 123), (64, 132)])
def test_the_cpu_engine_does_what_was_measured_at_every_concurrency(in_flight: int, measured: float) -> None:
    batch = new_batch(ENGINES["cpu-135m"])
    batch.add([EngineSequence(207, 64) for _ in range(in_flight)], 0.0)
    added, now_s = in_flight, 0.0
    while len(collected) < 8 * in_flight:
        now_s = batch.next_change_s() or now_s
        batch.advance(now_s)
        more = min(len(collected) + in_flight, 8 * in_flight) - added
        batch.add([EngineSequence(207, 64) for _ in range(more)], now_s)
        added += more
    assert batch.counts.generation_tokens / now_s == pytest.approx(measured, rel=0.055)


def test_the_ideal_of_equal_sequences_is_what_arithmetic_says() -> None:
    model = replace(SMALL, kv_blocks=1000, max_num_seqs=4, attention_s_per_token=0.0, max_num_batched_tokens=1000)
    lengths = [Lengths(10, 6, 5)]
    per_round_s = (1.0 + 4 * 4 * 0.1) + 4 * (1.0 + 4 * 0.01)  # four prompts' rest together, then four steps
    assert ideal_tokens_per_s(model, lengths) == pytest.approx(20 / per_round_s)
    with pytest.raises(ValueError, match="lengths"):
        ideal_tokens_per_s(model, [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"max_num_batched_tokens": 3}, "--max-num-batched-tokens"),
        ({"kv_blocks": 9}, "--kv-blocks"),
        ({"base_s": 0.0}, "base_s"),
        ({"slowdown": math.inf}, "slowdown"),
        ({"prefill_s_per_token": -1.0}, "prefill_s_per_token"),
    ],
)
def test_an_engine_that_could_not_be_is_refused_in_one_line(change: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        replace(SMALL, **change)  # type: ignore[arg-type]  # any field
    assert "\n" not in str(error.value)
