"""What goes on beside a run's scheduler: syncing, watching the disk, showing figures. Each until it is cancelled."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

from fastgen.metrics.instruments import CommitTimes
from fastgen.progress import ProgressMeter, Reporter
from fastgen.scheduling.scheduler import Scheduler
from fastgen.serving import Serving
from fastgen.storage.store import Store

_FIGURES_EVERY_S = 5.0
_SPACE_EVERY_S = 10.0
LOW_SPACE_BYTES = 500_000_000


@asynccontextmanager
async def beside(
    main: Coroutine[None, None, None], *others: Coroutine[None, None, None]
) -> AsyncIterator[asyncio.Task[None]]:
    """``main`` with helpers beside it: they end with it, and it ends with the error of the first that fails."""
    task = asyncio.create_task(main)
    failures: list[BaseException] = []

    def ended(helper: asyncio.Task[None]) -> None:
        if not helper.cancelled() and (error := helper.exception()) is not None:
            failures.append(error)
            task.cancel()

    helpers = [asyncio.create_task(other) for other in others]
    for helper in helpers:
        helper.add_done_callback(ended)
    try:
        yield task
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if failures:
            raise failures[0] from None
        raise
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def keep_durable(store: Store, interval_s: float, times: CommitTimes) -> None:
    """Force the log to the disk every ``interval_s``, and compress the segments that are closed."""
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(times.syncing, store.sync)
        await asyncio.to_thread(store.compress_closed)


async def watch_space(path: Path, reporter: Reporter) -> None:
    """Warn once when the disk is nearly full, before a write fails."""
    while (free := free_bytes(path)) > LOW_SPACE_BYTES:  # noqa: ASYNC110 - nothing tells of space
        await asyncio.sleep(_SPACE_EVERY_S)
    reporter.say(f"{path}: only {free / 1e6:,.0f} MB free on its disk; the run stops (resumable) when it is full")
    await asyncio.Event().wait()


def free_bytes(path: Path) -> float:
    """Free bytes on the folder's disk; endless where nothing tells, as when the folder is gone: a write will say so."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return math.inf


async def show(meter: ProgressMeter, scheduler: Scheduler, reporter: Reporter) -> None:
    """Show the figures every second."""
    while True:
        await asyncio.sleep(1.0)
        now = scheduler.statistics()
        reporter.show(meter.look(in_flight=now.in_flight, waiting_retries=now.waiting_retries))


async def watch_figures(store: Store, serving: Serving) -> None:
    """Keep what the servers say of the run in its folder."""
    while True:
        await asyncio.sleep(_FIGURES_EVERY_S)
        store.server_figures = await serving.figures() or store.server_figures
