"""Which instances share a run of n words with the training text: the usual sign that a model has seen the test.

Words are compared lower-cased and without punctuation, as in the analyses that made it usual: Brown et al., "Language
Models are Few-Shot Learners", 2020, appendix C (13 words; any shared one counts), and Chowdhery et al., "PaLM", 2022,
section 8 (8 words). n-grams are compared by 64-bit hashes over an exact vocabulary (a chance match is about as likely
as 1 in 10^7 even for 10^12 compared pairs). Memory: 8 bytes for each word of the benchmark and n, whatever the training
text's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastgen.method.rouge import tokenise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

LENGTHS = (8, 13)
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that every place of an n-gram counts
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class NgramOverlap:
    """For one n: instances whose input has at least n words, and the names of those that share n in a row."""

    n: int
    long_enough: int
    shared: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the instances that are long enough, 0..1."""
        return len(self.shared) / self.long_enough if self.long_enough else 0.0


class NgramSearch:
    """The n-grams of texts to protect; show it the training text with `meet`, then ask `found`.

    ``texts``: (name, text), several of one name count as one.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], lengths: Sequence[int] = LENGTHS) -> None:
        import numpy as np

        self._vocabulary: dict[str, int] = {}
        named = [(name, self._encode_new(text)) for name, text in texts]
        self._targets = [_Targets(n, named) for n in lengths]
        self._separator = np.zeros(1, np.uint64)

    def meet(self, texts: Iterable[str]) -> None:
        """Look at training texts; a run of words never spans two of them. Give many at once."""
        import numpy as np

        known = self._vocabulary
        parts: list[Words] = []
        for text in texts:
            codes = [known.get(word, 0) for word in tokenise(text)]
            parts += [np.array(codes, np.uint64), self._separator]
        if parts:
            words = _spread(np.concatenate(parts))
            for targets in self._targets:
                targets.meet(words)

    def found(self) -> tuple[NgramOverlap, ...]:
        """What was met so far, for each n."""
        return tuple(targets.overlap() for targets in self._targets)

    def _encode_new(self, text: str) -> Words:
        import numpy as np

        known = self._vocabulary
        return _spread(np.array([known.setdefault(word, len(known) + 1) for word in tokenise(text)], np.uint64))


class _Targets:
    """The n-grams of one length, sorted, and which of them were met."""

    def __init__(self, n: int, named: Sequence[tuple[str, Words]]) -> None:
        import numpy as np

        self._n = n
        grams = [(name, _ngrams(words, n)) for name, words in named]
        self._names = [name for name, hashes in grams if hashes.size]
        self._of = [hashes for _, hashes in grams if hashes.size]
        self._sorted = np.unique(np.concatenate(self._of)) if self._of else np.empty(0, np.uint64)
        self._met = np.zeros(self._sorted.size, np.bool_)

    def meet(self, words: Words) -> None:
        """Look for the n-grams in one text: word numbers, shape (words,)."""
        import numpy as np

        hashes = _ngrams(words, self._n)
        if hashes.size and self._sorted.size:
            places = np.minimum(np.searchsorted(self._sorted, hashes), self._sorted.size - 1)
            self._met[places[self._sorted[places] == hashes]] = True

    def overlap(self) -> NgramOverlap:
        """Which instances share an n-gram with what was met so far."""
        hit = [name for name, hashes in zip(self._names, self._of, strict=True) if self._has_met(hashes)]
        return NgramOverlap(self._n, len(set(self._names)), tuple(dict.fromkeys(hit)))

    def _has_met(self, hashes: Words) -> bool:
        return bool(self._met[self._sorted.searchsorted(hashes)].any())


def _spread(codes: Words) -> Words:
    """Word numbers as well-mixed 64-bit values (the finaliser of splitmix64, Steele et al., 2014)."""
    import numpy as np

    mixed = (codes + np.uint64(1)) * np.uint64(_FACTOR)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _ngrams(words: Words, n: int) -> Words:
    """A hash for every n words in a row; shape (max(0, words - n + 1),)."""
    import numpy as np

    count = max(0, words.size - n + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(n):
        hashes = hashes * np.uint64(_FACTOR) + words[place : place + count]
    return hashes
