"""The append-only, checksummed, segmented log under a run folder: the only truth of a run.

A segment is ``log/NNNNNN.jsonl`` while it is written and ``log/NNNNNN.jsonl.zst`` once it is closed. Every line is a
JSON object whose first key is ``crc``: eight hex digits of CRC-32 over the rest of the line, chained with the line
before it, so a flipped byte, a lost line or two swapped ones are all found. The first line of a segment is a header
that names the run, the segment and the checksum that the chain starts from.

Guarantees:

- one ``append`` is one ``write``: after a crash, a line is there whole or is the torn end of the last segment;
- the torn end (no newline) is dropped on opening; damage anywhere else raises `DamagedLogError` with file and line;
- a write that fails (disk full) is taken back before `DiskError` is raised.

Knows nothing of what the lines mean.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson
import zstandard

from fastgen.errors import DamagedLogError, DiskError, RunFolderError

LOG_FORMAT = 1
SEGMENT_BYTES = 64 * 1024 * 1024
_REMEDY = "restore it from a copy, or keep the run up to there by deleting all later segments and ledger.json"
_BLOCK_BYTES = 1 << 20
_CRC_LENGTH = len(b'{"crc":"01234567",')


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
    crc = zlib.crc32(line[_CRC_LENGTH:], previous_crc)
    return crc if line[:_CRC_LENGTH] == b'{"crc":"%08x",' % crc else None


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """The segments in order; where a closed one exists plain and compressed (a crash in between), the plain one."""
    found: dict[int, Path] = {}
    for path in _names(directory):
        stem, _, ending = path.name.partition(".")
        if stem.isdigit() and ending in {"jsonl", "jsonl.zst"} and (ending == "jsonl" or int(stem) not in found):
            found[int(stem)] = path
    return sorted(found.items())


def _names(directory: Path) -> list[Path]:
    """What is in the folder. Not `Path.glob`, which finds nothing where it may not look: a log would seem empty."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:  # a run that was begun and then stopped by a crash
        return []
    except OSError as error:
        raise _unreadable(directory, error) from None


def _unreadable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be read ({error.strerror or error}); mend that or restore it from a copy")


def open_segment(path: Path) -> IO[bytes]:
    """The content of a segment, whether it is compressed or has just become so. :raises RunFolderError: unreadable."""
    try:
        if path.suffix == ".zst":
            return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), 1 << 20)
        return path.open("rb", buffering=1 << 20)
    except FileNotFoundError as error:  # closed and compressed between listing and opening
        if path.suffix == ".zst":
            raise _unreadable(path, error) from None
        return open_segment(path.with_name(path.name + ".zst"))
    except OSError as error:
        raise _unreadable(path, error) from None


class Digest(NamedTuple):
    """The first ``size`` bytes of a segment (uncompressed) and their CRC-32."""

    size: int
    crc: int


def digest_log(directory: Path, end: Position, known: Sequence[Digest] = ()) -> list[Digest]:
    """One digest per segment, of all bytes up to ``end``; those of closed segments in ``known`` are taken from there.

    Far quicker than `read_log`, and checks nothing but that so many bytes are there.

    :raises DamagedLogError: a segment is missing, or the log ends before ``end``. :raises RunFolderError: unreadable.
    """
    known = known[: end.segment]
    paths = dict(segment_files(directory))
    digests = list(known)
    for number in range(len(known), end.segment + 1):
        if number not in paths:
            raise DamagedLogError(f"{directory}: log segment {number:06d} is missing; {_REMEDY}")
        digest = _digest(paths[number], end.offset if number == end.segment else None)
        if number == end.segment and digest.size < end.offset:
            raise DamagedLogError(f"{paths[number]}: ends before byte {end.offset}")
        digests.append(digest)
    return digests


def _digest(path: Path, size: int | None) -> Digest:
    crc, seen = 0, 0
    with open_segment(path) as content, _reading(path):
        for block in _blocks(content, (1 << 62) if size is None else size):
            crc, seen = zlib.crc32(block, crc), seen + len(block)
    return Digest(seen, crc)


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
        for item in _read_segment(path, number, run_id, Position(number, offset, crc), last=index == len(segments) - 1):
            if not isinstance(item, TornTail):
                crc = item[1].crc
            yield item
        expected += 1
    if expected < max(at_least, segments[-1][0] + 1 if segments else 0):
        raise DamagedLogError(f"{directory}: log segment {expected:06d} is missing; {_REMEDY}")


def _read_segment(
    path: Path, number: int, run_id: str, start: Position, *, last: bool
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    offset, crc, is_header = start.offset, start.crc, start.offset == 0
    with open_segment(path) as content, _reading(path):
        if sum(map(len, _blocks(content, offset))) < offset:  # read, since a compressed segment cannot seek
            raise DamagedLogError(f"{path}: ends before byte {offset}, up to which it was read before")
        rest = b""
        while block := content.read(_BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:  # `unseal` written out: this loop is what a long replay spends its time in
                crc = zlib.crc32(line[_CRC_LENGTH:], crc)
                if line[:_CRC_LENGTH] != b'{"crc":"%08x",' % crc:
                    raise _damaged(path, offset, "does not match its checksum")
                body = orjson.loads(line)
                offset += len(line) + 1
                if is_header:
                    _check_header(body, path, number, run_id)
                    is_header = False
                else:
                    yield body, Position(number, offset, crc)
    if rest:
        if not last or path.suffix == ".zst":  # what was compressed was whole
            raise _damaged(path, offset, "is cut short")
        yield TornTail(path, offset, len(rest))
    elif path.suffix == ".zst" and offset != _content_size(path):
        raise DamagedLogError(f"{path}: the compressed segment is cut short; restore it from a copy")


def _content_size(path: Path) -> int:
    """Bytes of a compressed segment before its compression, as its own first bytes state."""
    with path.open("rb") as file:
        return zstandard.frame_content_size(file.read(18))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from None
    except zstandard.ZstdError as error:
        raise DamagedLogError(f"{path}: the compressed segment is damaged ({error}); restore it from a copy") from None


def _damaged(path: Path, offset: int, what: str) -> DamagedLogError:
    with open_segment(path) as lines:
        number = 1 + sum(block.count(b"\n") for block in _blocks(lines, offset))
    return DamagedLogError(
        f"{path}:{number}: the line {what}; nothing after it can be trusted: restore the segment from a copy, or keep "
        f"the run up to here by deleting this line, all below it, all later segments and ledger.json"
    )


def _blocks(lines: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := lines.read(min(size, 1 << 20))):
        size -= len(block)
        yield block


def _check_header(header: dict[str, Any], path: Path, number: int, run_id: str) -> None:
    if header.get("format", 0) > LOG_FORMAT:
        raise RunFolderError(f"{path}: written by a newer fastgen (log format {header['format']}); upgrade fastgen")
    if header.get("run") != run_id or header.get("segment") != number:
        raise DamagedLogError(f"{path}:1: the segment belongs to another run or place; restore the right one")


class LogWriter:
    """Appends to the log; the only writer of it. Not thread-safe: one thread at a time calls `append`.

    Give it the position that `read_log` ended at; a torn tail there is cut off, and half-done compressions are
    cleaned up.

    :raises DiskError: the folder cannot be written.
    """

    def __init__(
        self, directory: Path, *, run_id: str, end: Position | None, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._directory = directory
        self._run_id = run_id
        self._segment_bytes = segment_bytes
        self._synced = True
        self._file_lock = threading.Lock()  # sync may run beside append; neither may meet a file that roll has closed
        self.position = end or Position(0, 0, 0)
        with _as_disk_error(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._open_for_append()
            if self.position.offset == 0:
                self._write_header()

    def _open_for_append(self) -> int:
        number, offset, _ = self.position
        path = self._path(number)
        for later, leftover in segment_files(self._directory):
            if later > number:  # a crash while rolling: a segment without a single whole line
                leftover.unlink()
        for unfinished in self._directory.glob("*.zst.tmp"):
            unfinished.unlink()
        if offset and not path.exists():  # the last segment was closed; go on in a new one
            self.position = Position(number + 1, 0, self.position.crc)
            path, offset = self._path(number + 1), 0
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(file, offset)
        return file

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.jsonl"

    def _write_header(self) -> None:
        header = {"format": LOG_FORMAT, "run": self._run_id, "segment": self.position.segment}
        self._write([header])
        self.sync()
        sync_directory(self._directory)

    def append(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Write the lines in one go; durable after the next `sync`.

        :raises DiskError: nothing of these lines was kept.
        """
        with _as_disk_error(self._directory):
            self._write(bodies)

    def _write(self, bodies: Iterable[dict[str, Any]]) -> None:
        segment, offset, crc = self.position
        sealed = []
        for body in bodies:
            line, crc = seal(body, crc)
            sealed.append(line)
        block = b"".join(sealed)
        try:
            written = 0
            while written < len(block):
                written += os.write(self._file, block[written:] if written else block)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, offset)  # take back a part that did go out
            raise
        self.position = Position(segment, offset + len(block), crc)
        self._synced = False  # only now: a sync that runs beside this write may have come too early for it

    @property
    def segment_full(self) -> bool:
        """Whether `roll` is due."""
        return self.position.offset >= self._segment_bytes

    def roll(self) -> Path:
        """Close this segment and start the next; returns the closed one, for `compress_segment`."""
        self.sync()
        closed = self._path(self.position.segment)
        following = Position(self.position.segment + 1, 0, self.position.crc)
        with _as_disk_error(self._directory):
            file = os.open(self._path(following.segment), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            with self._file_lock:
                os.close(self._file)
                self._file, self.position = file, following
            self._write_header()
        return closed

    def sync(self) -> None:
        """Make everything appended so far durable. May run in another thread than `append`."""
        with _as_disk_error(self._directory), self._file_lock:
            if self._synced:
                return
            self._synced = True
            try:
                os.fdatasync(self._file)
            except OSError:
                self._synced = False
                raise

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            with self._file_lock:
                self._synced = True  # for a sync that waited for the lock
                os.close(self._file)


def compress_segment(path: Path) -> None:
    """Replace a closed segment by its zstd form, so that at every moment at least one whole copy exists."""
    target = path.with_name(path.name + ".zst")
    temporary = path.with_name(path.name + ".zst.tmp")
    with _as_disk_error(path.parent):
        try:
            with path.open("rb") as source, temporary.open("wb") as sink:
                size = os.fstat(source.fileno()).st_size  # stated in the file, so that a lost end is noticed
                zstandard.ZstdCompressor(level=6, write_checksum=True).copy_stream(source, sink, size=size)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk needs the room
            raise
        sync_directory(path.parent)
        path.unlink()


def sync_directory(directory: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_disk_error(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(
            f"{place}: cannot be written ({reason}); everything committed is kept: make room or mend the permissions, "
            f"then run the same command again"
        ) from error
