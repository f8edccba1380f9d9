"""Demonstrations: how many, whose, keyed how, and what each policy favours."""

from __future__ import annotations

import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.methods.demonstrations import CANDIDATES, Demonstrations, Policy

POLICIES = get_args(Policy)
SEEDS = 20
WORDS = tuple("ABCDEFGHIJKLMNO")


def text(index: int) -> str:
    return " ".join(random.Random(index).sample(WORDS, 6))


def make(policy: Policy, *, run_seed: int = 0) -> Demonstrations:
    return Demonstrations(policy, seeds=range(SEEDS), first_machine=SEEDS, text=text, run_seed=run_seed)


@given(st.sampled_from(POLICIES), st.integers(0, 10**9), st.integers(1, 30), st.integers(0, 8), st.integers(0, 200))
def test_a_draw_has_the_wanted_numbers_of_seeds_and_machine_instructions_without_repetition(
    policy: Policy, number: int, count: int, machine: int, made: int
) -> None:
    machine = min(machine, count)
    drawn = make(policy).draw(number, count=count, machine=machine, made=made)
    of_the_machine = [index for index in drawn if index >= SEEDS]
    assert len(set(drawn)) == len(drawn)
    assert len(of_the_machine) == min(machine, made)
    assert all(index < SEEDS + made for index in drawn)
    assert len(drawn) == len(of_the_machine) + min(count - len(of_the_machine), SEEDS)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_draw_is_keyed_by_run_seed_and_request_number(policy: Policy) -> None:
    draws = [make(policy).draw(number, count=8, machine=2, made=50) for number in range(10)]
    again = [make(policy).draw(number, count=8, machine=2, made=50) for number in range(10)]
    other = [make(policy, run_seed=1).draw(number, count=8, machine=2, made=50) for number in range(10)]
    assert draws == again
    assert len(set(draws)) == 10
    assert draws != other


@pytest.mark.parametrize("policy", POLICIES)
def test_machine_instructions_are_shown_at_every_position(policy: Policy) -> None:
    drawer = make(policy)
    draws = [drawer.draw(number, count=8, machine=2, made=50) for number in range(100)]
    assert {place for drawn in draws for place, index in enumerate(drawn) if index >= SEEDS} == set(range(8))


def test_uniform_draws_have_not_changed() -> None:
    rng = random.Random("3/7")
    expected = rng.sample(range(SEEDS), 6) + [SEEDS + number for number in rng.sample(range(50), 2)]
    rng.shuffle(expected)
    assert make("uniform", run_seed=3).draw(7, count=8, machine=2, made=50) == tuple(expected)


def shown(policy: Policy, requests: int = 400, made: int = 200) -> Counter[int]:
    """How often each machine instruction is shown in a run whose pool does not grow."""
    drawer, times = make(policy), Counter[int](dict.fromkeys(range(SEEDS, SEEDS + made), 0))
    for number in range(requests):
        drawn = drawer.draw(number, count=8, machine=2, made=made)
        drawer.see(drawn)
        times.update(index for index in drawn if index >= SEEDS)
    return times


def test_the_least_used_are_shown_about_equally_often() -> None:
    even, uneven = shown("least-used"), shown("uniform")
    assert even.total() == uneven.total() == 800
    assert max(even.values()) - min(even.values()) <= 3
    assert max(uneven.values()) - min(uneven.values()) >= 8


def test_an_instruction_that_was_just_made_is_the_least_used() -> None:
    drawer = make("least-used")
    for _ in range(5):
        drawer.see(range(SEEDS, SEEDS + CANDIDATES * 2 - 1))
    newest = SEEDS + CANDIDATES * 2 - 1
    assert all(newest in drawer.draw(number, count=8, machine=2, made=CANDIDATES * 2) for number in range(20))
    assert drawer.times_shown(newest) == 0
    assert drawer.times_shown(SEEDS) == 5


def likeness(policy: Policy) -> float:
    """Words that demonstrations of one prompt share, on average over pairs."""
    drawer, shared = make(policy), 0
    for number in range(50):
        drawn = [set(text(index).split()) for index in drawer.draw(number, count=4, machine=2, made=200)]
        shared += sum(len(one & other) for i, one in enumerate(drawn) for other in drawn[:i])
    return shared / (50 * 6)


def test_diverse_demonstrations_share_fewer_words() -> None:
    assert likeness("uniform") > 2.0
    assert likeness("diverse") < 0.85 * likeness("uniform")


def test_texts_without_a_word_are_drawn_like_others() -> None:
    drawer = Demonstrations("diverse", seeds=range(8), first_machine=8, text=lambda _: "?!", run_seed=0)
    assert sorted(drawer.draw(0, count=8, machine=0, made=0)) == [*range(8)]


def test_a_draw_looks_at_the_same_number_of_texts_in_any_pool() -> None:
    looked: list[int] = []

    def text_of(index: int) -> str:
        looked.append(index)
        return text(index)

    seen = []
    for made in (100, 1_000_000):
        looked.clear()
        drawer = Demonstrations("diverse", seeds=range(175), first_machine=175, text=text_of)
        drawer.draw(1, count=8, machine=2, made=made)
        seen.append(len(looked))
    assert seen[0] == seen[1] <= 2 * CANDIDATES * 8
