"""What an unfinished ``fastgen dedup`` has decided so far, in a folder beside its output; gone when it is finished.

::

    KEPT.dedup/job.json     what was asked; a run that asks something else is refused
    KEPT.dedup/log/         the decisions, batch after batch (a log as in `fastgen.storage.log`)
    KEPT.dedup/done.json    the counts; there once both outputs are whole and durable, before they get their names
    KEPT.dedup/lock         held by the process that works on it

Guarantees: a decision that was appended survives SIGKILL; what a crash tore off is dropped; nothing but these files is
ever removed. Knows nothing of rows, indexes or what a decision means.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from fastgen.errors import DamagedLogError, DiskError, InputError
from fastgen.storage.files import replacing
from fastgen.storage.locking import Lock
from fastgen.storage.log.format import Position, TornTail
from fastgen.storage.log.reader import read_log
from fastgen.storage.log.writer import LogWriter
from fastgen.tables.table import as_disk_error

_FORMAT = 1


class Journal:
    """The folder, locked from construction to `close`; a context manager that closes.

    Use: construct, run `replay` to its end, then `append`.

    :param path: the folder. :param job: what is asked, as JSON values by flag name. :param start_anew: forget what
        there is of another job instead of refusing.
    :raises InputError: in use, meant for another job, or the folder cannot be made.
    :raises DiskError: it cannot be written.
    """

    def __init__(self, path: Path, job: dict[str, Any], *, start_anew: bool = False) -> None:
        self.path = path
        self._log_path = path / "log"
        self._job_path = path / "job.json"
        self._done_path = path / "done.json"
        self._writer: LogWriter | None = None
        self._job = orjson.dumps({"format": _FORMAT, **job}, option=orjson.OPT_INDENT_2)
        self._run_id = hashlib.sha256(self._job).hexdigest()
        self._lock = _acquire_lock(path)
        try:
            self.begun = self._is_of_this_job(job, start_anew=start_anew)
            if not self.begun:
                self.begin_anew()
        except BaseException:
            self._lock.release()
            raise

    def _is_of_this_job(self, job: dict[str, Any], *, start_anew: bool) -> bool:
        """Whether this job was begun here; an unreadable beginning counts as none."""
        try:
            before = orjson.loads(self._job_path.read_bytes())
            if before.pop("format") > _FORMAT:
                raise InputError(
                    f"{self.path}: written by a newer fastgen; upgrade fastgen, or begin anew: --overwrite"
                )
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False
        if before == job:
            return True
        if not start_anew:
            flag = next(flag for flag in {**job, **before} if before.get(flag) != job.get(flag))
            was, now = _shown(before.get(flag)), _shown(job.get(flag))
            raise InputError(
                f"{self.path}: holds an unfinished dedup with {flag} {was}, not {now}; repeat its command to finish "
                f"it, or begin anew with --overwrite"
            )
        return False

    def counts(self) -> dict[str, int] | None:
        """What `mark_done` was given, if it came to that."""
        try:
            counts: dict[str, int] = orjson.loads(self._done_path.read_bytes())
        except (OSError, ValueError):
            return None
        return counts

    def begin_anew(self) -> None:
        """Forget every decision.

        :raises DiskError: the folder cannot be written.
        """
        self._forget()
        _write_atomically(self._job_path, self._job)

    def replay(self) -> Iterator[dict[str, Any]]:
        """Everything appended so far; afterwards the journal is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end.
        """
        end: Position | None = None
        try:
            for item in read_log(self._log_path, run_id=self._run_id):
                if not isinstance(item, TornTail):
                    body, end = item
                    yield body
        except DamagedLogError as error:
            raise DamagedLogError(f"{self.path}: damaged; remove this folder to begin anew ({error})") from None
        self._writer = LogWriter(self._log_path, run_id=self._run_id, end=end)

    def append(self, body: dict[str, Any]) -> None:
        """Add one entry.

        :raises DiskError: it was not kept.
        """
        writer = self._open_writer()
        if writer.segment_full:
            writer.roll()
        writer.append([body])

    def sync(self) -> None:
        """Make what was appended, if anything was, outlive a power cut and not only this process.

        :raises DiskError: the disk refused.
        """
        if self._writer is not None:
            self._writer.sync()

    def mark_done(self, counts: dict[str, int]) -> None:
        """Note that the outputs are whole."""
        _write_atomically(self._done_path, orjson.dumps(counts))

    def unmark_done(self) -> None:
        """Take `mark_done` back, before the outputs are touched again."""
        with as_disk_error(self._done_path):
            self._done_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, unless something else was put into it; the journal is closed then."""
        self._forget()
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _forget(self) -> None:
        """Remove all but the lock; the log first, so that what is left is never taken for less than it was."""
        self._close_writer()
        with as_disk_error(self.path):
            for segment in self._log_path.glob("[0-9]*.jsonl*"):
                segment.unlink()
            with contextlib.suppress(OSError):
                self._log_path.rmdir()
            self._job_path.unlink(missing_ok=True)
            self._done_path.unlink(missing_ok=True)

    def _open_writer(self) -> LogWriter:
        if self._writer is None:
            raise RuntimeError("replay() must run to its end before the journal can write")
        return self._writer

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Let go of the folder."""
        try:
            self._close_writer()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shown(value: object) -> str:
    return "none" if value in (None, []) else str(value)


def _acquire_lock(path: Path) -> Lock:
    try:
        path.mkdir(exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"{path}: the folder for unfinished work cannot be made ({error.strerror}); mend the permissions of the "
            f"folder above, make it, or name another --output"
        ) from None
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be made ({error.strerror}); make room, then run the same command again"
        ) from error
    return Lock(path / "lock", named=str(path), instead="name another --output")


def _write_atomically(path: Path, content: bytes) -> None:
    with as_disk_error(path), replacing(path) as sink:
        sink.write(content)
