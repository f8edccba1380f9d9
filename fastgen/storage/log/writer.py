"""Appends to a log: whole lines in one write each, taken back where the disk refuses, durable when told to be."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastgen.storage.log.format import Position, seal, segment_header
from fastgen.storage.log.segments import forget_unfinished, segment_files, segment_path, sync_directory, writing

SEGMENT_BYTES = 64 * 1024 * 1024


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
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._open_for_append()
            if self.position.offset == 0:
                self._write_header()

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
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
            file = os.open(
                segment_path(self._directory, following.segment),
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
                0o644,
            )
            with self._file_lock:
                os.close(self._file)
                self._file, self.position = file, following
            self._write_header()
        return closed

    def sync(self) -> None:
        """Make everything appended so far durable. May run in another thread than `append`."""
        with writing(self._directory), self._file_lock:
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
