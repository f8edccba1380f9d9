"""An append-only log of JSON lines in segments, every line checked against its checksum and the line before it.

A log is a folder of segments. The last one is plain, closed ones are usually compressed::

    000000.jsonl.zst     a closed segment: one zstd frame that states its content's size and has a checksum
    000001.jsonl         the segment that is written to; a new one begins after 64 MiB

A line of a segment (before compression)::

    bytes        content
    -----------  -------------------------------------------------------------------------------------------------------
    0 to 7       {"crc":"
    8 to 15      CRC-32 of the bytes from 18 to before the newline, in lower-case hex. Its initial value is the CRC of
                 the line before (0 for the first line of the log), so that a removed or moved line is noticed.
    16 to 17     ",
    18 to end    the rest of the JSON object, without its opening brace
    last         a newline

The first line of a segment is its header: ``{"crc": ..., "format": 1, "run": RUN_ID, "segment": NUMBER}``.

Guarantees:

- At every moment at least one whole copy of a segment exists.
- A line that was appended survives SIGKILL, one that was synced survives a power cut.
- A crash leaves at most one unfinished line, at the end (a `TornTail`). Other damage is an error that names file and
  line.
- A log can be read while another process appends to it.
"""

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
from fastgen.store.files import disk_errors, is_still_at, open_own, replacing, sync_directory

LOG_FORMAT = 1
SEGMENT_BYTES = 64 << 20
MOST_LINE_BYTES = 256 << 20
"""A line holds one completion, and a server's answer is far smaller: a longer line is not ours."""
_CRC_LENGTH = len(b'{"crc":"01234567",')
_CRC = re.compile(rb'\{"crc":"([0-9a-f]{8})",')
_SEGMENT_NAME = re.compile(r"(\d{6,18})\.jsonl(\.zst)?", re.ASCII)
_BLOCK_BYTES = 1 << 20
_ZSTD_LEVEL = 3  # level 6 would save a tenth of the disk for twice the CPU time and three times the memory
_ZSTD_WINDOW_LOG = 20  # 1 MiB, which reading takes as well


# -- format ------------------------------------------------------------------------------------------------------------


class Position(NamedTuple):
    """A place between two lines: segment, byte offset in the uncompressed segment, checksum of the line before."""

    segment: int
    offset: int
    crc: int


@dataclass(frozen=True, slots=True)
class TornTail:
    """An unfinished last line that a crash left behind: where it starts and its size in bytes."""

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


def _check_header(header: dict[str, Any], path: Path, *, run_id: str, segment: int) -> None:
    """:raises RunFolderError: a newer format. :raises DamagedLogError: of another run or place."""
    if type(header.get("format")) is not int:
        raise DamagedLogError(f"{path}:1: is not the header of a log segment; restore the segment from a copy")
    if header["format"] > LOG_FORMAT:
        raise RunFolderError(f"{path}: written by a newer fastgen (log format {header['format']}); upgrade fastgen")
    if header.get("run") != run_id or header.get("segment") != segment:
        raise DamagedLogError(f"{path}:1: the segment belongs to another run or place; restore the right one")


# -- segments ----------------------------------------------------------------------------------------------------------


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """Number and path of the segments, in order.

    Where a closed segment exists plain and compressed, as after a crash in between, the plain one.

    :raises RunFolderError: the folder cannot be read.
    """
    try:
        # Not `Path.glob`, which finds nothing in a folder that cannot be read, so that a log would seem empty.
        paths = list(directory.iterdir())
    except FileNotFoundError:  # a crash came before the log was begun
        return []
    except OSError as error:
        raise _unreadable(directory, error) from None
    found: dict[int, Path] = {}
    for path in paths:
        if (match := _SEGMENT_NAME.fullmatch(path.name)) is None:
            continue
        number, is_plain = int(match[1]), match[2] is None
        if match[1] == f"{number:06d}" and (is_plain or number not in found):
            found[number] = path
    return sorted(found.items())


def open_segment(path: Path) -> IO[bytes]:
    """The content of a segment, also if it was compressed after its path was listed.

    :raises RunFolderError: it cannot be read.
    """
    try:
        if path.suffix == ".zst":
            return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), _BLOCK_BYTES)
        return path.open("rb", buffering=_BLOCK_BYTES)
    except FileNotFoundError as error:
        if path.suffix == ".zst":
            raise _unreadable(path, error) from None
        return open_segment(path.with_name(path.name + ".zst"))
    except OSError as error:
        raise _unreadable(path, error) from None


def compress_segment(path: Path) -> None:
    """Replace a closed segment by its zstd form.

    :raises DiskError: it cannot be written; the segment stays as it was.
    """
    with disk_errors(path.parent):
        with path.open("rb") as source, replacing(path.with_name(path.name + ".zst")) as sink:
            size = os.fstat(source.fileno()).st_size  # stated in the file, so that a lost end is noticed
            parameters = zstandard.ZstdCompressionParameters.from_level(
                _ZSTD_LEVEL, source_size=size, window_log=_ZSTD_WINDOW_LOG, write_checksum=True
            )
            zstandard.ZstdCompressor(compression_params=parameters).copy_stream(source, sink, size=size)
        path.unlink()


def _segment_path(directory: Path, number: int) -> Path:
    """Where a segment is while it is written."""
    return directory / f"{number:06d}.jsonl"


def _missing_segment(directory: Path, number: int) -> DamagedLogError:
    return DamagedLogError(
        f"{directory}: log segment {number:06d} is missing; restore it from a copy, or keep the run up to there by "
        f"deleting all later segments and ledger.json"
    )


def _blocks(content: IO[bytes], size: int) -> Iterator[bytes]:
    """The next ``size`` bytes in pieces. Fewer where the content ends."""
    while size > 0 and (block := content.read(min(size, _BLOCK_BYTES))):
        size -= len(block)
        yield block


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """:raises RunFolderError: the disk refused to read. :raises DamagedLogError: the zstd frame is damaged."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from None
    except zstandard.ZstdError as error:
        raise DamagedLogError(f"{path}: the compressed segment is damaged ({error}); restore it from a copy") from None


def _unreadable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be read ({error.strerror or error}); fix that or restore it from a copy")


# -- reader ------------------------------------------------------------------------------------------------------------


def read_log(
    directory: Path,
    *,
    run_id: str,
    start: Position | None = None,
    at_least: int = 0,
    durable: Position | None = None,
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    """Every line from ``start`` (default: the beginning) with the position after it; at the end the torn tail, if any.

    While another process appends, the line that it is writing looks like a torn tail.

    :param at_least: the number of segments that must be there. Nothing in the others shows that the last ones are gone.
    :param durable: the log was once synced up to here, so an unfinished line before it is damage and no torn tail. A
        log that ends before it, as in an incomplete copy, is no error.
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
        raise _missing_segment(directory, expected)


def _read_segment(
    path: Path, run_id: str, start: Position, *, last: bool, whole: int
) -> Iterator[tuple[dict[str, Any], Position] | TornTail]:
    number, offset, crc = start
    is_header = offset == 0
    size = 0
    with open_segment(path) as content, _read_errors(path):
        _skip_to(start, content, path)
        for lines, size in _whole_lines(content):  # noqa: B007 - the last size is that of a line without an end
            for line in lines:  # `unseal` written out: this loop is what a long replay spends its time in
                crc = zlib.crc32(line[_CRC_LENGTH:], crc)
                if line[:_CRC_LENGTH] != b'{"crc":"%08x",' % crc:
                    raise _damaged(path, offset, "does not match its checksum")
                try:
                    body = orjson.loads(line)
                except orjson.JSONDecodeError:
                    raise _damaged(path, offset, "is not JSON") from None
                offset += len(line) + 1
                if is_header:
                    _check_header(body, path, run_id=run_id, segment=number)
                    is_header = False
                else:
                    yield body, Position(number, offset, crc)
    if size:
        yield _torn_tail(path, offset, size, last=last, whole=whole)
    elif not last or path.suffix == ".zst":
        _check_closed_segment(path, offset)


def _whole_lines(content: IO[bytes]) -> Iterator[tuple[list[bytes], int]]:
    """The lines that end in each block read, and how many bytes of the next one are there by then.

    Ends early at a line of more than `MOST_LINE_BYTES`.
    """
    begun: list[bytes] = []  # of a line that does not end in the blocks read so far
    size = 0  # bytes of it
    while size <= MOST_LINE_BYTES and (block := content.read(_BLOCK_BYTES)):
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


def _torn_tail(path: Path, offset: int, size: int, *, last: bool, whole: int) -> TornTail:
    """The unfinished line that a segment ends with. :raises DamagedLogError: no crash leaves one there."""
    if size > MOST_LINE_BYTES:
        raise _damaged(path, offset, "is longer than any that fastgen writes")
    if not last or path.suffix == ".zst":  # what was compressed was whole
        raise _damaged(path, offset, "is cut short")
    if offset < whole <= offset + size:
        raise _damaged(path, offset, "was whole when the log was last synced and is not any more")
    return TornTail(path, offset, size)


def _check_closed_segment(path: Path, offset: int) -> None:
    """:raises DamagedLogError: a closed segment that ends at a line end has lost its end, or everything."""
    with _read_errors(path):
        if path.suffix == ".zst":
            with path.open("rb") as file:
                if offset != zstandard.frame_content_size(file.read(18)):  # the longest frame header
                    raise DamagedLogError(f"{path}: the compressed segment is cut short; restore it from a copy")
    if not offset:
        raise DamagedLogError(f"{path}: the segment is empty; restore it from a copy")


def _skip_to(start: Position, content: IO[bytes], path: Path) -> None:
    """Read up to ``start``, since a compressed segment cannot seek, and check the line that ends there.

    :raises DamagedLogError: the segment ends before, or another line ends there.
    """
    seen, kept = 0, [b""]
    for block in _blocks(content, start.offset):
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
    match = _CRC.match(line)
    return None if match is None else int(match[1], 16)


def _damaged(path: Path, offset: int, what: str) -> DamagedLogError:
    with open_segment(path) as content, _read_errors(path):
        number = 1 + sum(block.count(b"\n") for block in _blocks(content, offset))
    return DamagedLogError(
        f"{path}:{number}: the line {what}; nothing after it can be trusted: restore the segment from a copy, or keep "
        f"the run up to here by deleting this line, all below it, all later segments and ledger.json"
    )


# -- writer ------------------------------------------------------------------------------------------------------------


class LogWriter:
    """Appends to the log. The only writer of it. Not thread-safe: one thread at a time calls `append`.

    Each block of lines is one write, which is taken back where the disk refuses it. ``durable`` is the position up to
    which this writer has synced the log, ``None`` before its first sync.

    :param end: the position that `read_log` ended at. A torn tail there is cut off, and what an interrupted
        `compress_segment` left is removed.

    :raises DiskError: the folder cannot be written. :raises FolderInUse: another writer has this log open.
    """

    def __init__(
        self, directory: Path, *, run_id: str, end: Position | None, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._directory = directory
        self._run_id = run_id
        self._segment_bytes = segment_bytes
        self._synced = False  # what a killed process wrote may not have reached the disk
        self._file_lock = (
            threading.Lock()
        )  # sync may run in parallel to append; neither may meet a file that roll has closed
        self.position = end or Position(0, 0, 0)
        self.durable: Position | None = None
        with disk_errors(directory):
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
        path = _segment_path(self._directory, number)
        for later, leftover in segment_files(self._directory):
            if later > number:  # a crash while rolling: a segment without a single whole line
                leftover.unlink()
        for unfinished in self._directory.glob("*.zst.tmp"):  # of a `compress_segment` that was killed
            unfinished.unlink()
        if offset and not path.exists():  # the last segment was closed: begin a new one
            self.position = Position(number + 1, 0, self.position.crc)
            path, offset = _segment_path(self._directory, number + 1), 0
        file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.ftruncate(file, offset)
        return file

    def _write_header(self) -> None:
        self._write([{"format": LOG_FORMAT, "run": self._run_id, "segment": self.position.segment}])
        self.sync()
        sync_directory(self._directory)

    def append(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Write the lines in one go. They are durable after the next `sync`.

        :raises DiskError: none of these lines was kept.
        """
        with disk_errors(self._directory):
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
        self._synced = False  # only now: a sync in parallel to this write may have come too early for it

    @property
    def segment_full(self) -> bool:
        """Whether `roll` is due."""
        return self.position.offset >= self._segment_bytes

    def roll(self) -> Path:
        """Close this segment, start the next, and return the closed one, for `compress_segment`."""
        self.sync()
        closed = _segment_path(self._directory, self.position.segment)
        following = Position(self.position.segment + 1, 0, self.position.crc)
        with disk_errors(self._directory):
            path = _segment_path(self._directory, following.segment)
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
        with disk_errors(self._directory), self._file_lock:
            if self._file < 0:  # closed while this sync waited
                return
            position = self.position
            path = _segment_path(self._directory, position.segment)
            if not is_still_at(self._file, path):
                raise DiskError(
                    f"{path}: was removed or replaced while it was being written, so the lines since its last sync are "
                    f"lost; restore it from a copy, then run the same command again"
                )
            if self._synced:
                return
            self._synced = True
            try:
                os.fdatasync(self._file)
            except OSError:
                self._synced = False
                raise
            self.durable = position

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
    """Lock the folder of the log itself: the lock file next to it may be removed while its holder still writes.

    :raises FolderInUse: another writer has it.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise FolderInUse(f"{directory}: another process writes this log; wait for it, or stop it") from None
    except OSError:
        pass  # a file system that cannot lock folders: the lock file must suffice
    return folder


# -- digest ------------------------------------------------------------------------------------------------------------


class Digest(NamedTuple):
    """The first ``size`` bytes of a segment (uncompressed) and their CRC-32."""

    size: int
    crc: int


def digest_log(directory: Path, end: Position, known: Sequence[Digest] = ()) -> list[Digest]:
    """One digest per segment, of all bytes up to ``end``. Far quicker than reading the lines.

    :param known: digests of an earlier call; those of segments before ``end`` are not computed again.
    :raises DamagedLogError: a segment is missing, or the log ends before ``end``. :raises RunFolderError: unreadable.
    """
    paths = dict(segment_files(directory))
    digests = list(known[: end.segment])
    for number in range(len(digests), end.segment + 1):
        if number not in paths:
            raise _missing_segment(directory, number)
        crc, size, most = 0, 0, end.offset if number == end.segment else 1 << 62
        with open_segment(paths[number]) as content, _read_errors(paths[number]):
            for block in _blocks(content, most):
                crc, size = zlib.crc32(block, crc), size + len(block)
        if number == end.segment and size < end.offset:
            raise DamagedLogError(f"{paths[number]}: is shorter than when it was last read ({end.offset} bytes then)")
        digests.append(Digest(size, crc))
    return digests
