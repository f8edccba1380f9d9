"""The command line: it reads argv and ends the process; the commands themselves are in :mod:`fastgen.commands`.

Exit codes: 0 done; 2 bad input; 3 stopped but resumable; 130 interrupted. Every error is one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import cyclopts
from cyclopts import App, Parameter

from fastgen import __version__, option_sources
from fastgen.commands import data, embedded, evaluation, generation, judging, tuning
from fastgen.commands.report import dashboard, report
from fastgen.display import tell
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    _open_standard_streams()
    sys.exit(run(argv))


def _open_standard_streams() -> None:
    """Give descriptors 0 to 2 a place where they are closed, or the run's own files would get these numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    try:
        code = _run(argv)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output went away
            _discard_output()
            return 1
        if (why := _output_error(probe=True)) is None:
            raise
        return _no_output(why)
    return code if (why := _output_error()) is None else _no_output(why)


def _run(argv: Sequence[str] | None) -> int:
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _fail(f"{' '.join(str(error).split())} ('fastgen --help' lists what there is)", InputError.exit_code)
    except FastgenError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _no_output(why: OSError) -> int:
    """The exit code of a command whose output cannot be written; a reader that went away needs no message."""
    if isinstance(why, BrokenPipeError):
        return 1
    return _fail(f"standard output cannot be written ({why.strerror})", DiskError.exit_code)


def _output_error(*, probe: bool = False) -> OSError | None:
    """Why what was printed so far cannot be written, if so. It is discarded then, as Python would try again.

    ``probe`` tries a line end, since text that failed once is gone.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.write("\n" if probe else "")
            sys.stdout.flush()
    except OSError as error:
        _discard_output()
        return error
    return None


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_code: int) -> int:
    tell(f"fastgen: {printable(message)}")
    return exit_code
