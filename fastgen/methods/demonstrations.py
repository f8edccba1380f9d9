"""Which instructions an instruction prompt shows: some seeds, some machine-generated ones, shuffled.

There are three policies, all keyed by (run seed, request number):

- ``uniform``: every seed is as likely as any other, and so is every machine instruction (Self-Instruct, Wang et al.,
  ACL 2023).
- ``least-used``: of `CANDIDATES` times as many, drawn uniformly, those that were shown least often.
- ``diverse``: of `CANDIDATES` times as many, drawn uniformly, those that have the fewest words in common with each
  other: the first at random, then always the one whose closest relative among those chosen is farthest (farthest-first
  traversal, Gonzalez 1985, on the Jaccard similarity of word sets).

A draw costs the same at every size of the pool. Counts of how often an instruction was shown come from committed
completions, so a resumed run has the counts of the run that it resumes.
"""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Literal

Policy = Literal["uniform", "least-used", "diverse"]

CANDIDATES = 4
"""Candidates for each instruction that is shown; more of them favour the extremes of a small pool over chance."""
_WORD = re.compile(r"\w+")


class Demonstrations:
    """Draws demonstrations and counts how often each was shown.

    ``seeds`` are the pool indexes of the seeds that may be shown, ``first_machine`` is the pool index of machine
    instruction 0, and ``text`` returns the instruction at a pool index.
    """

    def __init__(
        self, policy: Policy, *, seeds: Sequence[int], first_machine: int, text: Callable[[int], str], run_seed: int = 0
    ) -> None:
        self._choose = {"uniform": _any, "least-used": self._least_used, "diverse": self._diverse}[policy]
        self._counts = policy == "least-used"
        self._seeds = seeds
        self._first_machine = first_machine
        self._text = text
        self._run_seed = run_seed
        self._shown = array("I")  # by pool index, up to the last one that was shown
        self._seed_words: dict[int, frozenset[str]] = {}  # seeds are few and drawn often

    def draw(self, number: int, *, count: int, machine: int, made: int) -> tuple[int, ...]:
        """Return pool indexes for request ``number``: ``machine`` of the ``made`` machine instructions, else seeds.

        There are ``count`` of them, or fewer where the seeds do not suffice.
        """
        rng = random.Random(f"{self._run_seed}/{number}")
        machine = min(machine, made)
        drawn = self._choose(rng, self._seeds, min(count - machine, len(self._seeds)), [])
        drawn = self._choose(rng, range(self._first_machine, self._first_machine + made), machine, drawn)
        rng.shuffle(drawn)
        return tuple(drawn)

    def see(self, demonstrations: Sequence[int]) -> None:
        """Count one committed completion whose prompt showed these."""
        if not self._counts:
            return
        for index in demonstrations:
            if index >= len(self._shown):
                self._shown.extend([0] * (index + 1 - len(self._shown)))
            self._shown[index] += 1

    def times_shown(self, index: int) -> int:
        """Committed completions whose prompt showed this instruction (0 unless the policy is ``least-used``)."""
        return self._shown[index] if index < len(self._shown) else 0

    def counts(self) -> bytes:
        """How often each instruction was shown, as `restore_counts` takes it."""
        return self._shown.tobytes()

    def restore_counts(self, counts: bytes) -> None:
        """Restore what `counts` returned on a machine of the same byte order."""
        self._shown = array("I")
        self._shown.frombytes(counts)

    def _least_used(self, rng: random.Random, population: Sequence[int], count: int, drawn: list[int]) -> list[int]:
        return drawn + sorted(_candidates(rng, population, count), key=self.times_shown)[:count]

    def _diverse(self, rng: random.Random, population: Sequence[int], count: int, drawn: list[int]) -> list[int]:
        words = {index: self._words(index) for index in _candidates(rng, population, count)}
        before = [self._words(index) for index in drawn]
        nearest = {index: max((_jaccard(own, other) for other in before), default=0.0) for index, own in words.items()}
        for _ in range(count):
            chosen = min(nearest, key=nearest.__getitem__)  # the first drawn among equals
            del nearest[chosen]
            drawn = [*drawn, chosen]
            nearest = {index: max(near, _jaccard(words[index], words[chosen])) for index, near in nearest.items()}
        return drawn

    def _words(self, index: int) -> frozenset[str]:
        words = self._seed_words.get(index)
        if words is None:
            words = frozenset(_WORD.findall(self._text(index).lower()))
            if index < self._first_machine:
                self._seed_words[index] = words
        return words


def _any(rng: random.Random, population: Sequence[int], count: int, drawn: list[int]) -> list[int]:
    return drawn + rng.sample(population, count)


def _candidates(rng: random.Random, population: Sequence[int], count: int) -> list[int]:
    return rng.sample(population, min(CANDIDATES * count, len(population)))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / ((len(one) + len(other) - common) or 1)
