"""The most similar text of a large set for each of a few: exact, since every pair is a candidate.

ROUGE-L F1 without stemming, as in the similarity filter, whose full scan this uses: a pair is skipped only where the
lengths or the words leave no room for a score above the lowest best one so far. Memory is bounded by a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_TEXTS = 65_536
_LOWEST = 1e-9  # a threshold that any common word exceeds


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best ROUGE-L F1 (0..1) and the first text that has it; ``None`` where no text shares a word."""

    rouge_l: float = 0.0
    text: str | None = None


class NearestSearch:
    """Finds for each query the nearest of all the texts that were given to `meet`."""

    def __init__(self, queries: Sequence[str]) -> None:
        self._queries = list(queries)
        self._best = [Nearest() for _ in queries]
        self._waiting: list[str] = []

    def meet(self, text: str) -> None:
        """Compare one more text (later, with others)."""
        self._waiting.append(text)
        if len(self._waiting) >= CHUNK_TEXTS:
            self._compare()

    def found(self) -> tuple[Nearest, ...]:
        """The nearest so far, in the order of the queries."""
        self._compare()
        return tuple(self._best)

    def _compare(self) -> None:
        from fastgen.method.novelty import NoveltyFilter

        texts, self._waiting = self._waiting, []
        if not texts or not self._queries:
            return
        lowest = max(_LOWEST, min(best.rouge_l for best in self._best))
        scan = NoveltyFilter(threshold=lowest, index="exhaustive")
        scan.add(texts)
        for place, verdict in enumerate(scan.look_up(self._queries)):
            if verdict.neighbour is not None and verdict.score > self._best[place].rouge_l:
                self._best[place] = Nearest(verdict.score, texts[verdict.neighbour])
