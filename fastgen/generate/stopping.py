"""What signals mean to a run: the first Ctrl-C drains, the second cancels, Ctrl-Z is a pause; what is logged stays."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastgen.engine.scheduler import Scheduler
from fastgen.telemetry.progress import Reporter

T = TypeVar("T")


class Stopper:
    """Turns the first signal into a drain and the second into a cancellation of the task that made it.

    ``scheduler`` is what is drained, once there is one; before, the first signal cancels.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._task = asyncio.current_task()
        self.scheduler: Scheduler | None = None
        self.stopped = False
        self.pauses = 0
        """How often this process was stopped and continued (Ctrl-Z, fg)."""

    def __call__(self) -> None:
        """Handle one SIGINT or SIGTERM."""
        if self.scheduler is not None and not self.stopped:
            self._reporter.say("stopping: waiting for what is in flight (once more to stop at once)")
            self.scheduler.stop()
        elif self._task is not None:
            if not self.stopped:
                self._reporter.say("stopping: ending what was started, which takes up to 10 s")
            self._task.cancel()
        self.stopped = True

    def continued(self) -> None:
        """Handle one SIGCONT."""
        self.pauses += 1
        self._reporter.begin_anew()


async def until_stopped(work: Callable[[Stopper], Awaitable[T]], reporter: Reporter) -> T | None:
    """What ``work`` gives, with SIGINT and SIGTERM going to its `Stopper`; ``None``: the user cancelled it.

    Whether the user let it drain is the stopper's ``stopped``.
    """
    stopper, loop = Stopper(reporter), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopper)
    loop.add_signal_handler(signal.SIGCONT, stopper.continued)
    try:
        return await work(stopper)
    except asyncio.CancelledError:
        if not stopper.stopped:
            raise
        return None


_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BYTES = 512 << 10


def return_large_blocks() -> None:
    """Let blocks of 512 KiB or more go back to the system when they are freed; does nothing where that is unknown.

    By default glibc gives back only blocks larger than the largest that it ever freed, up to 32 MB (mallopt(3),
    "dynamic mmap threshold"); the texts of a growing pool, compression and snapshots then leave holes in arenas that
    never shrink, which looked like memory that grows with the run.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
