"""`fastgen generate` against a real vLLM server with a real model: small runs, both APIs, finished after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from fastgen.store.run_folder import RunFolder

pytestmark = pytest.mark.real_server
SHORT = ["--instruction.max-tokens", "90", "--instance-input-first.max-tokens", "60", "--concurrency", "16"]
WAIT_S = 1200


def generate(run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastgen", "generate", "--run-dir", str(run), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)


def export(run: Path) -> list[dict[str, object]]:
    output = run.with_suffix(".jsonl")
    command = [sys.executable, "-m", "fastgen", "export", "--run-dir", str(run), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


@pytest.mark.parametrize("flags", [("--api", "completions"), ("--api", "chat", "--structured", "on", "--probe", "off")])
def test_a_real_model_writes_instructions_with_instances(
    embedded_endpoint: tuple[str, str], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    base_url, model = embedded_endpoint
    run = tmp_path / "run"
    done = generate(run, "--base-url", base_url, "--num-instructions", "3", *flags, *SHORT)
    assert done.returncode == 0, done.stderr
    rows = export(run)
    assert len(rows) == 3
    assert all(row["instances"] for row in rows)
    ledger = RunFolder(run).ledger()
    assert ledger.complete == 3
    commits = [one for one in RunFolder(run).whole_commits() if one.step != "classification"]
    assert any("\x1e" in one.completion.text for one in commits) == ("--structured" in flags)
    assert ledger.prompt_tokens.total() > ledger.completion_tokens.total() > 0
    assert RunFolder(run).header().configuration["model"] == model
    assert RunFolder(run).saved_counts().server["prefix_cache_hit_rate"] > 0.3


def test_a_killed_run_is_finished_by_the_same_command(embedded_endpoint: tuple[str, str], tmp_path: Path) -> None:
    base_url, _ = embedded_endpoint
    run = tmp_path / "run"
    arguments = ["--base-url", base_url, "--num-instructions", "3", *SHORT]
    command = [sys.executable, "-m", "fastgen", "generate", "--run-dir", str(run), *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        log = run / "log" / "000000.jsonl"
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 3):
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    committed = log.read_bytes()
    done = generate(run)
    assert done.returncode == 0, done.stderr
    assert log.read_bytes().startswith(committed[: committed.rindex(b"\n") + 1])
    assert len(export(run)) == 3
