"""What surrounds a scheduler in a command that asks servers: signals, background tasks, limits from the options.

The first Ctrl-C lets the requests in flight finish, the second cancels. Ctrl-Z pauses the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TypeVar

from fastgen.engine.concurrency import Governor
from fastgen.engine.rate_limits import RateLimits
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler
from fastgen.generate.options import SpeedOptions
from fastgen.generate.serving import Serving
from fastgen.telemetry.progress import Reporter

T = TypeVar("T")


class Stopper:
    """Handles SIGINT and SIGTERM: the first drains ``scheduler``, the second cancels the task that made the stopper.

    Without a scheduler (before the first request) the first signal cancels.
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
            self._reporter.say("stopping: waiting for the requests in flight (again to stop at once)")
            self.scheduler.stop()
        elif self._task is not None:
            if not self.stopped:
                self._reporter.say("stopping: ending servers and tasks, which takes up to 10 s")
            self._task.cancel()
        self.stopped = True

    def continued(self) -> None:
        """Handle one SIGCONT."""
        self.pauses += 1
        self._reporter.restart()


def by_signals(stopper: Stopper) -> None:
    """SIGINT and SIGTERM stop, in the main thread only."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopper)
    loop.add_signal_handler(signal.SIGCONT, stopper.continued)


async def until_stopped(
    work: Callable[[Stopper], Awaitable[T]], reporter: Reporter, stopped: Callable[[Stopper], None] = by_signals
) -> T | None:
    """The result of ``work``, or ``None`` if the user cancelled it.

    ``stopped`` connects its `Stopper` with the user.
    """
    stopper = Stopper(reporter)
    stopped(stopper)
    try:
        return await work(stopper)
    except asyncio.CancelledError:
        if not stopper.stopped:
            raise
        return None


@contextlib.asynccontextmanager
async def background_tasks() -> AsyncIterator[Callable[[str, Coroutine[None, None, None]], None]]:
    """Yield a function that starts a named task in one `asyncio.TaskGroup`.

    The tasks are cancelled at the end of the block. The first task that fails cancels the block. Errors leave as they
    are, not in an exception group.
    """
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            yield lambda name, work: tasks.append(group.create_task(work, name=name))
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def limits_of(speed: SpeedOptions, serving: Serving) -> Limits:
    """The scheduler's limits, never more than this process can have connections for.

    Under ``--concurrency auto`` they are where the governor begins and the most that it may set.
    """
    most = serving.most_in_flight
    if speed.concurrency == "auto":
        concurrency, highest = sum(serving.sizes), min(most, speed.max_concurrency * len(serving.sizes))
    else:
        concurrency, highest = speed.concurrency, None
    return Limits(
        concurrency=min(most, concurrency),
        max_concurrency=highest,
        max_attempts=speed.max_attempts,
        outage_timeout_s=speed.outage_timeout,
        drain_timeout_s=speed.drain_timeout,
    )


def rates_of(speed: SpeedOptions) -> RateLimits | None:
    """The limits per minute, or ``None`` if there are none."""
    allowed = speed.requests_per_minute, speed.tokens_per_minute
    return RateLimits(*allowed) if any(allowed) else None


def governor_of(speed: SpeedOptions, serving: Serving, scheduler: Scheduler) -> Governor | None:
    """The concurrency control, or ``None`` if the user fixed the concurrency."""
    if speed.concurrency != "auto":
        return None
    maximum = min(serving.most_in_flight, speed.max_concurrency)
    return Governor(serving.backend, scheduler.set_concurrency, initial=serving.sizes, maximum=maximum)


_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BYTES = 512 << 10


def return_large_blocks() -> None:
    """Let glibc return freed blocks of 512 KiB or more to the system. Does nothing on other systems.

    By default glibc returns only blocks larger than the largest that it ever freed, up to 32 MB (mallopt(3), "dynamic
    mmap threshold"). The texts of a growing pool, compression and checkpoints then leave holes in arenas that never
    shrink, so memory appears to grow with the run.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
