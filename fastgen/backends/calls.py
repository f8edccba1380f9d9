"""Calls that are under way at one endpoint, which can be broken off together. Knows nothing of HTTP or of health.

Breaking off works as `asyncio.timeout` does: the task is cancelled, and where the cancellation arrives it is taken back
and becomes an ordinary error. A cancellation by anybody else passes through.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class BrokenOffError(Exception):
    """The call was broken off by `Calls.break_off`."""


class Calls:
    """The calls under way at one endpoint, each in a task of its own."""

    def __init__(self) -> None:
        self._cancelled: dict[asyncio.Task[object], bool] = {}

    async def run(self, call: Awaitable[T]) -> T:
        """Return what ``call`` does.

        :raises BrokenOffError: `break_off` was called meanwhile.
        """
        task = asyncio.current_task()
        assert task is not None, "a coroutine is always run by a task"  # noqa: S101  # asyncio's own rule
        cancelling = task.cancelling()
        self._cancelled[task] = False
        try:
            return await call
        except asyncio.CancelledError:
            if self._cancelled[task] and task.uncancel() <= cancelling:
                raise BrokenOffError from None
            raise
        finally:
            del self._cancelled[task]

    def break_off(self) -> int:
        """Cancel every call under way; return how many."""
        for task, cancelled in self._cancelled.items():
            if not cancelled:
                self._cancelled[task] = True
                task.cancel()
        return len(self._cancelled)
