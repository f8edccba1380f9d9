"""The rules for one instruction: each a named predicate, asked in order.

The first rule that rejects names the rejection, in the order of Self-Instruct (Wang et al., ACL 2023), so that a
ledger of rejections can be compared with the original's. All of them are pure, deterministic and linear in the text.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from math import ceil
from typing import Final

from fastgen.methods.self_instruct.media import asks_for_media
from fastgen.methods.self_instruct.rules import Rules

_PUNCTUATION: Final = frozenset(string.punctuation)
_OPENERS: Final = frozenset({"Ps", "Pi"})  # brackets and quotation marks that open
_CLOSED_BY: Final = {'"': '"', "'": "'", "\u00bb": "\u00ab", "\u203a": "\u2039", "\u201d": "\u201d", "\u2019": "\u2019"}
"""Quotation marks that open a quotation only where the other one follows: straight, German »…«, Swedish ”…”."""
_INVERTED: Final = frozenset("¿¡")  # category Po, but where a Spanish sentence starts


def check_instruction(text: str, rules: Rules) -> str | None:
    """Return the name of the first rule that rejects ``text`` (whitespace already collapsed), or ``None``."""
    for name, rejects in INSTRUCTION_RULES:
        if rejects(text, rules):
            return name
    return None


def empty(text: str, _rules: Rules) -> bool:
    """Reject what is nothing but whitespace."""
    return not text or text.isspace()


def too_short(text: str, rules: Rules) -> bool:
    """Reject fewer words than ``min_words``."""
    return count_words(text, rules) < rules.min_words


def too_long(text: str, rules: Rules) -> bool:
    """Reject more words than ``max_words`` or more characters than ``max_characters``."""
    if 0 < rules.max_characters < len(text):
        return True
    # A word takes at least one character, so most texts need no second count.
    return len(text) > rules.max_words and count_words(text, rules) > rules.max_words


def banned_word(text: str, rules: Rules) -> bool:
    """Reject a banned word or phrase as a whole word, in any case."""
    pattern, hints = _banned(rules.banned_words)
    if hints is not None and not _FOLDS_TO_ASCII.search(text):
        lowered = text.lower()
        if not any(hint in lowered for hint in hints):
            return False
    return pattern.search(text) is not None


def media_request(text: str, rules: Rules) -> bool:
    """Reject a request for a picture, a file, a recording or a visit to a page (``reject_media_requests``)."""
    return rules.reject_media_requests and asks_for_media(text)


def banned_start(text: str, rules: Rules) -> bool:
    """Reject a banned beginning, in any case."""
    return text.lower().startswith(_lowered(rules.banned_starts))


def punctuation_start(text: str, rules: Rules) -> bool:
    """Reject punctuation as the first character.

    ``ascii``: ASCII punctuation. ``unicode``: also that of other scripts, except what a sentence may open with:
    brackets, opening quotation marks, "¿" and "¡". ``symbols``: whatever is no letter and no digit, except what a
    sentence may open with, in ASCII too. A mark that opens and closes alike has to be closed.
    """
    first = text[0]
    if rules.punctuation_start == "off":
        return False
    if rules.punctuation_start == "symbols":
        return not (first.isalnum() or _opens(text))
    if first in _PUNCTUATION:
        return True
    if rules.punctuation_start == "ascii" or first.isalnum() or first in _INVERTED:
        return False
    category = unicodedata.category(first)
    return category.startswith("P") and category not in _OPENERS


def _opens(text: str) -> bool:
    """Whether the first character opens a quotation, a bracket, or a Spanish sentence."""
    first = text[0]
    if first in _CLOSED_BY:
        return _CLOSED_BY[first] in text[1:]
    return first in _INVERTED or unicodedata.category(first) in _OPENERS


def non_ascii_start(text: str, rules: Rules) -> bool:
    """Reject a first character that is not ASCII (``reject_non_ascii_start``)."""
    return rules.reject_non_ascii_start and not text[0].isascii()


INSTRUCTION_RULES: Final[tuple[tuple[str, Callable[[str, Rules], bool]], ...]] = tuple(
    (rule.__name__, rule)
    for rule in (
        *(empty, too_short, too_long, banned_word, media_request),
        *(banned_start, punctuation_start, non_ascii_start),
    )
)
"""The rules by their names in the ledger, in the order in which they are asked."""


# -- words and banned words --------------------------------------------------------------------------------------------

# Scripts written without spaces: a Chinese or Japanese word has about two characters, one of the others four letters.
_HAN_KANA: Final = (
    "\u3005-\u3007\u3021-\u3029\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
_SOUTHEAST_ASIAN: Final = (
    "\u0e01-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf\u1000-\u103f\u1050-\u109d\u1780-\u17d3\ua9e0-\ua9fe\uaa60-\uaa7f"
)
_HAN_KANA_PER_WORD: Final = 2
_LETTERS_PER_WORD: Final = 4
_HAN_KANA_RUN: Final = re.compile(f"[{_HAN_KANA}]+")
_SOUTHEAST_ASIAN_RUN: Final = re.compile(f"[{_SOUTHEAST_ASIAN}]+")
_UNSPACED_RUN: Final = re.compile(f"[{_HAN_KANA}{_SOUTHEAST_ASIAN}]+")
_WIDE_PUNCTUATION: Final = re.compile(
    "[\u2013-\u2027\u3001-\u3003\u3008-\u3020\u3030\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
_FOLDS_TO_ASCII: Final = re.compile("[\u0130\u0131\u017f\u212a]")  # match i, s, k in any case, unlike their lower()


def count_words(text: str, rules: Rules) -> int:
    """Return the number of words in ``text``.

    Words are separated by whitespace. With ``word_count="any_script"``, scripts without spaces are counted apart: two
    Han or Kana characters make a word, and so do four letters or marks of Thai, Lao, Khmer or Burmese (both rounded up
    over the text); punctuation next to them does not count. On a text without those scripts both counts agree.
    """
    if text.isascii() or rules.word_count == "whitespace" or not _UNSPACED_RUN.search(text):
        return len(text.split())
    han_kana = sum(map(len, _HAN_KANA_RUN.findall(text)))
    letters = sum(map(len, _SOUTHEAST_ASIAN_RUN.findall(text)))
    spaced = _UNSPACED_RUN.sub(" ", _WIDE_PUNCTUATION.sub(" ", text))
    return len(spaced.split()) + ceil(han_kana / _HAN_KANA_PER_WORD) + ceil(letters / _LETTERS_PER_WORD)


@lru_cache(maxsize=16)
def _lowered(starts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(start.lower() for start in starts)


@lru_cache(maxsize=16)
def _banned(words: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...] | None]:
    """Return one pattern for all ``words``, and hints: lower-cased texts, one of which is in every text that matches.

    Searching hints is several times as fast as the pattern and settles most texts. They are ``None`` where lower-casing
    and case-insensitive matching may differ.
    """
    if not words:
        return re.compile(r"(?!)"), ()
    pattern = re.compile("|".join(map(_whole_word, words)), re.IGNORECASE)
    if not all(word.isascii() for word in words):
        return pattern, None
    lowered = {word.lower() for word in words}
    return pattern, tuple(word for word in lowered if not any(other in word for other in lowered - {word}))


def _whole_word(word: str) -> str:
    """Return a pattern for ``word`` on its own. An end in a script without spaces may adjoin anything."""
    before = "" if _UNSPACED_RUN.match(word[0]) else r"(?<!\w)"
    after = "" if _UNSPACED_RUN.match(word[-1]) else r"(?!\w)"
    return f"{before}{re.escape(word)}{after}"
