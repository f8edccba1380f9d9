"""The server of the live page, in the run's own event loop.

Guarantees: it listens on 127.0.0.1 only and answers only where the Host header names this machine (so that a page
elsewhere cannot reach it through a name of its own, "DNS rebinding"); it takes nothing but GET, sends no CORS header
but the page's content security policy. Viewers are at most `MOST_VIEWERS`; one that does not take what it is sent
within `PATIENCE_S` is let go, and one that is slow skips states. Without a viewer nothing is drawn. Nothing here can
end or hold up the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import orjson
from aiohttp import web

from fastgen.dashboard.live import LiveFigures
from fastgen.dashboard.view import SCRIPTS, frame, pieces
from fastgen.errors import InputError
from fastgen.metrics import MetricsHub
from fastgen.report.page import asset, policy

log = logging.getLogger(__name__)
HOST: Final = "127.0.0.1"
MOST_VIEWERS: Final = 16
PATIENCE_S: Final = 5.0
EVERY_S: Final = 2.0
_NAMES: Final = frozenset({"127.0.0.1", "localhost"})
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """Holds what the page shows now; `observe` takes the run's commits."""

    def __init__(self, name: str, live: LiveFigures, hub: MetricsHub, threshold: float) -> None:
        self.observe = live.observe
        self._name = name
        self._live = live
        self._hub = hub
        self._threshold = threshold
        self._pieces: dict[str, tuple[int, str]] = {}
        self._version = 0
        self._changed = asyncio.Condition()
        self._ended = False
        self.viewers = 0

    async def keep_fresh(self) -> None:
        """Draw anew every `EVERY_S` seconds while somebody looks; an error ends only the page."""
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(EVERY_S)
        except Exception:
            log.exception("the dashboard ended; the run goes on without it")
            await self.end()

    async def refresh(self) -> None:
        """Take up what was committed and, where somebody looks, draw it and tell."""
        drawn = await asyncio.to_thread(self._look, draw=self.viewers > 0)
        changed = {name: html for name, html in drawn.items() if self._pieces.get(name, (0, ""))[1] != html}
        if not changed:
            return
        async with self._changed:
            self._version += 1
            self._pieces |= {name: (self._version, html) for name, html in changed.items()}
            self._changed.notify_all()

    def _look(self, *, draw: bool) -> dict[str, str]:
        self._live.take_up()
        return dict(pieces(self._live, self._hub.latest, self._threshold)) if draw else {}

    async def end(self) -> None:
        """Tell the viewers that nothing more comes."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def page(self, _request: web.Request) -> web.StreamResponse:
        """``GET /``."""
        return web.Response(text=frame(self._name), content_type="text/html", headers=_headers())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """``GET /events``: pieces as they change, until the run or the viewer ends."""
        if self.viewers >= MOST_VIEWERS:
            return web.Response(status=503, text=f"at most {MOST_VIEWERS} pages at once\n")
        self.viewers += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_headers()})
            await response.prepare(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await self._send_all(response)
            return response
        finally:
            self.viewers -= 1

    async def _send_all(self, response: web.StreamResponse) -> None:
        sent = 0
        while True:
            async with self._changed:
                while self._version == sent and not self._ended:
                    await self._changed.wait()
                fresh = {name: html for name, (version, html) in self._pieces.items() if version > sent}
                sent, ended = self._version, self._ended
            if fresh:
                await asyncio.wait_for(response.write(b"data: " + orjson.dumps(fresh) + b"\n\n"), PATIENCE_S)
            if ended:
                await asyncio.wait_for(response.write(b"event: end\ndata: {}\n\n"), PATIENCE_S)
                return


@asynccontextmanager
async def serve_dashboard(dashboard: Dashboard, port: int) -> AsyncIterator[str]:
    """The page at the URL that is yielded until the block ends; port 0 takes any that is free.

    :raises InputError: nobody can listen there.
    """
    app = web.Application(middlewares=[_only_this_machine])
    app.router.add_get("/", dashboard.page)
    app.router.add_get("/events", dashboard.events)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise InputError(f"--dashboard-port {port}: cannot listen on {HOST} ({why}); choose another port") from None
        fresh = asyncio.create_task(dashboard.keep_fresh())
        try:
            yield f"http://{HOST}:{runner.addresses[0][1]}/"
        finally:
            fresh.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fresh
            with contextlib.suppress(Exception):
                await dashboard.refresh()
            await dashboard.end()
    finally:
        await runner.cleanup()


@web.middleware
async def _only_this_machine(request: web.Request, handler: _Handler) -> web.StreamResponse:
    if (request.url.host or "") not in _NAMES:
        return web.Response(status=403, text="this page is for this machine only\n")
    return await handler(request)


def _headers() -> dict[str, str]:
    allowed = policy(asset("page.css"), "\n".join(map(asset, SCRIPTS)), connect=True)
    return {
        "Content-Security-Policy": f"{allowed}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
