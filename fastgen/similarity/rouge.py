"""ROUGE-L F1 between two texts, exactly as the ``rouge_score`` package computes it, and its tokenisers.

Guarantees: :func:`rouge_l_f1` is bit for bit the float of ``rouge_score.RougeScorer(["rougeL"])`` (no stemming), and
:func:`min_lcs` restates "that float is above the threshold" as an integer comparison on the longest common subsequence.
This is the readable reference that the compiled kernels are tested against.

Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; bit-parallel LCS after Hyyro, "Bit-parallel
LCS-length computation revisited", 2004.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING, Literal, get_args

from fastgen.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


Tokenizer = Literal["unicode", "rouge"]
"""``rouge``: rouge_score's ``[a-z0-9]+``. ``unicode``: any script, and equal to ``rouge`` on every ASCII text."""
RejectAt = Literal["gt", "ge"]
"""``gt``: a score above the threshold rejects (the original's code). ``ge``: so does one at it (the paper's text)."""

TOKENIZERS: tuple[Tokenizer, ...] = get_args(Tokenizer)
REJECT_AT: tuple[RejectAt, ...] = get_args(RejectAt)

_ASCII_RUNS = re.compile("[a-z0-9]+")
# Scripts written without spaces: every character (with its marks) is a token. U+30FC, the prolonged sound mark, and its
# kin belong to Kana and Han alike and therefore carry the script "Common".
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc"


@functools.cache
def _unicode_runs() -> Callable[[str], list[str]]:
    import regex  # type: ignore[import-untyped]  # the package ships no types

    unspaced = rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]]"
    find_all: Callable[[str], list[str]] = regex.compile(
        rf"{unspaced}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{unspaced}]+", regex.VERSION1
    ).findall
    return find_all


def tokenise(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """Tokens of ``text`` in order, lower-cased. Possibly none.

    ``rouge`` lower-cases and keeps runs of ``[a-z0-9]``, so a text in another script has no tokens. ``unicode`` applies
    NFKC and case folding, then takes one token per Han, Kana, Thai, Lao, Khmer or Myanmar character with its combining
    marks, and runs of letters, marks and digits elsewhere (Hangul stays in words). Any ``str`` is accepted: control
    characters, NUL and lone surrogates separate tokens.

    :raises InputError: the tokenizer is unknown.
    """
    if tokenizer not in TOKENIZERS:
        raise InputError(f"unknown tokenizer {tokenizer!r}: use one of {', '.join(TOKENIZERS)}")
    if tokenizer == "rouge" or text.isascii():
        return _ASCII_RUNS.findall(text.lower())
    return _unicode_runs()(unicodedata.normalize("NFKC", text).casefold())


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence: ``len(b)`` operations on integers of ``len(a)`` bits."""
    masks: dict[str, int] = {}
    for position, token in enumerate(a):
        masks[token] = masks.get(token, 0) | 1 << position
    full = (1 << len(a)) - 1
    row = full  # a zero bit at i: the LCS with a[: i + 1] is longer than with a[:i]
    for token in b:
        matched = row & masks.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def f1_of_lcs(lcs: int, a_tokens: int, b_tokens: int) -> float:
    """rouge_score's F-measure for an LCS of ``lcs`` tokens, operation by operation. 0.0 when a text has no tokens."""
    if lcs == 0:
        return 0.0
    precision = lcs / b_tokens
    recall = lcs / a_tokens
    return 2 * precision * recall / (precision + recall)


def rouge_l_f1(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L F1 of two token lists, in 0..1; symmetric; 0.0 when either is empty, even if both are."""
    return f1_of_lcs(lcs_length(a, b), len(a), len(b))


def rejects(score: float, threshold: float, reject_at: RejectAt = "gt") -> bool:
    """Whether a neighbour at ``score`` makes a candidate too similar."""
    return score >= threshold if reject_at == "ge" else score > threshold


def min_lcs(a_tokens: int, b_tokens: int, threshold: float, reject_at: RejectAt = "gt") -> int | None:
    """Smallest LCS at which texts of these two lengths are too similar, or ``None`` when none is long enough.

    Decided by the float that rouge_score returns. That float is not monotone across lengths at a threshold such as
    0.7: of the triples with F = 7/10 exactly, some come out above the float 0.7, some equal, some below. For *fixed*
    lengths it rises with the LCS, so one integer per pair of lengths carries the whole rule.
    """
    start = max(1, int(threshold * (a_tokens + b_tokens) / 2) - 1)
    for lcs in range(start, min(a_tokens, b_tokens, start + 3) + 1):
        if rejects(f1_of_lcs(lcs, a_tokens, b_tokens), threshold, reject_at):
            return lcs
    return None


def check_rule(threshold: float, reject_at: str) -> None:
    """Validate a novelty rule.

    :raises InputError: the threshold is outside ``0 < threshold <= 1`` or ``reject_at`` is neither ``gt`` nor ``ge``.
    """
    if not 0.0 < threshold <= 1.0:
        raise InputError(f"similarity threshold {threshold} is not in 0 < threshold <= 1: the method's own is 0.7")
    if reject_at not in REJECT_AT:
        raise InputError(f"unknown reject-at rule {reject_at!r}: use one of {', '.join(REJECT_AT)}")
