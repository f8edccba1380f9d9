"""rouge_score itself is the oracle for tokens, scores and the integer rule."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import tokenizers
from rouge_score.rouge_scorer import RougeScorer

from fastgen.errors import InputError
from fastgen.similarity.rouge import (
    REJECT_AT,
    RejectAt,
    Tokenizer,
    check_rule,
    f1_of_lcs,
    lcs_length,
    min_lcs,
    rejects,
    rouge_l_f1,
    tokenise,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Spaces:
    """rouge_score tokenizer for texts that are tokens joined by spaces."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


_ORACLE = RougeScorer(["rougeL"], tokenizer=_Spaces())
_ORACLE_TEXT = RougeScorer(["rougeL"])


def oracle(a: Sequence[str], b: Sequence[str]) -> float:
    return float(_ORACLE.score(" ".join(a), " ".join(b))["rougeL"].fmeasure)


def random_tokens(rng: random.Random, longest: int) -> list[str]:
    words = rng.choice([2, 3, 8, 40])
    return [str(rng.randrange(words)) for _ in range(rng.randrange(longest + 1))]


def edited(rng: random.Random, tokens: list[str]) -> list[str]:
    rate = rng.random() * 0.6
    return [word if rng.random() > rate else str(rng.randrange(50)) for word in tokens if rng.random() > rate / 3]


def test_ten_thousand_random_pairs_score_as_rouge_score_does() -> None:
    rng = random.Random(1)
    for _ in range(10_000):
        a = random_tokens(rng, 14)
        b = edited(rng, a) if rng.random() < 0.6 else random_tokens(rng, 14)
        assert rouge_l_f1(a, b) == oracle(a, b)


def test_texts_of_up_to_400_tokens_score_as_rouge_score_does() -> None:
    rng = random.Random(2)
    for longest in (63, 64, 65, 128, 129, 400):
        a = [str(rng.randrange(30)) for _ in range(longest)]
        b = edited(rng, a)
        assert rouge_l_f1(a, b) == oracle(a, b)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_two_texts_score_as_rouge_score_does(a: str, b: str) -> None:
    assert rouge_l_f1(tokenise(a, "rouge"), tokenise(b, "rouge")) == _ORACLE_TEXT.score(a, b)["rougeL"].fmeasure


@given(st.text())
@settings(max_examples=400, deadline=None)
def test_the_rouge_tokenizer_is_rouge_scores(text: str) -> None:
    assert tokenise(text, "rouge") == tokenizers.DefaultTokenizer().tokenize(text)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_both_tokenizers_agree_on_ascii(text: str) -> None:
    assert tokenise(text, "unicode") == tokenise(text, "rouge")


@given(st.text())
@settings(max_examples=400, deadline=None)
def test_unicode_tokens_hold_no_separator_and_survive_a_second_cut(text: str) -> None:
    tokens = tokenise(text)
    joined = " ".join(tokens)
    joined.encode()
    assert all(token and not token.isspace() for token in tokens)
    assert joined.split(" ") == tokens or not tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Translate: Straße, CAFÉ!", ["translate", "strasse", "café"]),
        ("cafe\u0301", ["café"]),
        ("翻訳する", ["翻", "訳", "す", "る"]),
        ("ラーメン", ["ラ", "ー", "メ", "ン"]),
        ("写一首诗 about AI", ["写", "一", "首", "诗", "about", "ai"]),
        ("한국어 문장을 쓰세요", ["한국어", "문장을", "쓰세요"]),
        ("ที่", ["ที่"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("\uff28ello ½ ﬁne", ["hello", "1", "2", "fine"]),
        ("a\x00b\ud800c _ -- !", ["a", "b", "c"]),
        ("", []),
        ("?!\u3002", []),
    ],
)
def test_unicode_tokens_of_many_scripts(text: str, tokens: list[str]) -> None:
    assert tokenise(text) == tokens


def test_an_unknown_tokenizer_is_one_clear_line() -> None:
    unknown: Tokenizer = "words"  # type: ignore[assignment]  # the wrong value is the test
    with pytest.raises(InputError, match="unknown tokenizer 'words': use one of unicode, rouge"):
        tokenise("x", unknown)


def test_scores_with_an_empty_side_are_zero() -> None:
    assert rouge_l_f1([], []) == rouge_l_f1(["a"], []) == rouge_l_f1([], ["a"]) == 0.0


def test_a_subsequence_is_not_a_bag_of_words() -> None:
    assert lcs_length(["a", "b", "c"], ["c", "b", "a"]) == 1


@pytest.mark.parametrize("reject_at", REJECT_AT)
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
def test_min_lcs_is_the_first_lcs_whose_float_rejects(threshold: float, reject_at: RejectAt) -> None:
    for a in range(61):
        for b in range(61):
            lcs_values = [x for x in range(min(a, b) + 1) if rejects(f1_of_lcs(x, a, b), threshold, reject_at)]
            assert min_lcs(a, b, threshold, reject_at) == (lcs_values[0] if lcs_values else None)
            assert lcs_values == list(range(lcs_values[0], min(a, b) + 1)) if lcs_values else True


def test_the_float_at_seven_tenths_is_above_equal_and_below() -> None:
    exact = [
        (lcs, a, b)
        for a in range(1, 60)
        for b in range(1, 60)
        for lcs in range(1, min(a, b) + 1)
        if 20 * lcs == 7 * (a + b)
    ]
    scores = [f1_of_lcs(*triple) for triple in exact]
    assert any(score > 0.7 for score in scores)
    assert any(score == 0.7 for score in scores)
    assert any(score < 0.7 for score in scores)
    for (lcs, a, b), score in zip(exact, scores, strict=True):
        assert math.isclose(score, 0.7)
        assert score == oracle(["x"] * lcs + ["a"] * (a - lcs), ["x"] * lcs + ["b"] * (b - lcs))


@pytest.mark.parametrize(("threshold", "reject_at"), [(0.0, "gt"), (1.1, "gt"), (float("nan"), "ge"), (0.7, "above")])
def test_a_rule_out_of_range_is_refused(threshold: float, reject_at: str) -> None:
    with pytest.raises(InputError):
        check_rule(threshold, reject_at)
