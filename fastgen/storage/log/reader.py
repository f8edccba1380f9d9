"""Reads a log: every line checked against its checksum and the line before, damage told by file and line."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from fastgen.errors import DamagedLogError
from fastgen.storage.log.format import CRC_LENGTH, Position, TornTail, check_header, unseal
from fastgen.storage.log.segments import (
    BLOCK_BYTES,
    blocks,
    content_size,
    missing_segment,
    open_segment,
    reading,
    segment_files,
)

MOST_LINE_BYTES = 256 << 20
"""A line holds one completion, and a server's answer is far smaller: a longer line is not ours."""
_CRC = re.compile(rb'\{"crc":"([0-9a-f]{8})",')


def read_log(
    directory: Path,
    *,
    run_id: str,
    start: Position | None = None,
    at_least: int = 0,
    durable: Position | None = None,
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    """Every line from ``start`` (default: the beginning) with the position after it; at the end the torn tail, if any.

    Reads while another process appends: what that process is in the middle of writing looks like a torn tail. Fewer
    segments than ``at_least`` are damage: nothing in the others shows that the last ones are gone. Up to ``durable``
    the log was once synced, so bytes before it that are no whole line are damage and no torn tail. A log that ends
    before it, as an incomplete copy does, is no error here.

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
        whole = durable.offset if durable and number == durable.segment else 0
        last = index == len(segments) - 1
        for item in _read_segment(path, run_id, Position(number, offset, crc), last=last, whole=whole):
            if not isinstance(item, TornTail):
                crc = item[1].crc
            yield item
        expected += 1
    if expected < max(at_least, segments[-1][0] + 1 if segments else 0):
        raise missing_segment(directory, expected)


def _read_segment(
    path: Path, run_id: str, start: Position, *, last: bool, whole: int
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    number, offset, crc = start
    is_header = offset == 0
    size = 0
    with open_segment(path) as content, reading(path):
        _pass_over(content, path, start)
        for lines, size in _whole_lines(content):  # noqa: B007 - the last size is that of a line without an end
            for line in lines:  # `unseal` written out: this loop is what a long replay spends its time in
                crc = zlib.crc32(line[CRC_LENGTH:], crc)
                if line[:CRC_LENGTH] != b'{"crc":"%08x",' % crc:
                    raise _damaged(path, offset, "does not match its checksum")
                try:
                    body = orjson.loads(line)
                except orjson.JSONDecodeError:
                    raise _damaged(path, offset, "is not JSON") from None
                offset += len(line) + 1
                if is_header:
                    check_header(body, path, run_id=run_id, segment=number)
                    is_header = False
                else:
                    yield body, Position(number, offset, crc)
    if size:
        yield _torn(path, offset, size, last=last, whole=whole)
    elif not last or path.suffix == ".zst":
        _check_that_it_is_whole(path, offset)


def _whole_lines(content: IO[bytes]) -> Iterator[tuple[list[bytes], int]]:
    """The lines that end in each block read, and how many bytes of the next one are there by then.

    Ends early at a line of more than `MOST_LINE_BYTES`.
    """
    begun: list[bytes] = []  # of a line that does not end in the blocks read so far
    size = 0  # bytes of it
    while size <= MOST_LINE_BYTES and (block := content.read(BLOCK_BYTES)):
        lines = block.split(b"\n")
        begun.append(lines[0])
        size += len(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(begun)
            begun = [lines.pop()]
            size = len(begun[0])
            yield lines, size
        else:
            yield [], size


def _torn(path: Path, offset: int, size: int, *, last: bool, whole: int) -> TornTail:
    """The unfinished line that a segment ends with. :raises DamagedLogError: no crash leaves one there."""
    if size > MOST_LINE_BYTES:
        raise _damaged(path, offset, "is longer than any that fastgen writes")
    if not last or path.suffix == ".zst":  # what was compressed was whole
        raise _damaged(path, offset, "is cut short")
    if offset < whole <= offset + size:
        raise _damaged(path, offset, "was whole when the log was last synced and is not any more")
    return TornTail(path, offset, size)


def _check_that_it_is_whole(path: Path, offset: int) -> None:
    """Of a closed segment that ends at a line end. :raises DamagedLogError: it lost its end, or everything."""
    with reading(path):
        if path.suffix == ".zst" and offset != content_size(path):
            raise DamagedLogError(f"{path}: the compressed segment is cut short; restore it from a copy")
    if not offset:
        raise DamagedLogError(f"{path}: the segment is empty; restore it from a copy")


def _pass_over(content: IO[bytes], path: Path, start: Position) -> None:
    """Read up to ``start``, since a compressed segment cannot seek, and check the line that ends there.

    :raises DamagedLogError: the segment ends before, or another line ends there.
    """
    seen, kept = 0, [b""]
    for block in blocks(content, start.offset):
        seen += len(block)
        if block.count(b"\n") > 2:  # noqa: PLR2004 - it ends with the last line and the one before
            kept.clear()
        kept.append(block)
    if seen < start.offset:
        raise DamagedLogError(
            f"{path}: is shorter than when it was last read ({start.offset} bytes then); restore it from a copy"
        )
    if not seen:
        return
    *_, before, line, rest = [b"", b"", *b"".join(kept).split(b"\n")]
    is_header = not before  # its checksum follows from the segment before
    previous = None if is_header else _stated_crc(before)
    holds = is_header or (previous is not None and unseal(line, previous) == start.crc)
    if rest or _stated_crc(line) != start.crc or not holds:
        raise DamagedLogError(
            f"{path}: the line that ends at byte {start.offset} is not the one that was read before; restore it "
            f"from a copy"
        )


def _stated_crc(line: bytes) -> int | None:
    """The checksum that a line gives itself."""
    match = _CRC.match(line)
    return None if match is None else int(match[1], 16)


def _damaged(path: Path, offset: int, what: str) -> DamagedLogError:
    with open_segment(path) as content, reading(path):
        number = 1 + sum(block.count(b"\n") for block in blocks(content, offset))
    return DamagedLogError(
        f"{path}:{number}: the line {what}; nothing after it can be trusted: restore the segment from a copy, or keep "
        f"the run up to here by deleting this line, all below it, all later segments and ledger.json"
    )
