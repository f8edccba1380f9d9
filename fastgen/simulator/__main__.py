"""``python -m fastgen.simulator``: test servers in one process or in several.

Prints ``listening on URL`` for each server when all are ready. SIGTERM or SIGINT ends them.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError, flag_name
from fastgen.simulator.answers import Writer
from fastgen.simulator.batching import ENGINES, EngineModel
from fastgen.simulator.chat import TEMPLATES, AnswerForm, Schemas, ServedModel
from fastgen.simulator.engine import LoopClock, SimulatedEngine, SlotEngine
from fastgen.simulator.faults import USUAL_FAULTS, Fault, FaultPlan, read_timed
from fastgen.simulator.server import FaultServer

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence


_LAST_PORT: Final = 65535
_LEAST_SPEED: Final = 0.001
_DEFAULT_MODEL_LEN: Final = 1 << 20
_SIMULATED_ONLY: Final = ("speed", "max_num_seqs", "max_num_batched_tokens", "kv_blocks", "no_prefix_caching", "at")


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; return 0, or 2 for bad arguments."""
    asked = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    given = parser.parse_args(asked)
    try:
        _check(given, parser)
        servers = [_make_server(given) for _ in range(given.instances)]
        if given.processes:
            return _run_processes(asked, given)
        _run(_serve(servers, given.host, given.port))
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command-line program
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastgen.simulator",
        description="A test server with OpenAI's API as vLLM serves it. It writes plausible data, "
        "fails on command, and can take the time that a GPU would. Prints 'listening on URL' when it is ready.",
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server.add_argument("--port", type=int, default=8000, help="0 chooses a free port (default: %(default)s)")
    server.add_argument("--model", default="test-model-base", help="name of the only model (default: %(default)s)")
    server.add_argument(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="longer prompts get a 400 (default: the engine's, or 1048576)",
    )
    server.add_argument("--api-key", help="require this key under /v1")
    server.add_argument("--apis", default="completions,chat", help="routes that exist (default: %(default)s)")
    server.add_argument("--instances", type=int, default=1, help="servers, on consecutive ports (default: 1)")
    server.add_argument("--processes", action="store_true", help="run each server in its own process")

    kind = parser.add_argument_group("kind of model", "What the model and its server can do.")
    kind.add_argument(
        "--template",
        choices=[*TEMPLATES, "none"],
        default="chatml",
        help="chat template; 'none' is a base model, which refuses chats (default: %(default)s)",
    )
    kind.add_argument("--no-tokenize", action="store_true", help="have no /tokenize and no /detokenize")
    kind.add_argument(
        "--answer-form",
        choices=[*AnswerForm],
        default=AnswerForm.PLAIN,
        help="where the reasoning of a chat answer is (default: %(default)s, without any)",
    )
    kind.add_argument(
        "--always-thinks", action="store_true", help="ignore enable_thinking and reasoning_effort in requests"
    )
    kind.add_argument("--ignore-n", action="store_true", help="return one choice, however many are asked for")
    kind.add_argument(
        "--schemas",
        choices=[*Schemas],
        default=Schemas.IGNORE,
        help="what becomes of response_format and structured_outputs (default: %(default)s)",
    )

    text = parser.add_argument_group("text")
    text.add_argument("--seed", type=int, default=0, help="seed of texts and faults (default: 0)")
    text.add_argument(
        "--similar-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of instructions that copy one of the prompt's, 0 to 1 (default: %(default)s)",
    )

    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--fault-rate", type=float, default=0.0, metavar="SHARE", help="share of requests that fail, 0 to 1"
    )
    faults.add_argument(
        "--faults",
        default=",".join(USUAL_FAULTS),
        metavar="KINDS",
        help="kinds to draw from (default: %(default)s); also: hang, slow, prompt-too-long",
    )
    faults.add_argument(
        "--script",
        default="",
        metavar="KINDS",
        help="faults of the first requests, such as 'reset,,500' (empty: a good answer)",
    )
    faults.add_argument(
        "--slow", type=float, default=1.0, metavar="SECONDS", help="time that the fault 'slow' takes (default: 1)"
    )

    slots = parser.add_argument_group("time", "Without a simulated engine each sequence takes a fixed time.")
    slots.add_argument("--slots", type=int, help="sequences that run at the same time (default: no limit)")
    slots.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="time of a sequence (default: 0)")
    slots.add_argument(
        "--seconds-per-token", type=float, default=0.0, metavar="SECONDS", help="plus this for each output token"
    )

    engine = parser.add_argument_group("simulated engine", "Continuous batching like vLLM's, at a calibrated speed.")
    engine.add_argument("--engine", choices=["slots", *ENGINES], default="slots", help="(default: %(default)s)")
    engine.add_argument(
        "--speed", type=float, default=1.0, metavar="FACTOR", help="simulated seconds in a real second (default: 1)"
    )
    engine.add_argument("--max-num-seqs", type=int, metavar="N", help="replaces the engine's own value")
    engine.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="replaces the engine's own value")
    engine.add_argument("--kv-blocks", type=int, metavar="N", help="replaces the engine's own value")
    engine.add_argument("--no-prefix-caching", action="store_true", help="compute every prompt from its beginning")
    engine.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="SECONDS:KEY=VALUE",
        help="change something that many simulated seconds after the first request: slow=3 (each step takes 3 times as "
        "long), stop=5 (the server is dead for 5 s and loses its memory), max-num-seqs=128, kv-blocks=9000, "
        "fault-rate=0.1 (with faults=reset+500); may be given several times",
    )
    return parser


def _check(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """:raises InputError: when a value is out of its range, or flags do not go together."""
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
    if given.engine != "slots" and (given.slots or given.latency or given.seconds_per_token):
        raise InputError(f"--engine {given.engine}: times itself; leave out --slots, --latency and --seconds-per-token")
    if given.engine == "slots":
        for flag in _SIMULATED_ONLY:
            if getattr(given, flag) != parser.get_default(flag):
                raise InputError(f"{flag_name(flag)}: needs a simulated --engine, one of {', '.join(ENGINES)}")


def _check_range(flag: str, value: float, least: float, most: float, remedy: str) -> None:
    if not (least <= value <= most and math.isfinite(value)):
        raise InputError(f"--{flag.replace('_', '-')} {value}: use {remedy}")


def _make_server(given: argparse.Namespace) -> FaultServer:
    engine: SlotEngine | SimulatedEngine
    if given.engine == "slots":
        engine = SlotEngine(given.slots, given.latency, given.seconds_per_token)
        max_model_len = given.max_model_len or _DEFAULT_MODEL_LEN
    else:
        model = _engine_model(given)
        engine, max_model_len = SimulatedEngine(model, LoopClock(given.speed)), model.max_model_len
    return FaultServer(
        model=given.model,
        faults=FaultPlan(
            _read_kinds(given.script, "--script"),
            rate=given.fault_rate,
            kinds=[kind for kind in _read_kinds(given.faults, "--faults") if kind is not None],
            seed=given.seed,
        ),
        engine=engine,
        write=Writer(given.seed, given.similar_share).answer,
        max_model_len=max_model_len,
        apis=given.apis.split(","),
        api_key=given.api_key,
        slow_s=given.slow,
        schedule=[read_timed(text) for text in given.at],
        seed=given.seed,
        kind=ServedModel(
            template=TEMPLATES.get(given.template),
            form=AnswerForm(given.answer_form),
            switches_thinking=not given.always_thinks,
            ignores_n=given.ignore_n,
            schemas=Schemas(given.schemas),
            tokenizes=not given.no_tokenize,
        ),
    )


def _engine_model(given: argparse.Namespace) -> EngineModel:
    """Return the simulated engine with the limits that flags replace.

    :raises InputError: when the limits do not go together.
    """
    names = ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "max_model_len")
    limits = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.no_prefix_caching:
        limits["prefix_caching"] = False
    return replace(ENGINES[given.engine], **limits)


def _read_kinds(names: str, flag: str) -> list[Fault | None]:
    """Return faults by their names, ``None`` for an empty name.

    :raises InputError: when a name is unknown.
    """
    try:
        return [Fault(name.strip()) if name.strip() else None for name in names.split(",")] if names else []
    except ValueError as error:
        raise InputError(f"{flag}: {error}; known are {', '.join(Fault)}") from None


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """Run with uvloop where it exists (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


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
        print(f"listening on {server.base_url}", flush=True)  # noqa: T201 - a parent process waits for this line
    await ended.wait()
    for server in servers:
        await server.refuse()


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
    if not all(lines):  # one failed to start and has printed why
        end()
    for line in lines:
        print(line, end="", flush=True)  # noqa: T201 - a parent process waits for this line
    return max(child.wait() for child in children)


if __name__ == "__main__":
    sys.exit(main())
