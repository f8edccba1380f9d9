"""The form of the log: a line and its checksum, a segment's header, a place between two lines. No files here."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson
import zstandard

from fastgen.errors import DamagedLogError, DiskError, FolderInUse, RunFolderError
from fastgen.store.files import is_still_at, open_own, replacing, sync_directory

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


_WINDOW_LOG = 20  # 1 MiB
BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"(\d{6,18})\.jsonl(\.zst)?", re.ASCII)


def segment_path(directory: Path, number: int) -> Path:
    """Where a segment is while it is written."""
    return directory / f"{number:06d}.jsonl"


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """The segments in order; where a closed one exists plain and compressed (a crash in between), the plain one."""
    found: dict[int, Path] = {}
    for path in _names(directory):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        number, is_plain = int(match[1]), match[2] is None
        if match[1] == f"{number:06d}" and (is_plain or number not in found):
            found[number] = path
    return sorted(found.items())


def _names(directory: Path) -> list[Path]:
    """What is in the folder. Not `Path.glob`, which finds nothing where it may not look: a log would seem empty."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:  # a run that was begun and then stopped by a crash
        return []
    except OSError as error:
        raise _unreadable(directory, error) from None


def missing_segment(directory: Path, number: int) -> DamagedLogError:
    """A segment that must be there is not."""
    return DamagedLogError(
        f"{directory}: log segment {number:06d} is missing; restore it from a copy, or keep the run up to there by "
        f"deleting all later segments and ledger.json"
    )


# -- reading -----------------------------------------------------------------------------------------------------------


def open_segment(path: Path) -> IO[bytes]:
    """The content of a segment, whether it is compressed or has just become so. :raises RunFolderError: unreadable."""
    try:
        if path.suffix == ".zst":
            return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), BLOCK_BYTES)
        return path.open("rb", buffering=BLOCK_BYTES)
    except FileNotFoundError as error:  # closed and compressed between listing and opening
        if path.suffix == ".zst":
            raise _unreadable(path, error) from None
        return open_segment(path.with_name(path.name + ".zst"))
    except OSError as error:
        raise _unreadable(path, error) from None


def content_size(path: Path) -> int:
    """Bytes of a compressed segment before its compression, as its own first bytes state.

    :raises OSError, zstandard.ZstdError: they cannot be read, or are not the beginning of a zstd file.
    """
    with path.open("rb") as file:
        return zstandard.frame_content_size(file.read(18))


def blocks(content: IO[bytes], size: int) -> Iterator[bytes]:
    """The next ``size`` bytes in pieces; fewer where the content ends."""
    while size > 0 and (block := content.read(min(size, BLOCK_BYTES))):
        size -= len(block)
        yield block


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong while a segment is read. :raises RunFolderError: its disk. :raises DamagedLogError: its zstd."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from None
    except zstandard.ZstdError as error:
        raise DamagedLogError(f"{path}: the compressed segment is damaged ({error}); restore it from a copy") from None


def _unreadable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be read ({error.strerror or error}); mend that or restore it from a copy")


# -- writing -----------------------------------------------------------------------------------------------------------


def _compressor(size: int) -> zstandard.ZstdCompressor:
    """For so many bytes. Level 6 would save a tenth of the disk for twice the CPU time and three times the memory.

    The window is what reading takes as well.
    """
    asked = zstandard.ZstdCompressionParameters.from_level(
        3, source_size=size, window_log=_WINDOW_LOG, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=asked)


def compress_segment(path: Path) -> None:
    """Replace a closed segment by its zstd form. :raises DiskError: it stays as it was."""
    target = path.with_name(path.name + ".zst")
    with writing(path.parent):
        with path.open("rb") as source, replacing(target) as sink:
            size = os.fstat(source.fileno()).st_size  # stated in the file, so that a lost end is noticed
            _compressor(size).copy_stream(source, sink, size=size)
        path.unlink()


def forget_unfinished(directory: Path) -> None:
    """Remove what `compress_segment` left behind in a process that was killed."""
    for unfinished in directory.glob("*.zst.tmp"):
        unfinished.unlink()


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """What goes wrong while a log is written. :raises DiskError: its disk refused."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(
            f"{place}: cannot be written ({reason}); everything committed is kept: make room or mend the permissions, "
            f"then run the same command again"
        ) from error


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


SEGMENT_BYTES = 64 * 1024 * 1024


class LogWriter:
    """Appends to the log; the only writer of it. Not thread-safe: one thread at a time calls `append`.

    Give it the position that `read_log` ended at; a torn tail there is cut off, and half-done compressions are
    cleaned up. ``durable`` is the place up to which this writer has synced the log, ``None`` before its first sync.

    :raises DiskError: the folder cannot be written. :raises FolderInUse: another writer has this log open.
    """

    def __init__(
        self, directory: Path, *, run_id: str, end: Position | None, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._directory = directory
        self._run_id = run_id
        self._segment_bytes = segment_bytes
        self._synced = False  # what a killed process wrote may not have reached the disk
        self._file_lock = threading.Lock()  # sync may run beside append; neither may meet a file that roll has closed
        self.position = end or Position(0, 0, 0)
        self.durable: Position | None = None
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._folder = _claim(directory)
            self._file = -1
            try:
                self._file = self._open_for_append()
                if self.position.offset == 0:
                    self._write_header()
            except BaseException:
                self._close_files()
                raise

    def _open_for_append(self) -> int:
        number, offset, _ = self.position
        path = segment_path(self._directory, number)
        for later, leftover in segment_files(self._directory):
            if later > number:  # a crash while rolling: a segment without a single whole line
                leftover.unlink()
        forget_unfinished(self._directory)
        if offset and not path.exists():  # the last segment was closed; go on in a new one
            self.position = Position(number + 1, 0, self.position.crc)
            path, offset = segment_path(self._directory, number + 1), 0
        file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.ftruncate(file, offset)
        return file

    def _write_header(self) -> None:
        self._write([segment_header(self._run_id, self.position.segment)])
        self.sync()
        sync_directory(self._directory)

    def append(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Write the lines in one go; durable after the next `sync`.

        :raises DiskError: nothing of these lines was kept.
        """
        with writing(self._directory):
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
        closed = segment_path(self._directory, self.position.segment)
        following = Position(self.position.segment + 1, 0, self.position.crc)
        with writing(self._directory):
            path = segment_path(self._directory, following.segment)
            file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            with self._file_lock:
                os.close(self._file)
                self._file, self.position = file, following
            self._write_header()
        return closed

    def sync(self) -> None:
        """Make everything appended so far durable. May run in another thread than `append`.

        :raises DiskError: the disk refused, or the segment is no longer the file of its name.
        """
        with writing(self._directory), self._file_lock:
            if self._file < 0:  # closed while this sync waited
                return
            position = self.position
            self._check_that_it_is_there(position.segment)
            if self._synced:
                return
            self._synced = True
            try:
                os.fdatasync(self._file)
            except OSError:
                self._synced = False
                raise
            self.durable = position

    def _check_that_it_is_there(self, segment: int) -> None:
        path = segment_path(self._directory, segment)
        if not is_still_at(self._file, path):
            raise DiskError(
                f"{path}: was removed or replaced while it was being written, so the lines since its last sync are "
                f"lost; restore it from a copy, then run the same command again"
            )

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            with self._file_lock:
                self._close_files()

    def _close_files(self) -> None:
        for descriptor in (self._file, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._folder = -1


def _claim(directory: Path) -> int:
    """Lock the folder of the log itself: the lock file beside it may be removed while its holder still writes.

    :raises FolderInUse: another writer has it.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise FolderInUse(f"{directory}: another process writes this log; wait for it, or stop it") from None
    except OSError:
        pass  # a file system that cannot lock folders: the lock file has to do
    return folder
