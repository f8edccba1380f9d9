"""The text that a model was, or will be, tuned on, for comparing it with a benchmark: a run's pool or an exported file.

Guarantees: memory is bounded by a batch of rows (an Alpaca file is one JSON value and is held whole); every defect is
an `InputError` of one line with file and line. Knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen.errors import InputError
from fastgen.evaluation.rows import Row, read_rows
from fastgen.runs import open_run
from fastgen.settled import settled_instructions
from fastgen.storage.log.format import TornTail
from fastgen.tables.table import is_parquet

_TEXT_FIELDS = ("instruction", "input", "output", "prompt", "completion")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """An instruction (of a prompt or a chat: all that the user says) and every text that the model sees with it."""

    instruction: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows to read once, and the instructions of the seed tasks behind them, where these are known."""

    name: str
    rows: Iterator[TrainingRow]
    seeds: tuple[str, ...] = ()


def open_training_data(path: Path) -> TrainingData:
    """The rows of a run folder, or of a file that `fastgen export` writes in any of its formats.

    :raises InputError: neither of the two; while reading: a row without any text, damaged data.
    """
    if path.is_dir():
        if not (path / "run.json").exists():
            raise InputError(f"{path}: there is no run here; name a run folder or a file that 'fastgen export' writes")
        run = open_run(path)
        return TrainingData(str(path), _run_rows(path), tuple(seed.instruction for seed in run.seeds))
    return TrainingData(str(path), _file_rows(path))


def _run_rows(path: Path) -> Iterator[TrainingRow]:
    run = open_run(path)
    commits = (item[0] for item in run.folder.commits() if not isinstance(item, TornTail))
    for settled in settled_instructions(commits, run.rules):
        if settled.instances:
            texts = [text for instance in settled.instances for text in (instance.input, instance.output)]
            yield TrainingRow(settled.instruction, (settled.instruction, *filter(None, texts)))


def _file_rows(path: Path) -> Iterator[TrainingRow]:
    rows = _parquet_rows(path) if is_parquet(path) else read_rows(path)
    for number, row in rows:
        yield _row(row, f"{path}:{number}")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    from fastgen.tables.table import open_table

    for rows in open_table(path, "instruction").batches():
        yield from zip(rows.lines, rows.data.to_pylist(), strict=True)


def _row(row: Row, where: str) -> TrainingRow:
    if isinstance(row.get("messages"), list):
        return _chat(row["messages"], where)
    texts = [row[name] for name in _TEXT_FIELDS if isinstance(row.get(name), str)]
    instances = row.get("instances")
    for instance in (one for one in instances if isinstance(one, dict)) if isinstance(instances, list) else ():
        texts += [instance[name] for name in ("input", "output") if isinstance(instance.get(name), str)]
    if not texts or not texts[0].strip():
        raise InputError(f"{where}: no 'instruction', 'prompt' or 'messages'; name a file that 'fastgen export' writes")
    return TrainingRow(texts[0], tuple(filter(None, texts)))


def _chat(messages: list[Any], where: str) -> TrainingRow:
    told = [(m.get("role"), m.get("content")) for m in messages if isinstance(m, dict)]
    texts = [(role, text) for role, text in told if isinstance(text, str)]
    instruction = next((text for role, text in texts if role == "user"), None)
    if instruction is None:
        raise InputError(f"{where}: 'messages' has no text of the user; name a file that 'fastgen export' writes")
    return TrainingRow(instruction, tuple(text for _, text in texts))
