"""The rates that people see: over the last minute of work, without the time before the first event."""

from __future__ import annotations

import random

import pytest

from fastgen.telemetry.figures import Counts, RateMeter, Rates


def watched(complete: list[int], missing: int = 100, *, tokens: int = 0) -> Rates:
    """The rates after one update a second with these counts; the session begins at 0."""
    meter, rates = RateMeter(Counts(0.0, 0.0, 0, 0, 0)), Rates()
    for second, count in enumerate(complete, 1):
        rates = meter.update(Counts(float(second), 2.0 * second, count, 3 * count, tokens * second), missing)
    return rates


def test_the_time_before_the_first_instruction_does_not_count() -> None:
    rates = watched([0] * 40 + [1, 3, 5, 7, 9, 11, 13])
    assert rates.complete_per_min == pytest.approx(120)
    assert rates.eta_s == pytest.approx(50)
    assert rates.kept_per_server_s == pytest.approx(3)  # two servers


def test_the_range_holds_the_truth_and_narrows() -> None:
    drawn = random.Random(0)
    total, counts = 0, []
    for _ in range(60):
        total += drawn.random() < 0.5
        counts.append(total)
    widths = []
    for seconds in (15, 30, 60):
        rates = watched(counts[:seconds])
        assert rates.eta_low_s is not None
        assert rates.eta_high_s is not None
        assert rates.eta_low_s < 200 < rates.eta_high_s
        widths.append(rates.eta_high_s / rates.eta_low_s)
    assert widths == sorted(widths, reverse=True)


def test_instructions_that_come_in_bursts_make_the_range_wider() -> None:
    even = watched(list(range(1, 50)))
    bursts = watched([12 * (second // 12 + 1) for second in range(49)])
    assert even.eta_high_s is not None
    assert bursts.eta_high_s is None or bursts.eta_high_s > even.eta_high_s


@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 0, 5], [0, 5, 5, 5]])
def test_no_eta_is_shown_before_a_second_event(counts: list[int]) -> None:
    assert watched(counts).eta_s is None


def test_events_that_come_at_once_have_a_rate_but_no_eta() -> None:
    assert watched([0, 0, 5]).complete_per_min == pytest.approx(100)


def test_rates_forget_what_is_older_than_a_minute_if_there_is_enough_since() -> None:
    fast_then_slow = [10 * second for second in range(1, 101)] + [1000 + second for second in range(1, 100)]
    assert watched(fast_then_slow).complete_per_min == pytest.approx(60, rel=0.05)
    slow = [second // 20 for second in range(1, 2000)]  # three a minute: the window reaches back for thirty
    rates = watched(slow)
    assert rates.complete_per_min == pytest.approx(3, rel=0.05)
    assert 580 <= rates.over_s <= 640


def test_a_day_of_updates_takes_little_memory() -> None:
    meter = RateMeter(Counts(0.0, 0.0, 0, 0, 0))
    for second in range(1, 20_000):
        meter.update(Counts(float(second), float(second), second // 5000, 0, second), 10)
    assert len(meter._seen) < 1000


def test_no_instruction_is_missing_at_the_target() -> None:
    rates = watched([1, 2, 3, 4], missing=0)
    assert (rates.eta_s, rates.eta_low_s, rates.eta_high_s) == (0, 0, 0)


def test_after_a_pause_the_rates_begin_anew() -> None:
    meter = RateMeter(Counts(0.0, 0.0, 0, 0, 0))
    for second in range(1, 30):
        meter.update(Counts(float(second), float(second), second, second, second), 100)
    meter.restart(Counts(1000.0, 1000.0, 29, 29, 29))
    for second in range(1, 10):
        rates = meter.update(Counts(1000.0 + second, 1000.0 + second, 29 + second, 29, 29), 100)
    assert rates.complete_per_min == pytest.approx(60)
