"""A child process tree that cannot outlive this process, however this process ends.

Every command runs below ``launcher.py``, which holds the other end of a pipe: when the pipe closes, because `stop` was
called or because this process died, the launcher ends the whole tree. Knows nothing of servers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
