"""Read prompt templates (TOML) and demonstrations (JSON lines), and name file, line and field of whatever is wrong.

A folder given with ``--prompts`` may hold any of ``base.toml`` (completions) or ``chat.toml`` (chat),
``classification.jsonl``, ``input_first.jsonl`` and ``output_first.jsonl``; what it lacks comes from the shipped files.
In a template, ``{name}`` is a place to fill; other braces are plain text. Knows nothing of how prompts are assembled.
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
from fastgen.types import Message

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


Api = Literal["completions", "chat"]

_TEMPLATE_FILE: Final[Mapping[Api, str]] = {"completions": "base.toml", "chat": "chat.toml"}
_PLACE: Final = re.compile(r"\{([a-z_]+)\}")
_OPTIONAL: Final = frozenset({"demonstrations", "next_number", "number"})  # every other place has to be there
_LIST: Final = frozenset({"instructions", "next_number"})
_TASK: Final = frozenset({"demonstrations", "instruction"})
_DEMONSTRATION: Final = frozenset({"instruction", "examples"})
_Section = dict[str, frozenset[str]]
_PROMPTS: Final[Mapping[str, frozenset[str]]] = {
    "instruction": _LIST,
    "instruction_classification": _LIST,
    "classification": _TASK,
    "input_first": _TASK,
    "output_first": _TASK,
}
_RENDERING: Final[Mapping[str, _Section]] = {
    "classification": {"demonstration": frozenset({"instruction", "answer"})},
    "input_first": {
        "demonstration": _DEMONSTRATION,
        "example": frozenset({"number", "input", "output"}),
        "example_without_input": frozenset({"number", "output"}),
    },
    "output_first": {"demonstration": _DEMONSTRATION, "example": frozenset({"number", "label", "input"})},
}
SECTIONS: Final = tuple(_PROMPTS)
WITH_DEMONSTRATIONS: Final = tuple(_RENDERING)
FILES: Final = (*_TEMPLATE_FILE.values(), *(f"{name}.jsonl" for name in _RENDERING))


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked task: for classification the ``answer`` ("Yes" or "No"), else ``examples``, each a field → text."""

    instruction: str
    answer: str
    examples: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt file as it was read: its name in messages, and its bytes."""

    name: str
    content: bytes

    def source(self) -> _Source:
        """Its text, without a byte order mark and with Unix line ends.

        :raises InputError: it is not UTF-8.
        """
        try:
            return _Source(self.name, self.content.decode("utf-8-sig").replace("\r\n", "\n"))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise InputError(f"{self.name}:{line}: not UTF-8 text; save the file as UTF-8") from None


PromptFiles = dict[str, PromptFile]
"""All of `FILES`, by file name."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A text file and how to blame a line of it."""

    name: str
    text: str

    def error(self, line: int, message: str) -> InputError:
        """The error about this line, counted from 1."""
        return InputError(f"{self.name}:{line}: {message}")


def split_places(text: str) -> tuple[str, ...]:
    """Return literal text and place names in turn, text first and last."""
    return tuple(_PLACE.split(text))


def read_prompt_files(directory: Path | None) -> PromptFiles:
    """Read each prompt file once: the folder's, or the shipped one where the folder has none of that name.

    :raises InputError: the folder holds none of the files, or one of them cannot be read.
    """
    own = {} if directory is None else _files_of(directory)
    if directory is not None and not own:
        raise InputError(f"--prompts {directory}: holds none of {', '.join(FILES)}; name a folder with at least one")
    return {name: _own(own[name]) if name in own else _shipped(name) for name in FILES}


def _files_of(directory: Path) -> dict[str, Path]:
    try:
        return {name: directory / name for name in FILES if (directory / name).is_file()}
    except OSError as error:
        raise InputError(f"--prompts {directory}: cannot be read ({error.strerror}); check its permissions") from None


def _own(path: Path) -> PromptFile:
    try:
        return PromptFile(str(path), path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


def _shipped(name: str) -> PromptFile:
    return PromptFile(name, files("fastgen.methods.self_instruct").joinpath("prompt_files", name).read_bytes())


def read_templates(api: Api, read: PromptFiles) -> dict[str, dict[str, str]]:
    """Return the checked tables of the template file: section → key → template.

    Keys are ``prompt`` (completions) or ``system`` and ``user`` (chat), and what renders a demonstration.

    :raises InputError: the file is not UTF-8 or not TOML, or has a wrong section, key or place.
    """
    source = read[_TEMPLATE_FILE[api]].source()
    try:
        tables = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = int(place[1]) if place else source.text.count("\n") + 1
        raise source.error(line, f"not valid TOML: {str(error).split(' (at ')[0]}; mend the syntax") from None
    for name in tables:
        if name not in SECTIONS:
            raise source.error(_line_of(source.text, name), f"{name}: unknown section; known: {', '.join(SECTIONS)}")
    for name in SECTIONS:
        _check_section(source, name, tables.get(name), _expected(api, name))
    return tables


def _expected(api: Api, name: str) -> _Section:
    """Return the keys of a section and the places that each may have."""
    system = {"system": _PROMPTS[name] & {"demonstrations"}, "user": _PROMPTS[name]}
    return {**(system if api == "chat" else {"prompt": _PROMPTS[name]}), **_RENDERING.get(name, {})}


def _check_section(source: _Source, name: str, table: object, expected: _Section) -> None:
    at = _line_of(source.text, name)
    if not isinstance(table, dict):
        raise source.error(at, f"{name}: the section [{name}] is missing; copy it from the shipped file")
    for key in table:
        if key not in expected:
            raise source.error(
                _line_of(source.text, name, key), f"{name}.{key}: unknown key; known: {', '.join(expected)}"
            )
    for key, places in expected.items():
        if not isinstance(table.get(key), str):
            raise source.error(_line_of(source.text, name, key), f"{name}.{key}: has to be a text in quotation marks")
        _check_places(source, name, key, table[key], places)


def _check_places(source: _Source, name: str, key: str, text: str, places: frozenset[str]) -> None:
    found, at = frozenset(_PLACE.findall(text)), _line_of(source.text, name, key)
    for place in sorted(found - places):
        known = ", ".join(f"{{{known}}}" for known in sorted(places)) or "none"
        raise source.error(at, f"{name}.{key}: unknown placeholder {{{place}}}; known here: {known}")
    for place in sorted(places - found - _OPTIONAL):
        raise source.error(at, f"{name}.{key}: the placeholder {{{place}}} is missing; put it where the text belongs")


def _line_of(text: str, section: str, key: str | None = None) -> int:
    """Return the number of the line that opens the section, or sets the key in it; 1 where neither is found."""
    header = re.search(rf"^[ \t]*\[[ \t]*[\"']?{re.escape(section)}[\"']?[ \t]*\]", text, re.MULTILINE)
    if header is None:
        return 1
    position = header.start()
    if key is not None:
        setting = re.compile(rf"^[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*=", re.MULTILINE).search(text, header.end())
        position = setting.start() if setting else position
    return text.count("\n", 0, position) + 1


def read_demonstrations(name: str, read: PromptFiles) -> tuple[Demonstration, ...]:
    """Return the demonstrations of ``NAME.jsonl``, at least one.

    :raises InputError: the file is not UTF-8, a line is not JSON, or a field is missing or of the wrong kind.
    """
    source = read[f"{name}.jsonl"].source()
    lines = [(number, line) for number, line in enumerate(source.text.split("\n"), 1) if line.strip()]
    if not lines:
        raise source.error(1, "no demonstrations; add at least one or remove the file to use the shipped ones")
    return tuple(_demonstration(name, source, *line) for line in lines)


def _demonstration(name: str, source: _Source, number: int, line: str) -> Demonstration:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise source.error(number, f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise source.error(number, 'not a JSON object; write {"instruction": ...} on one line')
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise source.error(number, "instruction: has to be a text that is not empty")
    if name != "classification":
        return Demonstration(row["instruction"].strip(), "", _examples(name, source, number, row.get("examples")))
    if not isinstance(row.get("is_classification"), bool):
        raise source.error(number, "is_classification: has to be true or false")
    return Demonstration(row["instruction"].strip(), "Yes" if row["is_classification"] else "No", ())


def _examples(name: str, source: _Source, number: int, examples: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(examples, list) or not examples:
        raise source.error(number, "examples: has to be a list of at least one object")
    required, other = ("output", "input") if name == "input_first" else ("label", "input")
    for i, example in enumerate(examples):
        if not isinstance(example, dict):
            raise source.error(number, f"examples[{i}]: has to be an object with {required} and {other}")
        for field in (required, other):
            if not isinstance(example.get(field), str):
                raise source.error(number, f"examples[{i}].{field}: has to be a text")
        if not example[required].strip():
            raise source.error(number, f"examples[{i}].{required}: is empty; write what the model should answer")
    return tuple({field: example[field].strip() for field in (required, other)} for example in examples)


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with places left open: ``parts`` are literal text and place names in turn, text first and last.

    ``system`` is the system message of a chat prompt (none is sent when it is empty), ``None`` for a completion prompt.
    """

    system: str | None
    parts: tuple[str, ...]

    def fill(self, **values: str) -> str | tuple[Message, ...]:
        """Return the prompt with ``values`` in their places, taken as they are."""
        text = _fill(self.parts, values)
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

    :raises InputError: a file that cannot be read or used, as one line ``FILE:LINE: field: defect and remedy``.
    """
    return parse_prompts(api, read_prompt_files(directory))


def parse_prompts(api: Api, read: PromptFiles) -> PromptSet:
    """Return the prompt set of files that were read.

    :raises InputError: a file that cannot be used, as one line ``FILE:LINE: field: defect and remedy``.
    """
    tables = read_templates(api, read)
    demos = {name: read_demonstrations(name, read) for name in WITH_DEMONSTRATIONS}
    templates = {name: _template(tables[name], demos.get(name, ())) for name in SECTIONS}
    content = json.dumps([api, {name: asdict(template) for name, template in templates.items()}], sort_keys=True)
    return PromptSet(api, **templates, fingerprint=hashlib.sha256(content.encode()).hexdigest())


def _template(table: Mapping[str, str], demos: tuple[Demonstration, ...]) -> Template:
    """Fill in the demonstrations and leave the other places open."""
    shown = {"demonstrations": "".join(_render(table, demo) for demo in demos)}
    system = _fill(split_places(table["system"]), shown).strip() if "system" in table else None
    parts = [""]
    for i, part in enumerate(split_places(table["prompt" if system is None else "user"])):
        if i % 2 and part not in shown:
            parts += [part, ""]
        else:
            parts[-1] += shown[part] if i % 2 else part
    return Template(system, tuple(parts))


def _render(table: Mapping[str, str], demo: Demonstration) -> str:
    examples = ""
    for number, example in enumerate(demo.examples, 1):
        key = "example" if example["input"] or "example_without_input" not in table else "example_without_input"
        examples += _fill(split_places(table[key]), {"number": str(number), **example})
    values = {"instruction": demo.instruction, "answer": demo.answer, "examples": examples}
    return _fill(split_places(table["demonstration"]), values)


def _fill(parts: tuple[str, ...], values: Mapping[str, str]) -> str:
    return "".join(values[part] if i % 2 else part for i, part in enumerate(parts))
