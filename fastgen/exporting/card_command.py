"""The command that a run amounts to, as far as it may be published: what the run means, no servers, files or keys."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastgen.config import preset_values
from fastgen.options import MethodOptions, SimilarityOptions, flag, plain
from fastgen.seeds import default_seed_path, load_seed_tasks, seed_fingerprint

_FILES: Final = {"seed_tasks", "prompts", "decontaminate"}
_WIDTH: Final = 100


def generate_command(meaning: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """``fastgen generate`` with every flag that differs from the preset, in lines that fit a page.

    ``FILE`` stands for files of the user's. Of ``--extra-body`` only numbers and truth values are told.
    """
    words = ["fastgen generate", f"--model {_quoted(str(meaning['model']))}"]
    if (count := options.get("num_instructions")) is not None:
        words.append(f"--num-instructions {count}")
    return " \\\n    ".join(_filled([*words, *_flags(meaning)]))


def _flags(meaning: Mapping[str, Any]) -> Iterator[str]:
    usual = _usual(meaning)
    for name, value in meaning.items():
        if name in _FILES or name == "model" or usual.get(name, None) == value:
            continue
        yield from _flag_words(name, _published(value) if name == "extra_body" else value)
    if meaning["seed_tasks"] != seed_fingerprint(load_seed_tasks(default_seed_path())):
        yield "--seed-tasks FILE"
    if meaning["decontaminate"]:
        yield "--decontaminate FILE"


def _usual(meaning: Mapping[str, Any]) -> dict[str, Any]:
    """What the run would have meant with its preset and API alone, by flat option name."""
    preset, api = str(meaning["preset"]), str(meaning["api"])
    values = plain(MethodOptions()) | plain(SimilarityOptions()) | preset_values(preset, api)
    flat = {"extra_body": "{}", "api": "completions"}
    for name, value in values.items():
        flat |= {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _flag_words(name: str, value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    stem = ".".join(part.replace("_", "-") for part in name.split("."))
    if isinstance(value, bool):
        yield flag(stem) if value else flag(f"no-{stem}")
    elif isinstance(value, list):
        yield from (f"{flag(stem)} {_quoted(str(item))}" for item in value)
    elif value is not None:
        yield f"{flag(stem)} {_quoted(str(value))}"


def _quoted(text: str) -> str:
    """As one word of a shell on one line, so that no value can end the card's block."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    """Within bash's quotes for control characters."""
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _published(extra_body: str) -> str:
    fields = json.loads(extra_body)
    return json.dumps({name: value if isinstance(value, bool | int | float) else "…" for name, value in fields.items()})


def _filled(words: list[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) > _WIDTH:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
    yield line
