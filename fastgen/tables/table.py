"""Data sets as streams of row batches: what every format promises, and the choice of one.

The formats are JSON lines or one JSON array, plain or compressed (`fastgen.tables.jsonl`), and Parquet
(`fastgen.tables.parquet`).

Guarantees: memory is bounded by one batch, whatever the file's size; a row is kept as it stands in the file, to the
byte for JSON lines; what a file is, is told by its first bytes and not by its name; batches are cut in the same places
every time the same file is read; every defect is an `InputError` of one line that names file, line and remedy.
Knows nothing of what is done with the rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from fastgen.errors import DiskError, InputError

BATCH_ROWS = 256
BATCH_BYTES = 4 << 20
MAX_TEXT_CHARACTERS = 4_000_000

_PARQUET = b"PAR1"
_MAX_TASK_BYTES = 256 << 20
_KINDS = {dict: "an object", list: "a list", str: "text", bytes: "bytes", bool: "true or false", type(None): "null"}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Rows(Generic[T_co]):
    """A batch of rows: parallel sequences of line numbers (from 1) and texts, and the rows themselves."""

    lines: Sequence[int]
    texts: Sequence[str]
    data: T_co


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a row was rejected: ROUGE-L F1 (0..1) with the text at line ``line`` of ``file``."""

    rouge_l: float
    file: str
    line: int
    text: str


class Sink(Protocol[T_contra]):
    """Two new files, one for kept rows and one for rejected ones."""

    def write(self, rows: Rows[T_contra], rejected: Mapping[int, Rejected]) -> None:
        """Write rows whose place in the batch is in ``rejected`` with the reason to one file, the rest to the other.

        :raises DiskError: a file cannot be written.
        """

    def finish(self) -> None:
        """Write out what is buffered and make both files durable.

        :raises DiskError: a file cannot be written.
        """

    def close(self) -> None:
        """Let go of the files, finished or not."""


class Table(Protocol[T]):
    """A data set that can be read from its beginning as often as wanted."""

    path: Path

    def batches(self) -> Iterator[Rows[T]]:
        """All rows in order.

        :raises InputError: a row cannot be read or has no usable text.
        """

    def share_read(self) -> float:
        """How much of the file the last `batches` has read, 0..1."""

    def sink(self, kept: Path, rejected: Path) -> Sink[T]:
        """Writers of this data set's format; the files are made or emptied.

        :raises DiskError: a file cannot be written.
        """


def open_table(path: Path, field: str, *, text_only: bool = False) -> Table[Any]:
    """The data set in a file; ``field`` is the top-level key (column) whose text the rows are known by.

    With ``text_only`` nothing but that column needs to be read; the rows cannot be written then.

    :raises InputError: not a readable regular file, or a Parquet file that is damaged, has no such column of text, or
        cannot be read because pyarrow is not installed.
    """
    magic = _first_bytes(path)
    if magic == _PARQUET:
        from fastgen.tables.parquet import ParquetTable

        return ParquetTable(path, field, text_only=text_only)
    if path.suffix == ".parquet":
        raise InputError(f"{path}: is not a Parquet file, whatever its name says; name a Parquet or JSON-lines file")
    from fastgen.tables.jsonl import JsonlTable

    return JsonlTable(path, field)


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does.

    :raises InputError: not a readable regular file.
    """
    return _first_bytes(path) == _PARQUET


def read_texts(path: Path, field: str) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    """Line numbers and texts of a data set, batch by batch: a pool to compare with.

    A ``.json`` file that is one task of Super-NaturalInstructions gives the texts of its ``Definition``.

    :raises InputError: as `open_table` and `Table.batches`.
    """
    if definitions := _task_definitions(path):
        yield range(1, len(definitions) + 1), definitions
        return
    for rows in open_table(path, field, text_only=True).batches():
        yield rows.lines, rows.texts


def _task_definitions(path: Path) -> list[str]:
    """The definitions, or none where the file is something else, JSON lines perhaps."""
    if path.suffix != ".json":
        return []
    if _first_bytes(path)[:1] not in {b"{", b"\xef", b" ", b"\n", b"\r", b"\t"}:  # no object
        return []
    try:
        task = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_TASK_BYTES else None
    except (ValueError, RecursionError):
        return []
    found = task.get("Definition") if isinstance(task, dict) else None
    definitions = [found] if isinstance(found, str) else found
    return definitions if isinstance(definitions, list) and all(isinstance(d, str) for d in definitions) else []


def check_text(text: object, where: str) -> str:
    """The value as a text that can be compared; ``where`` begins the message.

    :raises InputError: not a text, or one of more than 4,000,000 characters: no instruction, and comparing two of that
        size would take minutes.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: found {kind_of(text)}; make it text, or name the field that holds the text")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(f"{where}: the text has {len(text):,} characters, over {MAX_TEXT_CHARACTERS:,}; remove it")
    return text


def kind_of(value: object) -> str:
    """A JSON value's kind, in words."""
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


@contextlib.contextmanager
def as_disk_error(path: Path) -> Iterator[None]:
    """Turn a failed write into the error that tells how to go on. :raises DiskError: in place of an `OSError`."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror or error}); everything decided is kept: make room or mend the "
            f"permissions, then run the same command again"
        ) from error


def sync_file(file: IO[bytes]) -> None:
    """Flush, and make durable."""
    file.flush()
    os.fsync(file.fileno())


def _first_bytes(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "not a regular file, and it may have to be read twice"
            raise InputError(f"{path}: is {what}; name a file of JSON lines or Parquet")
        with path.open("rb") as file:
            return file.read(4)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); name a file of JSON lines or Parquet") from None
