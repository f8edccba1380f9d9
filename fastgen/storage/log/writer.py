"""Appends to a log: whole lines in one write each, taken back where the disk refuses, durable when told to be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastgen.errors import DiskError, FolderInUse
from fastgen.storage.files import is_still_at, open_own, sync_directory
from fastgen.storage.log.format import Position, seal, segment_header
from fastgen.storage.log.segments import forget_unfinished, segment_files, segment_path, writing

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
