"""What the simulated model writes: plausible Self-Instruct answers, computed from the prompt alone.

The same prompt, choice and seed give the same text in any process. Instructions are drawn from a vocabulary with a long
tail (word frequencies follow Zipf's law), so most of them are novel under ROUGE-L. A ``similar_share`` of them copies
an instruction of the prompt with one word changed, which gives a novelty filter something to reject. The end of a
prompt tells which stage of Self-Instruct it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import shake_128
from itertools import cycle, islice, product
from typing import Final

_VERBS: Final = tuple(
    """
    Describe Explain Summarize Compare List Rewrite Translate Suggest Write Compose Design Outline Estimate Rank
    Identify Convert Simplify Propose Evaluate Correct Arrange Invent Recommend Predict Analyze Define Calculate
    Paraphrase Name Find Generate Tell
    """.split()  # noqa: SIM905 - eighty quoted words read worse
)
_NOUNS: Final = tuple(
    """
    recipe letter garden river teacher market poem contract journey budget meeting kitchen village theorem
    library season bridge melody patient lecture engine harvest museum island battery speech novel forest senate
    ticket planet bakery lesson orchard customer mountain holiday factory dialogue sentence harbor schedule
    argument neighbor interview winter protocol cathedral
    """.split()  # noqa: SIM905 - eighty quoted words read worse
)
_ADJECTIVES: Final = tuple(
    """
    small ancient quiet formal modern bitter rural hidden famous gentle narrow public curious private distant
    fragile heavy simple sudden honest patient daily local rapid polite complex cheap bright seasonal ordinary
    northern
    """.split()  # noqa: SIM905 - eighty quoted words read worse
)
_OPENINGS: Final = (
    "{v} the {a} {n}",
    "{v} how a {n} turns {a} {n} into {n}",
    "{v} {d} {n} reasons why {a} {n} matters",
    "{v} a {n} or a {a} {n}",
    "Given some {a} {n}, {w} its {n}",
    "Imagine {a} {n} and {w} a short {n}",
    "Which {n} makes {a} {n} better",
    "If {d} {n} cost one {a} {n}, {w} the {n}",
    "{v} {a} {n} as though {n} were {n}",
    "Decide whether {n} is {a} or {a}",
    "Classify each {n} as {a} {n} or {n}",
    "Is this {a} {n} about {n}",
)
_MIDDLES: Final = (
    "of a {n} {n}",
    "between {a} {n} and {n}",
    "with {d} {n} and {a} {n}",
    "for {a} {n} near the {n}",
    "after {n} meets {a} {n}",
    "that {n} keeps beside {n}",
    "without any {a} {n} or {n}",
    "from {n} to {a} {n}",
    "in {d} {a} {n}",
    "against {n} or {a} {n}",
)
_ENDINGS: Final = (
    "during the {a} {n}.",
    "in at most {d} {n}.",
    "who repaired {n} and {n}.",
    "and mention {a} {n} twice.",
    "before {n} becomes {a}.",
    "so that {n} needs no {n}.",
    "using only {a} {n}.",
    "for every {n} {n}.",
)
_SENTENCE: Final = "The {a} {n} of this {n} needs {d} more {n} units before the {a} {n}."
_ONSETS: Final = tuple("b br c d dr f g gl h k l m n p r s st t tr v w z".split())  # noqa: SIM905 - as above
_VOWELS: Final = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS: Final = ("l", "m", "n", "nd", "r", "rt", "s", "th", "x", "ck")
_CELLS: Final = 1 << 16
_LEXICON_WORDS: Final = 12_000
_ITEMS: Final = 8
_DRAWS: Final = 192  # 16-bit draws computed for one answer; no answer uses more

_NEXT_NUMBER: Final = re.compile(r"(?:^|\n)[ \t]*(\d{1,4})[ \t]*[.)][ \t]*$")
_LISTED: Final = re.compile(r"(?m)^[ \t]*(\d{1,4})[.)][ \t]+(\S.{8,})$")


@dataclass(frozen=True, slots=True)
class Writer:
    """The simulated model: ``similar_share`` (0..1) of its instructions are near copies of the prompt's."""

    seed: int = 0
    similar_share: float = 0.1

    def answer(self, prompt: str, choice: int = 0) -> str:
        """Return the completion of a prompt (of a chat: its messages, joined), before stop strings and token limit."""
        draws = _draws(str(self.seed), str(choice), prompt)
        tail = prompt[-2000:]
        numbered = _NEXT_NUMBER.search(tail[-40:])
        if numbered:
            return " " + self._instructions(draws, prompt, int(numbered[1]))
        asked = tail[-400:].lower()
        if "classification" in asked and "class label" not in asked:
            return " Yes" if next(draws) % 4 == 0 else " No"
        if "class label" in prompt.lower():
            return _labelled(draws)
        if "output:" in prompt.lower():
            return _examples(draws)
        listed = _LISTED.findall(tail)
        first = int(listed[-1][0]) + 1 if listed else 1
        return f"{first}. " + self._instructions(draws, prompt, first)

    def _instructions(self, draws: Iterator[int], prompt: str, first: int) -> str:
        """Return a numbered list of which the first number is already written."""
        shown = [text for _, text in _LISTED.findall(prompt[-4000:])]
        items = []
        for _ in range(_ITEMS):
            if shown and next(draws) < self.similar_share * 65_536:
                items.append(_near_copy(draws, shown[next(draws) % len(shown)]))
            else:
                items.append(_instruction(draws))
        return "".join(f"\n{first + i}. {item}" if i else item for i, item in enumerate(items)) + "\n"


def _draws(*parts: str) -> Iterator[int]:
    """Return an endless series of 16-bit draws that depends on these texts only."""
    return cycle(memoryview(shake_128("\0".join(parts).encode(errors="replace")).digest(2 * _DRAWS)).cast("H"))


def _fill(draws: Iterator[int], frame: str) -> str:
    """Return a frame's text, each slot filled by a draw."""
    pieces = []
    for piece in _pieces(frame):
        if len(piece) == 1:
            pieces.append(str(2 + next(draws) % 9) if piece == "d" else _word(draws, piece))
        else:
            pieces.append(piece[1:])
    return "".join(pieces)


def _word(draws: Iterator[int], kind: str) -> str:
    return _cells("v")[next(draws)].lower() if kind == "w" else _cells(kind)[next(draws)]


@cache
def _pieces(frame: str) -> tuple[str, ...]:
    """Cut a frame into slots (one letter) and literal text (with a mark before it)."""
    return tuple(piece[1] if piece.startswith("{") else "=" + piece for piece in re.split(r"(\{.\})", frame) if piece)


def _instruction(draws: Iterator[int]) -> str:
    """Return opening, middle and ending: half of the words are content, so two texts of one pattern still differ."""
    return " ".join(_fill(draws, frames[next(draws) % len(frames)]) for frames in (_OPENINGS, _MIDDLES, _ENDINGS))


def _near_copy(draws: Iterator[int], text: str) -> str:
    """``text`` with one word changed: above any sensible similarity threshold."""
    words = text.split()
    words[next(draws) % len(words)] = _word(draws, "n")
    return " ".join(words)


def _sentence(draws: Iterator[int]) -> str:
    return _fill(draws, _SENTENCE)


def _examples(draws: Iterator[int]) -> str:
    """Input-first instances: mostly one, up to three; some without an input."""
    if next(draws) % 5 < 2:  # noqa: PLR2004 - two of five, near the share of empty inputs in the original's data
        return "Output: " + " ".join(_sentence(draws) for _ in range(1 + next(draws) % 3)) + "\n"
    count = 1 + next(draws) % 3
    parts = [f"Example {i + 1}\nInput: {_sentence(draws)}\nOutput: {_sentence(draws)}\n" for i in range(count)]
    return "".join(parts)


def _labelled(draws: Iterator[int]) -> str:
    """Output-first instances: two or three labels, each with an input."""
    labels = [_word(draws, "a").capitalize() for _ in range(2 + next(draws) % 2)]
    return "".join(f"Class label: {label}\nInput: {_sentence(draws)}\n" for label in labels)


@cache
def _cells(kind: str) -> tuple[str, ...]:
    """Return 65,536 words, in which the word with rank r has a share of about 1/r: a 16-bit draw follows Zipf's law."""
    if kind == "v":
        return tuple(_VERBS[i % len(_VERBS)] for i in range(_CELLS))
    common, ending = (_ADJECTIVES, ("ish", "al", "ous")) if kind == "a" else (_NOUNS, ("or", "et", "a"))
    invented = (f"{o}{v}{c}{w}{e}" for v, e, o, c, w in product(_VOWELS, ending, _ONSETS, _CODAS, _VOWELS))
    words = [*common, *islice(invented, _LEXICON_WORDS - len(common))]
    weight = _CELLS / sum(1 / (rank + 20) for rank in range(len(words)))  # + 20: no word as frequent as "the"
    cells = [word for rank, word in enumerate(words) for _ in range(max(1, round(weight / (rank + 20))))]
    return tuple(cells[i * len(cells) // _CELLS] for i in range(_CELLS))
