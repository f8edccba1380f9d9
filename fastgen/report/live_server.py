"""The server of the live page.

Guarantees: it answers only where the Host header names this machine (so that a page elsewhere cannot reach it through a
name of its own, "DNS rebinding"); it takes nothing but GET, sends no CORS header but the page's content security
policy. Connections are at most `MOST_CONNECTIONS`; one that asks for nothing within `PATIENCE_S` is closed. Viewers are
at most `MOST_VIEWERS`; one that does not take what it is sent within `PATIENCE_S` is let go, and one that is slow skips
states. Without a viewer nothing is read and nothing is drawn: a log is read far quicker than it
was written, so whoever looks late waits a little, and what nobody looks at costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import orjson
from aiohttp import web

from fastgen.report.live_view import SCRIPTS, Follower, frame, pieces
from fastgen.report.page import asset, policy
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.prometheus import names_this_machine

log = logging.getLogger(__name__)
MOST_VIEWERS: Final = 16
MOST_CONNECTIONS: Final = 64
PATIENCE_S: Final = 5.0
EVERY_S: Final = 2.0
FIRST_S: Final = 0.2
"""Of reading, before a first viewer sees something."""
LAST_S: Final = 2.0
"""Of reading at the end of a run, so that it need not wait for a page that is far behind."""
RUN_ENDED: Final = "the run has ended; 'fastgen report' makes a page to keep"
PAGE_CLOSED: Final = "the page was closed; 'fastgen dashboard' opens it again"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """What the page shows now: a run's log and its newest sample, which ``newest`` gives.

    ``is_running``: that sample is of this moment, and the end of the page is that of the run.
    """

    def __init__(self, run: Follower, newest: Callable[[], Sample | None], *, is_running: bool) -> None:
        self._run = run
        self._newest = newest
        self._is_running = is_running
        self._pieces: dict[str, tuple[int, str]] = {}
        self._version = 0
        self._changed = asyncio.Condition()
        self._looked_at = asyncio.Event()
        self._ended: str | None = None
        self.viewers = 0

    async def keep_fresh(self) -> None:
        """Show what is new every `EVERY_S` seconds while somebody looks; an error ends only the page."""
        try:
            while True:
                await self._looked_at.wait()
                more = await self.refresh(FIRST_S)
                while self.viewers:
                    if not more:
                        await asyncio.sleep(EVERY_S)
                    more = await self.refresh()
        except Exception:
            log.exception("the page shows nothing new any more")
            await self.end("the page failed; its run is not touched by that")

    async def refresh(self, seconds: float = EVERY_S) -> bool:
        """Read what is new, for about so many seconds at most, draw it and tell; whether there was more to read."""
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
        """Show the last state of a run that ended, and tell the viewers that nothing more comes."""
        if self._is_running and self.viewers:
            with contextlib.suppress(Exception):
                await self.refresh(LAST_S)
        await self.end(RUN_ENDED if self._is_running else PAGE_CLOSED)

    async def end(self, why: str) -> None:
        """Tell the viewers, in one line, why nothing more comes."""
        async with self._changed:
            self._ended = self._ended or why
            self._changed.notify_all()

    async def page(self, _request: web.Request) -> web.StreamResponse:
        """``GET /``."""
        name = self._run.run_dir.resolve().name
        return web.Response(text=frame(name), content_type="text/html", headers=_headers())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """``GET /events``: pieces as they change, until the run or the viewer ends."""
        if self.viewers >= MOST_VIEWERS:
            return web.Response(status=503, text=f"at most {MOST_VIEWERS} pages at once\n")
        self.viewers += 1
        self._looked_at.set()
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_headers()})
            await response.prepare(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await self._send_all(response)
            return response
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._looked_at.clear()

    async def _send_all(self, response: web.StreamResponse) -> None:
        sent = 0
        while True:
            async with self._changed:
                while self._version == sent and self._ended is None:
                    await self._changed.wait()
                fresh = {name: html for name, (version, html) in self._pieces.items() if version > sent}
                sent, ended = self._version, self._ended
            if fresh:
                await asyncio.wait_for(response.write(b"data: " + orjson.dumps(fresh) + b"\n\n"), PATIENCE_S)
            if ended is not None:
                await asyncio.wait_for(response.write(f"event: end\ndata: {ended}\n\n".encode()), PATIENCE_S)
                return


@asynccontextmanager
async def serve_dashboard(
    dashboard: Dashboard, listening: socket.socket, *, patience_s: float = PATIENCE_S
) -> AsyncIterator[None]:
    """The page at the socket until the block ends; then viewers get the last state, which takes `LAST_S` and more."""
    door = _Door(patience_s)
    app = web.Application(middlewares=[door.enter])
    app.router.add_get("/", dashboard.page)
    app.router.add_get("/events", dashboard.events)
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=patience_s
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it was set up
    try:
        factory = partial(door.answer, runner.server)
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
        door.close()
        await runner.cleanup()


class _Door:
    """Lets in so many connections, and closes those that send no request within ``patience_s``."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._silent: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}

    def answer(self, server: web.Server) -> asyncio.BaseProtocol:
        """What answers a new connection."""
        if len(server.connections) >= MOST_CONNECTIONS:
            return _Refusal()
        protocol = server()
        timer = asyncio.get_running_loop().call_later(self._patience_s, self._give_up, protocol)
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
        """Close no more connections."""
        for timer in self._silent.values():
            timer.cancel()


class _Refusal(asyncio.Protocol):
    """Closes the connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is said."""
        transport.close()


def _headers() -> dict[str, str]:
    allowed = policy(asset("page.css"), "\n".join(map(asset, SCRIPTS)), connect=True)
    return {
        "Content-Security-Policy": f"{allowed}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
