"""`Deduplicator`: the similarity filter for texts in memory, in a few lines of Python.

Guarantees: the decisions are those of ``fastgen dedup`` and ``fastgen generate`` under the same rule, in order. They do
not depend on how the texts are divided into calls.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from fastgen.errors import InputError
from fastgen.similarity.novelty import LSH_RECALL, IndexKind, NoveltyFilter
from fastgen.similarity.rouge import RejectAt, Tokenizer
from fastgen.store.tables import check_text

_BATCH_TEXTS = 256


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one text.

    ``number``: its place among all texts ever given, from 0. ``rouge_l``, ``neighbour``: ROUGE-L F1 (0..1) with the
    most similar earlier text that the check found, and that text's number. For a rejected text they are the reason. A
    kept text may have none (0.0, ``None``).
    """

    number: int
    text: str
    kept: bool
    rouge_l: float
    neighbour: int | None


class Deduplicator:
    """Keeps a text unless it is too similar to one kept before.

    >>> texts = ["Name three primary colours.", "Sort these words by length.", "Please name three primary colours."]
    >>> [decision.kept for decision in Deduplicator(threshold=0.7).filter(texts)]
    [True, True, False]

    `add` takes texts to compare with that are not decided themselves (a benchmark's tasks, another data set):

    >>> deduplicator = Deduplicator(index="exact")
    >>> deduplicator.add(["Translate the sentence into French."])
    >>> [(d.neighbour, round(d.rouge_l, 2)) for d in deduplicator.filter(["Translate the sentence into German."])]
    [(0, 0.8)]

    A text without a token is always kept. Memory grows by a few hundred bytes for each kept text. One thread at a time.

    :param threshold: 0 < t <= 1, compared with ROUGE-L F1. :param reject_at: ``gt`` rejects above the threshold,
        ``ge`` also at it. :param index: ``lsh`` never rejects wrongly and misses one in thousands of true duplicates
        (``lsh_recall``), ``exact`` misses none, ``exhaustive`` misses none at a cost linear in the kept texts.
    :param tokenizer: ``unicode`` for every script, ``rouge`` for rouge_score's ``[a-z0-9]+``.
    :raises InputError: a parameter is out of range or unknown.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.7,
        index: IndexKind = "lsh",
        tokenizer: Tokenizer = "unicode",
        reject_at: RejectAt = "gt",
        lsh_recall: float = LSH_RECALL,
    ) -> None:
        self._novelty = NoveltyFilter(
            threshold=threshold, reject_at=reject_at, tokenizer=tokenizer, index=index, lsh_recall=lsh_recall
        )
        self._numbers = array("q")  # by pool index
        self._given = 0

    def __len__(self) -> int:
        """Texts that a new one is compared with: those added and those kept."""
        return len(self._numbers)

    def add(self, texts: Iterable[str]) -> None:
        """Put texts in the pool without deciding about them.

        :raises InputError: one of them is not a ``str``, or has more than 4,000,000 characters.
        """
        for batch in self._batches(texts):
            self._novelty.add(batch)
            self._numbers.extend(range(self._given, self._given + len(batch)))
            self._given += len(batch)

    def filter(self, texts: Iterable[str]) -> Iterator[Decision]:
        """One decision per text, in order, as a stream. Reads up to 256 texts ahead of what it has yielded.

        Texts read ahead are decided and, if kept, in the pool, even if the iterator is closed before it yields them.

        :raises InputError: a text is not a ``str``, or has more than 4,000,000 characters.
        """
        for batch in self._batches(texts):
            yield from self._decide(batch)

    def _decide(self, batch: list[str]) -> list[Decision]:
        """Decide a whole batch before any of it is yielded, so that no other call can come in between."""
        decisions = []
        for text, verdict in zip(batch, self._novelty.filter(batch), strict=True):
            if verdict.novel:
                self._numbers.append(self._given)
            neighbour = None if verdict.neighbour is None else self._numbers[verdict.neighbour]
            decisions.append(Decision(self._given, text, verdict.novel, verdict.score, neighbour))
            self._given += 1
        return decisions

    def _batches(self, texts: Iterable[str]) -> Iterator[list[str]]:
        if isinstance(texts, str):
            raise InputError("a single text was given where several are expected: put it in a list")
        stream = iter(texts)
        while batch := list(islice(stream, _BATCH_TEXTS)):
            for place, text in enumerate(batch, start=self._given):
                check_text(text, f"text {place}")
            yield batch
