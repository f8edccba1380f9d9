"""The one writer of a run folder: its lock, its log, its counts.

`fastgen.storage.runfolder.RunFolder` says what is in the folder and reads it.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastgen.commits import Commit, encode
from fastgen.errors import DiskError, RunFolderError
from fastgen.ledger import Ledger
from fastgen.storage.locking import Lock
from fastgen.storage.log.format import Position, TornTail
from fastgen.storage.log.segments import compress_segment, segment_files
from fastgen.storage.log.writer import LogWriter
from fastgen.storage.runfolder import RUN_FORMAT, RunFolder, RunHeader, SavedCounts

__all__ = ["RUN_FORMAT", "Progress", "RunFolder", "RunHeader", "Store"]

log = logging.getLogger(__name__)
_BEGINNING = Position(0, 0, 0)


class Progress(NamedTuple):
    """How far a run's log was followed, and what it counted up to there."""

    position: Position
    ledger: Ledger


class Store:
    """The one writer of a run folder, holding its lock from construction to `close`.

    Use: construct, `replay` to its end once, then `append` as often as needed and apply to `ledger` what was appended.
    `append`, `sync` and `compress_closed` may run in worker threads, one call of each at a time.

    :raises RunFolderError: another process writes here.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._lock = _acquire_lock(folder.path)
        self._run_id = ""
        self._end: Position | None = None
        self._writer: LogWriter | None = None
        self._commits = 0
        self._closed = False
        self._closing = threading.Lock()  # the run lock is let go only when no thread of ours touches the log any more
        self.torn: TornTail | None = None
        self.lost_bytes = 0  # that the log had when the counts were last saved and, after a power cut, has no more
        self.lost_commits = 0  # in them
        self.ledger = Ledger()
        self._told_unsaved = False
        self.server_figures: dict[str, Any] = folder.server_figures()

    def begin(self, meaning: dict[str, Any], options: dict[str, Any], version: str) -> None:
        """Start a new run here."""
        self.folder.write_header(RunHeader(uuid.uuid4().hex, version, meaning, options))

    def replay(self, known: Progress | None = None) -> Iterator[Commit]:
        """Every commit of the log in order, those up to ``known`` left out; then the store is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end. :raises DiskError: it cannot be written.
        """
        self._run_id = self.folder.header().run_id
        if known is None:
            self.ledger = self.folder.new_ledger()
        else:
            self._end, self.ledger = known
            self._commits = self.ledger.commits
        for item in self.folder.commits(self._end):
            if isinstance(item, TornTail):
                self.torn = item
                continue
            commit, self._end = item
            self._commits += 1
            self.ledger.apply(commit)
            yield commit
        self.lost_commits, self.lost_bytes = self.folder.loss(self.ledger, self.position)
        with self._closing:
            if not self._closed:
                self._writer = LogWriter(self.folder.log_path, run_id=self._run_id, end=self._end)
                if self.lost_bytes or self.lost_commits:
                    self._forget_lost_counts()

    @property
    def position(self) -> Position:
        """The log's end."""
        return self._end or _BEGINNING

    @property
    def is_counted(self) -> bool:
        """Whether the ledger has everything that was appended."""
        return self.ledger.commits == self._commits

    def append(self, commits: Sequence[Commit]) -> None:
        """Write the commits as one block.

        :raises DiskError: none of them was kept.
        """
        writer = self._open_writer()
        if writer.segment_full:
            writer.roll()
        writer.append(map(encode, commits))
        self._end = writer.position
        self._commits += len(commits)

    def sync(self) -> None:
        """Make everything appended durable.

        :raises DiskError: the disk refused, or the lock or the segment was removed or replaced.
        """
        writer = self._open_writer()
        self._lock.check()
        writer.sync()

    def save_ledger(self) -> None:
        """Save the counts for quick readers; does nothing while the ledger lacks some of what was appended.

        Counts that cannot be saved are one warning: the log has them.
        """
        self._open_writer()
        if not self.is_counted:
            return
        try:
            self._save_counts(durable=False)
        except OSError as error:
            if not self._told_unsaved:
                path = self.folder.ledger_path
                log.warning("%s: cannot be saved (%s); the run continues, the log has its counts", path, error.strerror)
            self._told_unsaved = True

    def _forget_lost_counts(self) -> None:
        """Replace counts that the log falls short of, before other lines take the place of those that were counted.

        :raises DiskError: they cannot be replaced, so the next reader would take the new lines for damage.
        """
        try:
            self._save_counts(durable=True)
        except OSError as error:
            path = self.folder.ledger_path
            raise DiskError(
                f"{path}: counts more than the log has and cannot be replaced ({error.strerror}); remove it, then run "
                f"the same command again"
            ) from error

    def _save_counts(self, *, durable: bool) -> None:
        synced = self._open_writer().durable
        counts = SavedCounts(self.ledger, self.position, synced, self.server_figures)
        self.folder.save_counts(counts, self._run_id, durable=durable)

    def compress_closed(self) -> None:
        """Compress closed segments that are still plain."""
        with self._closing:
            current = -1 if self._closed else self._open_writer().position.segment
            for number, path in segment_files(self.folder.log_path):
                if number < current and path.suffix == ".jsonl":
                    compress_segment(path)

    def close(self) -> None:
        """Sync, close and let go of the lock. Safe to call twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                if self._writer is not None:
                    self._writer.close()
                    if self._lock.is_held:  # else the folder may be another process's by now
                        self.save_ledger()
            finally:
                self._writer = None
                self._lock.release()

    def _open_writer(self) -> LogWriter:
        if self._writer is None:
            raise RuntimeError("replay() must run to its end before the store can write")
        return self._writer


def _acquire_lock(path: Path) -> Lock:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunFolderError(f"--run-dir {path}: is, or lies under, a file; name a folder") from None
    except OSError as error:
        raise DiskError(
            f"--run-dir {path}: cannot be written ({error.strerror}); mend that or name another folder"
        ) from error
    return Lock(path / "lock", named=f"--run-dir {path}", instead="name another folder")
