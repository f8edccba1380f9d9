"""``docs/flags.md`` lists every flag of every command.

``python -m tests.docs.test_flags`` writes it anew from the options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from cyclopts import App, Argument, Group

from fastgen.cli.app import app
from tests.docs.pages import DOCS

PAGE: Final = DOCS / "flags.md"
HEAD: Final = """# Flags

Every command and every flag, with its default. `fastgen COMMAND --help` shows the same text. `fastgen generate` also
reads these names from a TOML file (`--config`), with underscores: `num_instructions = 1000`.

A flag that is switched on by its name is switched off by `--no-` and the name.

This page is written by `python -m tests.docs.test_flags`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(part for name, one in _commands(app, "fastgen") for part in _section(name, one))])


def _commands(group: App, path: str) -> Iterator[tuple[str, App]]:
    for name in sorted(group):
        if not name.startswith("-"):
            one = group[name]
            nested = list(_commands(one, f"{path} {name}"))
            yield from nested or [(f"{path} {name}", one)]


def _section(name: str, one: App) -> Iterator[str]:
    about, _, _ = one.help.partition("Parameters\n")
    yield f"## `{name}`\n\n{_cell(about)}\n"
    groups: dict[str, list[Argument]] = {}
    for argument in one.assemble_argument_collection(parse_docstring=True):
        if argument.show and argument.names and argument.names[0] != "*":
            groups.setdefault(_group(argument), []).append(argument)
    for title, arguments in groups.items():
        if len(groups) > 1:
            yield f"**{title}**\n"
        yield "| flag | default | what it does |\n|---|---|---|"
        yield "\n".join(map(_row, arguments)) + "\n"


def _group(argument: Argument) -> str:
    match argument.parameter.group:
        case (Group() as group, *_):
            return group.name
        case _:
            return ""


def _row(argument: Argument) -> str:
    choices = argument.get_choices()
    positive = next(iter(argument.names))
    shown = f"`{positive}`" if not choices else f"`{positive}` " + _cell(", ".join(f"`{one}`" for one in choices))
    default = "required" if argument.required else _default(argument.field_info.default)
    return f"| {shown} | {default} | {_cell(argument.parameter.help or '')} |"


def _default(value: Any) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case None | () | "":
            return "–"
        case tuple():
            return _cell(", ".join(f"`{one!r}`" for one in value))
        case float():
            return f"{value:g}"
        case _:
            return f"`{_cell(str(value))}`"


def _cell(text: str) -> str:
    """Text for a cell. Marks of Markdown and reST are taken off, and a line break is a space."""
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return text.replace("|", "\\|").replace("<", "&lt;")


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.test_flags"


def test_it_has_every_command_and_a_row_for_each_flag() -> None:
    text = page()
    assert "## `fastgen generate`" in text
    assert "## `fastgen seeds check`" in text
    assert "| `--num-instructions` | `100` | Instructions to make." in text
    assert "| `--index` `lsh`, `exact`, `exhaustive` | `lsh` |" in text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
