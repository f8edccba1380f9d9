"""Dry runs: arithmetic, and one for real against the shipped server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.errors import InputError
from fastgen.generate.dry_run import Load, Prices, estimate, render
from fastgen.simulator.server import FaultServer
from fastgen.store.ledger import Ledger


def probe() -> Ledger:
    ledger = Ledger(kept=12, complete=10, empty=1)
    ledger.completions.update({"instruction": 3, "classification": 12, "instance": 11})
    ledger.prompt_tokens.update({"instruction": 1500, "instance": 8500})
    ledger.completion_tokens.update({"instruction": 600, "instance": 400})
    return ledger


def test_everything_scales_with_the_target() -> None:
    expected = estimate(probe(), 5000, 36.0, 1000, Prices(0.5, 2.0))
    assert (expected.requests, expected.tokens_in, expected.tokens_out) == (2600, 1_000_000, 100_000)
    assert expected.hours == pytest.approx(1.0)
    assert expected.disk_bytes == 500_000
    assert expected.money == pytest.approx(0.7)
    said = render(expected, in_flight=256, hit_rate=0.5)
    assert "1,000 instructions, from a probe of 10" in said
    assert "50% of them" in said
    assert "uncertain" in said


def test_the_time_is_by_the_steady_rate_and_not_by_the_probes_start_and_end() -> None:
    occupied = Load({"instruction": 2.0, "classification": 1.0, "instance": 3.0}, in_flight=8.0)
    each_s = (3 * 2.0 / 12 + 12 * 1.0 / 12 + 11 * 3.0 / 11) * 11 / 10 / 8
    for elapsed_s in (36.0, 360.0):  # the servers idled for most of it
        expected = estimate(probe(), 5000, elapsed_s, 1000, None, occupied)
        assert expected.hours == pytest.approx(1000 * each_s / 3600)


def test_without_prices_no_cost_is_shown_and_an_empty_probe_gives_no_estimate() -> None:
    expected = estimate(probe(), 5000, 36.0, 1000, None)
    assert expected.money is None
    assert "money" not in render(expected, in_flight=8, hit_rate=None)
    with pytest.raises(InputError, match="--dry-run: the probe ended with 0 instructions kept and none complete"):
        estimate(Ledger(), 0, 1.0, 10, None)


def test_a_dry_run_that_is_stopped_before_anything_is_complete_says_so_in_one_line(tmp_path: Path) -> None:
    async def main() -> tuple[int | None, str]:
        async with FaultServer(write=lambda prompt, choice: " .") as server:
            arguments = ["--run-dir", str(tmp_path / "run"), "--base-url", server.base_url, "--dry-run", "--quiet"]
            arguments += ["--probe", "off"]
            stop = ["--stop-when-yield-below", "1", "--yield-window", "5", "--num-instructions", "100"]
            command = [sys.executable, "-m", "fastgen", "generate", *arguments, *stop]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            _, err = await process.communicate()
            return process.returncode, err.decode()

    code, err = asyncio.run(main())
    assert code == 2, err
    assert "--dry-run: the probe ended" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_dry_run_asks_a_real_server_and_leaves_no_run_behind(tmp_path: Path) -> None:
    async def main() -> tuple[int | None, str, str]:
        async with FaultServer() as server:
            arguments = ["--run-dir", str(tmp_path / "run"), "--base-url", server.base_url, "--dry-run"]
            prices = ["--num-instructions", "100000", "--price-in", "0.1", "--price-out", "0.4"]
            command = [sys.executable, "-m", "fastgen", "generate", *arguments, *prices]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            out, err = await process.communicate()
            return process.returncode, out.decode(), err.decode()

    code, out, err = asyncio.run(main())
    assert code == 0, err
    assert "100,000 instructions, from a probe of 16" in out
    assert "money" in out
    assert not (tmp_path / "run").exists()
