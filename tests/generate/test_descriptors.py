"""The limit of open files: raised as far as it goes, then it bounds what is in flight. With real limits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.generate.test_generate import FASTGEN, WAIT_S, shipped_server


def limited(soft: int, hard: int, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """A command under these limits of open files."""
    limits = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    shell = ["bash", "-c", limits, "bash", *map(str, command)]
    return subprocess.run(shell, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = "from fastgen.generate.serving import *; n = raise_file_limit(); print(n, 600 < most_connections(n) < 800)"
    done = limited(64, 1024, [sys.executable, "-c", code])
    assert done.stdout == "1024 True\n", done.stderr


def test_a_run_under_few_open_files_asks_for_no_more_than_fit(tmp_path: Path) -> None:
    """The server has room for 3,000 requests at once, the process for fewer connections."""
    with shipped_server("--slots", "3000", "--latency", "0.3") as base_url:
        flags = ["--base-url", base_url, "--num-instructions", "700", "--log-json"]
        done = limited(60, 120, [*FASTGEN, "generate", "--run-dir", tmp_path / "run", *flags])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "requests in flight: this process may open 120 files" in done.stderr
    assert "too many open files" not in done.stderr
