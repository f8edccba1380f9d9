"""The live page's process and its server.

A run starts it when a browser connects. It also runs alone, as ``fastgen dashboard``.

Guarantees of the process: it has only the CPU time that no other process wants. It ends when the run ends or is killed,
or when its user ends it.

Guarantees of the server: it answers only where the Host header names this machine, so that another site cannot
reach it through a name that points here ("DNS rebinding"). It takes nothing but GET, and sends the page's content
security policy and no CORS header. Connections are at most `MAX_CONNECTIONS`. One that asks for nothing within
`TIMEOUT_S` is closed. Viewers are at most `MAX_VIEWERS`. One that does not take what it is sent within `TIMEOUT_S` is
disconnected, and a slow one skips states. Without a viewer nothing is read and nothing is drawn. A log is read far
quicker than it was written, so a late viewer waits only a little.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import orjson
from aiohttp import web

from fastgen.report import lower_priority
from fastgen.report.live_view import Follower, frame, frame_policy, pieces
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.live_page import listen, url_of
from fastgen.telemetry.prometheus import names_this_machine
from fastgen.telemetry.series import last_sample

log = logging.getLogger(__name__)
MAX_VIEWERS: Final = 16
MAX_CONNECTIONS: Final = 64
TIMEOUT_S: Final = 5.0
REFRESH_S: Final = 2.0
FIRST_S: Final = 0.2
"""Of reading, before a first viewer sees something."""
LAST_S: Final = 2.0
"""Of reading at the end of a run, so that it need not wait for a page that is far behind."""
RUN_ENDED: Final = "the run has ended; 'fastgen report' makes a page to keep"
PAGE_CLOSED: Final = "the page was closed; 'fastgen dashboard' opens it again"
_BLOCK_BYTES: Final = 1 << 16
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve_beside_a_run(run_dir: Path, listening: int, samples: int) -> None:
    """Serve at the descriptor ``listening`` until the pipe ``samples`` ends."""

    async def serve() -> None:
        pipe = SamplePipe(samples)
        dashboard = Dashboard(Follower(run_dir), lambda: pipe.latest, is_running=True)
        async with serve_dashboard(dashboard, socket.socket(fileno=listening)):
            await pipe.ended.wait()

    asyncio.run(serve())


def serve_alone(run_dir: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve at ``port`` until SIGINT or SIGTERM.

    :raises InputError: no run there, or the port cannot be listened on.
    """
    RunFolder(run_dir).header()

    async def serve() -> None:
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        dashboard = Dashboard(Follower(run_dir), lambda: last_sample(run_dir), is_running=False)
        with listen(port, "--port") as listening:
            async with serve_dashboard(dashboard, listening):
                say(f"dashboard at {url_of(listening)}; Ctrl-C ends it")
                await ended.wait()

    lower_priority()
    asyncio.run(serve())


class SamplePipe:
    """The newest of the samples that come through a pipe, a JSON line each. ``ended`` is set at the pipe's end.

    It has to be made in the event loop that reads it.
    """

    def __init__(self, descriptor: int) -> None:
        self.latest: Sample | None = None
        self.ended = asyncio.Event()
        self._descriptor = descriptor
        self._rest = b""
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        if not (block := os.read(self._descriptor, _BLOCK_BYTES)):
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self.ended.set()
            return
        *lines, self._rest = (self._rest + block).split(b"\n")
        if lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self.latest = Sample.from_dict(orjson.loads(lines[-1]))


class Dashboard:
    """What the page shows now: a run's log and its newest sample, which ``newest`` gives.

    ``is_running``: that sample is of this moment, and the page ends with the run.
    """

    def __init__(
        self,
        run: Follower,
        newest: Callable[[], Sample | None],
        *,
        is_running: bool,
        max_viewers: int = MAX_VIEWERS,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._run = run
        self._newest = newest
        self._is_running = is_running
        self._max_viewers = max_viewers
        self._timeout_s = timeout_s
        self._pieces: dict[str, tuple[int, str]] = {}  # by name: the version that brought it, and the HTML
        self._version = 0
        self._changed = asyncio.Condition()
        self._has_viewers = asyncio.Event()
        self._ended: str | None = None
        self.viewers = 0

    async def keep_fresh(self) -> None:
        """Show what is new every `REFRESH_S` seconds while there are viewers. An error ends only the page."""
        try:
            while True:
                await self._has_viewers.wait()
                more = await self.refresh(FIRST_S)
                while self.viewers:
                    if not more:
                        await asyncio.sleep(REFRESH_S)
                    more = await self.refresh()
        except Exception:
            log.exception("the page is no longer updated")
            await self.end("the page failed; the run is not affected")

    async def refresh(self, seconds: float = REFRESH_S) -> bool:
        """Read what is new for about ``seconds`` at most, show it, and return whether there was more to read."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while (more := self._run.read_more()) and loop.time() < until_s:  # noqa: ASYNC110 - no waiting
            await asyncio.sleep(0)  # viewers are answered between two slices
        await self._show(pieces(self._run, self._newest(), is_running=self._is_running))
        return more

    async def _show(self, drawn: Mapping[str, str]) -> None:
        changed = {name: html for name, html in drawn.items() if self._pieces.get(name, (0, ""))[1] != html}
        if changed:
            async with self._changed:
                self._version += 1
                self._pieces |= {name: (self._version, html) for name, html in changed.items()}
                self._changed.notify_all()

    async def finish(self) -> None:
        """Show the last state of a run that ended, and say to the viewers that nothing more comes."""
        if self._is_running and self.viewers:
            with contextlib.suppress(Exception):
                await self.refresh(LAST_S)
        await self.end(RUN_ENDED if self._is_running else PAGE_CLOSED)

    async def end(self, why: str) -> None:
        """Say to the viewers, in one line, why nothing more comes."""
        async with self._changed:
            self._ended = self._ended or why
            self._changed.notify_all()

    async def page(self, _request: web.Request) -> web.StreamResponse:
        """``GET /``."""
        name = self._run.run_dir.resolve().name
        return web.Response(text=frame(name), content_type="text/html", headers=_headers())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """``GET /events``: pieces as they change, until the run or the viewer ends."""
        if self.viewers >= self._max_viewers:
            return web.Response(status=503, text=f"at most {self._max_viewers} pages at once\n")
        self.viewers += 1
        self._has_viewers.set()
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_headers()})
            await response.prepare(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await self._send_all(response)
            return response
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._has_viewers.clear()

    async def _send_all(self, response: web.StreamResponse) -> None:
        sent = 0
        while True:
            async with self._changed:
                while self._version == sent and self._ended is None:
                    await self._changed.wait()
                fresh = {name: html for name, (version, html) in self._pieces.items() if version > sent}
                sent, ended = self._version, self._ended
            if fresh:
                await asyncio.wait_for(response.write(b"data: " + orjson.dumps(fresh) + b"\n\n"), self._timeout_s)
            if ended is not None:
                await asyncio.wait_for(response.write(f"event: end\ndata: {ended}\n\n".encode()), self._timeout_s)
                return


@asynccontextmanager
async def serve_dashboard(
    dashboard: Dashboard, listening: socket.socket, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[None]:
    """The page at the socket until the block ends. Then viewers get the last state, which takes `LAST_S` and more."""
    gate = _Gate(timeout_s)
    app = web.Application(middlewares=[gate.enter])
    app.router.add_get("/", dashboard.page)
    app.router.add_get("/events", dashboard.events)
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=timeout_s
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it was set up
    try:
        factory = partial(gate.answer, runner.server)
        server = await asyncio.get_running_loop().create_server(factory, sock=listening)
        fresh = asyncio.create_task(dashboard.keep_fresh())
        try:
            yield
        finally:
            fresh.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fresh
            await dashboard.finish()
            server.close()
    finally:
        gate.close()
        await runner.cleanup()


class _Gate:
    """Limits the connections, and closes those that send no request within ``timeout_s``."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._silent: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}

    def answer(self, server: web.Server) -> asyncio.BaseProtocol:
        """What answers a new connection."""
        if len(server.connections) >= MAX_CONNECTIONS:
            return _Refusal()
        protocol = server()
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._give_up, protocol)
        self._silent[protocol] = timer
        return protocol

    def _give_up(self, protocol: web.RequestHandler) -> None:
        del self._silent[protocol]
        protocol.force_close()

    @web.middleware
    async def enter(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answer a request that names this machine."""
        if (timer := self._silent.pop(request.protocol, None)) is not None:
            timer.cancel()
        if not names_this_machine(request.headers.get("Host", "")):
            return web.Response(status=403, text="this page is for this machine only\n")
        return await handler(request)

    def close(self) -> None:
        """Cancel the timers."""
        for timer in self._silent.values():
            timer.cancel()


class _Refusal(asyncio.Protocol):
    """Closes the connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say nothing."""
        transport.close()


def _headers() -> dict[str, str]:
    return {
        "Content-Security-Policy": f"{frame_policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
