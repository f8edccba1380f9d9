"""A file of facts and arrays that is either whole or not used: how a run's state stands beside its log.

The first line is JSON with a checksum of its own (`fastgen.store.log.seal`): the facts, and for each part its
name, dtype, shape, place and CRC-32. The parts follow as raw bytes, each at a multiple of 64.

Guarantees: a file that `write_snapshot` began and did not finish never has the snapshot's name; a file that was cut,
lengthened or changed in any bit is `SnapshotUnusable`, at the latest when the part in question is read. Knows nothing
of what the parts mean.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import orjson

from fastgen.store.files import replacing, temporary_for
from fastgen.store.log import seal, unseal

SNAPSHOT_FORMAT = 1
ROOM_LEFT_BYTES = 256 << 20  # of the disk, for the log: a snapshot must not be what fills it
_ALIGNMENT = 64
_PIECE_BYTES = 8 << 20
_MOST_HEADER_BYTES = 64 << 20


class SnapshotUnusable(Exception):
    """The snapshot is missing, damaged, or of something else; ``str`` says which."""


class Abandoned(Exception):
    """Writing was given up because it was asked to be."""


class Part(NamedTuple):
    """One array: flat ``data`` of as many bytes as ``dtype`` (numpy's notation, with byte order) and ``shape`` say."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class StoredPart(NamedTuple):
    """Where a part lies in the file, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    crc: int


def align(offset: int) -> int:
    """The next place where a part may begin."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def write_snapshot(path: Path, facts: Mapping[str, Any], parts: Sequence[Part], *, go_on: Callable[[], bool]) -> int:
    """Replace the file atomically and durably; returns its size in bytes.

    ``go_on`` is asked every few megabytes. What is raised leaves the old file as it was.

    :raises Abandoned: ``go_on`` said no.
    :raises OSError: the disk refused, or would be left with less than `ROOM_LEFT_BYTES`.
    """
    header = _header(facts, parts)
    size = _begin_of_parts(header) + sum(align(part.data.nbytes) for part in parts)
    if shutil.disk_usage(path.parent).free < size + ROOM_LEFT_BYTES:
        raise OSError(28, f"a snapshot of {size / 1e6:,.0f} MB would leave too little room for the log")
    with replacing(path) as sink:
        for piece in _pieces(header, parts):
            if not go_on():
                raise Abandoned
            sink.write(piece)
    return size


def forget_unfinished(path: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    with contextlib.suppress(OSError):
        temporary_for(path).unlink(missing_ok=True)


def _header(facts: Mapping[str, Any], parts: Sequence[Part]) -> bytes:
    offset, listed = 0, {}
    for part in parts:
        listed[part.name] = (part.dtype, part.shape, offset, part.data.nbytes, zlib.crc32(part.data))
        offset += align(part.data.nbytes)
    return seal({"format": SNAPSHOT_FORMAT, "facts": facts, "parts": listed, "size": offset}, 0)[0]


def _begin_of_parts(header: bytes) -> int:
    return align(len(header))


def _pieces(header: bytes, parts: Sequence[Part]) -> Iterator[memoryview]:
    yield memoryview(header + bytes(_begin_of_parts(header) - len(header)))
    for part in parts:
        data = part.data.cast("B") if part.data.nbytes else memoryview(b"")
        for begin in range(0, len(data), _PIECE_BYTES):
            yield data[begin : begin + _PIECE_BYTES]
        yield memoryview(bytes(align(len(data)) - len(data)))


def _stored_part(values: Any, begin: int, size: int) -> StoredPart:  # noqa: ANN401 - any JSON value
    """A part that lies within the ``size`` bytes of all parts. :raises ValueError, TypeError: it is none."""
    dtype, shape, *numbers = values
    if not isinstance(dtype, str) or any(type(one) is not int or one < 0 for one in (*shape, *numbers, size)):
        raise TypeError("a part")
    offset, part_size, crc = numbers
    if offset + part_size > size:
        raise ValueError("a part lies outside")
    return StoredPart(dtype, tuple(shape), begin + offset, part_size, crc)


class SnapshotReader:
    """An open snapshot whose header is whole: ``facts``, ``parts`` by name. A context manager that closes.

    :raises SnapshotUnusable: there is no such file, or it is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise SnapshotUnusable("there is none") from None
        except OSError as error:
            raise SnapshotUnusable(f"it cannot be read: {error.strerror}") from None
        try:
            self.facts, self.parts = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_header(self) -> tuple[dict[str, Any], dict[str, StoredPart]]:
        line = self._first_line()
        if unseal(line[:-1], 0) is None:
            raise SnapshotUnusable("its first line is damaged")
        try:
            header = orjson.loads(line)
            if header["format"] != SNAPSHOT_FORMAT:
                raise SnapshotUnusable("it has the format of another version of fastgen")
            begin, size = _begin_of_parts(line), header["size"]
            parts = {name: _stored_part(values, begin, size) for name, values in header["parts"].items()}
            whole = begin + size
            facts: dict[str, Any] = {**header["facts"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SnapshotUnusable("its first line has another form") from None
        if os.fstat(self._file.fileno()).st_size != whole:
            raise SnapshotUnusable("it is cut short or has been added to")
        return facts, parts

    def _first_line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            piece = self._read(min(1 << 16, _MOST_HEADER_BYTES - len(line)))
            end = piece.find(b"\n") + 1
            line += piece[:end] if end else piece
            if not piece or len(line) >= _MOST_HEADER_BYTES:
                raise SnapshotUnusable("its first line is cut short")
        return bytes(line)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size) or b""
        except OSError as error:
            raise SnapshotUnusable(f"it cannot be read: {error.strerror}") from None

    def stored(self, name: str) -> StoredPart:
        """:raises SnapshotUnusable: there is no such part."""
        try:
            return self.parts[name]
        except KeyError:
            raise SnapshotUnusable(f"it lacks {name}") from None

    def read(self, name: str) -> bytearray:
        """The bytes of a part. :raises SnapshotUnusable: it is missing or damaged."""
        content = bytearray(self.stored(name).size)
        self.read_into(name, memoryview(content))
        return content

    def read_into(self, name: str, target: memoryview) -> None:
        """Fill ``target`` (flat, bytes, exactly the part's size).

        :raises SnapshotUnusable: the part is missing, damaged or of another size; ``target`` then holds anything.
        """
        part = self.stored(name)
        if target.nbytes != part.size or math.prod(part.shape) * int(part.dtype[2:]) != part.size:
            raise SnapshotUnusable(f"{name} has another size")
        crc = 0
        try:
            self._file.seek(part.offset)
            for begin in range(0, part.size, _PIECE_BYTES):
                piece = target[begin : begin + _PIECE_BYTES]
                self._fill(piece, name)
                crc = zlib.crc32(piece, crc)  # while the piece is in the cache
        except OSError as error:
            raise SnapshotUnusable(f"it cannot be read: {error.strerror}") from None
        if crc != part.crc:
            raise SnapshotUnusable(f"{name} is damaged")

    def _fill(self, piece: memoryview, name: str) -> None:
        filled = 0
        while filled < len(piece):
            count = self._file.readinto(piece[filled:])  # type: ignore[attr-defined]  # an unbuffered file has it
            if not count:
                raise SnapshotUnusable(f"{name} is cut short")
            filled += count
