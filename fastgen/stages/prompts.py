"""The prompt set: templates and demonstrations, rendered once, so that building a prompt is a concatenation.

Guarantees: the demonstrations are rendered when the set is loaded, and in the shipped prompts all fixed text comes
first, so that a server's prefix cache can serve it; a task's own text is only ever concatenated, never formatted, so
braces in it mean nothing; ``fingerprint`` changes whenever any text of the set does. Knows nothing of the format and
the defects of the data files, which :mod:`fastgen.stages.prompt_files` reads, nor of rules and parsing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fastgen.records import Message
from fastgen.stages.prompt_files import (
    SECTIONS,
    WITH_DEMONSTRATIONS,
    Api,
    Demonstration,
    PromptFiles,
    read_demonstrations,
    read_prompt_files,
    read_templates,
    split_places,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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
