"""Reads a log: every line checked against its checksum and the line before, damage told by file and line."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from fastgen.errors import DamagedLogError
from fastgen.storage.log.format import CRC_LENGTH, Position, TornTail, check_header
from fastgen.storage.log.segments import (
    BLOCK_BYTES,
    blocks,
    content_size,
    missing_segment,
    open_segment,
    reading,
    segment_files,
)


def read_log(
    directory: Path, *, run_id: str, start: Position | None = None, at_least: int = 0
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    """Every line from ``start`` (default: the beginning) with the position after it; at the end the torn tail, if any.

    Reads while another process appends: what that process is in the middle of writing looks like a torn tail. Fewer
    segments than ``at_least`` are damage: nothing in the others shows that the last ones are gone.

    :raises DamagedLogError: a checksum, the chain, a header or a whole segment is wrong or missing.
    :raises RunFolderError: a file cannot be read, or is of a newer format.
    """
    expected = start.segment if start else 0
    crc = start.crc if start else 0
    segments = [(n, p) for n, p in segment_files(directory) if n >= expected]
    for index, (number, path) in enumerate(segments):
        if number != expected:
            break
        offset = start.offset if start and number == start.segment else 0
        for item in _read_segment(path, run_id, Position(number, offset, crc), last=index == len(segments) - 1):
            if not isinstance(item, TornTail):
                crc = item[1].crc
            yield item
        expected += 1
    if expected < max(at_least, segments[-1][0] + 1 if segments else 0):
        raise missing_segment(directory, expected)


def _read_segment(
    path: Path, run_id: str, start: Position, *, last: bool
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    number, offset, crc = start
    is_header = offset == 0
    with open_segment(path) as content, reading(path):
        if sum(map(len, blocks(content, offset))) < offset:  # read, since a compressed segment cannot seek
            raise DamagedLogError(f"{path}: ends before byte {offset}, up to which it was read before")
        rest = b""
        while block := content.read(BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:  # `unseal` written out: this loop is what a long replay spends its time in
                crc = zlib.crc32(line[CRC_LENGTH:], crc)
                if line[:CRC_LENGTH] != b'{"crc":"%08x",' % crc:
                    raise _damaged(path, offset, "does not match its checksum")
                body = orjson.loads(line)
                offset += len(line) + 1
                if is_header:
                    check_header(body, path, run_id=run_id, segment=number)
                    is_header = False
                else:
                    yield body, Position(number, offset, crc)
    if rest:
        if not last or path.suffix == ".zst":  # what was compressed was whole
            raise _damaged(path, offset, "is cut short")
        yield TornTail(path, offset, len(rest))
    elif path.suffix == ".zst" and offset != content_size(path):
        raise DamagedLogError(f"{path}: the compressed segment is cut short; restore it from a copy")


def _damaged(path: Path, offset: int, what: str) -> DamagedLogError:
    with open_segment(path) as content:
        number = 1 + sum(block.count(b"\n") for block in blocks(content, offset))
    return DamagedLogError(
        f"{path}:{number}: the line {what}; nothing after it can be trusted: restore the segment from a copy, or keep "
        f"the run up to here by deleting this line, all below it, all later segments and ledger.json"
    )
