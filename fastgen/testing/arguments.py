"""The command line of ``python -m fastgen.testing``: flags, their ranges, and what they stand for."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Final

from fastgen.errors import InputError
from fastgen.testing.faults import USUAL_FAULTS, Fault
from fastgen.testing.timing import ENGINES, EngineModel

_LAST_PORT: Final = 65535
_LEAST_SPEED: Final = 0.001


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return what was asked for; exits with 2 on an unknown flag."""
    parser = argparse.ArgumentParser(
        prog="python -m fastgen.testing", description="An OpenAI-compatible server that fails on command."
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
