"""What the simulated model writes: plausible answers to prompts that make data, computed from the prompt alone.

The same prompt, choice and seed give the same text in any process. Instructions are drawn from a vocabulary with a long
tail (word frequencies follow Zipf's law), so most of them are novel under ROUGE-L. A ``similar_share`` of them copies
an instruction of the prompt with one word changed, which gives a novelty filter something to reject.

The prompt tells what is asked for: one of Self-Instruct's stages, a user's text (a prompt that ends where one begins),
another version of an instruction, the instruction that a text answers, a score, whether two texts are equal, or simply
an answer. Numbered items shown as examples, ``Output:`` and ``class label`` mark Self-Instruct's prompts.
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
_REQUESTS: Final = (
    "How do I {w} {a} {n} when the {n} is {a}?",
    "My {n} has {d} {a} {n} pieces and no {n}. What should I do?",
    "Can you {w} the {n} of {a} {n} for me?",
    "What is the difference between {a} {n} and {n}?",
    "I want to {w} {n} with {n}, but the {a} {n} fails. Why?",
    "Why does {a} {n} need {d} {n} units?",
)
_DEMANDS: Final = (
    "Give {d} reasons that name {n} and {a} {n}.",
    "Leave out any {n}, and say how {a} {n} changes the result.",
    "Work it out step by step for {d} {n} units.",
    "Compare it with {a} {n} before you decide about {n}.",
)
_THOUGHTS: Final = (
    "The question is about {a} {n}, so {n} comes first.",
    "There are {d} {n} units to consider, and {a} {n}.",
    "Wait, the {n} could also be {a}.",
    "That settles the {n}.",
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

_USER_BEGINS: Final = (
    "<|im_start|>user\n",
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<start_of_turn>user\n",
    "<|start|>user<|message|>",
    *("<|user|>", "<|user|>\n", "<\uff5cUser\uff5c>", "[INST]", "[INST] "),
)
"""What common chat templates write before a user's text."""
_REWRITE: Final = re.compile(
    r"\b(?:rewrit\w*|evolv\w*|(?:more|less) (?:complex|difficult|complicated)|harder|inspir\w*|same domain)\b"
    r".{0,200}?\b(?:prompt|instruction|task|question)s?\b",
    re.IGNORECASE | re.DOTALL,
)
_EQUAL: Final = re.compile(r"\b(?:equal|equivalent|same (?:meaning|depth|constraints|requirements?))\b", re.IGNORECASE)
_SCORE: Final = re.compile(
    r"\b(?:score|rate|rating|grade)\b.*\b(?:(?:1|one) ?(?:to|-|\u2013|and|through) ?(?:5|five|10|ten)"
    r"|out of (?:5|10|five|ten)|(?:5|five|10|ten)[- ]point)\b",
    re.IGNORECASE | re.DOTALL,
)
_BARE_NUMBER: Final = re.compile(
    r"\b(?:only|just|single|one) (?:the |a |an |one )?(?:number|digit|score)", re.IGNORECASE
)
_ANSWERED: Final = re.compile(
    r"\b(?:instruction|question|request|prompt)\b[^\n]{0,160}\b(?:answer|respon|repl(?:y|ies)|fulfil)"
    r"|\b(?:answer|respon|reply)\w*\b[^\n]{0,160}\b(?:instruction|question|request|prompt)\b",
    re.IGNORECASE,
)
_DOCUMENT: Final = re.compile(r"\b(?:text|document|passage|article|page)\b", re.IGNORECASE)
_INVENT: Final = re.compile(
    r"\b(?:write|invent|create|compose|propose|come up with|generate|suggest)\b[^.\n]{0,80}"
    r"\b(?:instruction|task|question|prompt)\b",
    re.IGNORECASE,
)
_FRAME: Final = 800
"""Characters at the beginning and at the end of a prompt that say what is asked for. Between them are texts."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The simulated model: ``similar_share`` (0..1) of its instructions are near copies of the prompt's."""

    seed: int = 0
    similar_share: float = 0.1

    def answer(self, prompt: str, choice: int = 0) -> str:
        """Return the completion of a prompt (of a chat: its messages, joined), before stop strings and token limit."""
        draws = draws_from(str(self.seed), str(choice), prompt)
        return _request(draws) if is_pre_query(prompt) else self._reply(draws, prompt)

    def _reply(self, draws: Iterator[int], prompt: str) -> str:
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
        if listed := _LISTED.findall(tail):
            first = int(listed[-1][0]) + 1
            return f"{first}. " + self._instructions(draws, prompt, first)
        return _other_answer(draws, prompt)

    def reasoning(self, prompt: str, choice: int, sentences: int) -> str:
        """Return what a reasoning model thinks before it answers."""
        draws = draws_from("reasoning", str(self.seed), str(choice), prompt)
        return " ".join(_fill(draws, _THOUGHTS[next(draws) % len(_THOUGHTS)]) for _ in range(sentences))

    def _instructions(self, draws: Iterator[int], prompt: str, first: int) -> str:
        """Return a numbered list of which the first number is already written."""
        shown = [text for _, text in _LISTED.findall(prompt[-4000:])]
        items = []
        for _ in range(_ITEMS):
            if shown and next(draws) < self.similar_share * 65_536:
                items.append(_near_copy(draws, shown[next(draws) % len(shown)]))
            else:
                items.append(instruction(draws))
        return "".join(f"\n{first + i}. {item}" if i else item for i, item in enumerate(items)) + "\n"


def is_pre_query(prompt: str) -> bool:
    """Whether a prompt ends where the text of a user begins, so that the model writes that text."""
    return prompt.endswith(_USER_BEGINS)


def _other_answer(draws: Iterator[int], prompt: str) -> str:
    """Return the answer to a prompt that is none of Self-Instruct's."""
    frame = prompt if len(prompt) <= 2 * _FRAME else f"{prompt[:_FRAME]}\n{prompt[-_FRAME:]}"
    if _SCORE.search(frame):
        score = (5, 5, 5, 4, 4, 4, 3, 3, 2, 1)[next(draws) % 10]
        return str(score) if _BARE_NUMBER.search(frame) else f"{sentence(draws)}\nScore: {score}"
    if _EQUAL.search(frame):
        is_equal = next(draws) % 8 == 0
        if "not equal" in frame.lower():
            return "Equal" if is_equal else "Not Equal"
        return "Yes" if is_equal else "No"
    if _REWRITE.search(frame):
        return f"{instruction(draws)} {_fill(draws, _DEMANDS[next(draws) % len(_DEMANDS)])}"
    if (_ANSWERED.search(frame) and _DOCUMENT.search(frame)) or _INVENT.search(frame):
        return instruction(draws)
    return " ".join(sentence(draws) for _ in range(3 + next(draws) % 4))


def _request(draws: Iterator[int]) -> str:
    """A user's text: a question or an instruction, some with a second sentence."""
    if next(draws) % 2:
        return instruction(draws)
    first = _fill(draws, _REQUESTS[next(draws) % len(_REQUESTS)])
    return f"{first} {_fill(draws, _DEMANDS[next(draws) % len(_DEMANDS)])}" if next(draws) % 2 else first


def draws_from(*parts: str) -> Iterator[int]:
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


def instruction(draws: Iterator[int]) -> str:
    """Return opening, middle and ending: half of the words are content, so two texts of one pattern still differ."""
    return " ".join(_fill(draws, frames[next(draws) % len(frames)]) for frames in (_OPENINGS, _MIDDLES, _ENDINGS))


def _near_copy(draws: Iterator[int], text: str) -> str:
    """``text`` with one word changed: above any sensible similarity threshold."""
    words = text.split()
    words[next(draws) % len(words)] = _word(draws, "n")
    return " ".join(words)


def sentence(draws: Iterator[int]) -> str:
    """Return a plain sentence."""
    return _fill(draws, _SENTENCE)


def _examples(draws: Iterator[int]) -> str:
    """Input-first instances: mostly one, up to three; some without an input."""
    if next(draws) % 5 < 2:  # noqa: PLR2004 - two of five, near the share of empty inputs in the original's data
        return "Output: " + " ".join(sentence(draws) for _ in range(1 + next(draws) % 3)) + "\n"
    count = 1 + next(draws) % 3
    parts = [f"Example {i + 1}\nInput: {sentence(draws)}\nOutput: {sentence(draws)}\n" for i in range(count)]
    return "".join(parts)


def _labelled(draws: Iterator[int]) -> str:
    """Output-first instances: two or three labels, each with an input."""
    labels = [_word(draws, "a").capitalize() for _ in range(2 + next(draws) % 2)]
    return "".join(f"Class label: {label}\nInput: {sentence(draws)}\n" for label in labels)


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
