"""Whether a log is, byte for byte, what it was: one checksum a segment. Far quicker than reading the lines."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastgen.errors import DamagedLogError
from fastgen.storage.log.format import Position
from fastgen.storage.log.segments import blocks, missing_segment, open_segment, reading, segment_files

_ALL = 1 << 62


class Digest(NamedTuple):
    """The first ``size`` bytes of a segment (uncompressed) and their CRC-32."""

    size: int
    crc: int


def digest_log(directory: Path, end: Position, known: Sequence[Digest] = ()) -> list[Digest]:
    """One digest per segment, of all bytes up to ``end``; those of closed segments in ``known`` are taken from there.

    Checks nothing but that so many bytes are there.

    :raises DamagedLogError: a segment is missing, or the log ends before ``end``. :raises RunFolderError: unreadable.
    """
    known = known[: end.segment]
    paths = dict(segment_files(directory))
    digests = list(known)
    for number in range(len(known), end.segment + 1):
        if number not in paths:
            raise missing_segment(directory, number)
        digest = _digest(paths[number], end.offset if number == end.segment else _ALL)
        if number == end.segment and digest.size < end.offset:
            raise DamagedLogError(f"{paths[number]}: is shorter than when it was last read ({end.offset} bytes then)")
        digests.append(digest)
    return digests


def _digest(path: Path, size: int) -> Digest:
    crc, seen = 0, 0
    with open_segment(path) as content, reading(path):
        for block in blocks(content, size):
            crc, seen = zlib.crc32(block, crc), seen + len(block)
    return Digest(seen, crc)
