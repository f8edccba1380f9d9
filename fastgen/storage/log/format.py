"""The form of the log: a line and its checksum, a segment's header, a place between two lines. No files here."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from fastgen.errors import DamagedLogError, RunFolderError

LOG_FORMAT = 1
CRC_LENGTH = len(b'{"crc":"01234567",')


class Position(NamedTuple):
    """A place between two lines: segment, byte offset in the uncompressed segment, checksum of the line before."""

    segment: int
    offset: int
    crc: int


@dataclass(frozen=True, slots=True)
class TornTail:
    """An unfinished last line that a crash left behind: where it starts and how many bytes it has."""

    path: Path
    offset: int
    size: int


def seal(body: dict[str, Any], previous_crc: int) -> tuple[bytes, int]:
    """One log line with its checksum, and the checksum to chain the next one with."""
    rest = orjson.dumps(body)[1:]
    crc = zlib.crc32(rest, previous_crc)
    return b'{"crc":"%08x",%b\n' % (crc, rest), crc


def unseal(line: bytes, previous_crc: int) -> int | None:
    """The line's checksum if it holds (``line`` without its newline), else ``None``."""
    crc = zlib.crc32(line[CRC_LENGTH:], previous_crc)
    return crc if line[:CRC_LENGTH] == b'{"crc":"%08x",' % crc else None


def segment_header(run_id: str, segment: int) -> dict[str, Any]:
    """The first line of a segment."""
    return {"format": LOG_FORMAT, "run": run_id, "segment": segment}


def check_header(header: dict[str, Any], path: Path, *, run_id: str, segment: int) -> None:
    """:raises RunFolderError: a newer format. :raises DamagedLogError: of another run or place."""
    if type(header.get("format")) is not int:
        raise DamagedLogError(f"{path}:1: is not the header of a log segment; restore the segment from a copy")
    if header["format"] > LOG_FORMAT:
        raise RunFolderError(f"{path}: written by a newer fastgen (log format {header['format']}); upgrade fastgen")
    if header.get("run") != run_id or header.get("segment") != segment:
        raise DamagedLogError(f"{path}:1: the segment belongs to another run or place; restore the right one")
