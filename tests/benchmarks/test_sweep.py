"""The sweep's figures and advice from what was watched, and one small sweep against the shipped server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import mean_interval, pooled_intervals, ratio_interval
from benchmarks.harness import test_server as started_server
from benchmarks.real_server import Concurrency
from benchmarks.sweep import (
    Asked,
    Latency,
    Look,
    RunFigures,
    Watched,
    figures,
    hurried,
    nearest_rank,
    orders,
    recommend,
    window,
)


def steady(concurrency: int, rounds: int, *, each_s: float = 1.0, tokens: int = 10) -> Watched:
    """So many requests at once, one round after the other."""
    watched = Watched(0.0, float(rounds))
    watched.asked = [
        Asked("instruction", at * each_s, (at + 1) * each_s, 1, tokens)
        for at in range(rounds)
        for _ in range(concurrency)
    ]
    return watched


def run(tokens_per_s: float) -> RunFigures:
    return RunFigures(1.0, tokens_per_s, 1.0, 1.0, 1.0, None, None, {})


def test_a_steady_run_has_the_rate_of_its_rounds_and_all_its_slots_in_use() -> None:
    found = figures(steady(4, 9), 3.0, 9.0)
    assert found.tokens_per_s == pytest.approx(40.0)
    assert found.completions_per_s == pytest.approx(4.0)
    assert found.in_flight == pytest.approx(4.0)
    assert found.latency["instruction"].requests == 24
    assert found.latency["instruction"].p99_s == pytest.approx(1.0)


def test_requests_that_were_never_answered_are_in_flight_until_the_end() -> None:
    watched = steady(1, 4)
    watched.open = {7: (2.0, 3)}
    assert figures(watched, 0.0, 4.0).in_flight == pytest.approx(1.0 + 3 * 2.0 / 4.0)


def test_the_servers_own_count_of_tokens_goes_before_that_of_the_answers() -> None:
    watched = steady(1, 4)
    watched.looks = [Look(1.0, 2, 0, 100), Look(2.0, 4, 1, 150), Look(3.0, 6, 2, 200)]
    found = figures(watched, 1.0, 3.0)
    assert (found.tokens_per_s, found.running, found.waiting) == (50.0, 4.0, 1.0)


def test_only_kept_instructions_of_the_window_count() -> None:
    watched = steady(1, 4)
    watched.kept_s = [0.5, 1.0, 1.5, 3.0, 3.5]
    assert figures(watched, 1.0, 3.0).kept_per_s == pytest.approx(1.0)


def test_the_window_of_a_timed_run_is_what_follows_the_warm_time() -> None:
    assert window(steady(1, 9), 3.0) == (3.0, 9.0)


def test_the_window_of_a_whole_run_leaves_a_third_of_the_answers_and_the_drain_out() -> None:
    watched = steady(2, 9)
    watched.ended_s = 20.0
    assert window(watched, None) == (4.0, 8.0)


def test_a_run_without_an_answer_between_ramp_and_drain_gets_the_advice_to_run_longer() -> None:
    with pytest.raises(ValueError, match="more time"):
        window(Watched(0.0, 5.0), 1.0)
    with pytest.raises(ValueError, match="more time"):
        window(steady(4, 1), None)


def test_ranks_are_values_that_occurred() -> None:
    assert [nearest_rank([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 4.0]


def test_the_smallest_concurrency_within_the_interval_of_the_best_is_recommended() -> None:
    results: dict[Concurrency, list[RunFigures]] = {
        8: [run(50), run(51)],
        32: [run(95), run(97)],
        64: [run(99), run(97)],
        128: [run(98), run(98.5)],
    }
    assert recommend(results).flags == "--concurrency 32"


def test_one_repeat_counts_what_is_within_three_percent_as_equal() -> None:
    assert recommend({8: [run(90)], 32: [run(98)], 64: [run(100)]}).flags == "--concurrency 32"


def test_repeats_that_differ_much_are_reported_and_excuse_at_most_a_tenth() -> None:
    advice = recommend({8: [run(60)] * 2, 32: [run(101)] * 2, 64: [run(90), run(130)], "auto": [run(70), run(110)]})
    assert advice.flags == "--concurrency 32"
    assert "more of them, or longer ones, would tell more" in advice.reason
    assert "would tell more" not in recommend({32: [run(100), run(101)]}).reason


def test_auto_is_recommended_where_it_is_as_good_as_the_best() -> None:
    assert recommend({32: [run(100)], "auto": [run(98)]}).flags == "--concurrency auto"
    assert recommend({32: [run(100)], "auto": [run(80)]}).flags == "--concurrency 32"


def test_every_repeat_goes_through_all_settings() -> None:
    turns = orders([1, 8, "auto"], 4)
    assert [sorted(map(str, turn)) for turn in turns] == [["1", "8", "auto"]] * 4
    assert turns == orders([1, 8, "auto"], 4)


def test_intervals_are_students_and_say_nothing_from_one_value() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.estimate == 2.0
    assert found.high - 2.0 == pytest.approx(4.303 / math.sqrt(3))
    assert mean_interval([5.0]).as_list() == [5.0, None, None]
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_groups_share_their_relative_spread() -> None:
    narrow, wide, alone = pooled_intervals([[10.0, 10.0], [99.0, 101.0], [7.0]])
    assert narrow.estimate == pytest.approx(10.0)
    assert narrow.high / narrow.estimate == pytest.approx(wide.high / wide.estimate)
    assert alone.high / alone.estimate == pytest.approx((wide.high / wide.estimate) ** math.sqrt(2))
    assert pooled_intervals([[3.0], [4.0]])[0].as_list() == [pytest.approx(3.0), 0.0, None]


def test_settings_whose_requests_outlast_half_the_warm_time_are_reported() -> None:
    slow = RunFigures(1.0, 1.0, 1.0, 1.0, 1.0, None, None, {"instruction": Latency(9, 6.0, 8.0)})
    assert hurried({8: [run(50)], 64: [slow]}, 12.0) == []
    (said,) = hurried({8: [run(50)], 64: [slow]}, 10.0)
    assert "at 64 " in said
    assert "--warm 12" in said


def test_ratios_and_their_inverses_have_the_same_interval_upside_down() -> None:
    up, down = ratio_interval([1.1, 1.2, 0.9]), ratio_interval([1 / 1.1, 1 / 1.2, 1 / 0.9])
    assert up.low == pytest.approx(1 / down.high)
    assert up.high == pytest.approx(1 / down.low)


def test_a_small_sweep_prints_a_table_a_plot_and_one_line_of_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "sweep.png"
    with started_server("--slots", "8", "--latency", "0.01") as server:
        command = [sys.executable, "-m", "benchmarks.sweep", "--base-url", server.base_url, "--concurrency", "2,8"]
        flags = ["--auto", "--instructions", "100", "--repeats", "1", "--plot", str(plot)]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert list(found["rows"]) == ["2", "8", "auto"]
    assert found["rows"]["8"]["tokens_per_s"][0] > found["rows"]["2"]["tokens_per_s"][0] > 0
    assert 0 < found["rows"]["2"]["occupancy"] <= 1
    assert "instance" in found["rows"]["8"]["latency_s"]  # of the others, few come in the middle of a small run
    assert found["recommended"]["flags"] in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
