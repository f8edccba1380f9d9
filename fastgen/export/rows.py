"""The text that a model is tuned on: instruction and input as a prompt, the output as its completion.

The method of Self-Instruct (Wang et al., ACL 2023): seven templates with input and six without, drawn uniformly, so
that the tuned model does not depend on one format; and, with probability 1/2, an input of a single named field loses
that name and its blank lines. Pure: all chance comes in as one number. No end-of-text token is added, since trainers
add their own model's. Knows nothing of files, runs or trainers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fastgen.export.entries import Entry
from fastgen.export.options import Format, draw
from fastgen.methods.self_instruct.admission import CONTAMINATED
from fastgen.methods.self_instruct.rules import Style
from fastgen.store.reader import OpenRun, RejectedInstruction, pool_id
from fastgen.types import Instance, Neighbour, SeedTask

WITH_INPUT: Final = (
    "{instruction}\nInput: {input}\nOutput:",
    "{instruction}\n\nInput: {input}\n\nOutput:",
    "Task: {instruction}\nInput: {input}\nOutput:",
    "{instruction}\n\n{input}\n\nOutput:",
    "{instruction}\n\n{input}\n\n",
    "{instruction}\n{input}\n\n",
    "Task: {instruction}\n\n{input}\n\n",
)
WITHOUT_INPUT: Final = (
    "{instruction} Output:",
    "{instruction}\nOutput:",
    "{instruction}\n\nOutput:",
    "{instruction}\n",
    "{instruction}\n\n",
    "Task: {instruction}\n\n",
)

_FIELD_NAME: Final = re.compile(r"(\w+):")
_OPENING_NAME: Final = re.compile(r"[^\W\d][\w ]*:(?=\s|$)")
_OUTPUT: Final = "Output:"


@dataclass(frozen=True, slots=True)
class TrainingText:
    """What the model reads and what it learns to write; the loss is meant for the completion only."""

    prompt: str
    completion: str


def training_text(instruction: str, instance: Instance, draw: int, style: Style = "lenient") -> TrainingText:
    """Write one instance down in a drawn template.

    ``draw`` are 64 random bits: the lowest is the coin for `plain_input`, the others choose the template. The
    completion begins with a space where the prompt ends in ``Output:``, as tokenisers that attach spaces to the
    following word need it.
    """
    text = plain_input(instance.input, style) if draw & 1 else instance.input.strip()
    templates = WITH_INPUT if text else WITHOUT_INPUT
    template = templates[(draw >> 1) % len(templates)]
    prompt = template.format(instruction=instruction.strip(), input=text)
    return TrainingText(prompt, (" " if template.endswith(_OUTPUT) else "") + instance.output.strip())


def plain_input(text: str, style: Style = "lenient") -> str:
    """The input without the name of its only field and with blank lines halved; other inputs keep their names.

    ``paper`` takes any one distinct word before a colon for the name and drops the text up to the first colon, so
    ``Meet me at 12:30`` becomes ``30``. ``lenient`` asks for a name that opens the input, begins with no digit and is
    followed by a space or a line break.
    """
    if len(set(_FIELD_NAME.findall(text))) == 1 and (style == "paper" or _OPENING_NAME.match(text.lstrip())):
        text = text.partition(":")[2]
    return text.strip().replace("\n\n", "\n")


Row = dict[str, Any]

STAGE_MODELS = ("instance_model", "classification_model")
"""In a run's meaning, and so in the provenance, only where a stage was given a model of its own."""


def rows_of(form: Format, run: OpenRun, seed: int) -> Callable[[Entry], Iterator[Row]]:
    """The function from an instruction to its rows; ``seed`` keys the templates of ``prompt-completion``."""
    if form == "raw":
        return partial(_raw_rows, run=run)
    if form == "messages":
        return _message_rows
    if form == "prompt-completion":
        return partial(_prompt_rows, run=run, seed=seed)
    return partial(_table_rows, run=run) if form == "parquet" else _flat_rows


def rejected_row(rejected: RejectedInstruction, seeds: tuple[SeedTask, ...]) -> Row:
    """An instruction that a rule rejected."""
    return {
        "instruction": rejected.instruction,
        "rule": rejected.rule,
        "neighbour": _neighbour_of(rejected, seeds),
        "request_id": rejected.request,
    }


def user_turn(instruction: str, text: str) -> str:
    """What the user says to a chat model: the instruction and, after a blank line, the input if there is one."""
    return f"{instruction}\n\n{text}" if text.strip() else instruction


def _raw_rows(entry: Entry, run: OpenRun) -> Iterator[Row]:
    settled = entry.settled
    yield {
        "id": entry.id,
        "instruction": entry.instruction,
        "is_classification": entry.is_classification,
        "instances": [{"input": s.instance.input, "output": s.instance.output} for s in entry.instances],
        "nearest_seed": _named(settled.nearest_seed, run.seeds) if settled else None,
        "nearest_checked": [_named(n, run.seeds) for n in settled.nearest_checked] if settled else [],
        "provenance": {
            "request_id": settled.request if settled else None,
            "model": run.meaning["model"] if settled else None,
            "demonstration_ids": [pool_id(i, run.seeds) for i in settled.demonstrations] if settled else [],
            "seed": run.meaning["seed"] if settled else None,
            **({name: run.meaning[name] for name in STAGE_MODELS if name in run.meaning} if settled else {}),
        },
    }


def _flat_rows(entry: Entry) -> Iterator[Row]:
    for scored in entry.instances:
        instance = scored.instance
        yield {"instruction": entry.instruction, "input": instance.input, "output": instance.output}


def _message_rows(entry: Entry) -> Iterator[Row]:
    for scored in entry.instances:
        content = user_turn(entry.instruction, scored.instance.input)
        answer = {"role": "assistant", "content": scored.instance.output}
        yield {"messages": [{"role": "user", "content": content}, answer]}


def _prompt_rows(entry: Entry, run: OpenRun, seed: int) -> Iterator[Row]:
    style: Style = "paper" if run.meaning["preset"] == "paper" else "lenient"
    for scored in entry.instances:
        bits = draw(seed, "template", f"{entry.id} {scored.index}")
        text = training_text(entry.instruction, scored.instance, bits, style)
        yield {"prompt": text.prompt, "completion": text.completion}


def _table_rows(entry: Entry, run: OpenRun) -> Iterator[Row]:
    settled = entry.settled
    nearest = _named(settled.nearest_seed, run.seeds) if settled else None
    for scored in entry.instances:
        instance: Instance = scored.instance
        yield {
            "id": entry.id,
            "instance": scored.index,
            "instruction": entry.instruction,
            "input": instance.input,
            "output": instance.output,
            "is_classification": entry.is_classification,
            "nearest_seed": nearest["id"] if nearest else None,
            "nearest_seed_rouge_l": nearest["rouge_l"] if nearest else None,
            "judge_score": scored.score,
            "model": run.meaning["model"] if settled else None,
            "instance_model": run.meaning.get("instance_model", run.meaning["model"]) if settled else None,
            "request_id": settled.request if settled else None,
        }


def _neighbour_of(rejected: RejectedInstruction, seeds: tuple[SeedTask, ...]) -> Row | None:
    if rejected.rule == CONTAMINATED and rejected.neighbour is not None:
        return {"id": f"forbidden_{rejected.neighbour[0]}", "rouge_l": rejected.neighbour[1]}
    return _named(rejected.neighbour, seeds)


def _named(neighbour: Neighbour | None, seeds: tuple[SeedTask, ...]) -> Row | None:
    return None if neighbour is None else {"id": pool_id(neighbour[0], seeds), "rouge_l": neighbour[1]}


Feature = str | dict[str, "Feature"] | list["Feature"]
"""A value's type, an object's fields, or a list of one kind."""

_FLAT: Final[dict[str, Feature]] = {"instruction": "string", "input": "string", "output": "string"}
_NEIGHBOUR: Final[Feature] = {"id": "string", "rouge_l": "float64"}
_PROVENANCE: Final[Feature] = {
    "request_id": "int64",
    "model": "string",
    "demonstration_ids": ["string"],
    "seed": "int64",
}
FEATURES: Final[Mapping[Format, dict[str, Feature]]] = {
    "raw": {
        "id": "string",
        "instruction": "string",
        "is_classification": "bool",
        "instances": [{"input": "string", "output": "string"}],
        "nearest_seed": _NEIGHBOUR,
        "nearest_checked": [_NEIGHBOUR],
        "provenance": _PROVENANCE,
    },
    "instances": _FLAT,
    "alpaca": _FLAT,
    "messages": {"messages": [{"role": "string", "content": "string"}]},
    "prompt-completion": {"prompt": "string", "completion": "string"},
    "parquet": {
        "id": "string",
        "instance": "int64",
        **_FLAT,
        "is_classification": "bool",
        "nearest_seed": "string",
        "nearest_seed_rouge_l": "float64",
        "judge_score": "float64",
        "model": "string",
        "instance_model": "string",
        "request_id": "int64",
    },
}
"""Every format that a card can describe."""


def feature_lines(fields: Mapping[str, Feature], indent: str = "  ") -> Iterator[str]:
    """The fields as YAML."""
    for name, feature in fields.items():
        yield f"{indent}- name: {name}"
        yield from _lines(feature, indent + "  ")


def _lines(feature: Feature, indent: str) -> Iterator[str]:
    match feature:
        case str():
            yield f"{indent}dtype: {feature}"
        case dict():
            yield f"{indent}struct:"
            yield from feature_lines(feature, indent)
        case [str(kind)]:
            yield f"{indent}list: {kind}"
        case [dict() as fields]:
            yield f"{indent}list:"
            yield from feature_lines(fields, indent)
        case _:
            raise ValueError(f"no form for {feature!r}")
