"""Writers of rows into an open file, one for each kind of file, and the shuffle on disk that one of them uses.

A writer is made of the file, a scratch folder that is not there yet, and the seed of a shuffle. ``write`` takes a row.
``finish`` completes the file, once, and returns its number of rows. Both may raise `OSError`. ``close`` is called in
any case, before the file is closed. Memory is bounded by a batch, or by the shuffle's.

The shuffle also removes duplicates. Every row gets 128 bits that only its content and the seed decide, and the order of
these numbers is the order of the rows. So equal rows meet, and one is left. The order is uniform over seeds and does
not depend on the order of adding. Rows that a grown run adds leave the others in the order they had. Rows are
distributed to 64 files by 6 of the bits, and a file that is too large for memory is distributed again (a distribution
sort). It needs as much disk as the rows have bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from fastgen.errors import needs
from fastgen.export.options import digest
from fastgen.store.output import json_line

Row = dict[str, Any]

GROUP_ROWS: Final = 65_536
GROUP_CHARACTERS: Final = 32 << 20
BATCH_ROWS: Final = 1024
LOADED_BYTES: Final = 64 << 20
"""Most bytes of rows that a shuffle holds in memory at once."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What spreadsheets take for the beginning of a formula, also in full-width forms (OWASP, "CSV Injection")."""

_KEY_BYTES: Final = 16
_DIGIT_BITS: Final = 6
_FILES: Final = 1 << _DIGIT_BITS
_MAX_DEPTH: Final = 8 * _KEY_BYTES // _DIGIT_BITS - 1
_SIZE_BYTES: Final = 4
_BUFFER_BYTES: Final = 64 << 10


class JsonLines:
    """One object a line, in the order of writing."""

    def __init__(self, sink: IO[bytes], _scratch: Path, _seed: int) -> None:
        self._sink = sink
        self._rows = 0

    def write(self, row: Row) -> None:
        """Append the line."""
        self._sink.write(json_line(row))
        self._rows += 1

    def finish(self) -> int:
        """Complete the file."""
        return self._rows

    def close(self) -> None:
        """Release everything, finished or not."""


class JsonArray(JsonLines):
    """One JSON array with an object a line, in the order of writing."""

    def write(self, row: Row) -> None:
        """Append the object."""
        self._sink.write((b",\n" if self._rows else b"[\n") + json_line(row)[:-1])
        self._rows += 1

    def finish(self) -> int:
        """Close the array."""
        self._sink.write(b"\n]\n" if self._rows else b"[]\n")
        return self._rows


class ShuffledJsonLines(JsonLines):
    """One object a line, each once, in an order that the seed decides."""

    def __init__(self, sink: IO[bytes], scratch: Path, seed: int) -> None:
        super().__init__(sink, scratch, seed)
        scratch.mkdir()
        self._shuffle = Shuffle(scratch, seed)

    def write(self, row: Row) -> None:
        """Add the row to the shuffle."""
        self._shuffle.add(json_line(row))

    def finish(self) -> int:
        """Write all rows."""
        for line in self._shuffle:
            self._sink.write(line)
            self._rows += 1
        return self._rows

    def close(self) -> None:
        """Close the shuffle's files."""
        self._shuffle.close()


class Csv(JsonLines):
    """A header and a record a row, as RFC 4180 has them: CRLF between records, quotes where a cell needs them.

    Cells are exactly the texts. ``formulas`` counts those that a spreadsheet would take for a formula. With
    ``is_guarded`` they get an apostrophe in front, and the file a byte order mark, by which Excel knows UTF-8.

    :param columns: the names, in order. A value that is missing or ``None`` is an empty cell.
    """

    def __init__(self, sink: IO[bytes], scratch: Path, seed: int, *, columns: Sequence[str], is_guarded: bool) -> None:
        super().__init__(sink, scratch, seed)
        self.formulas = 0
        self._is_guarded = is_guarded
        self._text = io.StringIO(newline="")
        self._csv = csv.DictWriter(self._text, list(columns), lineterminator="\r\n", extrasaction="ignore")
        self._csv.writeheader()
        if is_guarded:
            sink.write(codecs.BOM_UTF8)

    def write(self, row: Row) -> None:
        """Append the record."""
        self._csv.writerow({name: self._cell(value) for name, value in row.items()})
        self._flush()
        self._rows += 1

    def finish(self) -> int:
        """Complete the file, of which the header is there even without rows."""
        self._flush()
        return self._rows

    def _cell(self, value: object) -> object:
        if not (isinstance(value, str) and value.startswith(_FORMULA_STARTS)):
            return value
        self.formulas += 1
        return f"'{value}" if self._is_guarded else value

    def _flush(self) -> None:
        self._sink.write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


class Parquet:
    """Rows of the given columns, through pyarrow (the extra ``parquet``), compressed with zstd.

    The schema depends on nothing else, so files of several runs make one data set. A row group holds `GROUP_ROWS` rows
    or about `GROUP_CHARACTERS` of text.

    :param columns: names and their types, as pyarrow names them; a type that ends in ``?`` may be null. ``strings`` is
        a list of texts, and ``messages`` a list of objects with ``role`` and ``content``.
    :raises InputError: pyarrow is not installed.
    """

    def __init__(
        self,
        sink: IO[bytes],
        columns: Mapping[str, str],
        *,
        group_rows: int = GROUP_ROWS,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        with needs("pyarrow", "parquet", "--format parquet:"):
            import pyarrow as pa
            from pyarrow.parquet import ParquetWriter
        self._pa = pa
        message = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
        lists = {"strings": pa.list_(pa.string()), "messages": pa.list_(message)}
        self._schema = pa.schema(
            pa.field(name, lists.get(kind) or pa.type_for_alias(kind.removesuffix("?")), nullable=kind.endswith("?"))
            for name, kind in columns.items()
        )
        self._writer = ParquetWriter(sink, self._schema, compression="zstd")
        self._group_rows = group_rows
        self._batch_rows = batch_rows
        self._rows: list[Row] = []
        self._batches: list[Any] = []  # Arrow's own rows, several times smaller than Python objects
        self._characters = self._waiting = self._count = 0

    def write(self, row: Row) -> None:
        """Hold the row until its group is full."""
        self._rows.append(row)
        self._characters += len(row["instruction"]) + len(row["input"]) + len(row["output"])
        if len(self._rows) == self._batch_rows or self._characters >= GROUP_CHARACTERS:
            self._close_batch()

    def finish(self) -> int:
        """Write the last group and the footer."""
        self._close_batch()
        self._write_group()
        self._writer.close()
        return self._count

    def close(self) -> None:
        """Release the file, to which pyarrow would otherwise write once more when it is gone."""
        with contextlib.suppress(OSError, ValueError, self._pa.ArrowException):
            self._writer.close()

    def _close_batch(self) -> None:
        if self._rows:
            self._batches.append(self._pa.RecordBatch.from_pylist(self._rows, self._schema))
            self._waiting += len(self._rows)
            self._rows = []
        if self._waiting >= self._group_rows or self._characters >= GROUP_CHARACTERS:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            table = self._pa.Table.from_batches(self._batches, self._schema)
            self._writer.write_table(table, row_group_size=self._waiting)
        self._count += self._waiting
        self._batches, self._waiting, self._characters = [], 0, 0


RowWriter = JsonLines | Parquet


class Shuffle:
    """`add` rows, then iterate once. ``folder`` is empty and this object's own.

    Rows lie with their keys in a file for each value of the key's digit ``depth`` (of 6 bits, the highest is 0).

    :raises OSError: from every method, when the folder cannot be written.
    """

    def __init__(self, folder: Path, seed: int, *, loaded_bytes: int = LOADED_BYTES, depth: int = 0) -> None:
        self._seed = seed
        self._loaded_bytes = loaded_bytes
        self._depth = depth
        self._shift = 8 * _KEY_BYTES - _DIGIT_BITS * (depth + 1)
        self._paths = [folder / f"{depth}-{number:02}" for number in range(_FILES)]
        self._files: dict[int, IO[bytes]] = {}

    def add(self, row: bytes) -> None:
        """One more row."""
        self._add(digest(self._seed, "shuffle", row), row)

    def _add(self, key: bytes, row: bytes) -> None:
        number = int.from_bytes(key) >> self._shift & _FILES - 1
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = self._paths[number].open("wb", buffering=_BUFFER_BYTES)
        file.write(key + len(row).to_bytes(_SIZE_BYTES) + row)

    def __iter__(self) -> Iterator[bytes]:
        for file in self._files.values():
            file.close()
        for path in (self._paths[number] for number in sorted(self._files)):
            if path.stat().st_size <= self._loaded_bytes or self._depth == _MAX_DEPTH:
                rows = dict(_read(path))
                path.unlink()
                yield from (rows[key] for key in sorted(rows))
            else:
                yield from self._dealt_again(path)

    def _dealt_again(self, path: Path) -> Shuffle:
        folder = path.with_name(f"{path.name}.d")
        folder.mkdir()
        finer = Shuffle(folder, self._seed, loaded_bytes=self._loaded_bytes, depth=self._depth + 1)
        known = b""
        for key, row in _read(path):
            if key != known:  # the same row many times would fill the file again
                finer._add(key, row)
            known = key
        path.unlink()
        return finer

    def close(self) -> None:
        """Close what is open. The caller removes the folder."""
        with contextlib.suppress(OSError):  # a full disk refuses what is still in the buffers
            for file in self._files.values():
                file.close()


def _read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        while key := file.read(_KEY_BYTES):
            yield key, file.read(int.from_bytes(file.read(_SIZE_BYTES)))
