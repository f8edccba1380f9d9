"""Help and the list of commands: the first page, the page of each command, and how defaults are written.

`COMMANDS` is the one list of commands. `fastgen.cli.app` registers them from it, and ``fastgen --help`` shows it
without loading any of them. cyclopts finds out what a command takes. `HelpPage` lays that out as plain text: examples
first, then the options by group. A command with an entry in `_MOST_USED` shows only those options, and all of them with
``--help-all``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions


class Command(NamedTuple):
    """A command: its group on the first page, what users type, its function in `fastgen.cli.commands`, a summary."""

    group: str
    name: str
    function: str
    summary: str


COMMANDS: Final = (
    Command("Make", "generate", "generate", "Make instructions with answers; the same command resumes"),
    Command("Make", "methods", "methods", "List the methods of making data"),
    Command("Make", "seeds check", "check", "Check a file of seed tasks"),
    Command("Make", "prompts init", "prompts_init", "Write prompts to edit, also in German and Chinese"),
    Command("Make", "refilter", "refilter", "Rebuild a run under other rules, without a server"),
    Command("Look", "status", "status", "Counts, yield and rejections of a run"),
    Command("Look", "runs", "runs", "List the runs of a folder"),
    Command("Look", "report", "report", "Write one HTML page about a run, or compare two"),
    Command("Look", "dashboard", "dashboard", "Show a run as a live page"),
    Command("Look", "audit", "audit", "Check a run's similarity decisions by a full scan"),
    Command("Export", "export", "export", "Write a run's instructions for trainers and the hub"),
    Command("Export", "dedup", "dedup", "Filter any data set by similarity"),
    Command("Train and evaluate", "judge", "judge", "Let a model rate a run's instances"),
    Command("Train and evaluate", "tune", "tune", "Tune a model on a run"),
    Command("Train and evaluate", "evaluate", "evaluate", "Evaluate and compare models on held-out tasks"),
    Command("Tools", "doctor", "doctor", "Check this machine, its disk, and a server"),
    Command("Tools", "embedded status", "embedded_status", "Show the small CPU server that fastgen sets up"),
    Command("Tools", "embedded remove", "embedded_remove", "Remove it"),
    Command("Tools", "--install-completion", "install_completion", "Set up completion in your shell"),
)

WHOLE: Final = "--help-all"
"""The flag that shows a command's page with every option."""
HELP_FLAGS: Final = ("--help", "-h", WHOLE)
shows_all: Final[ContextVar[bool]] = ContextVar("shows_all", default=False)
"""Whether the page of the present command line was asked for with `WHOLE`."""

_FIRST_EXAMPLES: Final = (
    "fastgen generate --num-instructions 30 --run-dir runs/demo",
    "fastgen status --run-dir runs/demo",
    "fastgen export --run-dir runs/demo --format messages --output demo.jsonl",
)
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "generate": (
        "# 30 instructions: with vLLM on your GPU, or else a small model on the CPU, set up on first use",
        "fastgen generate --num-instructions 30 --run-dir runs/demo",
        "# with a server of yours; what would 100,000 take?",
        "fastgen generate --base-url http://127.0.0.1:8000/v1 --num-instructions 100000 --dry-run --run-dir runs/big",
        "# with an instruct model, by a method for such models",
        "fastgen generate --method magpie --base-url http://127.0.0.1:8000/v1 --run-dir runs/magpie",
        "# resume, whatever stopped it",
        "fastgen generate --run-dir runs/magpie",
    ),
    "methods": ("fastgen methods",),
    "seeds check": ("fastgen seeds check my_seeds.jsonl",),
    "prompts init": ("fastgen prompts init prompts --language de",),
    "refilter": ("fastgen refilter --run-dir runs/demo --output runs/strict --threshold 0.6",),
    "status": ("fastgen status --run-dir runs/demo",),
    "runs": ("fastgen runs runs",),
    "report": (
        "fastgen report --run-dir runs/demo --output demo.html",
        "# two runs side by side",
        "fastgen report --compare runs/demo runs/strict --output compared.html",
    ),
    "dashboard": ("fastgen dashboard --run-dir runs/demo",),
    "audit": ("fastgen audit --run-dir runs/demo",),
    "export": (
        "fastgen export --run-dir runs/demo --format messages --output demo.jsonl",
        "# a folder with a split and a data-set card",
        "fastgen export --run-dir runs/demo --format parquet --split train=0.9,test=0.1 --card --output demo",
    ),
    "dedup": ("fastgen dedup data.jsonl --output kept.jsonl --rejected rejected.jsonl --against test.jsonl",),
    "judge": (
        "fastgen judge --run-dir runs/demo --base-url http://127.0.0.1:8000/v1",
        "# the figures of what was judged so far",
        "fastgen judge --run-dir runs/demo --summary",
    ),
    "tune": (
        "fastgen tune --run-dir runs/demo --base-model smollm2-135m-instruct --output models/demo",
        "# the same for a file of instructions, inputs and outputs, training all weights",
        "fastgen tune --data demo.jsonl --base-model models/base --full --output models/demo",
    ),
    "evaluate": (
        "fastgen evaluate --data natural-instructions --model models/demo --output results/demo",
        "# two models, instance by instance",
        "fastgen evaluate --compare results/base results/demo",
    ),
    "doctor": (
        "fastgen doctor",
        "# also a server: which model and API, how many tokens a second",
        "fastgen doctor --base-url http://127.0.0.1:8000/v1",
    ),
    "embedded status": ("fastgen embedded status",),
    "embedded remove": ("fastgen embedded remove",),
    "--install-completion": ("fastgen --install-completion --shell bash",),
}
"""By command. A line is a command, or a remark that begins with ``#``."""

_MOST_USED: Final[Mapping[str, tuple[str, ...]]] = {
    "generate": (
        *("--run-dir", "--config", "--num-instructions", "--dry-run", "--quiet", "--dashboard"),
        *("--base-url", "--model", "--api", "--api-key-env", "--thinking", "--server-args", "--role", "--concurrency"),
        *("--method", "--preset", "--seed-tasks", "--topics", "--decontaminate", "--threshold", "--max-words"),
        *("--instruction.temperature",),
    ),
    "refilter": ("--run-dir", "--output", "--preset", "--threshold", "--tokenizer", "--min-words", "--max-words"),
    "judge": (
        *("--run-dir", "--summary", "--json", "--name", "--votes", "--max-instructions", "--base-url", "--model"),
        *("--api-key-env", "--concurrency"),
    ),
    "evaluate": (
        *("--output", "--benchmark", "--data", "--predictions", "--compare", "--training-data", "--json"),
        *("--base-url", "--model", "--api", "--api-key-env", "--concurrency", "--judge-base-url"),
    ),
}
"""By command: the options that its ``--help`` shows."""

_OF_THE_RUN: Final = ("refilter",)
"""Commands whose options have the values of a run where they are not given."""
_TYPES: Final = {"STR": "TEXT", "INT": "N", "FLOAT": "X"}
_WIDEST: Final = 110
_LABEL: Final = 28
_LONGEST_CHOICES: Final = 40
_LONGEST_VALUE: Final = 60


# -- the first page ----------------------------------------------------------------------------------------------------


def first_page() -> str:
    """``fastgen --help``: what fastgen is, three commands, all commands by group, the exit codes."""
    lines = [
        "Usage: fastgen COMMAND [OPTIONS]",
        "",
        "Makes instruction-tuning data: a language model writes instructions and answers,",
        "and what is of low quality or too similar to what is there is filtered out.",
        "",
        *(f"  {example}" for example in _FIRST_EXAMPLES),
    ]
    group = ""
    for command in COMMANDS:
        if command.group != group:
            group = command.group
            lines += ["", group]
        lines.append(f"  {command.name:<22}{command.summary}")
    lines += [
        "",
        f"fastgen COMMAND --help shows examples and options, {WHOLE} all options.",
        "fastgen --version shows versions. The documentation is in docs/.",
        "Exit codes: 0 done; 2 bad input; 3 stopped, the same command resumes; 130 interrupted.",
    ]
    return "\n".join(lines)


# -- the page of a command ---------------------------------------------------------------------------------------------


def where_listed(command: str) -> str:
    """The command that lists every option of a command, or every command."""
    return " ".join(part for part in ("fastgen", command, WHOLE if command in _MOST_USED else "--help") if part)


class HelpPage:
    """Writes the help page of a command: a ``HelpFormatter`` of cyclopts.

    ``command`` is a name of `COMMANDS`. A group of commands has none.
    """

    def __init__(self, command: str = "") -> None:
        self._command = command

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:  # noqa: ANN401, ARG002 - cyclopts's
        """Write the usage line."""
        _write(console, [f"Usage: {_words(_plain(usage))}", ""])

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:  # noqa: ANN401, ARG002
        """Write what the command does, and examples of it."""
        lines: list[str] = []
        for paragraph in _plain(description).split("\n\n"):
            lines += [*_wrapped(paragraph, _width(console)), ""]
        if examples := EXAMPLES.get(self._command):
            lines += ["Examples", *(f"  {line}" for line in examples), ""]
        if self._command in _OF_THE_RUN:
            lines += ["Options that are not given stay those of the run.", ""]
        if self._is_short:
            lines += [f"The most used options follow. {WHOLE} shows all of them.", ""]
        _write(console, lines)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:  # noqa: ARG002
        """Write the options, or commands, of one group."""
        entries = [entry for entry in panel.entries if not self._is_short or self._is_most_used(entry)]
        if not entries:
            return
        _write(console, [_plain(panel.title)], style="bold")
        rows = [(self._label(entry), self._text(entry)) for entry in entries]
        column = max((len(label) for label, _ in rows if len(label) <= _LABEL), default=_LABEL) + 2
        for label, text in rows:
            _write(console, _row(label, text, column, _width(console)))
        _write(console, [""])

    @property
    def _is_short(self) -> bool:
        return self._command in _MOST_USED and not shows_all.get()

    def _is_most_used(self, entry: HelpEntry) -> bool:
        return not {*_MOST_USED[self._command]}.isdisjoint(entry.positive_names) or entry.positional_label is not None

    @staticmethod
    def _label(entry: HelpEntry) -> str:
        if entry.positional_label:
            return entry.positional_label
        names = ", ".join((*entry.positive_shorts, *entry.positive_names))
        if entry.negative_names and entry.default is not None:  # on by default, so users type the other one
            return ", ".join((names, *entry.negative_names))
        return f"{names} {_metavar(entry)}".rstrip()

    def _text(self, entry: HelpEntry) -> str:
        parts = [self._summary(entry) or _words(_plain(entry.description))]
        if entry.choices and len(_choices(entry)) > _LONGEST_CHOICES:
            parts.append(f"[one of {', '.join(entry.choices)}]")
        if entry.required:
            parts.append("[required]")
        elif self._command not in _OF_THE_RUN:
            name = next((name.removeprefix("--").replace("-", "_") for name in entry.positive_names), "")
            values = _values_by_preset().get(name) if self._command == "generate" else None
            value = values or (f"default: {entry.default}" if entry.default is not None else "")
            parts += [f"[{value}]"] if value else []
        return " ".join(parts)

    def _summary(self, entry: HelpEntry) -> str:
        names = {f"{self._command} {name}" for name in entry.positive_names}
        return next((command.summary for command in COMMANDS if command.name in names), "")


def _choices(entry: HelpEntry) -> str:
    return "|".join(entry.choices or ())


def _metavar(entry: HelpEntry) -> str:
    shown = entry.metavar or ""
    if entry.choices and len(choices := _choices(entry)) <= _LONGEST_CHOICES:
        shown = shown.replace("CHOICE", choices)
    for python, plain in _TYPES.items():
        shown = shown.replace(python, plain)
    return shown.replace("CHOICE", "NAME")


def _row(label: str, text: str, column: int, width: int) -> list[str]:
    """A label and its text, beside it or below it where the label is too long."""
    lines = _wrapped(text, width - column - 2)
    blank = " " * (column + 2)
    if len(label) + 2 > column:
        return [f"  {label}", *(blank + line for line in lines)]
    first, *others = lines or [""]
    return [f"  {label:<{column}}{first}".rstrip(), *(blank + line for line in others)]


def _plain(shown: Any) -> str:  # noqa: ANN401 - a text, or what cyclopts wraps one in
    """The text of something that rich can print, without the marks of code."""
    inner = getattr(shown, "primary_renderable", shown)
    text = "" if inner is None else str(getattr(inner, "plain", inner))
    return text.replace("``", "").replace("`", "").strip()


def _words(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(_words(text), max(width, 20), break_long_words=False, break_on_hyphens=False)


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)


def _write(console: Console, lines: Sequence[str], style: str = "") -> None:
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True, emoji=False)


# -- defaults ----------------------------------------------------------------------------------------------------------


def shown_default(value: object) -> str | None:
    """A default as help writes it. ``None`` where there is nothing to say: off, empty, or not set."""
    if value is True:
        return "on"
    if value is None or value is False or value in ("", "{}", ()):
        return None
    return _shown(value)


def _shown(value: object) -> str:
    """A value as users would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        texts = " ".join(json.dumps(text, ensure_ascii=False) for text in value) or "none"
        return textwrap.shorten(texts, _LONGEST_VALUE, placeholder=" ...")
    return str(value)


@cache
def _values_by_preset() -> Mapping[str, str]:
    """The defaults of ``generate`` that depend on ``--preset`` and ``--api``, by option name."""
    from fastgen.generate.options import Options, option_values, preset_values
    from fastgen.methods.catalogue import RULES_FOR_LONG_TEXTS

    options = Options()
    default = dict(_flat(option_values(options.similarity))) | dict(_flat(preset_values("default", "completions")))
    chat, paper = (dict(_flat(preset_values(*which))) for which in (("default", "chat"), ("paper", "completions")))
    found = {}
    for name in {*chat, *paper}:
        values = {"default": default[name]}
        values |= {"with --api chat": chat[name]} if chat.get(name, default[name]) != default[name] else {}
        values |= {"with --preset paper": paper[name]} if paper.get(name, default[name]) != default[name] else {}
        values |= {"of other methods": RULES_FOR_LONG_TEXTS[name]} if name in RULES_FOR_LONG_TEXTS else {}
        found[name] = "; ".join(f"{when}: {_shown(value)}" for when, value in values.items())
    return found


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(option name, value), with the step before the name of what it samples."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", deeper) for inner, deeper in value.items())
        else:
            yield name, value
