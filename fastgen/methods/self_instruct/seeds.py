"""Seed tasks: what a run begins with, read from JSON lines and checked to the last field.

A task that is returned is complete: at least one instance, no blank instruction or output, no NUL, no lone surrogate,
and a unique id. Every defect is an `InputError` of one line that names file, line and field and says what to do. The
schema is that of Self-Instruct (Wang et al., ACL 2023), so the authors' own file loads too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastgen.errors import InputError
from fastgen.methods.self_instruct.filters import check_instruction, count_words
from fastgen.methods.self_instruct.languages import language_warning
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.similarity.rouge import f1_of_lcs, rouge_l_f1, tokenise
from fastgen.text import printable
from fastgen.types import Instance, SeedTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastgen.methods.self_instruct.prompts import Preset, PromptSet


NEAR: Final = 0.5
"""ROUGE-L F1 from which on two seeds teach the model little more than one of them."""
FEWEST: Final = 8
"""Demonstrations in one prompt of the method."""

_MOST_PAIRS: Final = 20
_FILE_NAME: Final = "seed_tasks.jsonl"
_MACHINE_ID: Final = re.compile(r"machine_\d+")
_UNUSABLE: Final = re.compile("[\0\ud800-\udfff]")
_KINDS: Final = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
_MISSING: Final = object()
_BOM: Final = b"\xef\xbb\xbf"


class SeedPair(NamedTuple):
    """Two seeds by id, in file order, and the ROUGE-L F1 of their instructions (0..1, no stemming)."""

    first: str
    second: str
    rouge_l: float

    def __str__(self) -> str:
        return f"{printable(self.first)} and {printable(self.second)} (ROUGE-L {self.rouge_l:.3f})"


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What `check_seed_tasks` found in a file that loads. ``str(report)`` is the text for the user.

    Words are counted by the rules of the preset. ``empty_input_share`` is the share (0..1) of instances with a blank
    input. ``closest`` is the most similar pair of instructions, ``None`` for a single seed. ``warnings`` are one line
    each. A file with warnings still works.
    """

    path: Path
    tasks: int
    classification: int
    instances: int
    empty_input_share: float
    words_min: int
    words_median: float
    words_max: int
    closest: SeedPair | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{printable(str(self.path))}: {self.tasks} seed tasks, {self.instances} instances",
            f"  classification     {self.classification} of {self.tasks}",
            f"  empty input        {self.empty_input_share:.1%} of the instances",
            f"  instruction words  {self.words_min} to {self.words_max}, median {self.words_median:g}",
            f"  closest pair       {self.closest or 'none'}",
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def default_seed_path() -> Path:
    """Return the file of the shipped seed tasks: next to this module in a wheel, else in ``seeds/`` of the checkout.

    :raises InputError: neither exists; the installation is damaged.
    """
    module = Path(__file__).resolve()
    for path in (module.with_name(_FILE_NAME), module.parents[3] / "seeds" / _FILE_NAME):
        if path.is_file():
            return path
    raise InputError(f"{_FILE_NAME}: not part of this installation; reinstall fastgen or name a file with --seed-tasks")


def load_seed_tasks(path: Path) -> tuple[SeedTask, ...]:
    """Return the tasks of a JSON-lines file.

    :raises InputError: the file cannot be read, or as `parse_seed_tasks`.
    """
    return parse_seed_tasks(path, read_seed_file(path))


def parse_seed_tasks(path: Path, content: bytes) -> tuple[SeedTask, ...]:
    """Return the tasks of JSON lines, in order. ``path`` is for messages.

    Blank lines and a byte order mark are skipped. Each line is an object with ``id``, ``instruction``, ``instances``
    (one or more ``{"input", "output"}``) and ``is_classification``. ``name`` may be left out (then it is the id). Other
    keys are ignored.

    :raises InputError: the content is not UTF-8 or holds no task; a line is not a JSON object; a field is missing,
        blank or of another type; an id is used twice or has the form of a machine instruction's.
    """
    return tuple(task for _, task in _numbered_tasks(path, content))


def read_seed_file(path: Path) -> bytes:
    """Return the bytes of a seed file, which may be a pipe: it is opened and read once.

    :raises InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{printable(str(path))}: cannot be read ({reason}); name a file of JSON lines") from None


def seed_fingerprint(tasks: Sequence[SeedTask]) -> str:
    """SHA-256 (64 hex digits) of everything the tasks say, in order. The same however the file was formatted."""
    content = [
        [task.id, task.name, task.instruction, [[i.input, i.output] for i in task.instances], task.is_classification]
        for task in tasks
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def check_seed_tasks(path: Path, preset: Preset = "default", prompts: Path | None = None) -> SeedReport:
    """Load a seed file and report on it as the start of a run with ``preset``.

    ``prompts`` is the run's own folder of prompts. The report has figures, and warnings of what will hurt a run.

    :raises InputError: as `load_seed_tasks`; as `load_prompts` for the folder.
    """
    shown = load_prompts("completions", prompts, preset=preset)
    numbered = _numbered_tasks(path, read_seed_file(path))
    tasks = [task for _, task in numbered]
    blank = [not instance.input.strip() for task in tasks for instance in task.instances]
    words = [count_words(task.instruction, PRESETS[preset]) for task in tasks]
    closest, near = _closest_and_near(tasks)
    return SeedReport(
        path=path,
        tasks=len(tasks),
        classification=sum(task.is_classification for task in tasks),
        instances=len(blank),
        empty_input_share=sum(blank) / len(blank),
        words_min=min(words),
        words_median=median(words),
        words_max=max(words),
        closest=closest,
        warnings=tuple(_warnings(path, numbered, near, preset, shown)),
    )


def _numbered_tasks(path: Path, content: bytes) -> list[tuple[int, SeedTask]]:
    """(line number from 1, task) of every line that is not blank."""
    numbered: list[tuple[int, SeedTask]] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{printable(str(path))}:{number}"
        task = _task(_object(line, where), where)
        if task.id in line_of:
            raise InputError(
                f"{where}: id: {json.dumps(task.id)} is also on line {line_of[task.id]}; choose another id"
            )
        line_of[task.id] = number
        numbered.append((number, task))
    if not numbered:
        raise InputError(f"{printable(str(path))}: holds no seed task; write one JSON object on each line")
    return numbered


def _object(line: bytes, where: str) -> dict[str, Any]:
    if b"\0" in line:
        raise InputError(f"{where}: holds a NUL byte, so this is not a text file; save it as UTF-8 JSON lines")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        problem = f"broken JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        raise InputError(f"{where}: {problem}; write one whole JSON object on each line") from None
    except KeyError as error:
        raise InputError(f"{where}: {printable(error.args[0])}: appears twice in one object; keep one") from None
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        raise InputError(f"{where}: JSON beyond what can be read; simplify or remove this line") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {_KINDS.get(type(value), 'a number')}; write one JSON object on each line")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these fields. Raises KeyError for a key that would silently replace another."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise KeyError(key)
        fields[key] = value
    return fields


def _task(fields: dict[str, Any], where: str) -> SeedTask:
    identifier = _text(fields, "id", where)
    if _MACHINE_ID.fullmatch(identifier):
        raise InputError(f"{where}: id: {json.dumps(identifier)} is a machine instruction's name; choose another id")
    is_classification = fields.get("is_classification", _MISSING)
    if not isinstance(is_classification, bool):
        raise _unfit(where, "is_classification", is_classification, "true or false")
    return SeedTask(
        id=identifier,
        name=_text(fields, "name", where) if "name" in fields else identifier,
        instruction=_text(fields, "instruction", where),
        instances=tuple(_instances(fields, where)),
        is_classification=is_classification,
    )


def _instances(fields: dict[str, Any], where: str) -> Iterator[Instance]:
    instances = fields.get("instances", _MISSING)
    if not isinstance(instances, list):
        raise _unfit(where, "instances", instances, 'a list of {"input", "output"} objects')
    if not instances:
        raise InputError(f'{where}: instances: empty; give at least one {{"input", "output"}} object')
    for index, instance in enumerate(instances):
        field = f"instances[{index}]"
        if not isinstance(instance, dict):
            raise _unfit(where, field, instance, 'an object {"input", "output"}')
        text = _text(instance, "input", where, f"{field}.", may_be_blank=True)
        yield Instance(text, _text(instance, "output", where, f"{field}."))


def _text(fields: dict[str, Any], key: str, where: str, prefix: str = "", *, may_be_blank: bool = False) -> str:
    value = fields.get(key, _MISSING)
    if not isinstance(value, str):
        raise _unfit(where, prefix + key, value, 'text, "" for none' if may_be_blank else "text")
    if not may_be_blank and not value.strip():
        raise InputError(f"{where}: {prefix}{key}: blank; write some text")
    if bad := _UNUSABLE.search(value):
        what = "a NUL character" if bad.group() == "\0" else "a lone surrogate, half of a character"
        raise InputError(f"{where}: {prefix}{key}: holds \\u{ord(bad.group()):04x}, {what}; remove or replace it")
    return value


def _unfit(where: str, field: str, value: object, wanted: str) -> InputError:
    if value is _MISSING:
        return InputError(f"{where}: {field}: missing; add it ({wanted})")
    return InputError(f"{where}: {field}: found {_KINDS.get(type(value), 'a number')}; make it {wanted}")


def _closest_and_near(tasks: Sequence[SeedTask]) -> tuple[SeedPair | None, list[SeedPair]]:
    """Return the most similar pair, and all pairs at or above `NEAR`, most similar first.

    An LCS is never longer than the multiset overlap of the tokens, which is one AND of two bit sets. Only pairs that
    this bound does not exclude are scored.
    """
    tokens = [tokenise(task.instruction) for task in tasks]
    closest: SeedPair | None = None
    near: list[SeedPair] = []
    for (a, a_tokens, a_bits), (b, b_tokens, b_bits) in combinations(zip(tasks, tokens, _bits(tokens), strict=True), 2):
        bound = f1_of_lcs((a_bits & b_bits).bit_count(), len(a_tokens), len(b_tokens))
        if closest and bound < NEAR and bound <= closest.rouge_l:
            continue
        pair = SeedPair(a.id, b.id, rouge_l_f1(a_tokens, b_tokens))
        if closest is None or pair.rouge_l > closest.rouge_l:
            closest = pair
        if pair.rouge_l >= NEAR:
            near.append(pair)
    return closest, sorted(near, key=lambda pair: -pair.rouge_l)


def _bits(texts: Sequence[list[str]]) -> list[int]:
    """One bit for each token together with how often it occurred before in the same text."""
    numbers = defaultdict[tuple[str, int], int](count().__next__)
    return [sum(1 << numbers[token, text[:i].count(token)] for i, token in enumerate(text)) for text in texts]


def _warnings(
    path: Path, numbered: Sequence[tuple[int, SeedTask]], near: Sequence[SeedPair], preset: Preset, prompts: PromptSet
) -> Iterator[str]:
    tasks = [task for _, task in numbered]
    if len(tasks) < FEWEST:
        yield f"only {len(tasks)} seed tasks, fewer than the {FEWEST} of one prompt; prompts will repeat themselves"
    if not any(task.is_classification for task in tasks):
        yield "no classification seed; 'generate --classification-only' refuses these seeds"
    if mixed := language_warning(tasks, prompts):
        yield mixed
    for line, task in numbered:  # seeds are not filtered, but the model imitates them
        if rule := check_instruction(" ".join(task.instruction.split()), PRESETS[preset]):
            where = f"{printable(str(path))}:{line}: instruction"
            yield f"{where}: --preset {preset} rejects machine instructions like this one ({rule}); reword it"
    for pair in near[:_MOST_PAIRS]:
        yield f"{pair}: nearly the same instruction (should be below {NEAR}); reword or drop one"
    if len(near) > _MOST_PAIRS:
        yield f"{len(near) - _MOST_PAIRS} more pairs are nearly the same"
