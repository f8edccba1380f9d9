"""Gives way: what shows a run must take nothing from it. Imports nothing, so that it can be the first thing done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson

from fastgen.report.live_server import Dashboard, serve_dashboard
from fastgen.report.live_view import Follower
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.live_page import listen, url_of
from fastgen.telemetry.series import last_sample


def give_way() -> None:
    """Let this process have only what no other wants: the scheduler's idle class, or the lowest priority there is."""
    if hasattr(os, "SCHED_IDLE"):  # Linux
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(19)


_BLOCK_BYTES: Final = 1 << 16


class SamplePipe:
    """The newest of the samples that come through a pipe, a JSON line each; ``ended`` once its writer is gone.

    To be made in the event loop that is to read it.
    """

    def __init__(self, descriptor: int) -> None:
        self.latest: Sample | None = None
        self.ended = asyncio.Event()
        self._descriptor = descriptor
        self._rest = b""
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._take)

    def _take(self) -> None:
        if not (block := os.read(self._descriptor, _BLOCK_BYTES)):
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self.ended.set()
            return
        *lines, self._rest = (self._rest + block).split(b"\n")
        if lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self.latest = Sample.from_dict(orjson.loads(lines[-1]))


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

    :raises InputError: no run there, or nobody can listen there.
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

    give_way()
    asyncio.run(serve())
