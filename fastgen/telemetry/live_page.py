"""The run's side of its live page: a socket that listens, and a process for the page once somebody connects.

As inetd and systemd's socket activation have it: until the first connection there is no process, and then the page's
own one takes the socket over, with the connection still waiting in it. Guarantees: a page that nobody looks at costs a
run nothing but the socket; a page that is looked at costs it some 0.1 ms for every sample that it hands over; what the
page's process does, or that it dies, never ends or holds up the run, except for `GRACE_S` at its end; no such process
outlives the run, SIGKILL included, since the end of its standard input ends it.

Knows nothing of what the page shows, and imports nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

import orjson

from fastgen.errors import InputError
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.prometheus import LOOPBACK

log = logging.getLogger(__name__)
GRACE_S: Final = 5.0
"""For the page to show its viewers the last state; then it is terminated."""
_KILL_AFTER_S: Final = 1.0
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
"""Where the page's process finds this very package, whatever lies in the user's working directory."""
_LAST_WORDS_BYTES: Final = 2000
_ENVIRONMENT: Final = re.compile(
    r"PATH|HOME|USER|TMPDIR|TZ|LANG|LC_\w+|XDG_\w+|PYTHON\w*|VIRTUAL_ENV|LD_LIBRARY_PATH|DYLD_\w+|NUMBA_\w+|COVERAGE_\w+"
)
"""What the page's process inherits. The rest may hold keys, which it does not need."""


def listen(port: int, flag: str) -> socket.socket:
    """A socket that listens on the loopback; port 0 takes any that is free. ``flag`` is what the user gave it by.

    :raises InputError: nobody can listen there.
    """
    try:
        return socket.create_server((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{flag} {port}: cannot listen on {LOOPBACK} ({why}); choose another port") from None


def url_of(listening: socket.socket) -> str:
    """Where a browser finds it."""
    return f"http://{LOOPBACK}:{listening.getsockname()[1]}/"


@asynccontextmanager
async def page_on_demand(run_dir: Path, port: int, hub: MetricsHub) -> AsyncIterator[str]:
    """The page of the run in ``run_dir`` at the URL that is yielded, until the block ends.

    :raises InputError: nobody can listen there.
    """
    waiting = _Waiting(listen(port, "--dashboard-port"), run_dir, hub)
    try:
        yield waiting.url
    finally:
        await waiting.close()


class _Waiting:
    """Waits for the first connection."""

    def __init__(self, listening: socket.socket, run_dir: Path, hub: MetricsHub) -> None:
        self.url = url_of(listening)
        self._listening = listening
        self._run_dir = run_dir
        self._hub = hub
        self._process: _PageProcess | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening.fileno(), self._start)

    def _start(self) -> None:
        self._loop.remove_reader(self._listening.fileno())
        try:
            self._process = _PageProcess(self._listening, self._run_dir, self._hub)
        except OSError as error:  # no memory, no descriptors, no room for its messages
            log.warning("the dashboard cannot be started (%s); the run goes on without it", error.strerror or error)
        finally:
            self._listening.close()  # the page has it now; without the page a connection is refused, not left waiting

    async def close(self) -> None:
        """End what there is."""
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()
        if self._process is not None:
            await self._process.end()


class _PageProcess:
    """The page's process, fed with the newest samples."""

    def __init__(self, listening: socket.socket, run_dir: Path, hub: MetricsHub) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        try:
            self._process = _spawn(run_dir, listening, self._said)
        except OSError:
            self._said.close()
            raise
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        self._unsent = b""
        self._told = False
        self._unsubscribe = hub.subscribe(self._send)
        if hub.latest is not None:
            self._send(hub.latest)

    def _send(self, sample: Sample) -> None:
        """Write one line; what does not fit into the pipe is dropped, but for the rest of a line that was begun."""
        line = self._unsent or _line(sample)
        try:
            self._unsent = line[os.write(self._pipe, line) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsubscribe()
            self._tell_of_its_death()

    def _tell_of_its_death(self) -> None:
        if not self._told:
            self._told = True
            code = self._process.poll()
            how = "" if code is None else f" (exit code {code}{_last_words(self._said)})"
            log.warning("the dashboard ended%s; the run goes on without it", how)

    async def end(self) -> None:
        """Tell it that the run ended and wait until it is gone, for at most `GRACE_S`."""
        self._unsubscribe()
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.close()
        gone = asyncio.create_task(asyncio.to_thread(self._process.wait))
        try:
            if not (await asyncio.wait({gone}, timeout=GRACE_S))[0]:
                self._process.terminate()
                await asyncio.wait({gone}, timeout=_KILL_AFTER_S)
            elif self._process.returncode:
                self._tell_of_its_death()
        finally:
            if not gone.done():
                self._process.kill()
            await gone
            self._said.close()


def _spawn(run_dir: Path, listening: socket.socket, said: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process, in a group of its own, so that Ctrl-C does not reach it.

    Not in a session of its own: where the kernel groups sessions (autogroup), the priority that the page gives itself
    would only count within that.
    """
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "fastgen.report", str(run_dir.resolve()), str(listening.fileno())],
        cwd=_PACKAGE_ROOT,
        env={name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        bufsize=0,
        pass_fds=(listening.fileno(),),
        process_group=0,
    )


def _line(sample: Sample) -> bytes:
    return orjson.dumps(sample.as_dict(), option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def _last_words(said: IO[bytes]) -> str:
    said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
    lines = said.read().decode(errors="replace").split("\n")
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
