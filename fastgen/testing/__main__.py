"""``python -m fastgen.testing``: the test server as a process.

Prints ``listening on URL`` when it is ready; SIGTERM or SIGINT ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

from fastgen.errors import InputError
from fastgen.testing import USUAL_FAULTS, Fault, FaultPlan, FaultServer, SlotEngine, Writer

if TYPE_CHECKING:
    from collections.abc import Coroutine


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastgen.testing", description="An OpenAI-compatible server that fails on command."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--model", default="test-model", help="name of the one model (default: %(default)s)")
    parser.add_argument("--max-model-len", type=int, default=1 << 20, metavar="TOKENS", help="longer prompts get a 400")
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
    return parser.parse_args(arguments)


def _kinds(names: str, flag: str) -> list[Fault | None]:
    try:
        return [Fault(name.strip()) if name.strip() else None for name in names.split(",")] if names else []
    except ValueError as error:
        raise InputError(f"{flag}: {error}; known are {', '.join(Fault)}") from None


def _check(given: argparse.Namespace) -> None:
    for flag in ("latency", "seconds_per_token", "slow"):
        if not 0 <= getattr(given, flag) < float("inf"):
            raise InputError(f"--{flag.replace('_', '-')} {getattr(given, flag)}: use a number of seconds from 0 up")
    for flag in ("fault_rate", "similar_share"):
        if not 0 <= getattr(given, flag) <= 1:
            raise InputError(f"--{flag.replace('_', '-')} {getattr(given, flag)}: use a share from 0 to 1")
    if not 0 <= given.port <= 65535:  # noqa: PLR2004 - TCP's ports; uvloop would take the number modulo 65,536
        raise InputError(f"--port {given.port}: use 0 to 65535")
    if given.slots is not None and given.slots < 1:
        raise InputError(f"--slots {given.slots}: use at least 1")
    if unknown := set(given.apis.split(",")) - {"completions", "chat"}:
        raise InputError(f"--apis: {', '.join(sorted(unknown))} is unknown; use completions, chat or both")


def _make_server(given: argparse.Namespace) -> FaultServer:
    _check(given)
    kinds = [kind for kind in _kinds(given.faults, "--faults") if kind is not None]
    return FaultServer(
        model=given.model,
        faults=FaultPlan(_kinds(given.script, "--script"), rate=given.fault_rate, kinds=kinds, seed=given.seed),
        engine=SlotEngine(given.slots, given.latency, given.seconds_per_token),
        write=Writer(given.seed, given.similar_share).answer,
        max_model_len=given.max_model_len,
        apis=given.apis.split(","),
        api_key=given.api_key,
        slow_s=given.slow,
    )


async def _serve(server: FaultServer, host: str, port: int) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await server.listen(host, port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({error})") from None
    print(f"listening on {server.base_url}", flush=True)  # noqa: T201 - the line that whoever started it waits for
    await ended.wait()
    await server.refuse()


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; 0, or 2 for bad arguments."""
    given = _parse(arguments)
    try:
        _run(_serve(_make_server(given), given.host, given.port))
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command-line program
        return error.exit_code
    return 0


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
