"""``python -m fastgen.testing``: test servers as a process, or as several.

Prints ``listening on URL`` for each when all are ready; SIGTERM or SIGINT ends them.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from fastgen.errors import InputError
from fastgen.testing.answers import Writer
from fastgen.testing.arguments import check, parse, read_kinds, read_model
from fastgen.testing.clock import LoopClock
from fastgen.testing.engine import SlotEngine
from fastgen.testing.faults import FaultPlan
from fastgen.testing.script import read_timed
from fastgen.testing.server import FaultServer
from fastgen.testing.simulated import SimulatedEngine
from fastgen.testing.simulation import Simulation

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine, Sequence

_DEFAULT_MODEL_LEN = 1 << 20


def _make_server(given: argparse.Namespace) -> FaultServer:
    model = None if given.engine == "slots" else read_model(given)
    engine = (
        SlotEngine(given.slots, given.latency, given.seconds_per_token)
        if model is None
        else SimulatedEngine(model, LoopClock(given.speed))
    )
    server = FaultServer(
        model=given.model,
        faults=FaultPlan(
            read_kinds(given.script, "--script"),
            rate=given.fault_rate,
            kinds=[kind for kind in read_kinds(given.faults, "--faults") if kind is not None],
            seed=given.seed,
        ),
        engine=engine,
        write=Writer(given.seed, given.similar_share).answer,
        max_model_len=model.max_model_len if model else given.max_model_len or _DEFAULT_MODEL_LEN,
        apis=given.apis.split(","),
        api_key=given.api_key,
        slow_s=given.slow,
    )
    if isinstance(engine, SimulatedEngine):
        Simulation(server, engine, [read_timed(text) for text in given.at], seed=given.seed)
    return server


async def _serve(servers: Sequence[FaultServer], host: str, port: int) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    for i, server in enumerate(servers):
        try:
            await server.listen(host, port + i if port else 0)
        except (OSError, OverflowError) as error:
            raise InputError(f"--host {host} --port {port + i if port else 0}: cannot listen there ({error})") from None
    for server in servers:
        print(f"listening on {server.base_url}", flush=True)  # noqa: T201 - the line that whoever started it waits for
    await ended.wait()
    for server in servers:
        await server.refuse()


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; 0, or 2 for bad arguments."""
    asked = sys.argv[1:] if arguments is None else arguments
    given = parse(asked)
    try:
        check(given)
        servers = [_make_server(given) for _ in range(given.instances)]
        if given.processes:
            return _run_processes(asked, given)
        _run(_serve(servers, given.host, given.port))
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command-line program
        return error.exit_code
    return 0


def _run_processes(asked: list[str], given: argparse.Namespace) -> int:
    """Start a process for each instance, pass their first lines on, and end them on a signal."""
    common = [sys.executable, "-m", "fastgen.testing", *(flag for flag in asked if flag != "--processes")]
    children = [
        subprocess.Popen(  # noqa: S603 - this very program
            [*common, "--instances", "1", "--port", str(given.port + i if given.port else 0)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(given.instances)
    ]

    def end(*_: object) -> None:
        for child in children:
            child.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    lines = [child.stdout.readline() if child.stdout else "" for child in children]
    if not all(lines):  # one could not start, and has said why
        end()
    for line in lines:
        print(line, end="", flush=True)  # noqa: T201 - the line that whoever started it waits for
    return max(child.wait() for child in children)


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """Run with uvloop where there is one (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    sys.exit(main())
