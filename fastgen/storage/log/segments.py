"""The files of a log: which there are, and how they are opened, compressed and made durable.

Guarantees: at every moment at least one whole copy of a segment exists; what the file system or the compression refuses
is an error of fastgen's own that names the file and the remedy. Knows nothing of lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from fastgen.errors import DamagedLogError, DiskError, RunFolderError
from fastgen.storage.files import replacing

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
