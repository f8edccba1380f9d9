"""The live page of an active run and as a command: processes that cost a run nothing and cannot delay it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.report.live import SamplePipe
from fastgen.report.live_view import STATE
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry import live_page as activation
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.live_page import page_on_demand
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.series import MetricsFile
from tests.dashboard_help import SAMPLE, make_hostile_run
from tests.export_help import Task, extend_run
from tests.generate.test_generate import FASTGEN, WAIT_S, shipped_server
from tests.servers.test_processes import assert_gone


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hostile_run(tmp_path_factory.mktemp("dashboard") / "run")


def test_a_port_in_use_is_one_line_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--base-url", "http://127.0.0.1:9/v1", "--dashboard", "--dashboard-port", port]
        assert cli.run(["generate", "--run-dir", str(tmp_path / "run"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"fastgen: --dashboard-port {port}: cannot listen on 127.0.0.1 \(.*\); choose another port", line
    )
    assert not (tmp_path / "run").exists()


def children_of(parent: int) -> list[int]:
    """Processes of the page that a process has started and that have not been waited for."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            is_page = b"fastgen.report" in (stat.parent / "cmdline").read_bytes()
            if is_page and int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


@contextmanager
def paused(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


async def _until(text: bytes, lines: aiohttp.StreamReader) -> None:
    while text not in (line := await lines.readline()):
        assert line


async def _fed(run: Path) -> None:
    hub = MetricsHub()
    hub.publish(SAMPLE)
    async with aiohttp.ClientSession() as session:
        async with page_on_demand(run, 0, hub) as url:
            assert children_of(os.getpid()) == []  # no connection yet
            events = await session.get(url + "events")
            (page,) = children_of(os.getpid())
            assert os.sched_getscheduler(page) == os.SCHED_IDLE
            assert b"7.25" in await events.content.readline()
            with paused(page):
                for _ in range(200):  # more than a pipe holds, and it must not wait
                    hub.publish(SAMPLE)
            seen = asyncio.create_task(_until(b"8.75", events.content))
            while not seen.done():
                hub.publish(Sample(novelty=8.75))  # dropped as long as the pipe is full
                await asyncio.wait({seen}, timeout=0.05)
            await seen
        rest = await events.content.read()
        assert rest.endswith(b"the run has ended; 'fastgen report' makes a page to keep\n\n")
    with pytest.raises(ProcessLookupError):
        os.kill(page, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_first_connection_starts_a_process_that_never_holds_the_run_up(run: Path) -> None:
    asyncio.run(_fed(run))


async def _killed(run: Path) -> None:
    hub = MetricsHub()
    async with aiohttp.ClientSession() as session, page_on_demand(run, 0, hub) as url:
        events = await session.get(url + "events")
        await events.content.readline()
        (page,) = children_of(os.getpid())
        os.kill(page, signal.SIGKILL)
        with contextlib.suppress(aiohttp.ClientError):
            await events.content.read()
        events.close()
        for _ in range(3):
            hub.publish(SAMPLE)
        with pytest.raises(aiohttp.ClientConnectorError):  # refused at once, not left waiting
            await session.get(url)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_page_that_dies_is_one_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(_killed(run))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.fullmatch(r"the dashboard ended( \(exit code -9\))?; the run continues without it", record.getMessage())


async def _stuck(run: Path) -> None:
    async with aiohttp.ClientSession() as session, page_on_demand(run, 0, MetricsHub()) as url:
        events = await session.get(url + "events")
        await events.content.readline()
        (page,) = children_of(os.getpid())
        os.kill(page, signal.SIGSTOP)
        events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(page, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_page_that_is_stuck_does_not_keep_the_run_from_ending(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(activation, "GRACE_S", 0.0)
    monkeypatch.setattr(activation, "_KILL_AFTER_S", 0.0)
    asyncio.run(_stuck(run))
    assert not caplog.records


async def _cannot_start() -> None:
    async with page_on_demand(Path("x"), 0, MetricsHub()) as url, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url)


def test_a_page_that_cannot_be_started_is_one_warning_with_the_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    asyncio.run(_cannot_start())
    (record,) = caplog.records
    assert "cannot be started (No such file or directory); the run continues without it" in record.getMessage()


async def _pipe() -> None:
    read_end, write_end = os.pipe()
    pipe = SamplePipe(read_end)
    line = orjson.dumps(SAMPLE.as_dict())
    for piece in (b"no sample\n", line[:100], line[100:] + b"\n" + line[:7]):
        os.write(write_end, piece)
        await asyncio.sleep(0.0)
    os.close(write_end)
    await pipe.ended.wait()
    os.close(read_end)
    assert pipe.latest == SAMPLE


def test_samples_come_in_pieces_and_invalid_lines_are_skipped() -> None:
    asyncio.run(_pipe())


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """A command in a separate process group, as a shell starts it."""
    return subprocess.Popen([*FASTGEN, *map(str, arguments)], stderr=subprocess.PIPE, text=True, process_group=0)


def url_said(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"dashboard at (http://127\.0\.0\.1:\d+/)", line):
            return found[1]
    raise AssertionError("no page")


class Viewer:
    """A viewer of the page at ``url``."""

    def __init__(self, url: str) -> None:
        self._events = urllib.request.urlopen(url + "events", timeout=WAIT_S)  # noqa: S310 - our own page
        self.shown: dict[str, str] = {}

    def see(self, text: str) -> None:
        """Look until the page has this text."""
        while text not in "".join(self.shown.values()):
            assert self._take_one()

    def see_the_end(self) -> str:
        """Look until there is nothing more; why."""
        while self._take_one():
            pass
        return str(self._events.read(), "utf-8")

    def _take_one(self) -> bool:
        line = self._events.readline()
        if line.startswith(b"data: "):
            self.shown |= orjson.loads(line.removeprefix(b"data: "))
        return line not in {b"", b"event: end\n"}

    def close(self) -> None:
        self._events.close()


@contextmanager
def watched_run(path: Path) -> Iterator[tuple[subprocess.Popen[str], Viewer]]:
    """A run that does not end, with a viewer that has seen its instructions."""
    flags = ["--num-instructions", "1000000", "--concurrency", "8", "--dashboard", "--dashboard-port", "0"]
    with (
        shipped_server("--latency", "0.005") as base_url,
        start("generate", "--run-dir", path, "--base-url", base_url, *flags) as process,
    ):
        try:
            with contextlib.closing(Viewer(url_said(process))) as viewer:
                viewer.see("output: ")
                yield process, viewer
        finally:
            process.kill()


def test_ctrl_c_ends_the_run_and_its_page_shows_all_that_was_made(tmp_path: Path) -> None:
    with watched_run(tmp_path / "run") as (process, viewer):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert "the run has ended" in viewer.see_the_end()
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "warning" not in said
    ledger = RunFolder(tmp_path / "run").ledger()
    assert f"<dt>Complete</dt><dd>{ledger.complete:,}</dd>" in viewer.shown["now"]
    assert f"<dt>Kept</dt><dd>{ledger.kept:,}</dd>" in viewer.shown["now"]
    assert not [name for name in RunFolder(tmp_path / "run").header().options if "dashboard" in name]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_that_is_killed_leaves_no_page_behind(tmp_path: Path) -> None:
    with watched_run(tmp_path / "run") as (process, viewer):
        pages = children_of(process.pid)
        assert len(pages) == 1
        process.kill()
        assert "the run has ended" in viewer.see_the_end()
    assert_gone(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_continues_without_a_page_that_was_killed(tmp_path: Path) -> None:
    with watched_run(tmp_path / "run") as (process, _):
        (page,) = children_of(process.pid)
        os.kill(page, signal.SIGKILL)
        wait_for_more_commits(tmp_path / "run")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert said.count("the dashboard ended") == 1


def wait_for_more_commits(path: Path) -> None:
    log = path / "log" / "000000.jsonl"
    size = log.stat().st_size
    while log.stat().st_size == size:
        os.sched_yield()


def test_a_run_with_a_page_loads_nothing_of_the_charts(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom fastgen.cli import run\ncode = run(sys.argv[1:])\n"
        "rooms = 'fastgen.report.',\n"
        "print(code, sorted(name for name in sys.modules if name.startswith(rooms)))"
    )
    with shipped_server() as base_url:
        flags = ["--base-url", base_url, "--num-instructions", "5", "--dashboard", "--dashboard-port", "0"]
        command = [sys.executable, "-c", script, "generate", "--run-dir", str(tmp_path / "run"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"dashboard at http://127\.0\.0\.1:\d+/", done.stderr)
    assert done.stdout == "0 ['fastgen.report.options']\n"


def test_any_run_is_shown_until_its_page_is_closed(run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(run, tmp_path / "run")
    MetricsFile(path).append(SAMPLE)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with start("dashboard", "--run-dir", path, "--port", "0") as process:
        with contextlib.closing(Viewer(url_said(process))) as viewer:
            viewer.see("2001-09-09 01:46:40 UTC")
            assert viewer.shown[STATE] == "the run is complete"
            assert "Translate &lt;/script&gt;" in viewer.shown["newest"]
            extend_run(path, [Task("Praise the late arrival.")], 9)
            viewer.see("Praise the late arrival.")
            os.killpg(process.pid, signal.SIGINT)
            assert "the page was closed" in viewer.see_the_end()
        assert process.wait(WAIT_S) == 130
    now = {file for file in path.rglob("*") if file.is_file()}
    assert now - before.keys() <= {path / "lock"}


def test_a_page_of_no_run_or_at_a_strange_port_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["dashboard", "--run-dir", str(tmp_path / "none")]) == 2
    assert cli.run(["dashboard", "--run-dir", str(run), "--port", "65536"]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*FASTGEN, "dashboard", "--run-dir", str(run), "--port", port], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    none, strange = capsys.readouterr().err.splitlines()
    assert "there is no run here" in none
    assert strange == "fastgen: --port: 65536 is not within 0 to 65535"
    assert re.fullmatch(
        rf"fastgen: --port {port}: cannot listen on 127.0.0.1 \(.*\); choose another port\n", done.stderr
    )


def test_the_pages_process_inherits_no_key(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")

    async def environment_of_the_page() -> bytes:
        async with (
            aiohttp.ClientSession() as session,
            page_on_demand(run, 0, MetricsHub()) as url,
            session.get(url),
        ):
            (page,) = children_of(os.getpid())
            return await asyncio.to_thread(Path(f"/proc/{page}/environ").read_bytes)

    environment = asyncio.run(environment_of_the_page())
    assert b"PATH=" in environment
    assert b"hunter2" not in environment
