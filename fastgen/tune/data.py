"""The rows that a model is tuned on: a run's, through its export, or a file's. They are kept in the tuning's folder.

A row is ``{"prompt": ..., "completion": ...}``, both text or both lists of chat messages, all rows of one kind.
Evaluation rows share no instruction with training rows. The same source, options and seed give the same bytes. Every
defect is an `InputError` of one line.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from fastgen.errors import InputError
from fastgen.evaluate.tasks import Row, read_rows
from fastgen.export.export import export
from fastgen.export.options import DEFAULT_SPLIT, ChoiceOptions, draw, parse_splits
from fastgen.export.rows import training_text, user_turn
from fastgen.store.reader import open_run
from fastgen.tune.options import DataOptions, TextFormat
from fastgen.types import Instance

TRAIN: Final = "train"
EVAL: Final = "eval"
_SHAPES: Final = "give rows with prompt and completion, with messages, or with instruction, input and output"


@dataclass(frozen=True, slots=True)
class TuningData:
    """The prepared data. ``sha256`` is of all rows, ``source`` describes where they are from, without a path."""

    train_rows: int
    eval_rows: int
    sha256: str
    source: str
    is_chat: bool


def source_fingerprint(options: DataOptions) -> str:
    """Return a run's id, which stays the same while the run grows, or a hash of the file's bytes.

    :raises InputError: when there is no run, or the file cannot be read.
    """
    if options.run_dir is not None:
        return f"run {open_run(options.run_dir).folder.header().run_id}"
    assert options.data is not None, "one of the two is given"  # noqa: S101 - the options check it
    try:
        with options.data.open("rb") as file:
            return f"file {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"--data {options.data}: cannot be read ({error.strerror}); name a file") from None


def prepare(options: DataOptions, seed: int, folder: Path) -> TuningData:
    """Write ``train.jsonl`` and ``eval.jsonl`` into the folder, which exists.

    :raises InputError: when there is nothing to tune on, a row is broken, or the run is damaged.
    :raises DiskError: when the folder cannot be written.
    """
    if options.run_dir is not None:
        run = open_run(options.run_dir)
        written_by = Path(str(run.configuration["model"])).name
        cut = options.format != "messages" and run.configuration.get("turns", 1) > 1
        part = "; of its conversations the first turns, with --format messages all" if cut else ""
        source = f"the fastgen run {run.folder.header().run_id[:12]} (written by {written_by}{part})"
        return _write(_run_rows(options, options.run_dir, seed, folder), source, folder, options)
    assert options.data is not None, "one of the two is given"  # noqa: S101 - the options check it
    return _write(_file_rows(options, options.data, seed), f"the file {options.data.name}", folder, options)


def split_path(folder: Path, split: str) -> Path:
    """Return the file of a split."""
    return folder / f"{split}.jsonl"


def _shares(eval_share: float) -> str | None:
    """Return the value of ``fastgen export --split``."""
    return f"{TRAIN}={1 - eval_share!r},{EVAL}={eval_share!r}" if eval_share else None


def _run_rows(options: DataOptions, run_dir: Path, seed: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows that ``fastgen export`` writes, which users can look at."""
    exported, shares = folder / "exported", _shares(options.eval_share)
    exported.mkdir(exist_ok=True)
    choice = ChoiceOptions(
        include_seeds=options.include_seeds,
        max_instructions=options.max_instructions,
        split=shares,
        seed=seed,
        overwrite=True,
    )
    export(run_dir, options.format, exported if shares else exported / f"{TRAIN}.jsonl", choice)
    for path in sorted(exported.iterdir()):
        for number, row in read_rows(path):
            for part in _turns(row):
                yield path.stem, _shaped(part, options.format, seed, number, str(path))
    shutil.rmtree(exported)


def _turns(row: Row) -> Iterator[Row]:
    """Yield a row for each answer of a conversation, with what was said before it. Any other row is yielded as it is.

    The model learns the last turn of a row, so that it learns every answer once.
    """
    messages = row.get("messages")
    if messages is None:
        yield row
        return
    for end, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            yield {"messages": messages[:end]}


def _file_rows(options: DataOptions, path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    shares = _shares(options.eval_share)
    splits = DEFAULT_SPLIT if shares is None else parse_splits(shares)
    for number, row in read_rows(path):
        shaped = _shaped(row, options.format, seed, number, f"{path}:{number}")
        subject = row.get("instruction") or shaped["prompt"]
        yield splits.of(subject if isinstance(subject, str) else orjson.dumps(subject).decode(), seed), shaped


def _shaped(row: Row, form: TextFormat, seed: int, number: int, where: str) -> Row:
    """Return a row of any of the three kinds as prompt and completion.

    :raises InputError: when it is of another kind, or has nothing to learn.
    """
    if "messages" in row:
        return _chat(row["messages"], where)
    if "prompt" in row:
        prompt, completion = row["prompt"], row.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion.strip():
            raise InputError(f"{where}: 'prompt' and 'completion' have to be texts, the latter not empty; fix it")
        return {"prompt": prompt, "completion": completion}
    return _from_instance(row, form, draw(seed, "template", str(number)), where)


def _from_instance(row: Row, form: TextFormat, bits: int, where: str) -> Row:
    texts = [row.get("instruction"), row.get("input") or "", row.get("output")]
    if not all(isinstance(text, str) for text in texts) or not row["instruction"].strip() or not row["output"].strip():
        raise InputError(f"{where}: nothing to tune on; {_SHAPES}")
    instruction, source, output = map(str, texts)
    if form == "messages":
        said = [{"role": "user", "content": user_turn(instruction, source)}]
        return {"prompt": said, "completion": [{"role": "assistant", "content": output}]}
    text = training_text(instruction, Instance(source, output), bits)
    return {"prompt": text.prompt, "completion": text.completion}


def _chat(messages: object, where: str) -> Row:
    """Return the assistant's last turn as completion, the turns before it as prompt."""
    turns = messages if isinstance(messages, list) else []
    well = all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if len(turns) < 2 or not well or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():  # noqa: PLR2004 - question and answer
        raise InputError(f"{where}: 'messages' has to end with an answer of the assistant's; fix it")
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return {"prompt": plain[:-1], "completion": plain[-1:]}


def _write(rows: Iterator[tuple[str, Row]], source: str, folder: Path, options: DataOptions) -> TuningData:
    counts, digest, kinds = {TRAIN: 0, EVAL: 0}, hashlib.sha256(), set[bool]()
    with ExitStack() as stack:
        sinks = {name: stack.enter_context(split_path(folder, name).open("wb")) for name in counts}
        for split, row in rows:
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
            kinds.add(isinstance(row["prompt"], list))
            if len(kinds) > 1:
                raise InputError(f"--data {options.data}: has texts and chats; tune on one kind of rows")
            digest.update(split.encode() + line)
            sinks[split].write(line)
            counts[split] += 1
    if not counts[TRAIN]:
        flag = f"--run-dir {options.run_dir}" if options.run_dir is not None else f"--data {options.data}"
        why = "has no rows" if not counts[EVAL] else "has too few rows for --eval-share"
        raise InputError(f"{flag}: {why}, so there is nothing to tune on")
    return TuningData(counts[TRAIN], counts[EVAL], digest.hexdigest(), source, kinds == {True})
