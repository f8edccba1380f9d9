"""Rows as Parquet, through pyarrow (``pip install 'fastgen[parquet]'``).

The schema is the same for every run and every choice of rows, so files of several runs make one data set. A row group
holds 65,536 rows or about 32 MiB of text, compressed with zstd. Knows nothing of runs.
"""

from __future__ import annotations

import contextlib
from typing import IO, Any, Final

from fastgen.errors import InputError
from fastgen.exporting.rows import Row

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
