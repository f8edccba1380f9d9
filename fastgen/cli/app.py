"""The command line: reads argv, fills in options from their sources, and ends the process.

The commands are in `fastgen.cli.commands`. Exit codes: 0 done; 2 bad input; 3 stopped but resumable; 130 interrupted.
Every error is one line.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyclopts
from cyclopts import App, Group, Parameter

from fastgen.cli.help import COMMANDS, HELP_FLAGS, WHOLE, HelpPage, first_page, shown_default, shows_all, where_listed
from fastgen.errors import INTERRUPTED, DiskError, FastgenError, InputError
from fastgen.telemetry.display import StderrHandler, put, tell
from fastgen.text import printable

if TYPE_CHECKING:
    from cyclopts.argument import ArgumentCollection

    from fastgen.generate.options import Options
    from fastgen.generate.run import Place


def _version() -> str:
    from fastgen.doctor import installation

    return "\n".join(installation())


app = App(
    name="fastgen",
    version=_version,
    version_flags=["--version"],
    help_flags=HELP_FLAGS,
    help_format="plaintext",
    help_formatter=HelpPage(),
    group_parameters=Group.create_default_parameters("Options"),
    default_parameter=Parameter(negative_iterable=(), show_default=shown_default),
    suppress_keyboard_interrupt=False,
)
_GROUPS = {
    name: App(name=name, help=what, help_flags=HELP_FLAGS, help_formatter=HelpPage(name))
    for name, what in {
        "seeds": "Check seed tasks.",
        "prompts": "Write the prompts of self-instruct into a folder, to edit them.",
        "embedded": "The small CPU server that fastgen can set up: show it, remove it.",
    }.items()
}
for group in _GROUPS.values():
    app.command(group)
for command in COMMANDS:  # each by its path: it is imported when it is used
    first, _, second = command.name.partition(" ")
    place = _GROUPS[first] if second else app
    place.command(
        f"fastgen.cli.commands:{command.function}", name=second or first, help_formatter=HelpPage(command.name)
    )


# -- one command line --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    _open_standard_streams()
    logging.basicConfig(level=logging.WARNING, handlers=[StderrHandler()])
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


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line, flush standard output, and return the exit code."""
    problem: OSError | None = None
    try:
        code = _carry_out(argv)
    except (_StdoutError, BrokenPipeError) as error:
        code, problem = 0, error
    problem = _flush() or problem
    if problem is None or code:
        return code
    if isinstance(problem, BrokenPipeError):  # a reader that closed the pipe needs no message
        return 1
    return _fail(
        f"standard output cannot be written ({problem.strerror}); make room, or send it to another place",
        DiskError.exit_code,
    )


def _carry_out(argv: Sequence[str] | None) -> int:
    tokens = list(sys.argv[1:] if argv is None else argv)
    if not tokens or (len(tokens) == 1 and tokens[0] in HELP_FLAGS):
        put(first_page())
        return 0
    if tokens == ["--version"]:
        put(_version())
        return 0
    shows_all.set(WHOLE in tokens)
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        where = where_listed(" ".join(error.command_chain or ()))
        return _fail(f"{' '.join(str(error).split())} ('{where}' lists what there is)", InputError.exit_code)
    except FastgenError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _fail(message: str, exit_code: int) -> int:
    tell(f"fastgen: {printable(message)}")
    return exit_code


def asked_of_generate(arguments: Sequence[str]) -> tuple[Place, Options]:
    """Where and with which options ``fastgen generate`` with these arguments would run. Nothing is started.

    :raises InputError: as the command.
    """
    from fastgen.cli.commands import place_of
    from fastgen.generate.options import Options

    try:
        _, bound, _ = app.parse_args(["generate", *arguments], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise InputError(" ".join(str(error).split())) from None
    options = bound.arguments.get("options", Options())
    return place_of(bound.arguments["run_dir"], options), options


# -- standard streams --------------------------------------------------------------------------------------------------

_STANDARD_ERROR = 2  # its descriptor


def _open_standard_streams() -> None:
    """Open /dev/null for closed descriptors among 0 to 2, or the run's own files would get these numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


class _StdoutError(OSError):
    """Standard output, and no other file, cannot be written."""


class _Stdout(io.FileIO):
    """Standard output, whose failures can be told from those of other files."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer, which the type checkers of 3.11 cannot name
        """Write some of the bytes.

        :raises BrokenPipeError: the reader closed the pipe. :raises _StdoutError: anything else.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _StdoutError(error.errno, error.strerror) from None


def _flush() -> OSError | None:
    """Flush standard output. If that fails, drop the rest and return the error."""
    if sys.stdout is None or sys.stdout.closed:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)  # the interpreter flushes again when it exits
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return error
    return None


# -- where option values come from -------------------------------------------------------------------------------------


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in the options that the flags do not set.

    For ``generate`` from ``--config``, then the run folder, then the preset. For ``refilter`` from the preset, if one
    is given, then the run folder. Each source fills only options that are not set yet.
    """

    def fill_from(values: Mapping[str, Any], source: str) -> None:
        filling = cyclopts.config.Dict(dict(values), source=source, use_commands_as_keys=False)
        filling(app, commands, arguments)

    if commands not in (("generate",), ("refilter",)):
        return
    from fastgen.generate.options import preset_values
    from fastgen.methods.catalogue import SELF_INSTRUCT
    from fastgen.methods.self_instruct.rules import PRESETS, Rules
    from fastgen.similarity.options import SimilarityOptions

    if commands == ("generate",):
        if (config := _given(arguments, "--config")) is not None:
            fill_from(_read_toml(Path(config)), config)
        if (run_dir := _given(arguments, "--run-dir")) is not None:
            fill_from(saved_options(Path(run_dir)), f"{run_dir}/run.json")
        preset, api = _given(arguments, "--preset") or "default", _given(arguments, "--api") or "completions"
        if figures := _sampling_given(arguments):
            fill_from({"sampling_given": figures}, "the command line")
        if preset in PRESETS:
            method = _given(arguments, "--method") or SELF_INSTRUCT
            fill_from(preset_values(preset, api, method), f"--preset {preset}")
    else:
        run_dir, given = _given(arguments, "--run-dir"), _given(arguments, "--preset")
        values = {} if run_dir is None else saved_options(Path(run_dir))
        if given is not None and given in PRESETS:
            values |= preset_values(given, "completions", values.get("method", SELF_INSTRUCT))
        names = [field.name for part in (SimilarityOptions, Rules) for field in fields(part)]
        fill_from({name: values[name] for name in names if name in values}, "the run's options")


app.config = (fill,)


def _given(arguments: ArgumentCollection, name: str) -> str | None:
    """The value that a flag has so far, as text."""
    for argument in arguments:
        if name in argument.names and argument.tokens:
            return argument.tokens[0].value
    return None


def _sampling_given(arguments: ArgumentCollection) -> list[str]:
    """The figures of sampling that have a value so far, such as ``instruction.temperature``."""
    from fastgen.methods.self_instruct.rules import SAMPLING_PRESETS

    steps = SAMPLING_PRESETS["default"]
    names = [argument.name.removeprefix("--").replace("-", "_") for argument in arguments if argument.tokens]
    return [name for name in names if name.partition(".")[0] in steps and "." in name]


def saved_options(run_dir: Path) -> dict[str, Any]:
    """The options saved in the run folder, if there is a run. Rules that are newer than the run are off.

    :raises InputError: the folder is not a run's or cannot be read.
    """
    from fastgen.generate.options import OPTIONS_OF_EARLIER_RUNS
    from fastgen.methods.self_instruct.rules import RULES_OF_EARLIER_RUNS
    from fastgen.store.run_folder import RunFolder

    folder = RunFolder(run_dir)
    return {**RULES_OF_EARLIER_RUNS, **OPTIONS_OF_EARLIER_RUNS, **folder.header().options} if folder.exists() else {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"--config {path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--config {path}: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}
