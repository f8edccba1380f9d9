"""Runs over several servers, all real processes: killed, stopped, refusing, stages of their own, started by fastgen."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from fastgen.cli.app import run as command_line
from fastgen.generate import serving as opening
from fastgen.servers import router
from fastgen.servers.fleet import RestartPolicy, start_fleet
from fastgen.servers.spec import ServerSpec
from fastgen.store.run_folder import RunFolder
from tests.generate.test_faults import (
    FORK,
    Job,
    _compiled,
    _ended,
    _serve,
    assert_whole,
    call,
    commits,
    export,
    faults_of,
    fork,
    nothing,
    written,
)

__all__ = ["_compiled", "_ended"]  # fixtures that every test here uses


@dataclass(slots=True)
class Server:
    """The shipped server as a process that may be killed and started again at the same address."""

    arguments: tuple[str, ...]
    url: str = ""
    process: ForkProcess | None = None

    def start(self) -> None:
        port = self.url.rsplit(":", 1)[1].removesuffix("/v1") if self.url else "0"
        reading, writing = os.pipe()
        self.process = FORK.Process(target=_serve, args=([*self.arguments, "--port", port], writing), daemon=True)
        self.process.start()
        os.close(writing)
        with os.fdopen(reading) as lines:
            self.url = lines.readline().removeprefix("listening on ").strip()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


@pytest.fixture
def serving() -> Iterator[Callable[..., Server]]:
    """Starts servers; all are gone at the end."""
    with ExitStack() as stack:

        def begin(*arguments: str) -> Server:
            server = Server(arguments)
            server.start()
            stack.callback(server.kill)
            return server

        yield begin


def generate(run: Path, servers: list[Server], count: int, *flags: str, prepare: Callable[[], object] = nothing) -> Job:
    urls = [part for server in servers for part in ("--base-url", server.url)]
    arguments = ["generate", "--run-dir", str(run), *urls, "--num-instructions", str(count), *flags]
    return fork(command_line, arguments, run.with_name(f"{run.name}.said"), prepare)


def impatient() -> None:
    """Silence is noticed within half a second."""
    defaults = router.Router.__init__.__kwdefaults__
    assert defaults is not None
    defaults["check_every_s"] = defaults["check_within_s"] = 0.1


# -- killed, stopped, refusing -----------------------------------------------------------------------------------------


def test_one_of_three_servers_killed_and_brought_back_costs_nothing_but_time(
    serving: Callable[..., Server], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    servers = [serving("--latency", "0.01") for _ in range(3)]
    job = generate(run, servers, 600, "--concurrency", "24")
    for server in servers:
        job.wait_for_bytes(run, written(run) + 30_000)
        server.kill()
        before = commits(run)
        job.wait_for_bytes(run, written(run) + 30_000)
        server.start()
    assert job.process.is_alive(), job.said.read_text()
    code, said = job.ended()
    assert code == 0, said
    assert RunFolder(run).ledger().failures == {}
    assert_whole(run, before)
    assert all(faults_of(server.url)["requests"] > 0 for server in servers), "all were used again"
    assert len([line for line in said if "taken out" in line]) == 3, "one line a server"


def test_a_stopped_server_is_noticed_long_before_its_requests_run_out_of_time(
    serving: Callable[..., Server], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    servers = [serving("--latency", "0.01") for _ in range(3)]
    job = generate(run, servers, 100_000, "--concurrency", "24", "--request-timeout", "3600", prepare=impatient)
    job.wait_for_bytes(run, 30_000)
    servers[1].signal(signal.SIGSTOP)
    job.wait_for(lambda: f"{servers[1].url} has stopped answering" in job.said.read_text())
    assert job.process.pid is not None
    os.kill(job.process.pid, signal.SIGINT)
    code, said = job.ended()
    assert code == 130, said
    assert any(line.startswith(f"{servers[1].url} has stopped answering with ") for line in said), said
    assert any("hung " in line for line in said), said
    servers[1].signal(signal.SIGCONT)
    assert generate(run, servers, RunFolder(run).ledger().complete + 5).ended()[0] == 0
    assert_whole(run, [])


def test_a_stopped_server_that_continues_is_used_again(serving: Callable[..., Server], tmp_path: Path) -> None:
    run = tmp_path / "run"
    servers = [serving("--latency", "0.01") for _ in range(2)]
    job = generate(run, servers, 100_000, "--concurrency", "8", "--request-timeout", "3600", prepare=impatient)
    job.wait_for_bytes(run, 20_000)
    servers[0].signal(signal.SIGSTOP)
    job.wait_for(lambda: f"{servers[0].url} has stopped answering" in job.said.read_text())
    servers[0].signal(signal.SIGCONT)
    answered = faults_of(servers[0].url)["answered"]
    job.wait_for(lambda: faults_of(servers[0].url)["answered"] > answered + 20)
    assert job.process.is_alive(), job.said.read_text()
    job.kill()
    assert_whole(run, [])


# -- stages ------------------------------------------------------------------------------------------------------------


def with_keys() -> None:
    os.environ["MAIN_KEY"], os.environ["STRONG_KEY"] = "hunter2", "swordfish"


@pytest.fixture
def distilled(serving: Callable[..., Server], tmp_path: Path) -> tuple[Path, Server, Server]:
    """A run whose instances were written by another model at a server with another key; and both servers."""
    run = tmp_path / "run"
    main = serving("--model", "small", "--api-key", "hunter2")
    strong = serving("--model", "strong", "--api-key", "swordfish", "--latency", "0.005")
    flags = ("--api-key-env", "MAIN_KEY", "--instance-base-url", strong.url, "--instance-api-key-env", "STRONG_KEY")
    code, said = generate(run, [main], 30, "--concurrency", "8", *flags, prepare=with_keys).ended()
    assert code == 0, said
    return run, main, strong


def test_a_stronger_model_writes_the_instances(distilled: tuple[Path, Server, Server]) -> None:
    run, main, strong = distilled
    stages = [commit.step for commit in commits(run)]
    assert len(export(run)) == 30
    assert faults_of(strong.url)["answered"] >= stages.count("instance")
    assert faults_of(main.url)["generation_tokens"] > 0
    header = RunFolder(run).header()
    assert (header.configuration["model"], header.configuration["instance_model"]) == ("small", "strong")
    assert "classification_model" not in header.configuration
    assert_whole(run, [])


def test_no_key_is_in_the_run_folder_or_on_the_screen(distilled: tuple[Path, Server, Server]) -> None:
    run, *_ = distilled
    everything = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    everything += run.with_name("run.said").read_bytes()
    assert b"swordfish" not in everything
    assert b"hunter2" not in everything
    assert b"STRONG_KEY" in everything


def test_a_resumed_run_asks_the_same_models_and_no_others(
    distilled: tuple[Path, Server, Server], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIN_KEY", "hunter2")
    monkeypatch.setenv("STRONG_KEY", "swordfish")
    run, main, strong = distilled
    before = faults_of(strong.url)["answered"]
    code, said = generate(run, [main], 35, prepare=with_keys).ended()
    assert code == 0, said
    assert faults_of(strong.url)["answered"] > before
    assert call("generate", "--run-dir", run, "--num-instructions", "40", "--instance-model", "weak") == 2
    assert "was made with --instance-model strong (not weak)" in capsys.readouterr().err


def test_a_stage_may_use_another_model_of_the_same_server(serving: Callable[..., Server], tmp_path: Path) -> None:
    server = serving("--model", "small")
    job = generate(tmp_path / "run", [server], 5, "--classification-model", "other")
    code, said = job.ended()
    assert code == 2
    assert "--classification-model other: the server does not have it; it offers small" in said[-1]


def test_a_run_made_before_there_were_stage_models_resumes(serving: Callable[..., Server], tmp_path: Path) -> None:
    run = tmp_path / "run"
    server = serving()
    assert generate(run, [server], 5).ended()[0] == 0
    assert not [name for name in RunFolder(run).header().configuration if name.endswith("_model")]
    same = ("--instance-base-url", server.url)
    code, said = generate(run, [server], 8, *same).ended()
    assert code == 0, said
    code, said = generate(run, [server], 9, "--instance-base-url", serving("--model", "big").url).ended()
    assert code == 2
    assert "was made with --instance-model None (not big)" in said[-1]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--instance-model", "m"], "--instance-model m: name its server with --instance-base-url"),
        (["--classification-base-url", "ftp://x"], "--classification-base-url ftp://x: use a form such as"),
        (["--instance-api-key-env", "K"], "--instance-api-key-env, --instance-api-key-file: belong to"),
        (["--num-servers", "0"], "--num-servers: 0 is below 1"),
        (
            ["--instance-base-url", "http://127.0.0.1:9", "--instance-api-key-env", "NOT_SET_ANYWHERE"],
            "--instance-api-key-env NOT_SET_ANYWHERE: that environment variable is not set",
        ),
    ],
)
def test_impossible_server_options_are_one_line(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("generate", "--run-dir", tmp_path / "run", *flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert complaint in said


# -- started by fastgen ------------------------------------------------------------------------------------------------


def managed(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` without --base-url starts the shipped server this many times, with restarts at once."""

    async def choose(*_: object, **__: object) -> tuple[ServerSpec, ...]:
        command = (sys.executable, "-m", "fastgen.simulator", "--latency", "0.01")
        return tuple(ServerSpec(command, "m", f"server {i + 1} of {count}", concurrency=8) for i in range(count))

    def start(*arguments: Any, **more: Any) -> Any:
        return start_fleet(*arguments, **more, policy=RestartPolicy(most=2, pause_s=0.0))

    monkeypatch.setattr(opening, "choose_servers", choose)
    monkeypatch.setattr(opening, "start_fleet", start)


def started(run: Path, job: Job, times: int) -> None:
    """Wait until this many starts were reported as successful."""
    job.wait_for(lambda: job.said.read_text().count("serves test-model-base") >= times)


def server_processes(job: Job) -> list[int]:
    """The servers below the launchers below a run, oldest first."""
    assert job.process.pid is not None
    return [server for launcher in children(job.process.pid) for server in children(launcher)]


def children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize("count", [1, 2])
def test_a_server_that_fastgen_started_is_brought_back_when_it_is_killed(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managed(count, monkeypatch)
    run = tmp_path / "run"
    job = generate(run, [], 300)
    started(run, job, count)
    job.wait_for_bytes(run, 20_000)
    first, *others = server_processes(job)
    for other in others:  # they must not finish the run before the first is back
        os.kill(other, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    started(run, job, count + 1)
    assert job.process.is_alive(), job.said.read_text()
    for other in others:
        os.kill(other, signal.SIGCONT)
    code, said = job.ended()
    assert code == 0, said
    assert len([line for line in said if "died (exit code 137)" in line and "starting it again (1 of" in line]) == 1
    assert len(list(run.glob("server*.log"))) == count
    assert_whole(run, [])


def test_when_all_servers_that_fastgen_started_are_gone_the_run_stops_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managed(2, monkeypatch)
    run = tmp_path / "run"
    job = generate(run, [], 100_000)
    job.wait_for_bytes(run, 10_000)
    for start in range(2, 7):
        started(run, job, start)
        os.kill(server_processes(job)[0], signal.SIGKILL)
    job.wait_for(lambda: "continuing without it" in job.said.read_text())
    os.kill(server_processes(job)[0], signal.SIGKILL)
    code, said = job.ended()
    assert code == 3
    assert said[-1].startswith("fastgen: none of the 2 servers that fastgen started is left; the last: server ")
    before = commits(run)
    assert generate(run, [], RunFolder(run).ledger().complete + 5).ended()[0] == 0
    assert_whole(run, before)
