"""A folder that belongs to one job: one writer, one configuration, one append-only log.

Runs, judgements, evaluations, deduplications and tunings each keep their state in such a folder, which is what lets the
same command resume them.

Guarantees:

- One process writes at a time (`fastgen.store.files.Lock`). Each sync checks that the lock file is still the same file
  (device and inode).
- An entry that was appended survives SIGKILL, and one that was synced survives a power cut. What a crash tore off is
  dropped by the next `JobFolder.replay`.
- A job with another configuration is refused by `check_configuration`, which names the first differences.

Small files next to the log are written by `fastgen.store.files.write_file`, in one step, and read by `read_object`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import orjson

from fastgen.errors import DiskError, InputError, RunFolderError
from fastgen.store.files import Lock
from fastgen.store.log import LogWriter, Position, TornTail, compress_segment, read_log, segment_files

_SHOWN_DIFFERENCES = 3
_SHOWN_CHARACTERS = 300  # of a value


class JobFolder:
    """Held from construction to `close`. A context manager that closes.

    Use: construct, then read the log to its end with `replay` (or with `read_log` and `open_log`), then `append`.
    `append`, `sync` and `compress_closed` may run in worker threads, one call of each at a time.

    :param path: made if it is missing, with its parents. :param named: how messages begin, such as
        ``--run-dir runs/a``. :param instead: what the user can do instead of waiting, such as ``name another folder``.
    :param lock: name of the lock file. :param log: name of the log's folder.
    :raises FolderInUse: another process (or another `JobFolder` of this one) holds it; the message names the process.
    :raises RunFolderError: the path is, or lies under, a file, or its file system cannot lock.
    :raises DiskError: the folder or the lock file cannot be made.
    """

    def __init__(self, path: Path, *, named: str, instead: str, lock: str = "lock", log: str = "log") -> None:
        self.path = path
        self.closing = threading.RLock()
        """Held while the log is opened, compressed or closed, so that `close` releases the lock only after them."""
        self._named = named
        self._log_path = path / log
        self._writer: LogWriter | None = None
        self._is_log_closed = False
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RunFolderError(f"{named}: is, or lies under, a file; name a folder") from None
        except OSError as error:
            raise DiskError(f"{named}: cannot be written ({error.strerror}); fix that or {instead}") from error
        self._lock = Lock(path / lock, named=named, instead=instead)

    def replay(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Every entry of the log. After the last one, the folder is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end.
        :raises DiskError: the log cannot be written.
        """
        end: Position | None = None
        for item in read_log(self._log_path, run_id=run_id):
            if not isinstance(item, TornTail):
                body, end = item
                yield body
        self.open_log(run_id, end)

    def open_log(self, run_id: str, end: Position | None) -> bool:
        """Get ready to append at ``end``, the position that `read_log` ended at. False: the folder was closed before.

        :raises DiskError: the log cannot be written. :raises FolderInUse: another process writes it.
        """
        with self.closing:
            if not self._is_log_closed:
                self._writer = LogWriter(self._log_path, run_id=run_id, end=end)
            return not self._is_log_closed

    @property
    def log(self) -> LogWriter:
        """The open log."""
        if self._writer is None:
            raise RuntimeError("the log must be replayed to its end before anything is written")
        return self._writer

    def append(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Write entries as one block. Begins a new segment first where the current one is full.

        :raises DiskError: none of them was kept.
        """
        if self.log.segment_full:
            self.log.roll()
        self.log.append(bodies)

    def sync(self) -> None:
        """Make everything appended durable.

        :raises DiskError: the disk refused, or the lock file or the segment was removed or replaced.
        """
        if not self._lock.is_held:
            raise DiskError(
                f"{self._named}: {self._lock.file} was removed or replaced, so another process may write here too; "
                f"everything committed is kept: make sure that no other process uses this folder, then run the same "
                f"command again"
            )
        if self._writer is not None:
            self._writer.sync()

    @property
    def is_held(self) -> bool:
        """See `Lock.is_held`."""
        return self._lock.is_held

    def compress_closed(self) -> None:
        """Compress closed segments that are still plain."""
        with self.closing:
            current = -1 if self._is_log_closed else self.log.position.segment
            for number, path in segment_files(self._log_path):
                if number < current and path.suffix == ".jsonl":
                    compress_segment(path)

    def close_log(self) -> bool:
        """Sync and close the log, and keep the lock. Returns whether the log was open."""
        with self.closing:
            was_closed, self._is_log_closed = self._is_log_closed, True
            if was_closed or self._writer is None:
                return False
            self._writer.close()
            return True

    def clear_log(self) -> None:
        """Close the log and remove its segments. `replay` begins a new one.

        :raises OSError: they cannot be removed.
        """
        self.close_log()
        for segment in self._log_path.glob("[0-9]*.jsonl*"):
            segment.unlink()
        with contextlib.suppress(OSError):
            self._log_path.rmdir()
        self._writer, self._is_log_closed = None, False

    def close(self, *, remove_lock: bool = False) -> None:
        """Close the log and release the lock. With ``remove_lock`` its file is removed. Safe to call twice."""
        with self.closing:
            try:
                self.close_log()
            finally:
                self._writer = None
                self._lock.release(remove=remove_lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file, or ``None`` where there is no such file.

    :raises RunFolderError: it cannot be read, or holds no object.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: damaged; restore it from a copy, or name a new folder")
    return value


def check_configuration(
    saved: Mapping[str, Any],
    asked: Mapping[str, Any],
    *,
    holds: str,
    remedy: str,
    label: Callable[[str], str] = str,
) -> None:
    """Check that a job is resumed with the configuration that it began with.

    :param holds: what the folder has, such as ``out: was judged with``; the differences follow.
    :param remedy: what the user can do. :param label: the name of a value for users.
    :raises InputError: values differ; names the first three.
    """
    names = [name for name in {**asked, **saved} if saved.get(name) != asked.get(name)]
    if names:
        first = names[:_SHOWN_DIFFERENCES]
        shown = "; ".join(f"{label(name)} {_shown(saved.get(name))}, not {_shown(asked.get(name))}" for name in first)
        more = f"; and {len(names) - len(first)} more" if len(names) > len(first) else ""
        raise InputError(f"{holds} {shown}{more}; {remedy}")


def _shown(value: object) -> str:
    return "none" if value in (None, [], "") else str(value)[:_SHOWN_CHARACTERS]
