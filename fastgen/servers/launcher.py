"""Run one command, none of whose processes outlives the process that started this launcher.

Run as ``python -I -S launcher.py GRACE_S [NAME=VALUE ...] -- COMMAND ...`` with a pipe as standard input, the lifeline.
The command ends by itself, or this script ends it when the lifeline closes: because the other process wants that, or
because it died, SIGKILL included. To end means SIGTERM, ``GRACE_S`` seconds, then SIGKILL for the whole process group
and for every descendant that left the group. The exit code is the command's, 128 + N for death by signal N, 127 where
it could not be started. If the launcher itself is killed, the command gets SIGTERM (on Linux).

It imports no other module of fastgen, so that it starts in a few hundredths of a second and takes little memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LIFELINE = 0
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CANNOT_START = 127


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the command in a new process group. It gets SIGTERM when this process dies."""
    control: Callable[[int, int], int] | None = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    if control is not None:
        control(PR_SET_CHILD_SUBREAPER, 1)

    def die_with_launcher() -> None:
        if control is not None:
            control(PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(  # noqa: S603  # the caller's command is the purpose
        command,
        stdin=subprocess.DEVNULL,
        env=env,
        process_group=0,
        preexec_fn=die_with_launcher,  # noqa: PLW1509  # this process has one thread
    )


def wait_for_end_or_stop(child: subprocess.Popen[bytes], wake: int) -> None:
    """Return when the child is gone, the lifeline is closed, or this process gets a signal to stop."""
    while child.poll() is None:
        ready, _, _ = select.select([LIFELINE, wake], [], [])
        signals = os.read(wake, 64) if wake in ready else b""
        if LIFELINE in ready or any(number != signal.SIGCHLD for number in signals):
            return


def end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """Terminate the child, wait, then kill its group and every other descendant."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    while orphans := children():  # those that left the group were handed to this process when their parent died
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def children() -> list[int]:
    """Process ids whose parent is this process. Empty where there is no /proc."""
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if parent_of(stat) == os.getpid()]


def parent_of(stat: Path) -> int | None:
    """The parent's id from a ``/proc/PID/stat``. The name in parentheses may hold anything."""
    try:
        return int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


def listen() -> int:
    """A descriptor on which each signal that matters arrives as one byte."""
    wake, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return wake


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    split = arguments.index("--")
    grace_s, overlay = float(arguments[0]), dict(pair.split("=", 1) for pair in arguments[1:split])
    command = arguments[split + 1 :]
    wake = listen()
    try:
        child = start(command, {**os.environ, **overlay})
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201  # the log's line
        return CANNOT_START
    wait_for_end_or_stop(child, wake)
    end(child, grace_s)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
