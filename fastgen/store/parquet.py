"""Parquet data sets as streams of row batches, through pyarrow (the extra ``parquet``).

A separate module, since importing it needs pyarrow. Use `fastgen.store.tables.open_table`.

Guarantees: those of `fastgen.store.tables`. Kept rows keep every column, its type and the file's metadata, and come out
as Parquet. A line number is the row's place in the file, from 1. Written row groups hold 65,536 rows or about 64 MiB,
compressed with zstd.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.errors import InputError, needs
from fastgen.store.files import disk_errors
from fastgen.store.tables import BATCH_ROWS, MISSING, Rejected, Rows, check_text, sync_file, value_at

if TYPE_CHECKING:
    from typing import IO


with needs("pyarrow", "parquet", "Parquet"):
    import pyarrow as pa
    import pyarrow.parquet as pq

_GROUP_ROWS = 65_536
_GROUP_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20
_NEIGHBOUR = pa.struct([("file", pa.string()), ("line", pa.int64()), ("text", pa.large_string())])


class ParquetTable:
    """One Parquet file. The rows are record batches."""

    def __init__(self, path: Path, field: str, *, text_only: bool = False) -> None:
        self.path = path
        self._field = field
        self._read_rows = 0
        with self._open() as file:
            self._rows = file.metadata.num_rows
            self._schema = file.schema_arrow
        names = self._schema.names
        self._column = field if field in names else field.partition(".")[0]
        self._columns = [self._column] if text_only else None
        self._check_field()

    def share_read(self) -> float:
        """How much of the rows has been read."""
        return self._read_rows / self._rows if self._rows else 1.0

    def batches(self) -> Iterator[Rows[pa.RecordBatch]]:
        """Up to 256 rows each."""
        self._read_rows = 0
        with self._open() as file:
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=self._columns)
            while True:
                with self._read_errors():
                    batch = next(batches, None)
                if batch is None:
                    return
                lines = range(self._read_rows + 1, self._read_rows + 1 + batch.num_rows)
                self._read_rows += batch.num_rows
                if batch.num_rows:
                    yield Rows(lines, self._texts(batch, lines.start), batch)

    def sink(self, kept: Path, rejected: Path) -> ParquetSink:
        """Parquet files: of the same schema, and of the rows with the reason."""
        return ParquetSink(self._schema, kept, rejected)

    def _open(self) -> pq.ParquetFile:
        with self._read_errors():
            return pq.ParquetFile(self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False)

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path}: cannot be read as Parquet ({' '.join(str(error).split())}); repair or convert it"
            ) from None

    def _check_field(self) -> None:
        places = self._schema.get_all_field_indices(self._column)
        if len(places) != 1:
            found = "missing" if not places else "there more than once"
            names = ", ".join(self._schema.names[:10])
            raise InputError(
                f"{self.path}: {self._field}: {found}; name the field that holds the text (there: {names})"
            )
        kind = self._schema.field(places[0]).type
        for name in self._field.removeprefix(self._column).split(".")[1:]:
            kind = _part_of(kind, name)
            if kind is None:
                raise InputError(f"{self.path}: {self._field}: missing; name the field that holds the text")
        if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise InputError(
                f"{self.path}: {self._field}: a column of {kind}, not of text; name the field that holds the text"
            )

    def _texts(self, batch: pa.RecordBatch, first_line: int) -> list[str]:
        try:
            values = batch.column(self._column).to_pylist()
        except UnicodeDecodeError:
            raise InputError(
                f"{self.path}:{first_line}: {self._field}: not UTF-8 in this row or the {batch.num_rows - 1} after it; "
                f"fix the column"
            ) from None
        return [self._text(value, f"{self.path}:{n}: {self._field}") for n, value in enumerate(values, first_line)]

    def _text(self, value: object, where: str) -> str:
        text = value_at({self._column: value}, self._field)
        if text is MISSING:
            raise InputError(f"{where}: missing in this row; remove the row, or name another field")
        return check_text(text, where)


def _part_of(kind: pa.DataType, name: str) -> pa.DataType | None:
    """The type below one of a path's names, or ``None`` if there is none."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index(name)
        return kind.field(place).type if place >= 0 else None
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind.value_type if is_list and name.removeprefix("-").isdigit() else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


class ParquetSink:
    """Kept rows under their own schema. Rejected ones as columns ``line``, ``row``, ``rouge_l`` and ``neighbour``."""

    def __init__(self, schema: pa.Schema, kept: Path, rejected: Path) -> None:
        row = pa.field("row", pa.struct(list(schema)), nullable=False)
        why = [pa.field("line", pa.int64()), row, pa.field("rouge_l", pa.float64()), pa.field("neighbour", _NEIGHBOUR)]
        self._files = (_GroupedFile(kept, schema), _GroupedFile(rejected, pa.schema(why)))

    def write(self, rows: Rows[pa.RecordBatch], rejected: Mapping[int, Rejected]) -> None:
        """Append the rows."""
        kept, refused = self._files
        kept.append(rows.data.take(pa.array([i for i in range(rows.data.num_rows) if i not in rejected], pa.int64())))
        if rejected:
            refused.append(_with_reasons(rows, rejected, refused.schema))

    def finish(self) -> None:
        """Write the last row groups and the footers."""
        for file in self._files:
            file.finish()

    def close(self) -> None:
        """Close both files."""
        for file in self._files:
            file.close()


def _with_reasons(rows: Rows[pa.RecordBatch], rejected: Mapping[int, Rejected], schema: pa.Schema) -> pa.RecordBatch:
    places = list(rejected)
    taken = rows.data.take(pa.array(places, pa.int64()))
    neighbours = [{"file": _encodable(r.file), "line": r.line, "text": _encodable(r.text)} for r in rejected.values()]
    columns = [
        pa.array([rows.lines[place] for place in places], pa.int64()),
        pa.StructArray.from_arrays(taken.columns, fields=list(rows.data.schema)),
        pa.array([reason.rouge_l for reason in rejected.values()], pa.float64()),
        pa.array(neighbours, _NEIGHBOUR),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _encodable(text: str) -> str:
    """Arrow's text is UTF-8, which has no lone surrogate. One from a JSON pool or a file name becomes ``?``."""
    return text.encode(errors="replace").decode()


class _GroupedFile:
    """A Parquet file that is written a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._path = path
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        with disk_errors(path):
            self._file: IO[bytes] = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows. They are written when a group is full. :raises DiskError: they cannot be written."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._rows:
            with disk_errors(self._path):
                self._writer.write_table(pa.Table.from_batches(self._waiting, self.schema), row_group_size=self._rows)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def finish(self) -> None:
        """Write the rest and the footer, durably. :raises DiskError: it cannot be written."""
        self._write_group()
        with disk_errors(self._path):
            self._writer.close()
            sync_file(self._file)

    def close(self) -> None:
        """Close the file, whole or not. Never raises."""
        with contextlib.suppress(OSError, pa.ArrowException):  # else the writer would write to the closed file later
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
