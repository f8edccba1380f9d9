"""Bounded summaries of a stream: a uniform sample and a distribution of counts. Memory stays bounded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, log, log1p
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SampleSizes:
    """How much is sampled: complete instructions and rejected ones to browse, instructions to measure."""

    kept: int = 2_000
    rejected: int = 500
    measured: int = 5_000


class Reservoir(Generic[T]):
    """A uniform sample of at most ``size`` (at least 0) of what was added, the same for the same seed and order.

    Source: algorithm L of Li, "Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))", 1994: it draws a
    number only for what it takes in, so a long stream costs a comparison for each thing that it passes over.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = random.Random(seed)
        self._items: list[tuple[int, T]] = []
        self.seen = 0
        self._weight = 1.0
        self._next = size

    def add(self, item: T) -> None:
        """Take one more thing into account."""
        if len(self._items) < self._size:
            self._items.append((self.seen, item))
            if len(self._items) == self._size:
                self._skip()
        elif self._size and self.seen == self._next:
            self._items[self._random.randrange(self._size)] = (self.seen, item)
            self._skip()
        self.seen += 1

    def __iter__(self) -> Iterator[T]:
        """The sample in the order of the stream."""
        return (item for _, item in sorted(self._items, key=lambda pair: pair[0]))

    def __len__(self) -> int:
        return len(self._items)

    def _skip(self) -> None:
        """Draw which of the coming things is the next to be taken in; called while ``seen`` is the present one."""
        self._weight *= (1.0 - self._random.random()) ** (1.0 / self._size)
        passed = log(1.0 - self._random.random()) / log1p(-self._weight) if self._weight < 1.0 else 0.0
        self._next = self.seen + floor(passed) + 1


class Spread:
    """How whole numbers (0 or more) are distributed: exact counts up to ``cap``, one count for all above."""

    def __init__(self, cap: int = 2_000) -> None:
        self._cap = cap
        self.counts: Counter[int] = Counter()
        self.total = 0
        self._sum = 0
        self.highest = 0

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[min(value, self._cap)] += 1
        self.total += 1
        self._sum += value
        self.highest = max(self.highest, value)

    @property
    def mean(self) -> float:
        """Exact, also of values above the cap; 0 where there are none."""
        return self._sum / self.total if self.total else 0.0

    def quantile(self, share: float) -> int:
        """The smallest value that ``share`` (0..1) of all are not above (at most the cap); 0: there is none."""
        reached = 0
        for value in sorted(self.counts):
            reached += self.counts[value]
            if reached >= share * self.total:
                return value
        return 0

    def bins(self, width: int, bins: int) -> list[int]:
        """Counts of ``bins`` ranges of ``width`` values each from 0; the last has everything above too."""
        found = [0] * bins
        for value, count in self.counts.items():
            found[min(value // width, bins - 1)] += count
        return found
