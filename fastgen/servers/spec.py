"""A server before it runs: its command, the user's flags over fastgen's, and its secrets kept out of what is shown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastgen.errors import InputError
from fastgen.servers.endpoint import HIDDEN, holds_a_secret, names_a_secret

Flag = tuple[str, str | None]
"""A long flag and its value, or ``None`` for a switch."""
_MAX_PORT = 65535
_COUNTS = (
    ("--max-num-seqs",),
    ("--tensor-parallel-size", "-tp"),
    ("--pipeline-parallel-size", "-pp"),
    ("--data-parallel-size", "-dp"),
)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server that `start_server` can start.

    ``command`` starts an OpenAI-compatible server. ``--host`` and ``--port`` are added to it. ``env`` is laid over the
    inherited environment. ``model`` is the model's name or folder. ``concurrency`` is how many sequences it works on at
    once, so how many requests in flight keep it busy. ``port`` is the user's choice. ``None`` means a free one.
    """

    command: tuple[str, ...]
    model: str
    description: str
    concurrency: int
    env: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How many servers to start, and how large each is. All at least 1.

    ``num_servers`` servers run side by side, each with its own address, so that one may die while the others continue.
    Inside a server, ``tensor_parallel_size`` GPUs share one copy of the model, ``data_parallel_size`` copies share one
    address, and ``api_server_count`` processes serve HTTP (``None``: vLLM's choice).
    """

    num_servers: int = 1
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    api_server_count: int | None = None

    @property
    def gpus_per_server(self) -> int:
        """By these sizes alone. ``--server-args`` may change it."""
        return self.tensor_parallel_size * self.data_parallel_size


def parse_server_args(text: str) -> list[str]:
    """Split ``--server-args`` as a shell would.

    :raises InputError: unbalanced quotes, or a flag that fastgen could not work with.
    """
    arguments = _split(text)
    names = _names(arguments)
    if "api-key" in names:
        raise InputError(
            "--server-args: --api-key would lock fastgen out; to use a key, start the server yourself and use "
            "--base-url with --api-key-env"
        )
    if "host" in names:
        raise InputError(
            "--server-args: --host is always 127.0.0.1 here; to serve others too, start the server yourself and use "
            "--base-url"
        )
    return arguments


def check_server_args(text: str, num_servers: int) -> None:
    """Check everything that fastgen reads from ``--server-args`` for ``num_servers`` servers.

    :raises InputError: it cannot be used, or it comes from a run folder that holds `HIDDEN` in place of a value.
    """
    arguments = parse_server_args(text)
    if (flag := _without_its_value(arguments)) is not None:
        raise InputError(
            f"--server-args: the run folder does not keep the value of {flag}; give --server-args again in full "
            f"(it was: {without_secrets(text)})"
        )
    for names in _COUNTS:
        flag_value(arguments, *names)
    last_port = (flag_value(arguments, "--port") or 1) + num_servers - 1
    if last_port > _MAX_PORT:
        raise InputError(
            f"--server-args: {num_servers} servers from --port on would need port {last_port}; choose a --port of at "
            f"most {_MAX_PORT - num_servers + 1}"
        )


def has_flag(text: str, flag: str) -> bool:
    """Whether ``--server-args`` names a flag, in any of its spellings."""
    return flag.removeprefix("--") in _names(_split(text))


def without_secrets(text: str) -> str:
    """``--server-args`` to be shown and stored, with `HIDDEN` in place of each secret.

    :raises InputError: unbalanced quotes.
    """
    return redact(_split(text))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"--server-args: cannot be split into arguments ({error}); check its quotes") from None


def _without_its_value(arguments: Sequence[str]) -> str | None:
    """The first flag with `HIDDEN` as its value."""
    flag = HIDDEN
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument.partition("=")[0]
        if argument == HIDDEN or (argument.startswith("--") and argument.endswith(f"={HIDDEN}")):
            return flag
    return None


def merge_flags(ours: Sequence[Flag], theirs: Sequence[str]) -> list[str]:
    """``ours`` as arguments, without those that the user sets too, then ``theirs``.

    ``--a-b``, ``--a_b``, ``--a-b=value`` and the negation ``--no-a-b`` count as the same flag.
    """
    given = {name.removeprefix("no-") for name in _names(theirs)}
    kept = [flag for flag in ours if flag[0].removeprefix("--").removeprefix("no-") not in given]
    return [part for name, value in kept for part in ((name,) if value is None else (name, value))] + list(theirs)


def flag_value(arguments: Sequence[str], *flags: str) -> int | None:
    """The last whole number given for a flag (``--like-this``, with its short forms), or ``None``.

    :raises InputError: a value that is not a whole number above 0.
    """
    found: str | None = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in flags:
            found = value if equals else "".join(arguments[position + 1 : position + 2])
    if found is None:
        return None
    if not found.isascii() or not found.isdigit() or int(found) == 0:
        raise InputError(f"--server-args: {flags[0]} needs a whole number above 0, not '{found}'")
    return int(found)


def redact(command: Sequence[str]) -> str:
    """The command as one shell line, with `HIDDEN` in place of the values of secret flags."""
    shown: list[str] = []
    secret = False
    for argument in command:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            secret = names_a_secret(name.removeprefix("--"))
            hidden = equals and (secret or holds_a_secret(value))
            shown.append(f"{name}={HIDDEN}" if hidden else shlex.quote(argument))
        else:
            shown.append(HIDDEN if secret or argument == HIDDEN or holds_a_secret(argument) else shlex.quote(argument))
    return " ".join(shown)


def _names(arguments: Sequence[str]) -> set[str]:
    flags = (argument for argument in arguments if argument.startswith("--"))
    return {flag.removeprefix("--").partition("=")[0].replace("_", "-") for flag in flags}
