"""Agreement and intervals, against published figures and by their own laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.judge.summary import Agreement, Level, Ratings, wilson

# the example of Krippendorff (2011) with missing ratings: four observers, twelve units, some not rated
UNITS = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]


def agreement(units: list[str], level: Level, values: str = "12345") -> Agreement:
    ratings = Ratings([float(value) for value in values], level)
    for unit in units:
        ratings.add(float(value) for value in unit)
    return ratings.agreement()


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("interval", 0.849)])
def test_alpha_is_the_published_one(level: Level, alpha: float) -> None:
    found = agreement(UNITS, level)
    assert found.alpha == pytest.approx(alpha, abs=0.0005)
    assert found.items == 11, "the unit with one rating says nothing"
    assert found.low is not None
    assert found.high is not None
    assert found.low < alpha < found.high


def test_alpha_of_two_raters_is_scotts_pi_with_its_correction_for_small_samples() -> None:
    units = ["11"] * 20 + ["22"] * 15 + ["12"] * 10 + ["21"] * 5
    ones, n = 55, 100
    expected = 2 * ones * (n - ones) / (n * (n - 1))
    found = agreement(units, "nominal")
    assert found.alpha == pytest.approx(1 - (15 / 50) / expected)
    assert found.percent == pytest.approx(0.7)


def test_perfect_agreement_is_one_and_no_variation_says_nothing() -> None:
    assert agreement(["11", "22", "333"], "interval").alpha == pytest.approx(1.0)
    same = agreement(["11", "11"], "nominal")
    assert (same.alpha, same.low, same.percent) == (None, None, 1.0)
    assert agreement([], "nominal") == Agreement(0, None, None, None, None)
    assert agreement(["1", "2"], "nominal").items == 0


@given(st.lists(st.text("123", min_size=2, max_size=4), min_size=2, max_size=20))
def test_the_interval_is_ordered_and_the_same_every_time(units: list[str]) -> None:
    found = agreement(units, "interval")
    assert found == agreement(units[::-1], "interval")
    assert found.percent is not None
    assert 0 <= found.percent <= 1
    if found.alpha is not None and found.low is not None and found.high is not None:
        assert found.low <= found.high <= 1 + 1e-9


@pytest.mark.parametrize(
    ("yes", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_is_the_published_one(yes: int, total: int, low: float, high: float) -> None:
    assert wilson(yes, total) == pytest.approx((low, high), abs=5e-5)
