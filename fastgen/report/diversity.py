"""How varied texts are, by three measures that look at different things; all are of a stated sample.

- distinct-n: distinct n-grams by all n-grams (Li et al., "A Diversity-Promoting Objective Function for Neural
  Conversation Models", NAACL 2016). It falls as text grows, so two sets compare only at the same number of words.
- compression ratio: bytes by zlib-compressed bytes of the texts one after the other; higher is more repetitive (Shaib
  et al., "Standardizing the Measurement of Text Diversity", 2024).
- self-BLEU: the mean BLEU-4 of each text with all others as references; higher is more alike (Zhu et al., "Texygen",
  SIGIR 2018). BLEU as in Papineni et al., ACL 2002, with add-one smoothing for n > 1 (Lin and Och, COLING 2004).

Words are the similarity filter's tokens. Pure.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean
from typing import Final

from fastgen.method.rouge import tokenise

SELF_BLEU_TEXTS: Final = 1_000
_ORDERS: Final = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Diversity:
    """Measures of ``texts`` texts with ``words`` words; ``None``: too little text for it."""

    texts: int
    words: int
    distinct: tuple[float | None, float | None, float | None]
    compression_ratio: float | None
    self_bleu: float | None
    self_bleu_texts: int


def measure(texts: Sequence[str], seed: int = 0) -> Diversity:
    """All three; self-BLEU of at most `SELF_BLEU_TEXTS` texts, drawn with ``seed``."""
    tokens = [tokenise(text) for text in texts]
    drawn = tokens if len(tokens) <= SELF_BLEU_TEXTS else random.Random(seed).sample(tokens, SELF_BLEU_TEXTS)
    one, two, three = (distinct_n(tokens, n) for n in (1, 2, 3))
    return Diversity(
        texts=len(texts),
        words=sum(map(len, tokens)),
        distinct=(one, two, three),
        compression_ratio=compression_ratio(texts),
        self_bleu=self_bleu(drawn),
        self_bleu_texts=len(drawn),
    )


def of_words(texts: Iterable[str], words: int) -> list[str]:
    """The first texts that together have at least ``words`` words, or all: for comparing sets of unlike sizes."""
    taken: list[str] = []
    for text in texts:
        if words <= 0:
            break
        taken.append(text)
        words -= len(tokenise(text))
    return taken


def distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams by n-grams, 0..1; no n-gram spans two texts; ``None``: there is none."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for tokens in texts:
        grams = _ngrams(tokens, n)
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else None


def compression_ratio(texts: Iterable[str]) -> float | None:
    """Bytes by compressed bytes of the texts, a line each; above 1 where there is repetition; ``None``: no text."""
    data = "\n".join(texts).encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 (0..1) of each text against all others; ``None``: fewer than two texts with words.

    One pass for all: for each n-gram the two highest counts in a text are kept, so the highest in *another* text is
    known without comparing pairs.
    """
    texts = [tokens for tokens in texts if tokens]
    if len(texts) < 2:  # noqa: PLR2004 - a text and another
        return None
    counts = [[Counter(_ngrams(tokens, n)) for n in _ORDERS] for tokens in texts]
    highest = [_two_highest(count[n - 1] for count in counts) for n in _ORDERS]
    lengths = sorted(map(len, texts))
    return fmean(_bleu(count, highest, _closest(lengths, sum(count[0].values()))) for count in counts)


def _bleu(counts: Sequence[Counter[tuple[str, ...]]], highest: Sequence[_Highest], reference_length: int) -> float:
    precisions: list[float] = []
    for n, (own, most) in enumerate(zip(counts, highest, strict=True), 1):
        total = own.total()
        matched = sum(min(count, _in_another(most[gram], count)) for gram, count in own.items())
        smooth = n > 1
        precisions.append((matched + smooth) / (total + smooth) if total + smooth else 0.0)
    if not all(precisions):
        return 0.0
    length = counts[0].total()
    brevity = 1.0 if length > reference_length else exp(1 - reference_length / length)
    return brevity * exp(fmean(map(log, precisions)))


_Highest = dict[tuple[str, ...], tuple[int, int]]


def _two_highest(counts: Iterable[Counter[tuple[str, ...]]]) -> _Highest:
    most: _Highest = {}
    for counter in counts:
        for gram, count in counter.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (count, first) if count > first else (first, max(second, count))
    return most


def _in_another(highest: tuple[int, int], own: int) -> int:
    """The most that the n-gram occurs in any text but the one that has it ``own`` times."""
    return highest[1] if own == highest[0] else highest[0]


def _closest(lengths: Sequence[int], own: int) -> int:
    """The length nearest to ``own`` (the shorter of two) among the others' lengths."""
    place = bisect_left(lengths, own)
    others = [*lengths[max(0, place - 1) : place], *lengths[place + 1 : place + 2]]
    return min(others, key=lambda length: (abs(length - own), length))


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
