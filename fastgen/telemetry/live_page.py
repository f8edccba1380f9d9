"""The run's side of its live page: a socket that listens, and a process for the page after the first connection.

As in inetd and systemd's socket activation, there is no process until the first connection. The process then takes the
socket over, with the connection still waiting in it. Guarantees:

- A page without viewers costs a run only the socket. A page with viewers costs about 0.1 ms for every sample.
- Nothing that the page's process does ends or delays the run, except for `GRACE_S` at its end.
- No such process outlives the run, not even after SIGKILL, since the end of its standard input ends it.
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

from fastgen.errors import InputError
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.prometheus import LOOPBACK

log = logging.getLogger(__name__)
GRACE_S: Final = 5.0
"""Time for the page to show its viewers the last state; then it is terminated."""
_KILL_AFTER_S: Final = 1.0
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
"""Where the page's process finds this package, whatever the user's working directory contains."""
_LAST_BYTES: Final = 2000
_ENVIRONMENT: Final = re.compile(
    r"PATH|HOME|USER|TMPDIR|TZ|LANG|LC_\w+|XDG_\w+|PYTHON\w*|VIRTUAL_ENV|LD_LIBRARY_PATH|DYLD_\w+|NUMBA_\w+|COVERAGE_\w+"
)
"""What the page's process inherits. The rest may hold keys, which it does not need."""


def listen(port: int, flag: str) -> socket.socket:
    """A socket that listens on the loopback. Port 0 takes any that is free. ``flag`` is the option that set it.

    :raises InputError: it is not possible to listen there.
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

    :raises InputError: it is not possible to listen at ``port``.
    """
    listening = listen(port, "--dashboard-port")
    loop = asyncio.get_running_loop()
    page: _PageProcess | None = None

    def start() -> None:
        nonlocal page
        loop.remove_reader(listening.fileno())
        try:
            page = _PageProcess(listening, run_dir, hub)
        except OSError as error:  # no memory, no descriptors, no room for its messages
            log.warning("the dashboard cannot be started (%s); the run continues without it", error.strerror or error)
        finally:
            listening.close()  # the page has it now; without the page a connection is refused, not left waiting

    loop.add_reader(listening.fileno(), start)
    try:
        yield url_of(listening)
    finally:
        if listening.fileno() >= 0:
            loop.remove_reader(listening.fileno())
            listening.close()
        if page is not None:
            await page.end()


class _PageProcess:
    """The page's process, fed with the newest samples."""

    def __init__(self, listening: socket.socket, run_dir: Path, hub: MetricsHub) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        try:
            self._process = _spawn(run_dir, listening, self._stderr)
        except OSError:
            self._stderr.close()
            raise
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        self._unsent = b""
        self._has_warned = False
        self._unsubscribe = hub.subscribe(self._send)
        if hub.latest is not None:
            self._send(hub.latest)

    def _send(self, sample: Sample) -> None:
        """Write one line. What does not fit into the pipe is dropped, except for the rest of a line that was begun."""
        line = self._unsent or sample.as_line()
        try:
            self._unsent = line[os.write(self._pipe, line) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsubscribe()
            self._warn_of_its_end()

    def _warn_of_its_end(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            code = self._process.poll()
            how = "" if code is None else f" (exit code {code}{_last_line(self._stderr)})"
            log.warning("the dashboard ended%s; the run continues without it", how)

    async def end(self) -> None:
        """Close its input and wait until it is gone, for at most `GRACE_S`."""
        self._unsubscribe()
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.close()
        gone = asyncio.create_task(asyncio.to_thread(self._process.wait))
        try:
            if not (await asyncio.wait({gone}, timeout=GRACE_S))[0]:
                self._process.terminate()
                await asyncio.wait({gone}, timeout=_KILL_AFTER_S)
            elif self._process.returncode:
                self._warn_of_its_end()
        finally:
            if not gone.done():
                self._process.kill()
            await gone
            self._stderr.close()


def _spawn(run_dir: Path, listening: socket.socket, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the process in its own group, so that Ctrl-C does not reach it.

    It is not in its own session: where the kernel groups sessions (autogroup), the priority that the page gives itself
    would only count within that.
    """
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "fastgen.report", str(run_dir.resolve()), str(listening.fileno())],
        cwd=_PACKAGE_ROOT,
        env={name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        bufsize=0,
        pass_fds=(listening.fileno(),),
        process_group=0,
    )


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _LAST_BYTES))
    lines = stderr.read().decode(errors="replace").split("\n")
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
