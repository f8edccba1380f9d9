"""A child process tree that cannot outlive this process, however this process ends.

Every command runs below ``launcher.py``, which holds the other end of a pipe: when the pipe closes, because `stop` was
called or because this process died, the launcher ends the whole tree. Knows nothing of servers.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.errors import DiskError, ServerError
from fastgen.servers.spec import ServerSpec, redact
from fastgen.store.files import open_own

if TYPE_CHECKING:
    import aiohttp


LAUNCHER = Path(__file__).with_name("launcher.py")
_KILL_AFTER_GRACE_S = 10.0


class ContainedProcess:
    """One running command; made by `start_contained`."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int, grace_s: float) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._grace_s = grace_s
        self._exit = asyncio.create_task(process.wait())

    @property
    def pid(self) -> int:
        """The launcher's process id; the command and all of its children are below it."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The command's exit code once it and everything below it is gone (128 + N for signal N), else ``None``."""
        return self._process.returncode

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """`returncode` at the end, or ``None`` after ``timeout_s`` seconds; cancelling this stops nothing."""
        await asyncio.wait({self._exit}, timeout=timeout_s)
        return self._process.returncode

    async def stop(self) -> None:
        """End the tree (SIGTERM, the grace, SIGKILL) and wait until it is gone; harmless when repeated.

        The tree ends even if this is cancelled.
        """
        self._close_lifeline()
        if await self.wait(self._grace_s + _KILL_AFTER_GRACE_S) is None:
            self._process.kill()  # a launcher that hangs (a disk that does not answer); the command gets SIGTERM
            await self.wait()

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


async def start_contained(
    command: Sequence[str], *, log: int, env: Mapping[str, str] | None = None, grace_s: float = 10.0
) -> ContainedProcess:
    """Start ``command`` in a session of its own, output and errors to the descriptor ``log``.

    ``env`` is laid over the inherited environment and must hold no secret: it shows in the list of processes. A command
    that cannot be started ends with code 127 and a line in the log.
    """
    read_end, lifeline = os.pipe()
    overlay = [f"{name}={value}" for name, value in (env or {}).items()]
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(grace_s), *overlay, "--", *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *launcher, stdin=read_end, stdout=log, stderr=log, start_new_session=True
        )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(read_end)
    return ContainedProcess(process, lifeline, grace_s)


_TAIL_BYTES = 200_000
_MAX_CHARS = 300
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(
    r"^(?:\([\w-]+ pid=\d+\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\]\s?)?\s*"
)
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*|[\w./-]+: error: .*|cannot start .*)$")
_POINTS_ELSEWHERE = re.compile(r"See (?:root cause|stack trace)|Engine core initialization failed", re.IGNORECASE)


def last_words(path: Path, start: int) -> str:
    """The line after byte ``start`` that best says why the server failed, at most 300 characters, never multi-line.

    That is the last exception or usage error that does not merely point at another one, else the last line that is not
    empty. vLLM's own prefixes (process, level, time, source) are cut off.
    """
    lines = _lines(path, start)
    errors = [place for place, line in enumerate(lines) if _ERROR.match(line) and not _POINTS_ELSEWHERE.search(line)]
    if errors:
        return _with_detail(lines, errors[-1])[:_MAX_CHARS]
    return (lines[-1] if lines else "it wrote nothing")[:_MAX_CHARS]


def _with_detail(lines: list[str], place: int) -> str:
    """The error; one that is only a heading, such as ``1 validation error for X``, takes its next lines along."""
    line = lines[place]
    if line.endswith(":") or "validation error" in line:
        return " ".join(lines[place : place + 3])
    return line


def _lines(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    stripped = (" ".join(_PREFIX.sub("", _ANSI.sub("", line)).split()) for line in text.splitlines())
    return [line for line in stripped if line]


LOOPBACK = "127.0.0.1"
GRACE_S = 10.0
"""From SIGTERM to SIGKILL; an idle vLLM needs about 2 s."""
SILENT_S = 120.0
"""Without any answer for so long a server is taken for stuck; one that is merely busy answers within seconds."""
CHECK_EVERY_S = 10.0
_POLL_S = 0.25
_REPORT_EVERY_S = 15.0
_ANSWER_WITHIN_S = 5.0
_LISTENING = "0A"  # a socket's state in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class ManagedServer:
    """A server that is up. ``base_url`` ends in ``/v1``; ``model`` is the name that it answers to."""

    base_url: str
    model: str
    log_path: Path
    _run: _Run

    @property
    def pid(self) -> int:
        """The process at the root of the server's tree."""
        return self._run.process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or ``None`` while it runs."""
        return self._run.process.returncode

    async def watch(self, *, silent_s: float = SILENT_S, check_every_s: float = CHECK_EVERY_S) -> None:
        """Run until the server ends, has not answered ``/health`` for ``silent_s``, or this is cancelled.

        Only checks that were really made count, so that time in which this process was stopped does not.

        :raises ServerError: it ended by itself or went silent, with its last words and the log's path.
        """
        import aiohttp

        misses = 0
        async with aiohttp.ClientSession() as session:
            while await self._run.process.wait(check_every_s) is None:
                alive = await _answers(session, self.base_url.removesuffix("/v1") + "/health", check_every_s)
                misses = 0 if alive else misses + 1
                if misses * check_every_s >= silent_s and self.returncode is None:
                    raise ServerError(
                        f"{self._run.spec.description} has answered nothing for {silent_s:g} s; its last line: "
                        f"{self._run.last_words()} (log: {self.log_path})"
                    )
        raise self._run.died("died")


@asynccontextmanager
async def start_server(
    spec: ServerSpec, log_path: Path, *, timeout_s: float, report: Callable[[str], None]
) -> AsyncIterator[ManagedServer]:
    """Run the server for the length of the block, on the loopback interface; ``log_path`` is appended to.

    However the block ends, the server and all that it started are gone afterwards; so they are when this process is
    killed.

    :raises ServerError: it died before it served, or did not serve within ``timeout_s`` seconds (``--server-timeout``).
    :raises DiskError: the log cannot be written.
    """
    port = spec.port or free_port()
    command = (*spec.command, "--host", LOOPBACK, "--port", str(port))
    log, start = _open_log(log_path, command)
    try:
        process = await start_contained(command, log=log, env=spec.env, grace_s=GRACE_S)
    finally:
        os.close(log)
    run = _Run(spec, process, log_path, start)
    try:
        report(f"starting {spec.description} on port {port} (log: {log_path})")
        model = await _until_it_serves(run, f"http://{LOOPBACK}:{port}", timeout_s, report)
        yield ManagedServer(f"http://{LOOPBACK}:{port}/v1", model, log_path, run)
    finally:
        await process.stop()


@dataclass(frozen=True, slots=True)
class _Run:
    spec: ServerSpec
    process: ContainedProcess
    log_path: Path
    log_start: int

    def last_words(self) -> str:
        """What the server said last, in one line."""
        return last_words(self.log_path, self.log_start)

    def died(self, how: str) -> ServerError:
        """The error that says how it ended and what it said last."""
        code = self.process.returncode
        return ServerError(
            f"{self.spec.description} {how} (exit code {code}): {self.last_words()} (log: {self.log_path})"
        )


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """As many different ones."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def is_shared(port: int, root_pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process outside the tree of ``root_pid`` listens on a TCP port; false where the system does not tell.

    Without this check the answers of another server would be taken for those of the one that was started: both can
    listen on one port, because vLLM sets SO_REUSEPORT.
    """
    listeners = _listening_sockets(port, proc)
    return bool(listeners) and not listeners <= _sockets_of_tree(root_pid, proc)


def _listening_sockets(port: int, proc: Path) -> set[str]:
    """Inodes of the sockets that listen on a port."""
    found: set[str] = set()
    for table in (proc / "net/tcp", proc / "net/tcp6"):
        with suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _sockets_of_tree(root_pid: int, proc: Path) -> set[str]:
    """Inodes of the sockets that a process and its descendants have open."""
    parents: dict[int, int] = {}
    for stat in proc.glob("[0-9]*/stat"):
        with suppress(OSError):
            text = stat.read_text(encoding="utf-8", errors="replace")
            parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    tree, size = {root_pid}, 0
    while size < len(tree):
        size = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    found: set[str] = set()
    for pid in tree:
        with suppress(OSError):
            for descriptor in (proc / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


def _open_log(path: Path, command: tuple[str, ...]) -> tuple[int, int]:
    """(descriptor, offset at which this start's output begins)."""
    heading = f"==== {time.strftime('%Y-%m-%d %H:%M:%S %z')} {redact(command)}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, heading.encode())
    except OSError as error:
        raise DiskError(f"{path}: the server's log cannot be written ({error.strerror})") from None
    return log, os.fstat(log).st_size


async def _until_it_serves(run: _Run, root: str, timeout_s: float, report: Callable[[str], None]) -> str:
    import aiohttp

    began_s = time.monotonic()
    next_report_s = _REPORT_EVERY_S
    async with aiohttp.ClientSession() as session:
        while True:
            waited_s = time.monotonic() - began_s
            left_s = timeout_s - waited_s
            if left_s > 0 and (model := await _served_model(session, root, min(left_s, _ANSWER_WITHIN_S))):
                if is_shared(port := int(root.rpartition(":")[2]), run.process.pid):
                    raise ServerError(
                        f"{run.spec.description} did not start: another program listens on port {port} too and would "
                        "get its requests; run the same command again, which takes another port, or choose one with "
                        "--server-args='--port N'"
                    )
                report(f"{run.spec.description} serves {model} after {time.monotonic() - began_s:.0f} s")
                return model
            if run.process.returncode is not None:
                raise run.died("did not start")
            if left_s <= 0:
                raise ServerError(
                    f"{run.spec.description} did not serve within {timeout_s:g} s (--server-timeout); its last line: "
                    f"{run.last_words()} (log: {run.log_path})"
                )
            if waited_s >= next_report_s:
                next_report_s += _REPORT_EVERY_S
                report(f"waiting for {run.spec.description} ({waited_s:.0f} s)")
            await run.process.wait(min(_POLL_S, left_s))


async def _answers(session: aiohttp.ClientSession, url: str, timeout_s: float) -> bool:
    """Whether anything comes back, of whatever status."""
    import aiohttp

    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=timeout_s)):
            return True
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _served_model(session: aiohttp.ClientSession, root: str, timeout_s: float) -> str | None:
    """The first model's name if the server is up, else ``None``."""
    import aiohttp

    limit = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with session.get(f"{root}/health", timeout=limit) as health:
            if health.status != 200:  # noqa: PLR2004  # HTTP's OK
                return None
        async with session.get(f"{root}/v1/models", timeout=limit) as models:
            listing = await models.json(content_type=None)
            return str(listing["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
        return None
