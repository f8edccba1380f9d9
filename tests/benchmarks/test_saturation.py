"""The saturation benchmark end to end, in small: real processes, a simulated engine, figures that fit together."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.harness import test_server as started_server
from benchmarks.saturation import Scenario, Settings, measure, scenarios


def test_a_scenario_measures_the_command_line_against_an_engine() -> None:
    result = measure(Scenario("steady"), Settings(concurrency="40", seconds=12.0, warm_s=2.0, speed=6.0))
    assert 0 < result.tokens_per_s < result.ideal_tokens_per_s  # 40 of 256 seats
    assert 0 < result.occupancy <= 40 / 256
    assert 0 < result.saturation < 1
    assert result.recovered_after_s is None
    assert result.client_cores > 0
    assert result.completions_per_s > 0


def test_events_come_at_half_time_and_count_from_their_end_on() -> None:
    settings, known = Settings(seconds=60.0, warm_s=10.0), scenarios("h100-8b")
    assert (known["steady"].back_s(settings), known["steady"].counts_from_s(settings)) == (None, 10.0)
    assert (known["slowed"].back_s(settings), known["slowed"].counts_from_s(settings)) == (30.0, 40.0)
    assert (known["restarted"].back_s(settings), known["restarted"].counts_from_s(settings)) == (33.0, 43.0)


def test_the_originals_loop_makes_complete_instructions_one_batch_after_the_other() -> None:
    with started_server("--engine", "h100-8b", "--speed", "200") as server:
        command = [sys.executable, "-m", "benchmarks.original_loop", "--base-url", server.base_url]
        small = ["--instructions", "3", "--request-batch", "1", "--pool-processes", "1"]
        done = subprocess.run([*command, *small], capture_output=True, text=True, check=True, timeout=120)
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert 3 <= figures["kept"] <= 10
    assert 0 < figures["complete"] <= figures["kept"]
    assert 0 < figures["checks_s"] <= figures["instructions_s"]


def test_an_unknown_scenario_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.saturation", "--scenarios", "earthquake"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().count("\n")) == (1, 0)
    assert "earthquake" in done.stderr
