"""Child processes that cannot outlive this one, the error in a program's log, and the TCP ports of this machine.

Every command runs below ``launcher.py``, whose standard input is a pipe from this process. When the pipe closes,
because `ProcessTree.stop` was called or because this process died, the launcher ends the whole tree.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
LOOPBACK = "127.0.0.1"
_KILL_AFTER_GRACE_S = 10.0
_LISTENING = "0A"  # a socket's state in /proc/net/tcp


class ProcessTree:
    """One running command and everything below it. Made by `start_process_tree`."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int, grace_s: float) -> None:
        self._process = process
        self._pipe: int | None = pipe
        self._grace_s = grace_s
        self._exit = asyncio.create_task(process.wait())

    @property
    def pid(self) -> int:
        """The launcher's process id. The command and all of its children are below it."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The command's exit code once it and everything below it is gone (128 + N for signal N), else ``None``."""
        return self._process.returncode

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """The `returncode` at the end, or ``None`` after ``timeout_s`` seconds. Cancelling this stops nothing."""
        await asyncio.wait({self._exit}, timeout=timeout_s)
        return self._process.returncode

    async def stop(self) -> None:
        """End the tree (SIGTERM, the grace, SIGKILL) and wait until it is gone. Harmless when repeated.

        The tree ends even if this is cancelled.
        """
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if await self.wait(self._grace_s + _KILL_AFTER_GRACE_S) is None:
            self._process.kill()  # a launcher that hangs (a disk that does not answer); the command gets SIGTERM
            await self.wait()


async def start_process_tree(
    command: Sequence[str], *, log: int, env: Mapping[str, str] | None = None, grace_s: float = 10.0
) -> ProcessTree:
    """Start ``command`` in a separate session, output and errors to the descriptor ``log``.

    ``env`` is laid over the inherited environment and must hold no secret: the list of processes shows it. A command
    that cannot be started ends with code 127 and a line in the log.
    """
    read_end, write_end = os.pipe()
    overlay = [f"{name}={value}" for name, value in (env or {}).items()]
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(grace_s), *overlay, "--", *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *launcher, stdin=read_end, stdout=log, stderr=log, start_new_session=True
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    return ProcessTree(process, write_end, grace_s)


_TAIL_BYTES = 200_000
_MAX_CHARS = 300
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(
    r"^(?:\([\w-]+ pid=\d+\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\]\s?)?\s*"
)
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*|[\w./-]+: error: .*|cannot start .*)$")
_POINTS_ELSEWHERE = re.compile(r"See (?:root cause|stack trace)|Engine core initialization failed", re.IGNORECASE)


def error_line(path: Path, start: int) -> str:
    """The line after byte ``start`` of a log that best says why its program failed, at most 300 characters.

    That is the last exception or usage error that does not merely point at another one, else the last line that is not
    empty. vLLM's prefixes (process, level, time, source) are cut off.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    stripped = (" ".join(_PREFIX.sub("", _ANSI.sub("", line)).split()) for line in text.splitlines())
    lines = [line for line in stripped if line] or ["it wrote nothing"]
    errors = [at for at, line in enumerate(lines) if _ERROR.match(line) and not _POINTS_ELSEWHERE.search(line)]
    at = errors[-1] if errors else -1
    if errors and (lines[at].endswith(":") or "validation error" in lines[at]):  # a heading such as "1 validation
        return " ".join(lines[at : at + 3])[:_MAX_CHARS]  # error for X": the next lines say what
    return lines[at][:_MAX_CHARS]


def free_port() -> int:
    """A TCP port of the loopback interface on which nothing listens now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """``count`` different ones."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def port_is_shared(port: int, root_pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process outside the tree of ``root_pid`` listens on a TCP port. False where there is no /proc.

    Two servers can listen on one port, because vLLM sets SO_REUSEPORT. Without this check the answers of another server
    would be taken for those of the one that was started.
    """
    listening: set[str] = set()  # inodes of sockets
    for table in (proc / "net/tcp", proc / "net/tcp6"):
        with suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    listening.add(fields[9])
    return bool(listening) and not listening <= _sockets_of_tree(root_pid, proc)


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
