"""Every error that fastgen raises on purpose, the checks of option values that raise them, and one remedy.

The remedy is `how_to_install`: what a user types to install an extra is said here only. `needs` says it
where a package is missing.

::

    FastgenError                  one clear line for the user, never a traceback      exit code
    ├── InputError                a flag, file or server answer that the user must fix        2
    │   ├── DamagedLogError       a log line whose checksum or chain does not hold            2
    │   └── RunFolderError        foreign, newer, or of another configuration                 2
    │       └── FolderInUse       another process holds its lock                              2
    ├── StoppedError              the run stopped; the same command resumes it                3
    │   ├── BackendUnavailable    no endpoint has answered for the outage timeout             3
    │   ├── DiskError             the run folder cannot be written                            3
    │   └── ServerError           a server that fastgen starts did not start or died          3
    └── RequestError              about one request; the scheduler handles it                 -
        ├── TransientError        worth another attempt (connection, 429, 5xx, bad body)      -
        └── RequestRejected       the server will never accept this request (400, 413, 422)   -
            └── PromptTooLong     ... because prompt and completion exceed the context        -

An unusable completion is not an error but data: a ``Rejection`` in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

DISTRIBUTION: Final = "fastgen-selfinstruct"
"""The name to install fastgen by. Another project has the name ``fastgen`` on PyPI."""
IS_PUBLISHED: Final = False
"""Whether a package index has the distribution."""
INTERRUPTED: Final = 130
"""The exit code of a command that its user stopped: 128 + SIGINT, as in shells."""
MAX_SECONDS: Final = 1e9  # 30 years; timers take no more


class FastgenError(Exception):
    """Base of all errors. ``str(error)`` is one line that names the cause and the remedy."""

    exit_code: ClassVar[int] = 1


class InputError(FastgenError):
    """Bad input: a flag, a file, an unknown model, a refused key."""

    exit_code = 2


class DamagedLogError(InputError):
    """A log is damaged somewhere other than at its torn end."""


class RunFolderError(InputError):
    """A run folder cannot be used as asked: locked, foreign, newer, or of another configuration."""


class FolderInUse(RunFolderError):
    """Another process holds the folder's lock."""


class StoppedError(FastgenError):
    """The run stopped early. Everything committed is kept, and the same command resumes it."""

    exit_code = 3


class BackendUnavailable(StoppedError):
    """No endpoint has answered for the outage timeout."""


class DiskError(StoppedError):
    """The run folder cannot be written (full, read-only, gone)."""


class ServerError(StoppedError):
    """A server that fastgen started did not become ready, or died."""


class RequestError(FastgenError):
    """One request failed. The scheduler handles it."""


class TransientError(RequestError):
    """Another attempt may succeed.

    ``kind`` is a short stable word for the ledger and metrics (``"connection"``, ``"timeout"``, ``"http_429"``,
    ``"bad_body"`` ...). ``retry_after_s`` is the delay that the server asked for, if any. ``reached_server`` is false
    when no HTTP answer came back, as in an outage.
    """

    def __init__(
        self, message: str, *, kind: str, retry_after_s: float | None = None, reached_server: bool = True
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.reached_server = reached_server


class RequestRejected(RequestError):
    """The server will never accept this request. It is recorded and not retried."""


class PromptTooLong(RequestRejected):
    """The prompt does not fit the model's context. The plan asks again with fewer demonstrations."""


def how_to_install(extra: str) -> str:
    """The command that installs an extra of fastgen, for the end of a message."""
    if IS_PUBLISHED:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    return f"pip install '.[{extra}]' in the folder of fastgen's source"


@contextmanager
def needs(package: str, extra: str, what: str) -> Iterator[None]:
    """For a block that imports a package of an extra. ``what`` begins the message.

    :raises InputError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise InputError(f"{what} needs {package}, which is not installed: {how_to_install(extra)}") from None


def flag_name(option: str) -> str:
    """The command line's form of an option's name: ``--min-words`` for ``min_words``."""
    return "--" + option.replace("_", "-")


def at_least(flag: str, value: int, least: int) -> None:
    """:raises InputError: the value of ``flag`` is below ``least``."""
    if value < least:
        raise InputError(f"{flag}: {value} is below {least}")


def within(flag: str, value: float, low: float, high: float) -> None:
    """:raises InputError: the value of ``flag`` is not within ``low`` and ``high``, both included."""
    if not low <= value <= high:
        raise InputError(f"{flag}: {value} is not within {low} to {high}")


def check_seconds(flag: str, value: float) -> None:
    """:raises InputError: the value of ``flag`` is not a positive number of seconds, at most `MAX_SECONDS`."""
    if not 0 < value <= MAX_SECONDS:
        raise InputError(f"{flag}: {value} is not a number above 0 and at most {MAX_SECONDS:g}")
