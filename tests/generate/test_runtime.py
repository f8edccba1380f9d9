"""What runs beside a scheduler: it ends with the block, and its first error ends the block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from fastgen.errors import DiskError, ServerError
from fastgen.generate.runtime import background_tasks


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(bounded())


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


class Endless:
    """A task that ends when it is cancelled."""

    def __init__(self) -> None:
        self.ended = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


def test_the_tasks_end_with_the_block() -> None:
    endless = Endless()

    async def main() -> None:
        async with background_tasks() as start:
            start("endless", endless.run())
            await asyncio.sleep(0)
        assert endless.ended

    run(main)


def test_the_first_error_of_a_task_ends_a_block_that_waits_for_a_thread_and_leaves_as_it_is() -> None:
    endless, may_end = Endless(), threading.Event()

    async def work() -> None:
        async with background_tasks() as start:
            start("endless", endless.run())
            start("servers", fail(ServerError("all gone")))
            start("sync", fail(DiskError("the disk is full")))
            try:
                await asyncio.to_thread(may_end.wait)
            finally:
                may_end.set()

    async def main() -> None:
        with pytest.raises(ServerError, match="all gone") as raised:
            await work()
        assert raised.value.__cause__ is None
        assert endless.ended
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    run(main)


def test_an_error_of_the_block_leaves_as_it_is() -> None:
    endless = Endless()

    async def work() -> None:
        async with background_tasks() as start:
            start("endless", endless.run())
            await fail(DiskError("full"))

    async def main() -> None:
        with pytest.raises(DiskError, match="full"):
            await work()
        assert endless.ended

    run(main)


def test_a_cancellation_from_outside_passes_through() -> None:
    endless = Endless()

    async def work() -> None:
        async with background_tasks() as start:
            start("endless", endless.run())
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert endless.ended

    run(main)
