"""The command line of ``python -m fastgen.simulator``: flags, their ranges, and what they stand for."""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError
from fastgen.simulator.answers import Writer
from fastgen.simulator.batching import ENGINES, EngineModel
from fastgen.simulator.engine import LoopClock, SlotEngine
from fastgen.simulator.faults import USUAL_FAULTS, Fault, FaultPlan, read_timed
from fastgen.simulator.server import FaultServer
from fastgen.simulator.simulated import SimulatedEngine, Simulation

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence


_LAST_PORT: Final = 65535
_LEAST_SPEED: Final = 0.001


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return what was asked for; exits with 2 on an unknown flag."""
    parser = argparse.ArgumentParser(
        prog="python -m fastgen.simulator", description="An OpenAI-compatible server that fails on command."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--model", default="test-model", help="name of the one model (default: %(default)s)")
    parser.add_argument(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="longer prompts get a 400 (default: the engine's, or 1048576)",
    )
    parser.add_argument("--api-key", help="ask for this key under /v1")
    parser.add_argument("--apis", default="completions,chat", help="routes that exist (default: %(default)s)")
    parser.add_argument("--slots", type=int, help="sequences that run at the same time (default: no limit)")
    parser.add_argument(
        "--latency", type=float, default=0.0, metavar="SECONDS", help="time of one sequence (default: 0)"
    )
    parser.add_argument(
        "--seconds-per-token", type=float, default=0.0, metavar="SECONDS", help="more time for each output token"
    )
    parser.add_argument(
        "--slow", type=float, default=1.0, metavar="SECONDS", help="what the fault 'slow' adds (default: 1)"
    )
    parser.add_argument(
        "--fault-rate", type=float, default=0.0, metavar="SHARE", help="share of requests that fail, 0 to 1"
    )
    parser.add_argument(
        "--faults",
        default=",".join(USUAL_FAULTS),
        help="kinds to draw from (default: %(default)s); also: hang, slow, prompt-too-long",
    )
    parser.add_argument(
        "--script", default="", help="faults of the first requests, such as 'reset,,500' (empty: a good answer)"
    )
    parser.add_argument(
        "--similar-share",
        type=float,
        default=0.1,
        help="share of instructions that copy the prompt's (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of texts and faults (default: 0)")
    parser.add_argument(
        "--instances", type=int, default=1, help="servers, on ports that follow each other (default: 1)"
    )
    parser.add_argument("--processes", action="store_true", help="a process for each of them instead of one for all")
    _add_engine(parser.add_argument_group("simulated engine", "continuous batching at a calibrated speed"))
    return parser.parse_args(arguments)


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--engine", choices=["slots", *ENGINES], default="slots", help="(default: %(default)s)")
    group.add_argument(
        "--speed", type=float, default=1.0, metavar="FACTOR", help="simulated seconds in a real one (default: 1)"
    )
    group.add_argument("--max-num-seqs", type=int, help="instead of the engine's own")
    group.add_argument("--max-num-batched-tokens", type=int, help="instead of the engine's own")
    group.add_argument("--kv-blocks", type=int, help="instead of the engine's own")
    group.add_argument("--no-prefix-caching", action="store_true", help="compute every prompt anew")
    group.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="SECONDS:KEY=VALUE",
        help="after so many simulated seconds from the first request: slow=3, stop=5 (dead for 5 s, memory lost), "
        "max-num-seqs=128, kv-blocks=9000, fault-rate=0.1 (with faults=reset+500); may be given several times",
    )


def read_kinds(names: str, flag: str) -> list[Fault | None]:
    """Return faults by their names, ``None`` for an empty one.

    :raises InputError: an unknown name.
    """
    try:
        return [Fault(name.strip()) if name.strip() else None for name in names.split(",")] if names else []
    except ValueError as error:
        raise InputError(f"{flag}: {error}; known are {', '.join(Fault)}") from None


def check(given: argparse.Namespace) -> None:
    """:raises InputError: a value out of its range, or flags that do not go together."""
    for flag in ("latency", "seconds_per_token", "slow"):
        _check_range(flag, getattr(given, flag), 0.0, math.inf, "a number of seconds from 0 up")
    for flag in ("fault_rate", "similar_share"):
        _check_range(flag, getattr(given, flag), 0.0, 1.0, "a share from 0 to 1")
    _check_range("speed", given.speed, _LEAST_SPEED, math.inf, f"a number from {_LEAST_SPEED:g} up")
    _check_range("port", given.port, 0, _LAST_PORT, f"0 to {_LAST_PORT}")  # uvloop would take the number modulo 65,536
    most = _LAST_PORT + 1 - given.port
    _check_range("instances", given.instances, 1, most, "at least 1, and no more than ports follow --port")
    for flag, least in (("slots", 1), ("max_model_len", 2)):  # a prompt's token and an answer's
        if getattr(given, flag) is not None:
            _check_range(flag, getattr(given, flag), least, math.inf, f"at least {least}")
    if unknown := set(given.apis.split(",")) - {"completions", "chat"}:
        raise InputError(f"--apis: {', '.join(sorted(unknown))} is unknown; use completions, chat or both")
    _check_engine(given)


def _check_range(flag: str, value: float, least: float, most: float, remedy: str) -> None:
    if not (least <= value <= most and math.isfinite(value)):
        raise InputError(f"--{flag.replace('_', '-')} {value}: use {remedy}")


def _check_engine(given: argparse.Namespace) -> None:
    if given.engine == "slots" and (flag := _simulated_only(given)):
        raise InputError(f"{flag}: goes with a simulated --engine, one of {', '.join(ENGINES)}")
    if given.engine != "slots" and (given.slots or given.latency or given.seconds_per_token):
        raise InputError(f"--engine {given.engine}: has times of its own; leave --slots, --latency and the like out")


def _simulated_only(given: argparse.Namespace) -> str | None:
    """Return a flag that only a simulated engine understands, if one was given."""
    asked = {
        "--speed": given.speed != 1,
        "--max-num-seqs": given.max_num_seqs is not None,
        "--max-num-batched-tokens": given.max_num_batched_tokens is not None,
        "--kv-blocks": given.kv_blocks is not None,
        "--no-prefix-caching": given.no_prefix_caching,
        "--at": bool(given.at),
    }
    return next((name for name, there in asked.items() if there), None)


def read_model(given: argparse.Namespace) -> EngineModel:
    """Return the simulated engine that was asked for, with what was given instead of its own limits.

    :raises InputError: limits that do not go together.
    """
    names = ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "max_model_len")
    instead = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.no_prefix_caching:
        instead["prefix_caching"] = False
    return replace(ENGINES[given.engine], **instead)


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
    common = [sys.executable, "-m", "fastgen.simulator", *(flag for flag in asked if flag != "--processes")]
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
