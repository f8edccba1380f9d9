"""The prompt set: templates (TOML) and demonstrations (JSON lines), read, checked, and rendered once.

A folder given with ``--prompts`` may hold any of ``base.toml`` (completions) or ``chat.toml`` (chat),
``classification.jsonl``, ``input_first.jsonl`` and ``output_first.jsonl``. The shipped files of the preset replace what
it lacks. In a template, ``{name}`` is a placeholder. Other braces are plain text. Every defect is an `InputError` of
one line that names file, line and field. `starting_files` are the files that a user begins such a folder with.

The shipped files are those of the preset ``default``. The folder ``paper`` beside them holds the ones that differ under
``--preset paper``: templates without remarks about what the rules reject, and as many demonstrations as the original
has (Wang et al., ACL 2023). What they say is part of every such run's configuration, so they never change. The folders
``de``, ``es``, ``fr`` and ``zh`` hold a whole set in German, Spanish, French and Chinese.

Building a prompt is a concatenation. The demonstrations are rendered when the set is loaded, and a task's own text is
never formatted, so braces in it mean nothing. In the shipped prompts all fixed text comes first, where a server's
prefix cache can serve it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Literal

from fastgen.errors import InputError
from fastgen.types import Message, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


Api = Literal["completions", "chat"]
Preset = Literal["default", "paper"]
PromptLanguage = Literal["en", "de", "zh", "fr", "es"]
"""The languages of `starting_files`."""

_LIST: Final = frozenset({"instructions", "next_number"})
_TASK: Final = frozenset({"demonstrations", "instruction"})
_PROMPTS: Final[Mapping[str, frozenset[str]]] = {
    "instruction": _LIST,
    "instruction_classification": _LIST,
    "classification": _TASK,
    "input_first": _TASK,
    "output_first": _TASK,
}
"""The sections of a template file, and the placeholders of each one's prompt."""
_RENDERING: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "classification": {
        "demonstration": frozenset({"instruction", "answer"}),
        "yes": frozenset(),
        "no": frozenset(),
    },
    "input_first": {
        "demonstration": frozenset({"instruction", "examples"}),
        "example": frozenset({"number", "input", "output"}),
        "example_without_input": frozenset({"number", "output"}),
    },
    "output_first": {
        "demonstration": frozenset({"instruction", "examples"}),
        "example": frozenset({"number", "label", "input"}),
        "example_without_input": frozenset({"number", "label"}),
    },
}
"""Further keys of the sections with demonstrations, and the placeholders of each."""
_MAY_LACK: Final = frozenset(  # which came after the other keys
    {("output_first", "example_without_input"), ("classification", "yes"), ("classification", "no")}
)
_OPTIONAL: Final = frozenset({"demonstrations", "next_number", "number"})  # every other placeholder is required
_TEMPLATE_FILE: Final[Mapping[Api, str]] = {"completions": "base.toml", "chat": "chat.toml"}
FILES: Final = (*_TEMPLATE_FILE.values(), *(f"{name}.jsonl" for name in _RENDERING))
_PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with places left open: ``parts`` are literal text and placeholders in turn, text first and last.

    ``system`` is the system message of a chat prompt (none is sent when it is empty), ``None`` for a completion prompt.
    """

    system: str | None
    parts: tuple[str, ...]

    def fill(self, **values: str) -> str | tuple[Message, ...]:
        """Return the prompt with ``values`` in their places, unchanged."""
        text = _fill(self.parts, values)
        if self.system is None:
            return text
        user = Message("user", text)
        return (Message("system", self.system), user) if self.system else (user,)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of every stage for one API. ``fingerprint`` is the SHA-256 of all their text, in hexadecimal."""

    api: Api
    instruction: Template
    instruction_classification: Template
    classification: Template
    input_first: Template
    output_first: Template
    fingerprint: str
    shown: Mapping[str, tuple[str, ...]]
    """The instructions of the demonstrations, by the name of their file."""
    words: Mapping[str, str]
    """What begins a task and an example in these prompts, by what does in the shipped ones ("Task:", "Example")."""

    def with_own_stops(self, sampling: Sampling) -> Sampling:
        """Return the sampling with stop strings in the words of these prompts ("Aufgabe:" for "Task:")."""
        stop = tuple(map(self._own_stop, sampling.stop))
        return sampling if stop == sampling.stop else replace(sampling, stop=stop)

    def _own_stop(self, text: str) -> str:
        line = text.removeprefix("\n")
        for shipped, own in self.words.items():
            if line.startswith(shipped):
                return text.replace(shipped, own, 1)
        return text


def load_prompts(api: Api, directory: Path | None = None, *, preset: Preset = "default") -> PromptSet:
    """Return the preset's prompt set, with the files of ``directory`` in place of those of the same name.

    :raises InputError: a file cannot be read or used.
    """
    return parse_prompts(api, read_prompt_files(directory, preset=preset))


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt file as it was read: its name in messages, and its bytes."""

    name: str
    content: bytes

    def text(self) -> str:
        """Its text, without a byte order mark and with Unix line ends.

        :raises InputError: it is not UTF-8.
        """
        try:
            return self.content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise self.error(line, "not UTF-8 text; save the file as UTF-8") from None

    def error(self, line: int, message: str) -> InputError:
        """An error about this line, counted from 1."""
        return InputError(f"{self.name}:{line}: {message}")


PromptFiles = dict[str, PromptFile]
"""All of `FILES`, by file name."""


def read_prompt_files(directory: Path | None, *, stored: Path | None = None, preset: Preset = "default") -> PromptFiles:
    """Read each prompt file once: from ``directory``, else from ``stored``, else as shipped for ``preset``.

    ``directory`` is what the user named, ``stored`` the prompts of a run that has begun. A resume with the same
    ``--prompts`` thus finds the files that began the run, also where the user's folder lacks one and another ships now.

    :raises InputError: the first folder holds none of the files, or one of them cannot be read.
    """
    folders = [folder for folder in (directory, stored) if folder is not None]
    read: PromptFiles = {}
    for folder in folders:
        own = _read_folder(folder)
        if not own and folder == folders[0]:
            raise InputError(f"--prompts {folder}: holds none of {', '.join(FILES)}; name a folder with at least one")
        read = own | read
    return {name: read.get(name) or _shipped(name, preset) for name in FILES}


_TO_TRANSLATE: Final = """\
# To use another language, translate all text in quotation marks below, and the .jsonl files beside this one.
# docs/languages.md lists, by language, the words for "Task:", "Example", "Input:", "Output:" and "Class label:" with
# which answers can be read. Set yes = "..." and no = "..." under [classification].
# Leave the names in [brackets], the keys before "=" and what stands in {braces} as they are.

"""


def starting_files(language: PromptLanguage) -> dict[str, bytes]:
    """Return all of `FILES` in a language, for a user to edit. The English templates say how to translate them."""
    read = {name: _shipped(name, language).content for name in FILES}
    if language == "en":
        read |= {name: _TO_TRANSLATE.encode() + read[name] for name in _TEMPLATE_FILE.values()}
    return read


def _shipped(name: str, kind: Preset | PromptLanguage) -> PromptFile:
    """Read the file of the preset or language, or the default's where it has none."""
    folder = files("fastgen.methods.self_instruct").joinpath("prompt_files")
    own = folder.joinpath(kind, name)
    return PromptFile(name, (own if own.is_file() else folder.joinpath(name)).read_bytes())


def _read_folder(folder: Path) -> PromptFiles:
    """Read the prompt files that the folder has.

    :raises InputError: the folder or one of the files cannot be read.
    """
    try:
        names = [name for name in FILES if (folder / name).is_file()]
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check its permissions"
        raise InputError(f"--prompts {folder}: {reason}") from None
    read = {}
    for name in names:
        path = folder / name
        try:
            read[name] = PromptFile(str(path), path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    return read


def parse_prompts(api: Api, read: PromptFiles) -> PromptSet:
    """Return the prompt set of files that were read.

    :raises InputError: a file cannot be used; the message is one line, ``FILE:LINE: field: defect and remedy``.
    """
    tables = _read_templates(api, read[_TEMPLATE_FILE[api]])
    demonstrations = {name: _read_demonstrations(name, read[f"{name}.jsonl"]) for name in _RENDERING}
    templates = {name: _template(tables[name], demonstrations.get(name, [])) for name in _PROMPTS}
    content = json.dumps([api, {name: asdict(template) for name, template in templates.items()}], sort_keys=True)
    return PromptSet(
        api,
        **templates,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        shown={f"{name}.jsonl": tuple(one.instruction for one in found) for name, found in demonstrations.items()},
        words=_words(tables["input_first"]),
    )


def _words(table: Mapping[str, str]) -> dict[str, str]:
    """Return the own words of templates that have some, by those of the shipped ones."""
    task = re.search(r"^([^\n{}]*\w[ \t]*[:\uff1a])[ \t]*\{instruction\}", table["demonstration"], re.MULTILINE)
    example = re.search(r"^([^\n{}]*\w)[ \t]*\{number\}", table["example"], re.MULTILINE)
    found = {"Task:": task and task[1], "Example": example and example[1]}
    return {shipped: own for shipped, own in found.items() if own}


# -- templates ---------------------------------------------------------------------------------------------------------


def _read_templates(api: Api, file: PromptFile) -> dict[str, dict[str, str]]:
    """Return the checked tables of the template file: section to key to template.

    Keys are ``prompt`` (completions) or ``system`` and ``user`` (chat), and what renders a demonstration.
    """
    text = file.text()
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        raise file.error(line, f"not valid TOML: {str(error).split(' (at ')[0]}; fix the syntax") from None
    for name in tables:
        if name not in _PROMPTS:
            raise file.error(_line_of(text, name), f"{name}: unknown section; known: {', '.join(_PROMPTS)}")
    for name, placeholders in _PROMPTS.items():
        chat = {"system": placeholders & {"demonstrations"}, "user": placeholders}
        keys = {**(chat if api == "chat" else {"prompt": placeholders}), **_RENDERING.get(name, {})}
        _check_section(file, text, name, tables.get(name), keys)
    return tables


def _check_section(file: PromptFile, text: str, name: str, table: object, keys: Mapping[str, frozenset[str]]) -> None:
    if not isinstance(table, dict):
        raise file.error(
            _line_of(text, name), f"{name}: the section [{name}] is missing; copy it from the shipped file"
        )
    for key in table:
        if key not in keys:
            raise file.error(_line_of(text, name, key), f"{name}.{key}: unknown key; known: {', '.join(keys)}")
    for key, placeholders in keys.items():
        if key not in table and (name, key) in _MAY_LACK:
            continue
        if not isinstance(template := table.get(key), str):
            raise file.error(_line_of(text, name, key), f"{name}.{key}: has to be a text in quotation marks")
        found = frozenset(_PLACEHOLDER.findall(template))
        for one in sorted(found - placeholders):
            known = ", ".join(f"{{{known}}}" for known in sorted(placeholders)) or "none"
            message = f"{name}.{key}: unknown placeholder {{{one}}}; known here: {known}"
            raise file.error(_line_of(text, name, key), message)
        for one in sorted(placeholders - found - _OPTIONAL):
            message = f"{name}.{key}: the placeholder {{{one}}} is missing; put it where the text belongs"
            raise file.error(_line_of(text, name, key), message)


def _line_of(text: str, section: str, key: str | None = None) -> int:
    """Return the number of the line that opens the section, or sets the key in it. 1 where neither is found."""
    header = re.search(rf"^[ \t]*\[[ \t]*[\"']?{re.escape(section)}[\"']?[ \t]*\]", text, re.MULTILINE)
    if header is None:
        return 1
    position = header.start()
    if key is not None:
        setting = re.compile(rf"^[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*=", re.MULTILINE).search(text, header.end())
        position = setting.start() if setting else position
    return text.count("\n", 0, position) + 1


def _template(table: Mapping[str, str], demonstrations: list[_Demonstration]) -> Template:
    """Fill in the demonstrations and leave the other places open."""
    shown = {"demonstrations": "".join(_render(table, demonstration) for demonstration in demonstrations)}
    system = _fill(_PLACEHOLDER.split(table["system"]), shown).strip() if "system" in table else None
    parts = [""]
    for i, part in enumerate(_PLACEHOLDER.split(table["prompt" if system is None else "user"])):
        if i % 2 and part not in shown:
            parts += [part, ""]
        else:
            parts[-1] += shown[part] if i % 2 else part
    return Template(system, tuple(parts))


def _render(table: Mapping[str, str], demonstration: _Demonstration) -> str:
    examples = ""
    for number, example in enumerate(demonstration.examples, 1):
        key = "example" if example["input"] or "example_without_input" not in table else "example_without_input"
        examples += _fill(_PLACEHOLDER.split(table[key]), {"number": str(number), **example})
    answer = table.get("yes", "Yes") if demonstration.is_classification else table.get("no", "No")
    values = {"instruction": demonstration.instruction, "answer": answer, "examples": examples}
    return _fill(_PLACEHOLDER.split(table["demonstration"]), values)


def _fill(parts: Sequence[str], values: Mapping[str, str]) -> str:
    return "".join(values[part] if i % 2 else part for i, part in enumerate(parts))


# -- demonstrations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Demonstration:
    """A worked task: whether it is one of classification, or else ``examples``, each field to text."""

    instruction: str
    is_classification: bool = False
    examples: tuple[Mapping[str, str], ...] = ()


def _read_demonstrations(name: str, file: PromptFile) -> list[_Demonstration]:
    lines = [(number, line) for number, line in enumerate(file.text().split("\n"), 1) if line.strip()]
    if not lines:
        raise file.error(1, "no demonstrations; add at least one or remove the file to use the shipped ones")
    return [_demonstration(name, file, *line) for line in lines]


def _demonstration(name: str, file: PromptFile, number: int, line: str) -> _Demonstration:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise file.error(number, f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise file.error(number, 'not a JSON object; write {"instruction": ...} on one line')
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise file.error(number, "instruction: has to be a text that is not empty")
    instruction = row["instruction"].strip()
    if name != "classification":
        return _Demonstration(instruction, examples=_examples(name, file, number, row.get("examples")))
    if not isinstance(row.get("is_classification"), bool):
        raise file.error(number, "is_classification: has to be true or false")
    return _Demonstration(instruction, row["is_classification"])


def _examples(name: str, file: PromptFile, number: int, examples: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(examples, list) or not examples:
        raise file.error(number, "examples: has to be a list of at least one object")
    required, other = ("output", "input") if name == "input_first" else ("label", "input")
    for i, example in enumerate(examples):
        if not isinstance(example, dict):
            raise file.error(number, f"examples[{i}]: has to be an object with {required} and {other}")
        for field in (required, other):
            if not isinstance(example.get(field), str):
                raise file.error(number, f"examples[{i}].{field}: has to be a text")
        if not example[required].strip():
            raise file.error(number, f"examples[{i}].{required}: is empty; write what the model should answer")
    return tuple({field: example[field].strip() for field in (required, other)} for example in examples)
