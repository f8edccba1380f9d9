"""What a server is before it runs: its command, a user's flags laid over fastgen's, and no secret in what is shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastgen.errors import InputError

Flag = tuple[str, str | None]
"""A long flag and its value; ``None`` for a switch."""
_SECRET_WORDS = frozenset({"key", "token", "password", "secret"})


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server that `start_server` can start.

    ``command`` is an OpenAI-compatible server that takes ``--host`` and ``--port``, which are added to it. ``env`` is
    laid over the inherited environment. ``model`` is what it is asked to serve. ``concurrency`` is how many
    sequences it works on at once, so how many requests in flight keep it busy. ``port`` is a port that the user insists
    on; a free one otherwise.
    """

    command: tuple[str, ...]
    model: str
    description: str
    concurrency: int
    env: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How many servers to start, and how large each is; all at least 1.

    ``num_servers`` servers side by side, each an address of its own, so that one may die and the others go on. Inside
    a server, vLLM's own: ``tensor_parallel_size`` GPUs share one copy of the model, ``data_parallel_size`` copies stand
    behind one address, ``api_server_count`` processes speak HTTP (``None``: vLLM's choice).
    """

    num_servers: int = 1
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    api_server_count: int | None = None

    @property
    def gpus_per_server(self) -> int:
        """By these sizes alone; ``--server-args`` may say otherwise."""
        return self.tensor_parallel_size * self.data_parallel_size


def parse_server_args(text: str) -> list[str]:
    """Split ``--server-args`` as a shell would.

    :raises InputError: unbalanced quotes, or a flag that fastgen could not work with.
    """
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--server-args: cannot be split into arguments ({error}); check its quotes") from None
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


def merge_flags(ours: Sequence[Flag], theirs: Sequence[str]) -> list[str]:
    """``ours`` as arguments, less what the user sets too, then ``theirs``: a user's flag replaces ours.

    ``--a-b``, ``--a_b``, ``--a-b=value`` and the negation ``--no-a-b`` count as the same flag.
    """
    given = {name.removeprefix("no-") for name in _names(theirs)}
    kept = [flag for flag in ours if flag[0].removeprefix("--").removeprefix("no-") not in given]
    return [part for name, value in kept for part in ((name,) if value is None else (name, value))] + list(theirs)


def flag_value(arguments: Sequence[str], *flags: str) -> int | None:
    """The whole number that a flag (``--like-this``, with its short forms) has last, or ``None`` where it is not given.

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
    """The command as one shell line, with the values of key, token, password and secret flags blotted out."""
    shown: list[str] = []
    secret = False
    for argument in command:
        if argument.startswith("--"):
            name, equals, _ = argument.partition("=")
            secret = not _SECRET_WORDS.isdisjoint(re.split("[-_]", name))
            shown.append(f"{name}=***" if secret and equals else shlex.quote(argument))
        else:
            shown.append("***" if secret else shlex.quote(argument))
    return " ".join(shown)


def _names(arguments: Sequence[str]) -> set[str]:
    flags = (argument for argument in arguments if argument.startswith("--"))
    return {flag.removeprefix("--").partition("=")[0].replace("_", "-") for flag in flags}
