"""Several servers kept running side by side: started together, started again when they die, left out when that is vain.

Guarantees: the block begins when the first server serves, and goes on as long as one of them is running or being
started; each keeps its address for life, so whoever talks to it need only wait; nothing of them is left when the block
ends. A server that dies before it has ever served is left out at once, since what stops it (a flag, its memory) is
still there; one that dies later, or goes silent, is started again as often as the `RestartPolicy` allows. Knows nothing
of what is asked of the servers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastgen.errors import ServerError
from fastgen.servers.process import LOOPBACK, free_ports, start_server
from fastgen.servers.spec import ServerSpec

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``most`` restarts of one server within any ``within_s`` seconds, each after a pause of ``pause_s``."""

    most: int = 3
    within_s: float = 600.0
    pause_s: float = 2.0  # a GPU's memory is free only a moment after its owner's death


class RestartBudget:
    """Counts one server's restarts against a policy. Pure; times are of any steady clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._taken_s: deque[float] = deque()

    @property
    def used(self) -> int:
        """Restarts that count now."""
        return len(self._taken_s)

    def take(self, now_s: float) -> bool:
        """Whether another restart is allowed now; if so, it counts from here on."""
        while self._taken_s and now_s - self._taken_s[0] > self._policy.within_s:
            self._taken_s.popleft()
        if len(self._taken_s) >= self._policy.most:
            return False
        self._taken_s.append(now_s)
        return True


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers of which at least one is up. ``base_urls`` end in ``/v1``; ``model`` is the name they answer to."""

    base_urls: tuple[str, ...]
    model: str
    _tasks: tuple[asyncio.Task[None], ...]

    async def watch(self) -> None:
        """Run until none of the servers is left, or this is cancelled.

        :raises ServerError: all are gone for good, with what the last one said. :raises DiskError: no log can be
            written.
        """
        await _until_all_end(self._tasks)


@asynccontextmanager
async def start_fleet(
    specs: Sequence[ServerSpec],
    log_path: Path,
    *,
    timeout_s: float,
    report: Report,
    policy: RestartPolicy = RestartPolicy(),
) -> AsyncIterator[Fleet]:
    """Run the servers for the length of the block; of several, each logs to ``NAME-1.log``, ``NAME-2.log`` and so on.

    :raises ServerError: none of them came to serve within ``timeout_s``. :raises DiskError: no log can be written.
    """
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    placed = [_placed(spec, port) for spec, port in zip(specs, free_ports(len(specs)), strict=True)]
    logs = [_log_path(log_path, place, len(specs)) for place in range(len(specs))]
    keepers = [_Keeper(spec, log, timeout_s, report, policy, first) for spec, log in zip(placed, logs, strict=True)]
    tasks = tuple(asyncio.create_task(keeper.keep(last=len(specs) == 1)) for keeper in keepers)
    try:
        model = await _first_or_failure(first, tasks)
        yield Fleet(tuple(f"http://{LOOPBACK}:{spec.port}/v1" for spec in placed), model, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Sees to one server for as long as that makes sense."""

    spec: ServerSpec
    log_path: Path
    timeout_s: float
    report: Report
    policy: RestartPolicy
    first: asyncio.Future[str]

    async def keep(self, *, last: bool) -> None:
        """Run it, again and again; ``last``: there is no other, so nothing is said of going on.

        :raises ServerError: there is no use in starting it once more.
        """
        budget = RestartBudget(self.policy)
        served = False
        while True:
            try:
                async with start_server(
                    self.spec, self.log_path, timeout_s=self.timeout_s, report=self.report
                ) as server:
                    served = True
                    if not self.first.done():
                        self.first.set_result(server.model)
                    await server.watch()
            except ServerError as error:
                if not served or not budget.take(time.monotonic()):
                    raise self._given_up(error, last=last, served=served) from None
                often = f"{budget.used} of at most {self.policy.most} times in {self.policy.within_s / 60:g} min"
                self.report(f"{error}; starting it again ({often})")
            await asyncio.sleep(self.policy.pause_s)

    def _given_up(self, error: ServerError, *, last: bool, served: bool) -> ServerError:
        tries = f"; {self.policy.most} restarts within {self.policy.within_s / 60:g} min are allowed"
        final = ServerError(f"{error}{tries if served else ''}")
        if not last:
            self.report(f"{final}; going on without it")
        return final


def _placed(spec: ServerSpec, free: int) -> ServerSpec:
    return spec if spec.port is not None else replace(spec, port=free)


def _log_path(path: Path, place: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{place + 1}{path.suffix}")


async def _first_or_failure(first: asyncio.Future[str], tasks: Sequence[asyncio.Task[None]]) -> str:
    """The model of the first server that serves; or the error of the last, when none does."""
    failing = asyncio.create_task(_until_all_end(tasks))
    waited: set[asyncio.Future[Any]] = {first, failing}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            failing.result()
        return await first
    finally:
        failing.cancel()
        await asyncio.gather(failing, return_exceptions=True)


async def _until_all_end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """:raises ServerError: all have ended so; any other error at once."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        errors = [error for task in done if (error := task.exception()) is not None]
        if grave := [error for error in errors if not isinstance(error, ServerError)]:
            raise grave[0]
        if not pending:
            raise (
                errors[-1]
                if len(tasks) == 1
                else ServerError(
                    f"none of the {len(tasks)} servers that fastgen started is left; the last: {errors[-1]}"
                )
            )
