"""The formats of an export: what one row of each says, its columns, and how it is written.

``INSTRUCTION_FORMATS`` has one entry a format. ``raw`` has one row an instruction, the others have one an instance, and
``messages`` one a conversation. `format_spec` adds what runs of other methods than Self-Instruct have: their rows say
by which method, from what, and with which labels they were made.

The training text of ``prompt-completion`` is that of Self-Instruct (Wang et al., ACL 2023): seven templates with input
and six without, drawn uniformly, so that the tuned model does not depend on one format. With probability 1/2, an
input of a single named field loses that name and its blank lines. All randomness comes from one number. No end-of-text
token is added, since trainers add their own model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Final

from fastgen.export.entries import Entry, ScoredInstance
from fastgen.export.method import MethodFacts, method_facts, role_models
from fastgen.export.options import Format, draw
from fastgen.export.writers import Csv, JsonArray, JsonLines, Parquet, Row, RowWriter, ShuffledJsonLines
from fastgen.methods.admission import CONTAMINATED
from fastgen.methods.self_instruct.rules import Style
from fastgen.store.output import json_line
from fastgen.store.reader import FinishedInstruction, OpenRun, RejectedInstruction, pool_id
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
    """What the model reads and what it learns to write. Only the completion counts for the loss."""

    prompt: str
    completion: str


def training_text(instruction: str, instance: Instance, draw: int, style: Style = "lenient") -> TrainingText:
    """Write one instance down in a drawn template.

    ``draw`` are 64 random bits: the lowest decides about `plain_input`, the others choose the template. The
    completion begins with a space where the prompt ends in ``Output:``, as tokenisers that attach spaces to the
    following word need it.
    """
    text = plain_input(instance.input, style) if draw & 1 else instance.input.strip()
    templates = WITH_INPUT if text else WITHOUT_INPUT
    template = templates[(draw >> 1) % len(templates)]
    prompt = template.format(instruction=instruction.strip(), input=text)
    return TrainingText(prompt, (" " if template.endswith(_OUTPUT) else "") + instance.output.strip())


def plain_input(text: str, style: Style = "lenient") -> str:
    """The input without the name of its only field and with blank lines halved. Other inputs keep their names.

    ``paper`` takes any one distinct word before a colon for the name and drops the text up to the first colon, so
    ``Meet me at 12:30`` becomes ``30``. For ``lenient`` the name must open the input, must not begin with a digit, and
    must be followed by a space or a line break.
    """
    if len(set(_FIELD_NAME.findall(text))) == 1 and (style == "paper" or _OPENING_NAME.match(text.lstrip())):
        text = text.partition(":")[2]
    return text.strip().replace("\n\n", "\n")


_SPEAKERS: Final = {"user": "human", "assistant": "gpt"}
"""How ShareGPT's conversations name the roles."""
STAGE_MODELS: Final = ("instance_model", "classification_model")
"""In a run's configuration, and so in the provenance, only where a stage has another model than the run."""


def user_turn(instruction: str, text: str) -> str:
    """What the user says to a chat model: the instruction and, after a blank line, the input if there is one."""
    return f"{instruction}\n\n{text}" if text.strip() else instruction


def rejected_row(rejected: RejectedInstruction, seeds: tuple[SeedTask, ...]) -> Row:
    """An instruction that a rule rejected."""
    neighbour = _named(rejected.neighbour, seeds)
    if rejected.rule == CONTAMINATED and rejected.neighbour is not None:
        neighbour = {"id": f"forbidden_{rejected.neighbour[0]}", "rouge_l": rejected.neighbour[1]}
    return {
        "instruction": rejected.instruction,
        "rule": rejected.rule,
        "neighbour": neighbour,
        "request_id": rejected.request,
    }


def _raw_rows(entry: Entry, run: OpenRun, _seed: int) -> Iterator[Row]:
    finished = entry.finished
    yield {
        "id": entry.id,
        "instruction": entry.instruction,
        "is_classification": entry.is_classification,
        "instances": [{"input": s.instance.input, "output": s.instance.output} for s in entry.instances],
        "nearest_seed": _named(finished.nearest_seed, run.seeds) if finished else None,
        "nearest_checked": [_named(n, run.seeds) for n in finished.nearest_checked] if finished else [],
        "provenance": {
            "request_id": finished.request if finished else None,
            "model": run.configuration["model"] if finished else None,
            "demonstration_ids": [pool_id(i, run.seeds) for i in finished.demonstrations] if finished else [],
            "seed": run.configuration["seed"] if finished else None,
            **({n: run.configuration[n] for n in STAGE_MODELS if n in run.configuration} if finished else {}),
        },
    }


def _flat_rows(entry: Entry, _run: OpenRun, _seed: int) -> Iterator[Row]:
    for scored in entry.instances:
        instance = scored.instance
        yield {"instruction": entry.instruction, "input": instance.input, "output": instance.output}


def has_more_turns(entry: Entry, scored: ScoredInstance) -> bool:
    """Whether an instance is only the first turn of a conversation."""
    return entry.finished is not None and bool(entry.finished.turns) and scored.index == 0


def _spoken(entry: Entry, scored: ScoredInstance) -> Iterator[tuple[str, str, str]]:
    """What the user and the assistant say, turn by turn, with the reasoning before each answer."""
    if entry.finished is not None and has_more_turns(entry, scored):
        yield from entry.finished.turns
    else:
        yield user_turn(entry.instruction, scored.instance.input), scored.instance.output, _reasoning(entry) or ""


def _messages(entry: Entry, scored: ScoredInstance) -> list[Row]:
    return [
        {"role": role, "content": text}
        for user, answer, _ in _spoken(entry, scored)
        for role, text in (("user", user), ("assistant", answer))
    ]


def _message_rows(entry: Entry, _run: OpenRun, _seed: int) -> Iterator[Row]:
    for scored in entry.instances:
        yield {"messages": _messages(entry, scored)}


def _sharegpt_rows(entry: Entry, _run: OpenRun, _seed: int) -> Iterator[Row]:
    for scored in entry.instances:
        told = _messages(entry, scored)
        yield {"conversations": [{"from": _SPEAKERS[one["role"]], "value": one["content"]} for one in told]}


def _prompt_rows(entry: Entry, run: OpenRun, seed: int) -> Iterator[Row]:
    style: Style = "paper" if run.configuration["preset"] == "paper" else "lenient"
    for scored in entry.instances:
        bits = draw(seed, "template", f"{entry.id} {scored.index}")
        text = training_text(entry.instruction, scored.instance, bits, style)
        yield {"prompt": text.prompt, "completion": text.completion}


def _parquet_rows(entry: Entry, run: OpenRun, _seed: int) -> Iterator[Row]:
    finished = entry.finished
    id_, rouge_l = None, None
    if finished is not None and finished.nearest_seed is not None:
        id_, rouge_l = pool_id(finished.nearest_seed[0], run.seeds), finished.nearest_seed[1]
    for scored in entry.instances:
        yield {
            "id": entry.id,
            "instance": scored.index,
            "instruction": entry.instruction,
            "input": scored.instance.input,
            "output": scored.instance.output,
            "is_classification": entry.is_classification,
            "nearest_seed": id_,
            "nearest_seed_rouge_l": rouge_l,
            "judge_score": scored.score,
            "model": run.configuration["model"] if finished else None,
            "instance_model": run.configuration.get("instance_model", run.configuration["model"]) if finished else None,
            "request_id": finished.request if finished else None,
        }


def _named(neighbour: Neighbour | None, seeds: tuple[SeedTask, ...]) -> Row | None:
    return None if neighbour is None else {"id": pool_id(neighbour[0], seeds), "rouge_l": neighbour[1]}


MakeRows = Callable[[Entry, OpenRun, int], Iterator[Row]]
Feature = str | dict[str, "Feature"] | list["Feature"]
"""A value's type, an object's fields, or a list of one kind."""


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """How a format writes instructions.

    ``columns`` are what a data set card names as ``dataset_info``, so that a loader need not guess types from the first
    rows, which would go wrong where those have no neighbour or no judge's score.
    """

    rows: MakeRows
    """From an instruction of the run to its rows; the number is the export's seed."""
    columns: Mapping[str, Feature]
    card_text: str
    """What a card says of the rows."""
    writer: Callable[[IO[bytes], Path, int], RowWriter] = JsonLines
    ending: str = ".jsonl"
    may_be_empty: bool = False
    """A list that may be read while it grows; the others are for training."""


_FLAT: Final[dict[str, Feature]] = {"instruction": "string", "input": "string", "output": "string"}
_NEIGHBOUR: Final[Feature] = {"id": "string", "rouge_l": "float64"}
REJECTED_COLUMNS: Final[Mapping[str, Feature]] = {
    "instruction": "string",
    "rule": "string",
    "neighbour": _NEIGHBOUR,
    "request_id": "int64",
}
PARQUET_COLUMNS: Final = {  # pyarrow's names of the types, with ? where a value may be missing
    "id": "string",
    "instance": "int64",
    "instruction": "string",
    "input": "string",
    "output": "string",
    "is_classification": "bool",
    "nearest_seed": "string?",
    "nearest_seed_rouge_l": "float64?",
    "judge_score": "float64?",
    "model": "string?",
    "instance_model": "string?",
    "request_id": "int64?",
}


def _parquet(columns: Mapping[str, str]) -> Callable[[IO[bytes], Path, int], RowWriter]:
    return lambda sink, _scratch, _seed: Parquet(sink, columns)


def _csv(columns: Iterable[str], *, is_guarded: bool) -> Callable[[IO[bytes], Path, int], RowWriter]:
    return partial(Csv, columns=tuple(columns), is_guarded=is_guarded)


INSTRUCTION_FORMATS: Final[Mapping[Format, FormatSpec]] = {
    "raw": FormatSpec(
        _raw_rows,
        {
            "id": "string",
            "instruction": "string",
            "is_classification": "bool",
            "instances": [{"input": "string", "output": "string"}],
            "nearest_seed": _NEIGHBOUR,
            "nearest_checked": [_NEIGHBOUR],
            "provenance": {
                "request_id": "int64",
                "model": "string",
                "demonstration_ids": ["string"],
                "seed": "int64",
            },
        },
        "One instruction with its instances and where they come from a line.",
        may_be_empty=True,
    ),
    "instances": FormatSpec(
        _flat_rows,
        _FLAT,
        "One instance a line: `instruction`, `input` (may be empty), `output`.",
        may_be_empty=True,
    ),
    "alpaca": FormatSpec(
        _flat_rows,
        _FLAT,
        "One JSON array of objects with `instruction`, `input` (may be empty) and `output`.",
        JsonArray,
        ".json",
    ),
    "messages": FormatSpec(
        _message_rows,
        {"messages": [{"role": "string", "content": "string"}]},
        "One conversation a line: `messages` with a user's turn (the instruction and, after a blank line, the "
        "input) and the assistant's (the output).",
    ),
    "sharegpt": FormatSpec(
        _sharegpt_rows,
        {"conversations": [{"from": "string", "value": "string"}]},
        "One JSON array of conversations: `conversations` with turns of `human` (the instruction and, after a blank "
        "line, the input) and `gpt` (the output).",
        JsonArray,
        ".json",
    ),
    "prompt-completion": FormatSpec(
        _prompt_rows,
        {"prompt": "string", "completion": "string"},
        "One `prompt` and `completion` a line, each instance in one of the 13 templates of "
        "Self-Instruct, without duplicates and shuffled; the loss is meant for the completion only.",
        ShuffledJsonLines,
    ),
    "parquet": FormatSpec(
        _parquet_rows,
        {name: kind.removesuffix("?") for name, kind in PARQUET_COLUMNS.items()},
        "One instance a row, with the `id` of its instruction, its number among the instruction's instances "
        "and where it comes from.",
        _parquet(PARQUET_COLUMNS),
        ".parquet",
    ),
    "csv": FormatSpec(
        _flat_rows,
        _FLAT,
        "One instance a record: `instruction`, `input` (may be empty), `output`. An empty cell is an empty text.",
        _csv(_FLAT, is_guarded=False),
        ".csv",
    ),
}
"""Every format of instructions; ``rejected`` is the one other format."""
FORMATS_WITH_TURNS: Final = frozenset({"raw", "messages", "sharegpt", "parquet"})
"""The formats that write all turns of a conversation. The others write the first."""


def format_spec(
    form: Format, run: OpenRun, *, with_reasoning: bool = False, for_spreadsheets: bool = False
) -> FormatSpec:
    """How one of `INSTRUCTION_FORMATS` is written for a run, also with the reasoning, or as CSV for spreadsheets.

    Rows of Self-Instruct have no other fields than its formats. With the reasoning, every row has a field more, null
    where the answer had none: ``reasoning``, or in ``messages`` ``thinking`` beside the assistant's ``content``. That
    is the key that TRL documents for harmony (https://huggingface.co/docs/trl/dataset_formats, "Harmony") and that the
    chat template of gpt-oss reads.
    """
    spec = INSTRUCTION_FORMATS[form]
    if not run.is_self_instruct and form in ("raw", "parquet"):
        spec = _with_provenance(form, spec, method_facts(run))
    if not run.is_self_instruct and form == "messages":
        spec = replace(spec, card_text="One conversation a line: `messages` with all turns of user and assistant.")
    if for_spreadsheets:
        spec = replace(
            spec,
            writer=_csv(spec.columns, is_guarded=True),
            card_text=f"{spec.card_text} Cells that a spreadsheet would take for a formula begin with an apostrophe.",
        )
    if not with_reasoning:
        return spec
    if form == "messages":
        columns: dict[str, Feature] = {"messages": [{"role": "string", "content": "string", "thinking": "string"}]}
        text = f"{spec.card_text} `thinking` is the assistant's reasoning before the answer."
        return replace(spec, rows=_thinking_rows, columns=columns, card_text=text)
    parquet = PARQUET_COLUMNS if run.is_self_instruct else PARQUET_COLUMNS | MORE_PARQUET_COLUMNS
    turns: dict[str, Feature] = {"turns": [{**_TURN, "reasoning": "string"}]} if "turns" in spec.columns else {}
    spec = replace(
        spec,
        rows=partial(_reasoning_rows, spec.rows),
        columns={**spec.columns, **turns, "reasoning": "string"},
        card_text=f"{spec.card_text} `reasoning` is what the model wrote before it answered.",
    )
    if form == "csv":
        return replace(spec, writer=_csv(spec.columns, is_guarded=for_spreadsheets))
    return replace(spec, writer=_parquet({**parquet, "reasoning": "string?"})) if form == "parquet" else spec


def _reasoning(entry: Entry) -> str | None:
    return (entry.finished.reasoning or None) if entry.finished else None


def _reasoning_rows(rows: MakeRows, entry: Entry, run: OpenRun, seed: int) -> Iterator[Row]:
    for row in rows(entry, run, seed):
        more: Row = {"reasoning": _reasoning(entry)}
        if turns := row.get("turns"):
            told = zip(turns, entry.finished.turns if entry.finished else (), strict=True)
            more["turns"] = [{**turn, "reasoning": one.reasoning or None} for turn, one in told]
        yield {**row, **more}


def _thinking_rows(entry: Entry, _run: OpenRun, _seed: int) -> Iterator[Row]:
    for scored in entry.instances:
        messages: list[Row] = []
        for user, answer, thought in _spoken(entry, scored):
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "thinking": thought or None, "content": answer})
        yield {"messages": messages}


# -- methods other than Self-Instruct ----------------------------------------------------------------------------------

_TURN: Final[dict[str, Feature]] = {"user": "string", "assistant": "string"}
MORE_PARQUET_COLUMNS: Final = {
    "messages": "messages",
    "method": "string?",
    "parents": "strings",
    "document": "int64?",
    "labels": "string?",
    "drawn": "string?",
}
"""The columns that the runs of other methods have too, whatever the method. ``labels`` and ``drawn`` are JSON."""
_MESSAGES: Final[Feature] = [{"role": "string", "content": "string"}]
_KINDS: Final[Mapping[str, Feature]] = {"messages": _MESSAGES, "strings": ["string"]}


def _with_provenance(form: Format, spec: FormatSpec, method: MethodFacts) -> FormatSpec:
    if form == "parquet":
        more = {name: _KINDS.get(kind, kind.removesuffix("?")) for name, kind in MORE_PARQUET_COLUMNS.items()}
        return replace(
            spec,
            rows=partial(_parquet_rows_with_provenance, method),
            columns={**spec.columns, **more},
            card_text=f"{spec.card_text} `messages` is the whole conversation; `labels` and `drawn` are JSON objects.",
            writer=_parquet(PARQUET_COLUMNS | MORE_PARQUET_COLUMNS),
        )
    origin: dict[str, Feature] = {"method": "string", "parents": ["string"], "document": "int64"}
    provenance = spec.columns["provenance"]
    assert isinstance(provenance, dict)  # noqa: S101 - of `raw`
    return replace(
        spec,
        rows=partial(_raw_rows_with_provenance, method),
        columns={**spec.columns, "turns": [_TURN], "provenance": {**provenance, **origin}},
        card_text=f"{spec.card_text} `turns` is the conversation where it has several turns.",
    )


def _origin(finished: FinishedInstruction | None, run: OpenRun, method: MethodFacts) -> Row:
    """By which method an instruction was made, and from what."""
    sources = () if finished is None else finished.demonstrations
    return {
        "method": None if finished is None else method.name,
        "parents": [pool_id(i, run.seeds) for i in sources] if method.has_parents else [],
        "document": sources[0] % len(run.documents) if run.documents and sources else None,
    }


def _raw_rows_with_provenance(method: MethodFacts, entry: Entry, run: OpenRun, seed: int) -> Iterator[Row]:
    finished = entry.finished
    for row in _raw_rows(entry, run, seed):
        provenance = row.pop("provenance")
        if finished is not None:
            provenance |= {f"{role}_model": model for role, model in role_models(run.configuration).items()}
        if run.documents:
            provenance["demonstration_ids"] = []  # the prompt showed the document
        provenance |= _origin(finished, run, method)
        if finished is not None:
            provenance |= {n: {**v} for n, v in (("labels", finished.labels), ("drawn", finished.drawn)) if v}
        turns = finished.turns if finished is not None and entry.instances else ()
        yield {
            **row,
            "turns": [{"user": turn.user, "assistant": turn.assistant} for turn in turns],
            "provenance": provenance,
        }


def _parquet_rows_with_provenance(method: MethodFacts, entry: Entry, run: OpenRun, seed: int) -> Iterator[Row]:
    finished = entry.finished
    more = _origin(finished, run, method) | {
        "labels": _json(finished.labels) if finished is not None else None,
        "drawn": _json(finished.drawn) if finished is not None else None,
    }
    for row, scored in zip(_parquet_rows(entry, run, seed), entry.instances, strict=True):
        if finished is not None:
            answered_by = run.configuration.get("answer_model", run.configuration["model"])
            row["model"] = run.configuration.get("instruction_model", run.configuration["model"])
            row["instance_model"] = None if run.documents else answered_by
        yield {**row, "messages": _messages(entry, scored), **more}


def _json(values: Mapping[str, object]) -> str | None:
    return json_line({**values})[:-1].decode() if values else None
