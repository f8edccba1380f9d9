"""A display that is full, closed, gone or not read neither ends nor delays a run. A terminal is left in order."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import orjson
import pyte
import pytest

from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.display import Display, LogFile, fitting
from fastgen.telemetry.monitor import BEAT_S
from fastgen.telemetry.series import read_metrics
from tests.export_help import make_run, numbered
from tests.generate.test_generate import shipped_server

FASTGEN = [sys.executable, "-m", "fastgen"]
WAIT_S = 120


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with shipped_server("--latency", "0.01") as base_url:
        yield base_url


def command(run: Path, url: str, count: int, *more: str) -> list[str]:
    return [*FASTGEN, "generate", "--run-dir", str(run), "--base-url", url, "--num-instructions", str(count), *more]


def complete(run: Path) -> int:
    return RunFolder(run).ledger().complete


# -- the stream --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unread_pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe that is full already, and the stream that writes to it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"." * 4096):
            pass
    os.set_blocking(writing, True)
    with open(writing, "w", encoding="utf-8", closefd=False) as stream:
        yield reading, stream
    os.close(writing)


def test_a_stream_that_is_not_read_is_given_up_in_time() -> None:
    with unread_pipe() as (reading, stream):
        display = Display(stream, capacity=1000)
        for number in range(1000):
            display.write(f"line {number}\n")
        display.close(within_s=0.01)
        assert display.is_stuck
        os.set_blocking(reading, False)
        with contextlib.suppress(BlockingIOError):
            os.read(reading, 1 << 20)
        os.close(reading)


def test_queued_text_is_written_whole_and_in_order_once_it_is_read() -> None:
    with unread_pipe() as (reading, stream):
        display = Display(stream, capacity=100)
        for number in range(100):
            display.write(f"line {number:04}\n")
        read = bytearray()

        def drain() -> None:
            while block := os.read(reading, 1 << 16):
                read.extend(block)

        reader = threading.Thread(target=drain)
        reader.start()
        display.close(within_s=WAIT_S)
        assert not display.is_stuck
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the pipe's end
        reader.join()
        os.close(reading)
    lines = read.decode().lstrip(".").splitlines()
    assert lines == [f"line {number:04}" for number in range(10)]


def test_a_non_blocking_stream_is_written_to_the_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        display = Display(stream, capacity=1 << 20)
        display.write("x" * 300_000)
        closing = threading.Thread(target=display.close, args=(WAIT_S,))
        closing.start()
        read = 0
        while read < 300_000:
            read += len(os.read(reading, 1 << 16))
        closing.join()
    os.close(reading)


def test_a_stream_that_fails_or_is_none_costs_only_what_was_written() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        for stream in (full, None):
            display = Display(stream)
            display.line("lost")
            display.close()
            assert not display.is_stuck
            assert not display.isatty()


def test_a_line_is_one_write_also_with_other_writers() -> None:
    class Counting(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.writes: list[str] = []

        def write(self, text: str) -> int:
            self.writes.append(text)
            return len(text)

    stream = Counting()
    display = Display(stream)
    display.line("first")
    display.line("second")
    display.close()
    assert stream.writes == ["first\n", "second\n"]


def test_what_an_encoding_does_not_have_is_replaced_before_it_is_laid_out() -> None:
    assert fitting("a · b … 中", "ascii") == "a | b ... \\u4e2d"
    assert fitting("a · b … 中", "utf-8") == "a · b … 中"
    assert fitting("中", "no such encoding") == "\\u4e2d"


def test_a_log_file_keeps_records_apart_and_a_full_disk_costs_records_only(tmp_path: Path) -> None:
    for path in (tmp_path / "log", Path("/dev/full")):
        handler = LogFile(path, "info")
        handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, "a\x1b[2J\n2026-01-01 INFO forged", (), None))
        handler.close()
    assert (tmp_path / "log").read_text().splitlines()[0].endswith(r"INFO x: a\x1b[2J")
    assert (tmp_path / "log").read_text().splitlines()[1] == "    2026-01-01 INFO forged"


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--log-json"]])
@pytest.mark.parametrize("where", ["full", "closed", "gone", "unread"])
def test_a_run_whose_standard_error_fails_is_finished(
    server: str, tmp_path: Path, where: str, flags: list[str]
) -> None:
    run = tmp_path / "run"
    asked = command(run, server, 30, *flags)
    with contextlib.ExitStack() as stack:
        if where == "full":
            done = subprocess.run(
                asked, stderr=stack.enter_context(Path("/dev/full").open("wb")), timeout=WAIT_S, check=False
            )
        elif where == "closed":
            done = subprocess.run(["sh", "-c", 'exec "$0" "$@" 2>&-', *asked], timeout=WAIT_S, check=False)
        elif where == "gone":
            reading, writing = os.pipe()
            os.close(reading)
            done = subprocess.run(asked, stderr=writing, timeout=WAIT_S, check=False)
            os.close(writing)
        else:
            _, stream = stack.enter_context(unread_pipe())
            done = subprocess.run(asked, stderr=stream.fileno(), timeout=WAIT_S, check=False)
    assert done.returncode == 0
    assert complete(run) == 30


def test_status_prints_ascii_for_folders_of_any_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / os.fsdecode(b"run-\xff-\xc3\xa9"), numbered(3), model="模型")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for flags in ([], ["--json"]):
        asked = [*FASTGEN, "status", "--run-dir", str(run), *flags]
        done = subprocess.run(asked, capture_output=True, env=environment, timeout=WAIT_S, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
    assert orjson.loads(done.stdout)["model"] == "模型"
    assert json.loads(done.stdout)["run_dir"].endswith("run-\\udcff-é")


# -- terminals ---------------------------------------------------------------------------------------------------------


class Terminal:
    """A real pseudo-terminal with a command in it; everything that it was sent is kept."""

    def __init__(self, asked: list[str], columns: int = 100, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns)
        self.sent = b""
        environment = os.environ | {"TERM": "xterm-256color"} | environment
        self.process = subprocess.Popen(asked, stdin=slave, stderr=slave, stdout=subprocess.DEVNULL, env=environment)
        os.close(slave)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def read_until(self, condition: Callable[[bytes], Any]) -> None:
        while not condition(self.sent) and self._read():
            pass
        assert condition(self.sent), self.sent[-3000:]

    def read_all(self) -> int:
        """To the command's end; its exit code."""
        while self._read():
            pass
        return self.process.wait(WAIT_S)

    def _read(self) -> bool:
        try:
            block = os.read(self._master, 1 << 16)
        except OSError:  # Linux says this once the other side is closed
            return False
        self.sent += block
        return bool(block)

    def lines(self, columns: int = 100) -> list[str]:
        """What a terminal of this width shows in the end, with what has scrolled away."""
        screen = pyte.Screen(columns, 500)
        pyte.ByteStream(screen).feed(self.sent)
        return [line.rstrip() for line in screen.display]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(asked: list[str], columns: int = 100, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(asked, columns, **environment)
    try:
        yield opened
    finally:
        opened.close()


def frames(sent: bytes) -> list[tuple[int, list[int]]]:
    """Of each redrawing: the rows that it goes up, and the widths of the lines that it leaves at the bottom."""
    first, *redrawn = re.split(rb"\r(?:\x1b\[(\d+)A)?\x1b\[J", sent)
    pairs = [(b"", first), *zip(redrawn[::2], redrawn[1::2], strict=True)]
    return [(int(up or 0), [len(line) for line in lines_of(drawn)]) for up, drawn in pairs if b"complete" in drawn]


def lines_of(drawn: bytes) -> list[str]:
    lines = re.sub(r"\x1b\[[\d;]*m", "", drawn.decode()).rstrip("\r\n").split("\r\n")
    return lines[next(number for number, line in enumerate(lines) if "complete" in line) :]


def test_a_narrower_terminal_has_no_rest_of_the_frames_before(tmp_path: Path) -> None:
    with (
        shipped_server("--latency", "0.2") as url,
        terminal(command(tmp_path / "run", url, 190, "--concurrency", "2")) as seen,  # an ETA that fits 40 columns
    ):
        seen.read_until(lambda sent: sent.count(b"\x1b[J") >= 2)
        seen.resize(40)
        before = len(seen.sent)
        seen.read_until(lambda sent: sent[before:].count(b"\x1b[J") >= 3)
    drawn = frames(seen.sent)[:-1]
    first_narrow = next(number for number, (_, widths) in enumerate(drawn) if max(widths) <= 40)
    wide, (up, _) = drawn[first_narrow - 1][1], drawn[first_narrow]
    assert max(wide) > 40
    assert up == sum(max(1, -(-width // 40)) for width in wide) - 1
    for (_, above), (up, _) in zip(drawn[first_narrow:], drawn[first_narrow + 1 :], strict=False):
        assert up == len(above) - 1


def test_an_ascii_terminal_gets_frames_that_fit(server: str, tmp_path: Path) -> None:
    asked = command(tmp_path / "run", server, 400, "--concurrency", "2")
    with terminal(asked, columns=60, PYTHONIOENCODING="ascii") as seen:
        assert seen.read_all() == 0
    assert seen.sent.isascii()
    assert b"\\x" not in seen.sent
    assert max(max(widths) for _, widths in frames(seen.sent)[:-1]) <= 60


def test_a_pause_is_no_limit_and_keeps_the_printed_lines(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        shipped_server("--latency", "0.2") as url,
        terminal(command(run, url, 100_000, "--concurrency", "2")) as seen,
    ):
        seen.read_until(lambda sent: b"limit " in sent)
        seen.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, seen.process.pid, os.WSTOPPED | os.WNOWAIT)
        paused_s = time.time()
        with contextlib.suppress(subprocess.TimeoutExpired):
            seen.process.wait(2 * BEAT_S)  # so that a look is due when it continues
        continued_s, before = time.time(), len(seen.sent)
        seen.process.send_signal(signal.SIGCONT)
        seen.read_until(lambda sent: sent[before:].count(b"ETA") >= 8)
        seen.process.send_signal(signal.SIGINT)
        seen.read_all()
    assert seen.sent[before:].count(b"\x1b[J") < seen.sent[before:].count(b"ETA")  # one frame replaced none
    heads = [line for line in seen.lines() if "ETA" in line]
    assert [head for head in heads if not re.match(r"\d+ of 100,000 complete ", head)] == []
    assert len(heads) == 2  # of the frame before the pause, which stays, and of the last one
    samples = list(read_metrics(run))
    assert samples[-1].time_s > continued_s
    assert not [one for one in samples if one.time_s - one.window_s < paused_s and one.time_s > continued_s]


def test_ctrl_c_before_a_server_answers_is_acknowledged(tmp_path: Path) -> None:
    with terminal(command(tmp_path / "run", "http://127.0.0.1:9/v1", 5)) as seen:
        seen.read_until(lambda sent: b"waiting" in sent or b"127.0.0.1:9" in sent)
        seen.process.send_signal(signal.SIGINT)
        assert seen.read_all() == 130
    assert b"stopping: ending servers and tasks" in seen.sent
