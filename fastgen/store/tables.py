"""Data sets as streams of row batches: JSON lines, one JSON array of objects, or Parquet (`fastgen.store.parquet`).

JSON is plain or compressed with gzip or zstd. Several frames (members) in one file are read as one. An array is read as
a stream too, and its rows are numbered by their place.

Guarantees:

- Memory is bounded by one batch, whatever the size of the file.
- Kept JSON lines come out byte for byte. Only a last line without an end gets one. A row of an array comes out as one
  line: the same JSON without line breaks between its parts. What is written is not compressed.
- The format is detected from the first bytes of a file, not by its name. Blank lines and a byte order mark are skipped.
- Batches are cut in the same places every time that the same file is read.
- Every defect is an `InputError` of one line that names file, line and remedy.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

import orjson

from fastgen.errors import InputError
from fastgen.store.files import disk_errors
from fastgen.store.output import escape_line

BATCH_ROWS = 256
BATCH_BYTES = 4 << 20
MAX_TEXT_CHARACTERS = 4_000_000
MAX_LINE_BYTES = 64 << 20

_MAX_TASK_BYTES = 256 << 20
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_ZSTD, _ZSTD_SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"  # pzstd's and seekable files begin with the latter
_LONGEST_ZSTD_WINDOW = 1 << 31  # as written by zstd --ultra --long=31
_BLOCK_BYTES = 1 << 20
_COMPRESSED_BLOCK_BYTES = 1 << 14  # its content is held at once, and repetitive text expands a thousandfold
_BOM = b"\xef\xbb\xbf"
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)  # a quote alone: a text that is not whole
_QUOTE, _COMMA, _OPENING, _CLOSING = ord('"'), ord(","), b"[{", b"]}"
_BREAK = re.compile(rb"[ \t]*[\r\n]+[ \t]*")
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
        """Write rows whose place in the batch is in ``rejected`` to one file, with the reason, the rest to the other.

        :raises DiskError: a file cannot be written.
        """

    def finish(self) -> None:
        """Write out what is buffered and make both files durable.

        :raises DiskError: a file cannot be written.
        """

    def close(self) -> None:
        """Close the files, finished or not."""


class Table(Protocol[T]):
    """A data set that can be read from its beginning any number of times."""

    path: Path

    def batches(self) -> Iterator[Rows[T]]:
        """All rows in order.

        :raises InputError: a row cannot be read or has no usable text.
        """

    def share_read(self) -> float:
        """How much of the file the last call of `batches` has read, 0..1."""

    def sink(self, kept: Path, rejected: Path) -> Sink[T]:
        """A writer of this data set's format. The files are made or emptied.

        :raises DiskError: a file cannot be written.
        """


def open_table(path: Path, field: str, *, text_only: bool = False) -> Table[Any]:
    """The data set in a file.

    :param field: where the text is, as `value_at` takes it. :param text_only: read only that column where the format
        allows it; the rows cannot be written then.
    :raises InputError: not a readable regular file, or a Parquet file that is damaged, has no such column of text, or
        cannot be read because pyarrow is not installed.
    """
    magic = _first_bytes(path)
    if magic == _PARQUET:
        from fastgen.store.parquet import ParquetTable

        return ParquetTable(path, field, text_only=text_only)
    if path.suffix == ".parquet":
        raise InputError(f"{path}: is not a Parquet file, whatever its name says; name a Parquet or JSON-lines file")
    return JsonlTable(path, field)


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does.

    :raises InputError: not a readable regular file.
    """
    return _first_bytes(path) == _PARQUET


def read_texts(path: Path, field: str) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    """Line numbers and texts of a data set, batch by batch.

    A ``.json`` file that is one task of Super-NaturalInstructions gives the texts of its ``Definition``.

    :raises InputError: as `open_table` and `Table.batches`.
    """
    if definitions := _task_definitions(path):
        yield range(1, len(definitions) + 1), definitions
        return
    for rows in open_table(path, field, text_only=True).batches():
        yield rows.lines, rows.texts


def _task_definitions(path: Path) -> list[str]:
    """The definitions of a task. None where the file is something else, such as JSON lines."""
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
    """The value, if it is a text that can be compared. ``where`` begins the message.

    :raises InputError: not a text, or one of more than 4,000,000 characters: comparing two of that size would take
        minutes.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: found {_kind(text)}; make it text, or name the field that holds the text")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(f"{where}: the text has {len(text):,} characters, over {MAX_TEXT_CHARACTERS:,}; remove it")
    return text


MISSING = object()
"""What `value_at` gives where a row has no such field."""
_PLACE = re.compile(r"-?\d{1,9}")
_SHOWN_FIELDS = 10


def value_at(row: Mapping[str, Any], field: str) -> Any:  # noqa: ANN401 - any JSON value
    """What a row has under a top-level key or, if there is none of that name, at the end of a path of keys and places.

    ``messages.0.content`` is the content of the first message, ``messages.-1.content`` that of the last one.
    """
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _PLACE.fullmatch(name) and -len(value) <= int(name) < len(value):
            value = value[int(name)]
        else:
            return MISSING
    return value


def _fields_in(value: object, name: str = "", depth: int = 4) -> Iterator[str]:
    """The names of what is in a row, as `value_at` takes them."""
    parts: list[tuple[object, object]] = []
    if isinstance(value, dict | list) and depth:
        parts = list(value.items() if isinstance(value, dict) else enumerate(value))
    if not parts and name:
        yield name
    for key, part in parts:
        yield from _fields_in(part, f"{name}.{key}" if name else str(key), depth - 1)


def _kind(value: object) -> str:
    """A JSON value's kind, in words."""
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def sync_file(file: IO[bytes]) -> None:
    """Flush a file and make it durable."""
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


class JsonlTable:
    """One file of JSON lines, or of one JSON array. The rows are the bytes of the lines or of the array's objects."""

    def __init__(self, path: Path, field: str) -> None:
        self.path = path
        self._field = field
        self._size = path.stat().st_size
        self._read_bytes = 0
        self._is_array = False

    def share_read(self) -> float:
        """See `Table`. Counts bytes of the file, compressed or not."""
        return self._read_bytes / self._size if self._size else 1.0

    def batches(self) -> Iterator[Rows[list[bytes]]]:
        """Up to 256 rows each. Fewer once they exceed 4 MiB."""
        lines: list[int] = []
        data: list[bytes] = []
        size = 0
        for number, line in enumerate(self._raw_rows(), start=1):
            if not self._is_array and not line.strip():
                continue
            lines.append(number)
            data.append(line)
            size += len(line)
            if len(lines) == BATCH_ROWS or size >= BATCH_BYTES:
                yield self._rows(lines, data)
                lines, data, size = [], [], 0
        if lines:
            yield self._rows(lines, data)

    def sink(self, kept: Path, rejected: Path) -> JsonlSink:
        """Plain JSON lines."""
        return JsonlSink(kept, rejected)

    def _rows(self, lines: list[int], data: list[bytes]) -> Rows[list[bytes]]:
        texts = [self._text(line, number) for number, line in zip(lines, data, strict=True)]
        return Rows(lines, texts, [_BREAK.sub(b" ", row.strip()) for row in data] if self._is_array else data)

    def _where(self, number: int) -> str:
        return f"{self.path}: row {number}" if self._is_array else f"{self.path}:{number}"

    def _text(self, line: bytes, number: int) -> str:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = _parse_slowly(line, self._where(number))
        if not isinstance(row, dict) or (text := value_at(row, self._field)) is MISSING:
            raise _without_field(row, self._field, self._where(number))
        return check_text(text, f"{self._where(number)}: {self._field}")

    def _raw_rows(self) -> Iterator[bytes]:
        """Every line, or every element of the array."""
        blocks, head = self._blocks(), b""
        for block in blocks:
            head += block
            if head.strip():
                break
        self._is_array = head.lstrip().startswith(b"[")
        blocks = chain((head,), blocks)
        return self._elements(blocks) if self._is_array else self._lines(blocks)

    def _elements(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The bytes of every element of the array. Whether an element is an object is checked when it is parsed."""
        text, start, at, depth, number = b"", 0, 0, 0, 1
        for block in blocks:
            text, start, at = text[start:] + block, 0, at - start
            for token in _TOKEN.finditer(text, at):
                first = text[token.start()]
                if first == _QUOTE and token.end() - token.start() == 1:
                    break
                at = token.end()
                if first in _OPENING:
                    depth += 1
                    start = at if depth == 1 else start
                elif first in _CLOSING:
                    depth -= 1
                    if not depth:
                        if number > 1 or text[start : at - 1].strip():
                            yield text[start : at - 1]
                        self._check_end(chain((text[at:],), blocks))
                        return
                elif first == _COMMA and depth == 1:
                    yield text[start : at - 1]
                    start, number = at, number + 1
            if len(text) - start > MAX_LINE_BYTES:
                raise InputError(f"{self._where(number)}: is longer than {MAX_LINE_BYTES >> 20} MiB; remove it")
        raise InputError(f"{self._where(number)}: the file ends within the JSON array; restore it from a copy")

    def _check_end(self, blocks: Iterator[bytes]) -> None:
        if any(block.strip() for block in blocks):
            raise InputError(
                f"{self.path}: something follows the JSON array; write one array, or one JSON object on each line"
            )

    def _lines(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Every line with its end. The last one may have none."""
        begun: list[bytes] = []
        size, number = 0, 1
        for block in blocks:
            *whole, rest = block.split(b"\n")
            for line in whole:
                yield b"".join((*begun, line, b"\n"))
                number += 1
                begun, size = [], 0
            begun.append(rest)
            size += len(rest)
            if size > MAX_LINE_BYTES:
                raise InputError(
                    f"{self.path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; write one JSON object "
                    f"on each line"
                )
        yield b"".join(begun)

    def _blocks(self) -> Iterator[bytes]:
        """The content of the file, decompressed and without a byte order mark."""
        import zstandard

        try:
            with self.path.open("rb") as file:
                for block in _without_bom(_decompressed(file)):
                    self._read_bytes = file.tell()
                    yield block
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise InputError(f"{self.path}: the compressed file is damaged ({error}); restore it from a copy") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error}); fix that") from None


def _decompressed(file: IO[bytes]) -> Iterator[bytes]:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(_GZIP):
        with gzip.open(file) as plain:
            yield from iter(lambda: plain.read(_BLOCK_BYTES), b"")
    elif magic == _ZSTD or magic[1:] == _ZSTD_SKIPPABLE:
        yield from _decompress_zstd(file)
    else:
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")


def _without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(_BOM):
            break
    yield head.removeprefix(_BOM)
    yield from blocks


def _decompress_zstd(file: IO[bytes]) -> Iterator[bytes]:
    """Frame after frame. The library's own stream reader takes a cut-off frame for the end."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_ZSTD_WINDOW)
    frame = None
    for block in iter(lambda: file.read(_COMPRESSED_BLOCK_BYTES), b""):
        rest = block
        while rest:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(rest)
            rest, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def _parse_slowly(line: bytes, where: str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse what orjson refuses: lone surrogates and NaN, as Python's json reads them.

    :raises InputError: it is no JSON.
    """
    if b"\0" in line:
        raise InputError(f"{where}: holds a NUL byte, so this is not a line of text; remove it")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8 JSON lines") from None
    except json.JSONDecodeError as error:
        problem = f"broken JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        raise InputError(f"{where}: {problem}; write one whole JSON object on each line") from None
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        raise InputError(f"{where}: JSON beyond what can be read; simplify or remove this line") from None


def _without_field(row: object, field: str, where: str) -> InputError:
    if not isinstance(row, dict):
        return InputError(f"{where}: found {_kind(row)}; write one JSON object on each line")
    found = islice(_fields_in(row), _SHOWN_FIELDS)
    keys = ", ".join(key if key.isprintable() else ascii(key) for key in found) or "no field"
    return InputError(f"{where}: {field}: missing; add it, or name the field that holds the text (there: {keys})")


class JsonlSink:
    """Kept lines as they are. Rejected: ``{"line", "row", "rouge_l", "neighbour": {"file", "line", "text"}}``."""

    def __init__(self, kept: Path, rejected: Path) -> None:
        self._paths = (kept, rejected)
        self._files: list[IO[bytes]] = []
        for path in self._paths:
            with disk_errors(path):
                self._files.append(path.open("wb", buffering=_BLOCK_BYTES))

    def write(self, rows: Rows[list[bytes]], rejected: Mapping[int, Rejected]) -> None:
        """Append the lines. One without a line end gets it."""
        kept = (line for place, line in enumerate(rows.data) if place not in rejected)
        why = (_why(rows.lines[place], rows.data[place], reason) for place, reason in rejected.items())
        for path, file, lines in zip(self._paths, self._files, (kept, why), strict=True):
            with disk_errors(path):
                file.writelines(line if line.endswith(b"\n") else line + b"\n" for line in lines)

    def finish(self) -> None:
        """Make both files durable."""
        for path, file in zip(self._paths, self._files, strict=True):
            with disk_errors(path):
                sync_file(file)

    def close(self) -> None:
        """Close both files. What they lack after a failed write is written again by the next run."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()


def _why(line: int, row: bytes, reason: Rejected) -> bytes:
    neighbour = {"file": reason.file, "line": reason.line, "text": reason.text}
    tail = escape_line(_dumps({"rouge_l": reason.rouge_l, "neighbour": neighbour}))
    return b'{"line":%d,"row":%b,%b' % (line, escape_line(row.strip()), tail[1:])


def _dumps(value: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate, which has no UTF-8
        return json.dumps(value, separators=(",", ":")).encode("ascii")
