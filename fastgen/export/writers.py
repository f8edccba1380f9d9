"""Rows as Parquet, through pyarrow (``pip install 'fastgen[parquet]'``).

The schema is the same for every run and every choice of rows, so files of several runs make one data set. A row group
holds 65,536 rows or about 32 MiB of text, compressed with zstd. Knows nothing of runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Protocol

from fastgen.errors import InputError
from fastgen.export.options import Format, digest
from fastgen.export.rows import Row
from fastgen.store.output import json_line

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError:
    raise InputError(
        "--format parquet: needs pyarrow, which is not installed: pip install 'fastgen[parquet]'"
    ) from None

SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("instance", pa.int64(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("output", pa.string(), nullable=False),
        pa.field("is_classification", pa.bool_(), nullable=False),
        pa.field("nearest_seed", pa.string()),
        pa.field("nearest_seed_rouge_l", pa.float64()),
        pa.field("judge_score", pa.float64()),
        pa.field("model", pa.string()),
        pa.field("instance_model", pa.string()),
        pa.field("request_id", pa.int64()),
    ]
)
_GROUP_ROWS: Final = 65_536
_GROUP_CHARACTERS: Final = 32 << 20
_BATCH_ROWS: Final = 1024  # rows as Python objects; more of them wait as Arrow's own, which are several times smaller


class ParquetRows:
    """Writes rows that have the fields of `SCHEMA`."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._writer = pq.ParquetWriter(sink, SCHEMA, compression="zstd")
        self._rows: list[Row] = []
        self._batches: list[Any] = []  # record batches, which pyarrow does not type
        self._characters = self._waiting = self._count = 0

    def write(self, row: Row) -> None:
        """Hold the row until its group is full."""
        self._rows.append(row)
        self._characters += len(row["instruction"]) + len(row["input"]) + len(row["output"])
        if len(self._rows) == _BATCH_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._close_batch()

    def finish(self) -> int:
        """Write the last group and the footer."""
        self._close_batch()
        self._write_group()
        self._writer.close()
        return self._count

    def close(self) -> None:
        """Let go of the file, which pyarrow would otherwise write to once more when it is gone."""
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()

    def _close_batch(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, SCHEMA))
            self._waiting += len(self._rows)
            self._rows = []
        if self._waiting >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._batches, SCHEMA), row_group_size=self._waiting)
        self._count += self._waiting
        self._batches, self._waiting, self._characters = [], 0, 0


LOADED_BYTES: Final = 64 << 20
"""Most bytes of rows that are held in memory at once."""

_KEY_BYTES: Final = 16
_DIGIT_BITS: Final = 6
_FILES: Final = 1 << _DIGIT_BITS
_MOST_DEPTH: Final = 8 * _KEY_BYTES // _DIGIT_BITS - 1
_SIZE_BYTES: Final = 4
_BUFFER_BYTES: Final = 64 << 10


class Shuffle:
    """Rows on their way: `add` each, then iterate once. ``folder`` is empty and this object's own.

    :raises OSError: from every method, when the folder cannot be written.
    """

    def __init__(self, folder: Path, seed: int, *, loaded_bytes: int = LOADED_BYTES) -> None:
        self._seed = seed
        self._loaded_bytes = loaded_bytes
        self._piles = _Piles(folder, depth=0)

    def add(self, row: bytes) -> None:
        """One more row."""
        self._piles.add(digest(self._seed, "shuffle", row), row)

    def __iter__(self) -> Iterator[bytes]:
        return _in_order(self._piles, self._loaded_bytes)

    def close(self) -> None:
        """Close what is open; the folder is the caller's to remove."""
        with suppress(OSError):  # a full disk refuses what is still in the buffers
            self._piles.close()


class _Piles:
    """Rows with their keys, in a file for each value of the key's digit ``depth`` (of 6 bits, the highest is 0)."""

    def __init__(self, folder: Path, depth: int) -> None:
        self.depth = depth
        self._shift = 8 * _KEY_BYTES - _DIGIT_BITS * (depth + 1)
        self._paths = [folder / f"{depth}-{number:02}" for number in range(_FILES)]
        self._files: dict[int, IO[bytes]] = {}

    def add(self, key: bytes, row: bytes) -> None:
        """Append a row to its pile; the key has `_KEY_BYTES`."""
        number = int.from_bytes(key) >> self._shift & _FILES - 1
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = self._paths[number].open("wb", buffering=_BUFFER_BYTES)
        file.write(key + len(row).to_bytes(_SIZE_BYTES) + row)

    def finish(self) -> list[Path]:
        """The files, in order."""
        for file in self._files.values():
            file.close()
        return [self._paths[number] for number in sorted(self._files)]

    def close(self) -> None:
        """Close what is open."""
        for file in self._files.values():
            file.close()


def _in_order(piles: _Piles, loaded_bytes: int) -> Iterator[bytes]:
    for path in piles.finish():
        if path.stat().st_size <= loaded_bytes or piles.depth == _MOST_DEPTH:
            rows = dict(_read(path))
            path.unlink()
            yield from (rows[key] for key in sorted(rows))
        else:
            yield from _in_order(_dealt_again(path, piles.depth + 1), loaded_bytes)


def _dealt_again(path: Path, depth: int) -> _Piles:
    folder = path.with_name(f"{path.name}.d")
    folder.mkdir()
    finer, known = _Piles(folder, depth), b""
    for key, row in _read(path):
        if key != known:  # a row that fills the pile by being there again and again
            finer.add(key, row)
        known = key
    path.unlink()
    return finer


def _read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        while key := file.read(_KEY_BYTES):
            yield key, file.read(int.from_bytes(file.read(_SIZE_BYTES)))


ENDINGS: Final[dict[Format, str]] = {"alpaca": ".json", "parquet": ".parquet"}
"""File name endings; the other formats are JSON lines, ``.jsonl``."""


class RowWriter(Protocol):
    """Takes rows, then finishes the file once; is closed in any case, before the file, which is the caller's."""

    def write(self, row: Row) -> None:
        """One more row.

        :raises OSError: the file cannot be written.
        """

    def finish(self) -> int:
        """Write what is still held; returns the number of rows in the file.

        :raises OSError: the file cannot be written.
        """

    def close(self) -> None:
        """Let go of everything, finished or not; never fails."""


def open_writer(form: Format, sink: IO[bytes], scratch: Path, seed: int) -> RowWriter:
    """A writer of the format; ``scratch`` is a folder that is not there yet, ``seed`` the shuffle's.

    :raises InputError: the format needs a library that is not installed.
    """
    if form == "alpaca":
        return JsonArray(sink)
    if form == "prompt-completion":
        return ShuffledJsonLines(sink, scratch, seed)
    if form == "parquet":
        return ParquetRows(sink)
    return JsonLines(sink)


class JsonLines:
    """One object a line, in the order of writing."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._rows = 0

    def write(self, row: Row) -> None:
        """Append the line."""
        self._sink.write(json_line(row))
        self._rows += 1

    def finish(self) -> int:
        """The number of lines."""
        return self._rows

    def close(self) -> None:
        """Nothing is held."""


class JsonArray:
    """One JSON array with an object a line, in the order of writing."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._rows = 0

    def write(self, row: Row) -> None:
        """Append the object."""
        self._sink.write((b",\n" if self._rows else b"[\n") + json_line(row)[:-1])
        self._rows += 1

    def finish(self) -> int:
        """Close the array."""
        self._sink.write(b"\n]\n" if self._rows else b"[]\n")
        return self._rows

    def close(self) -> None:
        """Nothing is held."""


class ShuffledJsonLines:
    """One object a line, each once, in an order that the seed decides."""

    def __init__(self, sink: IO[bytes], scratch: Path, seed: int) -> None:
        scratch.mkdir()
        self._sink = sink
        self._shuffle = Shuffle(scratch, seed)

    def write(self, row: Row) -> None:
        """Keep the row for the shuffle."""
        self._shuffle.add(json_line(row))

    def finish(self) -> int:
        """Write all rows."""
        count = 0
        for line in self._shuffle:
            self._sink.write(line)
            count += 1
        return count

    def close(self) -> None:
        """Close the shuffle's files."""
        self._shuffle.close()
