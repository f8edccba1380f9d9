"""The prompt set: templates and demonstrations from data files, rendered once, so that building a prompt is cheap.

Guarantees: fixed text (header and demonstrations) is rendered when the set is loaded and comes first in every shipped
prompt, so that a server's prefix cache can serve it; a task's own text is only ever concatenated, never formatted, so
braces in it mean nothing; ``fingerprint`` changes whenever any text of the set does. Files are read here and nowhere else,
once.

A folder given with ``--prompts`` may hold any of ``base.toml`` (completions) or ``chat.toml`` (chat),
``classification.jsonl``, ``input_first.jsonl`` and ``output_first.jsonl``; what it lacks comes from the shipped set.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Literal

from fastgen.errors import InputError
from fastgen.records import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

Api = Literal["completions", "chat"]

_TEMPLATES: Final[Mapping[str, str]] = {"completions": "base.toml", "chat": "chat.toml"}
_DEMONSTRATIONS: Final = ("classification", "input_first", "output_first")
_FILES: Final = (*_TEMPLATES.values(), *(f"{name}.jsonl" for name in _DEMONSTRATIONS))
_PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")
# Of each section, what its prompt has to have a place for, besides the demonstrations.
_SECTIONS: Final[Mapping[str, frozenset[str]]] = {
    "instruction": frozenset({"instructions", "next_number"}),
    "instruction_classification": frozenset({"instructions", "next_number"}),
    "classification": frozenset({"instruction"}),
    "input_first": frozenset({"instruction"}),
    "output_first": frozenset({"instruction"}),
}
# Of each section with demonstrations, the templates that render one, and their placeholders.
_RENDERING: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "classification": {"demonstration": frozenset({"instruction", "answer"})},
    "input_first": {
        "demonstration": frozenset({"instruction", "examples"}),
        "example": frozenset({"number", "input", "output"}),
        "example_without_input": frozenset({"number", "output"}),
    },
    "output_first": {
        "demonstration": frozenset({"instruction", "examples"}),
        "example": frozenset({"label", "input"}),
    },
}


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with places left open: ``parts`` are literal text and placeholder names in turn, text first and last.

    ``system`` is the system message of a chat prompt (none is sent when it is empty), ``None`` for a completion prompt.
    """

    system: str | None
    parts: tuple[str, ...]

    def fill(self, **values: str) -> str | tuple[Message, ...]:
        """Return the prompt with ``values`` in their places, taken as they are."""
        text = "".join(values[part] if i % 2 else part for i, part in enumerate(self.parts))
        if self.system is None:
            return text
        user = Message("user", text)
        return (Message("system", self.system), user) if self.system else (user,)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of every stage for one API; ``fingerprint`` is the SHA-256 of all their text, in hexadecimal."""

    api: Api
    instruction: Template
    instruction_classification: Template
    classification: Template
    input_first: Template
    output_first: Template
    fingerprint: str


def load_prompts(api: Api, directory: Path | None = None) -> PromptSet:
    """Return the shipped prompt set, with the files of ``directory`` in place of those of the same name.

    :raises InputError: a file that cannot be read or used, as ``FILE:LINE: field: what and remedy``.
    """
    if directory is not None and not any((directory / name).is_file() for name in _FILES):
        raise InputError(f"--prompts {directory}: holds none of {', '.join(_FILES)}; name a folder with at least one")
    settings = _read_templates(_TEMPLATES[api], directory)
    templates = {name: _template(name, settings[name], api, directory) for name in _SECTIONS}
    content = json.dumps([api, {name: asdict(template) for name, template in templates.items()}], sort_keys=True)
    return PromptSet(api, **templates, fingerprint=hashlib.sha256(content.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class _Source:
    """A text file and how to blame a place in it."""

    name: str
    text: str

    def error(self, line: int, message: str) -> InputError:
        return InputError(f"{self.name}:{line}: {message}")


def _read(name: str, directory: Path | None) -> _Source:
    override = directory / name if directory is not None else None
    if override is None or not override.is_file():
        return _Source(name, files("fastgen").joinpath("prompts", name).read_text(encoding="utf-8"))
    try:
        return _Source(str(override), override.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{override}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{override}: cannot be read ({error.strerror}); check the file and its permissions") from None


@dataclass(frozen=True, slots=True)
class _Section:
    """One table of a template file, checked: every template there, every placeholder known, none missing."""

    name: str
    source: _Source
    texts: Mapping[str, str]


def _read_templates(name: str, directory: Path | None) -> dict[str, _Section]:
    source = _read(name, directory)
    try:
        tables = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = int(place[1]) if place else source.text.count("\n") + 1
        message = str(error).removesuffix(place[0] if place else " (at end of document)")
        raise source.error(line, f"not valid TOML: {message}") from None
    for table in tables:
        if table not in _SECTIONS:
            raise source.error(_line_of(source.text, table), f"{table}: unknown section; known are {', '.join(_SECTIONS)}")
    chat = name == _TEMPLATES["chat"]
    return {section: _section(section, tables.get(section), source, chat=chat) for section in _SECTIONS}


def _section(name: str, table: object, source: _Source, *, chat: bool) -> _Section:
    if not isinstance(table, dict):
        raise source.error(1, f"{name}: the section [{name}] is missing; copy it from the shipped {_FILES[chat]}")
    placeholders = _expected_placeholders(name, chat=chat)
    for key, text in table.items():
        line = _line_of(source.text, name, key)
        if key not in placeholders:
            raise source.error(line, f"{name}.{key}: unknown key; known are {', '.join(placeholders)}")
        if not isinstance(text, str):
            raise source.error(line, f"{name}.{key}: not a text; write it in quotation marks")
        unknown = set(_PLACEHOLDER.findall(text)) - placeholders[key]
        if unknown:
            known = ", ".join(f"{{{known}}}" for known in sorted(placeholders[key])) or "none"
            raise source.error(line, f"{name}.{key}: unknown placeholder {{{min(unknown)}}}; known here: {known}")
    section = _Section(name, source, table)
    _check_complete(section, placeholders, chat=chat)
    return section


def _expected_placeholders(name: str, *, chat: bool) -> dict[str, frozenset[str]]:
    """Return the keys of a section and the placeholders that may stand in each."""
    demonstrations = frozenset({"demonstrations"} if name in _RENDERING else ())
    prompt = {"system": demonstrations, "user": _SECTIONS[name] | demonstrations} if chat else {}
    return {**(prompt or {"prompt": _SECTIONS[name] | demonstrations}), **_RENDERING.get(name, {})}
