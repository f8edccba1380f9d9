"""What one row of each format says. Pure; knows nothing of files.

``raw`` has one row an instruction, the others have one an instance. ``alpaca`` has the rows of ``instances``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fastgen.exporting.draws import draw
from fastgen.exporting.entries import Entry
from fastgen.exporting.options import Format
from fastgen.exporting.training_text import training_text
from fastgen.method.admission import CONTAMINATED
from fastgen.method.rules import Style
from fastgen.records import Instance, Neighbour, SeedTask
from fastgen.runs import OpenRun
from fastgen.settled import RejectedInstruction, pool_id

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
