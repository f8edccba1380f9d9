"""The command line: it reads argv and ends the process; the commands themselves are in :mod:`fastgen.commands`.

Exit codes: 0 done; 2 bad input; 3 stopped but resumable; 130 interrupted. Every error is one line.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import cyclopts
from cyclopts import App, Parameter

from fastgen import __version__, option_sources
from fastgen.commands import data, embedded, evaluation, generation, judging, tuning
from fastgen.commands.report import dashboard, report
from fastgen.display import ToldRecords, tell
from fastgen.errors import INTERRUPTED, DiskError, FastgenError, InputError
from fastgen.untrusted import printable

_STANDARD_ERROR = 2  # its descriptor
_HELP = """Self-Instruct at full speed: a language model writes new instructions from a few seed tasks, tells
classification tasks from others, writes instances, and everything low-quality or too similar is filtered out.

Start with: fastgen generate --num-instructions 30 --run-dir runs/demo
"""

app = App(
    name="fastgen",
    help=_HELP,
    version=__version__,
    version_flags=["--version"],
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
seeds_app = App(name="seeds", help="Look after seed tasks.")
embedded_app = App(name="embedded", help="The small CPU server that fastgen brings along: where it is, remove it.")
app.command(seeds_app)
app.command(embedded_app)
app.command(generation.generate)
app.command(generation.status)
app.command(generation.refilter)
app.command(generation.audit)
app.command(data.export)
app.command(data.dedup)
app.command(judging.judge)
app.command(evaluation.evaluate)
app.command(report)
app.command(dashboard)
app.command(tuning.tune)
seeds_app.command(data.check)
embedded_app.command(embedded.status)
embedded_app.command(embedded.remove)
app.config = (option_sources.fill,)


class _StdoutError(OSError):
    """Standard output cannot be written; no other file is meant."""


class _Stdout(io.FileIO):
    """Standard output, whose failures can be told from those of other files."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer, which the type checkers of 3.11 cannot name
        """Write some of the bytes.

        :raises BrokenPipeError: the reader went away. :raises _StdoutError: anything else.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _StdoutError(error.errno, error.strerror) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    _open_standard_streams()
    logging.basicConfig(level=logging.WARNING, handlers=[ToldRecords()])
    if isinstance(given := sys.stdout, io.TextIOWrapper):
        raw = _Stdout(given.fileno(), "wb", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=given.encoding,
            errors=given.errors,
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )
    sys.exit(run(argv))


def _open_standard_streams() -> None:
    """Give descriptors 0 to 2 a place where they are closed, or the run's own files would get these numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line; what it printed has left the process by then."""
    problem: OSError | None = None
    try:
        code = _carry_out(argv)
    except (_StdoutError, BrokenPipeError) as error:
        code, problem = 0, error
    problem = _flush() or problem
    if problem is None or code:
        return code
    if isinstance(problem, BrokenPipeError):  # a reader that went away needs no message
        return 1
    reason = problem.strerror
    return _fail(
        f"standard output cannot be written ({reason}); make room, or send it to another place", DiskError.exit_code
    )


def _flush() -> OSError | None:
    """Write out what is still buffered for standard output; where that fails, drop it and say why."""
    if sys.stdout is None or sys.stdout.closed:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        return error
    return None


def _drop_output() -> None:
    """Let nothing that is printed from now on, or is still buffered, reach a standard output that has failed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _carry_out(argv: Sequence[str] | None) -> int:
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _fail(f"{' '.join(str(error).split())} ('fastgen --help' lists what there is)", InputError.exit_code)
    except FastgenError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _fail(message: str, exit_code: int) -> int:
    tell(f"fastgen: {printable(message)}")
    return exit_code
