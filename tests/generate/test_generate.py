"""The whole of `fastgen generate` as processes: a real command line, the shipped server, real signals and faults."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.store.run_folder import RunFolder

FASTGEN = [sys.executable, "-m", "fastgen"]
WAIT_S = 120


@contextmanager
def shipped_server(*arguments: str) -> Iterator[str]:
    """A shipped server as a process; yields its base URL."""
    command = [sys.executable, "-m", "fastgen.simulator", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with shipped_server("--latency", "0.01") as base_url:
        yield base_url


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def fastgen(*arguments: str | Path, env: dict[str, str] | None = None) -> Done:
    """The command line in this process, which spares each call a start-up; what needs signals starts a real one."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, env or {}):
        code = cli.run([str(argument) for argument in arguments])
        out.flush()
    return Done(code, out.buffer.getvalue().decode(), err.getvalue())


def generate(run: Path, url: str, count: int, *more: str) -> Done:
    return fastgen("generate", "--run-dir", run, "--base-url", url, "--num-instructions", str(count), *more)


def export(run: Path, *more: str) -> list[dict[str, Any]]:
    done = fastgen("export", "--run-dir", run, "--output", "-", *more)
    assert done.returncode == 0, done.stderr
    return [orjson.loads(line) for line in done.stdout.splitlines()]


def status(run: Path) -> dict[str, Any]:
    done = fastgen("status", "--run-dir", run, "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = orjson.loads(done.stdout)
    return figures


def test_a_run_makes_exactly_what_was_asked_and_its_export_has_the_promised_shape(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = generate(run, server, 40, "--seed", "3")
    assert done.returncode == 0, done.stderr
    rows = export(run)
    assert len(rows) == 40
    assert len({row["id"] for row in rows}) == 40
    row = rows[-1]
    assert list(row) == [
        "id",
        "instruction",
        "is_classification",
        "instances",
        "nearest_seed",
        "nearest_checked",
        "provenance",
    ]
    assert list(row["provenance"]) == ["request_id", "model", "demonstration_ids", "seed"]
    assert row["provenance"]["seed"] == 3
    assert len(row["provenance"]["demonstration_ids"]) == 8
    assert all(r["instances"] and all(i["output"] for i in r["instances"]) for r in rows)
    assert all(0 <= r["nearest_seed"]["rouge_l"] <= 0.7 for r in rows)
    flat = export(run, "--format", "instances")
    assert len(flat) == sum(len(r["instances"]) for r in rows)
    assert set(flat[0]) == {"instruction", "input", "output"}
    figures = status(run)
    assert figures["complete"] == 40
    assert figures["kept"] == 40 + figures["empty"] + figures["pending"]
    assert len(export(run, "--format", "rejected")) == sum(figures["rejected"].values())
    assert len(export(run, "--include-empty")) == 40 + figures["empty"]


def test_most_prompts_of_a_small_run_show_instructions_of_the_model(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert generate(run, server, 300, "--concurrency", "32").returncode == 0
    shown = [row["provenance"]["demonstration_ids"] for row in export(run)]
    assert sum(all(one.startswith("seed") for one in ids) for ids in shown) <= 0.15 * len(shown)
    figures = status(run)
    assert figures["seeds"] == 175
    assert 0 < figures["seed_only_share"] <= 0.15
    assert "of the instruction prompts showed seed tasks only" in fastgen("status", "--run-dir", run).stdout


def test_an_export_only_ever_grows_at_its_end_when_the_target_is_raised(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert generate(run, server, 10).returncode == 0
    before = export(run)
    done = fastgen("generate", "--run-dir", run, "--num-instructions", "25")
    assert done.returncode == 0, done.stderr
    after = export(run)
    assert len(after) == 25
    assert after[:10] == before
    lowered = fastgen("generate", "--run-dir", run, "--num-instructions", "5")
    assert lowered.returncode == 0
    assert export(run) == after


def test_a_resume_that_would_change_the_configuration_is_refused_by_name_and_speed_may_change(
    server: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert generate(run, server, 5).returncode == 0
    for flags in (["--threshold", "0.6"], ["--seed", "9"], ["--instruction.temperature", "0.2"], ["--model", "x"]):
        refused = fastgen("generate", "--run-dir", run, "--num-instructions", "6", *flags)
        assert refused.returncode == 2
        assert flags[0] in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    seeds = tmp_path / "seeds.jsonl"
    task = {"id": "a", "name": "a", "instruction": "Name a river in Europe.", "is_classification": False}
    seeds.write_bytes(orjson.dumps(task | {"instances": [{"input": "", "output": "The Rhine"}]}))
    assert fastgen("generate", "--run-dir", run, "--seed-tasks", seeds).returncode == 2
    assert fastgen("generate", "--run-dir", run, "--num-instructions", "6", "--concurrency", "3").returncode == 0


def wait_for_commits(run: Path, process: subprocess.Popen[str], lines: int) -> None:
    """Wait until the log has this many lines."""
    log = run / "log" / "000000.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        os.sched_yield()


def start(run: Path, url: str, count: int, *more: str) -> subprocess.Popen[str]:
    arguments = ["generate", "--run-dir", str(run), "--base-url", url, "--num-instructions", str(count), *more]
    return subprocess.Popen([*FASTGEN, *arguments], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_run_stopped_by_a_signal_is_finished_by_the_same_command(
    server: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    with start(run, server, 3000, "--concurrency", "8") as process:
        wait_for_commits(run, process, 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == code
    if code > 0:
        assert said.splitlines()[-1].endswith(f"resume with: fastgen generate --run-dir {run}")
    before = export(run)
    target = str(len(before) + 20)
    done = fastgen("generate", "--run-dir", run, "--num-instructions", target)
    assert done.returncode == 0, done.stderr
    after = export(run)
    assert len(after) == len(before) + 20
    assert after[: len(before)] == before
    assert len({row["id"] for row in after}) == len(after)


def test_a_second_signal_stops_at_once_and_committed_work_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with shipped_server("--latency", "0.05") as url, start(run, url, 3000, "--concurrency", "4") as process:
        wait_for_commits(run, process, 12)
        committed = (run / "log" / "000000.jsonl").read_bytes()
        fault = '{"rate": 1.0, "kinds": ["hang"]}'
        subprocess.run([sys.executable, "-c", POST, f"{url.removesuffix('/v1')}/faults", fault], check=True)
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if line.startswith("stopping"):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_S) == 130
    assert (run / "log" / "000000.jsonl").read_bytes().startswith(committed)


POST = "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], sys.argv[2].encode(), method='POST')).read()"


def test_a_quarter_of_all_answers_being_faults_costs_only_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with shipped_server("--fault-rate", "0.25", "--seed", "5") as url:
        done = generate(run, url, 60, "--concurrency", "16")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(export(run)) == 60


def test_the_log_takes_at_most_500_bytes_a_completion_beyond_its_text(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert generate(run, server, 60).returncode == 0
    lines = (run / "log" / "000000.jsonl").read_bytes().splitlines()[1:]
    beyond = [len(line) - len(orjson.dumps(orjson.loads(line)["text"])) + 2 for line in lines]
    assert max(beyond) <= 500


def test_status_and_export_work_while_the_run_is_active(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(run, server, 5000, "--concurrency", "8") as process:
        wait_for_commits(run, process, 40)
        seen = status(run)
        rows = export(run)
        assert process.poll() is None
        process.kill()
        process.communicate()
    assert seen["target"] == 5000
    assert export(run)[: len(rows)] == rows


def test_a_server_that_is_not_there_is_waited_for_and_then_stops_the_run_resumable(tmp_path: Path) -> None:
    with shipped_server() as url:
        pass
    done = generate(tmp_path / "run", url, 5, "--server-timeout", "0.2")
    assert done.returncode == 3
    assert "--server-timeout" in done.stderr.splitlines()[-1]


def test_a_server_that_dies_in_mid_run_stops_it_resumable_and_nothing_is_lost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with shipped_server("--latency", "0.01") as url:
        process = start(run, url, 5000, "--concurrency", "8", "--outage-timeout", "0.5")
        wait_for_commits(run, process, 40)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert "run the same command again" in said.splitlines()[-1]
    before = export(run)
    with shipped_server("--latency", "0.01") as url:
        done = generate(run, url, len(before) + 5)
    assert done.returncode == 0, done.stderr
    assert export(run)[: len(before)] == before


def test_chat_and_the_paper_preset_make_runs_too(server: str, tmp_path: Path) -> None:
    for name, flags in {"chat": ["--api", "chat"], "paper": ["--preset", "paper"]}.items():
        done = generate(tmp_path / name, server, 12, *flags)
        assert done.returncode == 0, done.stderr
        assert len(export(tmp_path / name)) == 12


@pytest.mark.parametrize(
    ("model", "flags", "api"),
    [
        ("some-model-instruct", (), "chat"),
        ("some-model-instruct", ("--preset", "paper"), "completions"),
        ("smollm2-135m-instruct", (), "completions"),
        ("smollm2-135m-instruct", ("--method", "self-instruct-chat"), "chat"),
        ("smollm2-135m-instruct", ("--api", "chat"), "chat"),
    ],
)
def test_auto_asks_for_lists_in_the_way_that_suits_method_and_model(
    model: str, flags: tuple[str, ...], api: str, tmp_path: Path
) -> None:
    with shipped_server("--model", model) as url:
        done = generate(tmp_path / "run", url, 3, *flags)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").header().configuration["api"] == api


def test_a_host_without_completions_gets_one_line_that_names_the_flag(tmp_path: Path) -> None:
    with shipped_server("--apis", "chat") as url:
        done = generate(tmp_path / "run", url, 5)
    assert done.returncode == 2
    assert "--api chat" in done.stderr.splitlines()[-1]


def test_a_key_is_asked_for_used_and_never_shown(tmp_path: Path) -> None:
    run, key = tmp_path / "run", "sk-very-secret"
    with shipped_server("--api-key", key) as url:
        without = generate(run, url, 5)
        assert without.returncode == 2
        assert "--api-key-env" in without.stderr.splitlines()[-1]
        assert generate(run, url, 5, "--api-key-env", "NOT_SET_ANYWHERE").returncode == 2
        arguments = ["--base-url", url, "--num-instructions", "5", "--api-key-env", "FASTGEN_TEST_KEY"]
        done = fastgen("generate", "--run-dir", run, *arguments, env={"FASTGEN_TEST_KEY": key})
    assert done.returncode == 0, done.stderr
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert key.encode() not in written
    assert key not in done.stderr


def test_a_key_may_come_from_a_file_and_events_go_to_a_log_file_without_it(tmp_path: Path) -> None:
    key_file, log_file = tmp_path / "key", tmp_path / "events.log"
    key_file.write_text("sk-from-a-file\n")
    with shipped_server("--api-key", "sk-from-a-file", "--fault-rate", "0.2", "--seed", "2") as url:
        flags = ["--api-key-file", str(key_file), "--log-file", str(log_file), "--log-json"]
        done = generate(tmp_path / "run", url, 12, *flags)
    assert done.returncode == 0, done.stderr
    events = [orjson.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} == {"message", "progress", "summary"}
    logged = log_file.read_text()
    assert "similarity index" in logged
    assert "complete" in logged
    assert "sk-from-a-file" not in logged + done.stderr
    missing = generate(tmp_path / "other", url, 5, "--api-key-file", str(tmp_path / "nope"))
    assert missing.returncode == 2
    assert "--api-key-file" in missing.stderr


def test_forbidden_texts_are_rejected_saved_and_part_of_the_configuration(server: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert generate(first, server, 6, "--concurrency", "1").returncode == 0
    forbidden = tmp_path / "forbidden.jsonl"
    forbidden.write_bytes(b"".join(orjson.dumps({"instruction": row["instruction"]}) + b"\n" for row in export(first)))
    run = tmp_path / "run"
    assert generate(run, server, 6, "--concurrency", "1", "--decontaminate", str(forbidden)).returncode == 0
    assert not {row["instruction"] for row in export(run)} & {row["instruction"] for row in export(first)}
    contaminated = [row for row in export(run, "--format", "rejected") if row["rule"] == "contaminated"]
    assert contaminated
    assert contaminated[0]["neighbour"]["id"].startswith("forbidden_")
    forbidden.unlink()
    assert fastgen("generate", "--run-dir", run, "--num-instructions", "8").returncode == 0
    forbidden.write_bytes(b'{"instruction": "Another text altogether."}\n')
    other = fastgen("generate", "--run-dir", run, "--num-instructions", "9", "--decontaminate", forbidden)
    assert other.returncode == 2
    assert "--decontaminate" in other.stderr


def test_an_unknown_model_and_an_empty_run_are_reported_in_one_line(server: str, tmp_path: Path) -> None:
    unknown = generate(tmp_path / "run", server, 5, "--model", "nope")
    assert unknown.returncode == 2
    assert "test-model-base" in unknown.stderr.splitlines()[-1]
    run = tmp_path / "begun"
    with start(run, server, 10, "--concurrency", "1") as process:
        wait_for_commits(run, process, 1)
        process.kill()
        process.communicate()
    output = tmp_path / "out.jsonl"
    empty = fastgen("export", "--run-dir", run, "--output", output)
    assert empty.returncode == 0
    assert "warning" in empty.stderr
    assert output.read_bytes() == b""


def test_the_same_seed_one_at_a_time_gives_the_same_run(server: str, tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        assert generate(tmp_path / name, server, 15, "--concurrency", "1", "--seed", "7").returncode == 0
        rows.append(export(tmp_path / name))
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("concurrency", "count"), [(1, 20), (16, 100)])
def test_several_servers_share_the_work(tmp_path: Path, concurrency: int, count: int) -> None:
    """Of idle servers the next in turn is asked, so one at a time each gets half of all, and 16 at a time half of the
    first 16; which gets what follows is for the machine to say, since it goes to the one that has answered more.
    """
    with shipped_server("--latency", "0.01") as one, shipped_server("--latency", "0.01") as two:
        done = generate(tmp_path / "run", one, count, "--base-url", two, "--concurrency", str(concurrency))
        assert done.returncode == 0, done.stderr
        asked = [orjson.loads(_get(f"{url.removesuffix('/v1')}/faults"))["requests"] for url in (one, two)]
    assert min(asked) >= (sum(asked) // 2 if concurrency == 1 else 8)


def _get(url: str) -> str:
    script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    return subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True).stdout
