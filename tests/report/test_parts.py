"""What the report is made of: samples, times, measures, verbs, markup."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from math import exp, log
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.report.charts import short, svg, ticks
from fastgen.report.diversity import (
    compression_ratio,
    count_verbs,
    distinct_n,
    find_parser,
    measure,
    of_words,
    self_bleu,
)
from fastgen.report.figures import MAX_BINS, Reservoir, Spread, Timeline
from fastgen.report.page import environment, render

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\ud800\x00\"'&"


@given(st.integers(0, 300), st.integers(0, 40), st.integers(0, 5))
def test_a_reservoir_holds_what_it_may_in_the_order_of_the_stream(length: int, size: int, seed: int) -> None:
    sample: Reservoir[int] = Reservoir(size, seed)
    for number in range(length):
        sample.add(number)
    found = list(sample)
    assert len(found) == len(sample) == min(length, size)
    assert found == sorted(set(found))
    assert sample.seen == length


def test_a_reservoir_takes_every_place_of_a_stream_equally_often() -> None:
    taken: Counter[int] = Counter()
    for seed in range(4000):
        sample: Reservoir[int] = Reservoir(5, seed)
        for number in range(50):
            sample.add(number)
        taken.update(sample)
    assert taken.total() == 20_000
    chi_square = sum((taken[number] - 400) ** 2 / 400 for number in range(50))
    assert chi_square < 85.4  # 49 degrees of freedom, p = 0.001


@given(st.lists(st.integers(0, 50), min_size=1))
def test_a_spread_has_the_mean_and_the_quantiles_of_its_values(values: list[int]) -> None:
    spread = Spread()
    for value in values:
        spread.add(value)
    assert spread.mean == pytest.approx(fmean(values))
    assert spread.quantile(0.5) == sorted(values)[(len(values) - 1) // 2]
    assert sum(spread.bins(7, 3)) == len(values)


@given(st.lists(st.floats(0, 5e4), min_size=1, max_size=60))
def test_a_timeline_loses_no_commit_and_stays_bounded(times: list[float]) -> None:
    line = Timeline()
    for time_s in times:
        line.at(time_s).kept += 1
    assert sum(one.kept for one in line.bins) == sum(one.kept for one in line.joined(10).bins) == len(times)
    assert len(line.bins) <= MAX_BINS
    assert len(line.joined(10).bins) <= 10


def test_a_night_between_two_sessions_is_no_working_time() -> None:
    line = Timeline()
    for time_s in (1000.0, 1010.0, 50_000.0, 50_020.0):
        line.at(time_s)
    assert line.working_s == 30.0


def _slow_self_bleu(texts: list[list[str]]) -> float:
    """From the definition: every text against all others, n-grams clipped by the highest count in one of them."""

    def grams(text: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))

    scores = []
    for place, text in enumerate(texts):
        others = texts[:place] + texts[place + 1 :]
        precisions = []
        for n in (1, 2, 3, 4):
            own = grams(text, n)
            hit = sum(min(count, max(grams(other, n)[gram] for other in others)) for gram, count in own.items())
            precisions.append((hit + (n > 1)) / (own.total() + (n > 1)) if own.total() + (n > 1) else 0.0)
        nearest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
        brevity = 1.0 if len(text) > nearest else exp(1 - nearest / len(text))
        scores.append(brevity * exp(fmean(map(log, precisions))) if all(precisions) else 0.0)
    return fmean(scores)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), min_size=2, max_size=6))
def test_self_bleu_in_one_pass_is_self_bleu_by_its_definition(texts: list[list[str]]) -> None:
    assert self_bleu(texts) == pytest.approx(_slow_self_bleu(texts))


def test_repeated_text_is_distinguished_from_varied_texts() -> None:
    draw = random.Random(1)
    varied = [" ".join(f"word{draw.randrange(5000)}" for _ in range(12)) for _ in range(100)]
    same = [varied[0]] * 100
    good, bad = measure(varied), measure(same)
    assert bad.self_bleu == pytest.approx(1.0)
    assert good.self_bleu is not None
    assert good.self_bleu < 0.2
    assert (good.distinct[1] or 0) > 0.9
    assert (bad.distinct[1] or 1) < 0.05
    assert (bad.compression_ratio or 0) > 5 * (good.compression_ratio or 0)


def test_measures_of_nothing_are_none() -> None:
    assert (distinct_n([], 2), compression_ratio([]), self_bleu([["one"]])) == (None, None, None)
    assert of_words(["a b c", "d e", "f"], 4) == ["a b c", "d e"]


@pytest.fixture(scope="module")
def parser() -> tuple[str, Any]:
    found = find_parser(None)
    if found is None:
        pytest.skip("no spaCy model is installed")
    return found


def test_the_root_verb_and_its_object_are_counted(parser: tuple[str, Any]) -> None:
    texts = ["Write a short story about a dog.", "Please write a story.", "Given a paragraph, identify the main theme."]
    found = count_verbs(*parser, [*texts, "What is the capital of France?", ""])
    assert (found.parsed, found.with_pair) == (5, 3)
    assert found.verbs == (("write", 2, (("story", 2),)), ("identify", 1, (("theme", 1),)))
    assert found.share_shown == pytest.approx(0.6)


def test_a_model_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match="--spacy-model no_such_model: ") as caught:
        find_parser("no_such_model")
    assert "\n" not in str(caught.value)


def test_text_never_becomes_markup() -> None:
    template = '<p title="{{ text }}">{{ text }}</p>'
    page = environment().from_string(template).render(text=HOSTILE)
    for made in (page, svg('<p title="{text}">{text}</p>', text=HOSTILE)):
        assert made.count("<") == made.count(">") == 2
        assert made.count('"') == 2
        assert "onerror=alert(2)&gt;" in made
        assert r"\u2028\ud800\x00" in made
        made.encode()  # no lone surrogate is left


@given(st.text())
def test_a_data_block_gives_back_its_value_and_cannot_be_ended_by_it(text: str) -> None:
    block = render("data_block", "data", [text, HOSTILE.replace("\ud800", "")])
    inside = re.fullmatch(r'<script type="application/json" id="data">(.*)</script>', block.strip(), re.DOTALL)
    assert inside is not None
    assert not set("<>&") & set(inside[1])
    assert json.loads(inside[1])[0] == text


@given(st.floats(1e-6, 1e12))
def test_ticks_are_few_begin_at_zero_and_reach_the_highest_value(highest: float) -> None:
    found = ticks(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-9)
    assert 2 <= len(found) <= 7


def test_numbers_are_short() -> None:
    assert [short(v) for v in (0, 0.5, 999, 5023.4, 12_345, 4_500_000)] == ["0", "0.5", "999", "5,023", "12.3k", "4.5M"]
