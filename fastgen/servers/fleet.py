"""The servers that fastgen runs: start them, wait until they serve, watch them, restart them, stop them.

`start_server` runs one. Any command that serves ``/health`` and ``/v1/models`` works. `start_fleet` keeps several
running in parallel. Its block begins when the first of them serves, and continues as long as one of them is running
or being started. Each keeps its address for life, so a client only has to wait. A server that dies before it has ever
served is left out at once, because the cause (a flag, its memory) will not go away. One that dies later, or goes
silent, is restarted as often as the `RestartPolicy` allows. However a block ends, all server processes are ended, also
when this process is killed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.errors import DiskError, ServerError
from fastgen.servers.process import (
    LOOPBACK,
    ProcessTree,
    error_line,
    free_port,
    free_ports,
    port_is_shared,
    start_process_tree,
)
from fastgen.servers.spec import ServerSpec, redact
from fastgen.store.files import open_own

if TYPE_CHECKING:
    import aiohttp

GRACE_S = 10.0
"""From SIGTERM to SIGKILL; an idle vLLM needs about 2 s."""
SILENT_S = 120.0
"""A server without any answer for this long counts as stuck; one that is merely busy answers within seconds."""
CHECK_EVERY_S = 10.0
_POLL_S = 0.25
_REPORT_EVERY_S = 15.0
_ANSWER_WITHIN_S = 5.0

Report = Callable[[str], None]


# -- one server --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ManagedServer:
    """A server that fastgen started. ``base_url`` ends in ``/v1``. ``model`` is the name that it serves."""

    spec: ServerSpec
    base_url: str
    log_path: Path
    _log_start: int
    _process: ProcessTree
    model: str = ""

    @property
    def pid(self) -> int:
        """The process at the root of the server's tree."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or ``None`` while it runs."""
        return self._process.returncode

    async def watch(self, *, silent_s: float = SILENT_S, check_every_s: float = CHECK_EVERY_S) -> None:
        """Run until the server ends, has not answered ``/health`` for ``silent_s``, or this is cancelled.

        Only checks that were really made count, not the time in which this process was stopped.

        :raises ServerError: it ended by itself or went silent, with its error and the log's path.
        """
        import aiohttp

        misses = 0
        async with aiohttp.ClientSession() as session:
            while await self._process.wait(check_every_s) is None:
                alive = await _answers(session, self.base_url.removesuffix("/v1") + "/health", check_every_s)
                misses = 0 if alive else misses + 1
                if misses * check_every_s >= silent_s and self.returncode is None:
                    raise self._failure(f"has not answered for {silent_s:g} s; its last line")
        raise self._failure(f"died (exit code {self.returncode})")

    async def _wait_until_it_serves(self, timeout_s: float, report: Report) -> None:
        import aiohttp

        root, began_s, next_report_s = self.base_url.removesuffix("/v1"), time.monotonic(), _REPORT_EVERY_S
        async with aiohttp.ClientSession() as session:
            while True:
                waited_s = time.monotonic() - began_s
                left_s = timeout_s - waited_s
                if left_s > 0 and (model := await _served_model(session, root, min(left_s, _ANSWER_WITHIN_S))):
                    break
                if self.returncode is not None:
                    raise self._failure(f"did not start (exit code {self.returncode})")
                if left_s <= 0:
                    raise self._failure(f"did not serve within {timeout_s:g} s (--server-timeout); its last line")
                if waited_s >= next_report_s:
                    next_report_s += _REPORT_EVERY_S
                    report(f"waiting for {self.spec.description} ({waited_s:.0f} s)")
                await self._process.wait(min(_POLL_S, left_s))
        if port_is_shared(port := int(root.rpartition(":")[2]), self.pid):
            raise ServerError(
                f"{self.spec.description} did not start: another program listens on port {port} too and would "
                "get its requests; run the same command again, which takes another port, or choose one with "
                "--server-args='--port N'"
            )
        self.model = model
        report(f"{self.spec.description} serves {model} after {time.monotonic() - began_s:.0f} s")

    def _failure(self, how: str) -> ServerError:
        line = error_line(self.log_path, self._log_start)
        return ServerError(f"{self.spec.description} {how}: {line} (log: {self.log_path})")


@asynccontextmanager
async def start_server(
    spec: ServerSpec, log_path: Path, *, timeout_s: float, report: Report, grace_s: float = GRACE_S
) -> AsyncIterator[ManagedServer]:
    """Run the server for the length of the block, on the loopback interface. ``log_path`` is appended to.

    :raises ServerError: it died before it served, or did not serve within ``timeout_s`` seconds (``--server-timeout``).
    :raises DiskError: the log cannot be written.
    """
    port = spec.port or free_port()
    command = (*spec.command, "--host", LOOPBACK, "--port", str(port))
    heading = f"==== {time.strftime('%Y-%m-%d %H:%M:%S %z')} {redact(command)}\n"
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = open_own(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, heading.encode())
    except OSError as error:
        raise DiskError(f"{log_path}: the server's log cannot be written ({error.strerror})") from None
    start = os.fstat(log).st_size
    try:
        process = await start_process_tree(command, log=log, env=spec.env, grace_s=grace_s)
    finally:
        os.close(log)
    server = ManagedServer(spec, f"http://{LOOPBACK}:{port}/v1", log_path, start, process)
    try:
        report(f"starting {spec.description} on port {port} (log: {log_path})")
        await server._wait_until_it_serves(timeout_s, report)  # noqa: SLF001  # this function makes the server
        yield server
    finally:
        await process.stop()


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


# -- several servers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most ``most`` restarts of one server within any ``within_s`` seconds, each after a pause of ``pause_s``."""

    most: int = 3
    within_s: float = 600.0
    pause_s: float = 2.0  # a GPU's memory is free only a moment after its owner's death

    def allows(self, taken_s: deque[float], now_s: float) -> bool:
        """Whether a server may be restarted now. If so, adds ``now_s`` to the times of its restarts."""
        while taken_s and now_s - taken_s[0] > self.within_s:
            taken_s.popleft()
        if len(taken_s) >= self.most:
            return False
        taken_s.append(now_s)
        return True


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers of which at least one is up. ``base_urls`` end in ``/v1``. ``model`` is the name that they serve."""

    base_urls: tuple[str, ...]
    model: str
    _tasks: tuple[asyncio.Task[None], ...]

    async def watch(self) -> None:
        """Run until none of the servers is left, or this is cancelled.

        :raises ServerError: all have failed permanently, with the last one's error.
        :raises DiskError: no log can be written.
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
    """Run the servers for the length of the block. Of several, each logs to ``NAME-1.log``, ``NAME-2.log`` and so on.

    :raises ServerError: none of them served within ``timeout_s``.
    :raises DiskError: no log can be written.
    """
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ports = [spec.port or free for spec, free in zip(specs, free_ports(len(specs)), strict=True)]
    logs = [log_path.with_name(f"{log_path.stem}-{at + 1}{log_path.suffix}") for at in range(len(specs))]
    if len(specs) == 1:
        logs = [log_path]

    async def keep(spec: ServerSpec, log: Path) -> None:
        """Run one server, and restart it while the policy allows. The first server to serve sets ``first``."""
        restarts: deque[float] = deque()
        served = False
        while True:
            try:
                async with start_server(spec, log, timeout_s=timeout_s, report=report) as server:
                    served = True
                    if not first.done():
                        first.set_result(server.model)
                    await server.watch()
            except ServerError as error:
                if not served or not policy.allows(restarts, time.monotonic()):
                    tries = f"; {policy.most} restarts within {policy.within_s / 60:g} min are allowed"
                    final = ServerError(f"{error}{tries if served else ''}")
                    if len(specs) > 1:
                        report(f"{final}; continuing without it")
                    raise final from None
                often = f"{len(restarts)} of at most {policy.most} times in {policy.within_s / 60:g} min"
                report(f"{error}; starting it again ({often})")
            await asyncio.sleep(policy.pause_s)

    tasks = tuple(
        asyncio.create_task(keep(replace(spec, port=port), log))
        for spec, port, log in zip(specs, ports, logs, strict=True)
    )
    try:
        model = await _first_or_failure(first, tasks)
        yield Fleet(tuple(f"http://{LOOPBACK}:{port}/v1" for port in ports), model, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_or_failure(first: asyncio.Future[str], tasks: Sequence[asyncio.Task[None]]) -> str:
    """The model of the first server that serves.

    :raises ServerError: none does, with the last one's error.
    """
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
    """Wait for all servers.

    :raises ServerError: all have failed; other errors are raised at once.
    """
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        errors = [error for task in done if (error := task.exception()) is not None]
        if grave := [error for error in errors if not isinstance(error, ServerError)]:
            raise grave[0]
    if len(tasks) == 1:
        raise errors[-1]
    raise ServerError(f"none of the {len(tasks)} servers that fastgen started is left; the last: {errors[-1]}")
