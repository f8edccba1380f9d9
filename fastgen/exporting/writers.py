"""Writers of rows into an open file, one for each kind of file. Memory is bounded by a batch, or by the shuffle's.

Know nothing of where the file is and what replaces what.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Final, Protocol

from fastgen.exporting.options import Format
from fastgen.exporting.rows import Row
from fastgen.exporting.shuffle import Shuffle
from fastgen.outputs import json_line

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
        from fastgen.exporting.parquet_rows import ParquetRows

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
