"""A run as its log grows: read from its first commit on, a slice at a time, for as long as somebody asks.

Guarantees: a slice is small, so that whoever asks can do something else in between; a folder that is not there yet, an
unfinished last line, a segment that is closed and compressed meanwhile, and commits that were taken back (a full disk,
a power cut, another run in the same place) are no errors; what is damaged is said in `trouble`, in one line, and the
figures up to there stay. Memory does not grow with the run. Holds no lock and writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from fastgen.commits import Commit
from fastgen.dashboard.live import LiveFigures
from fastgen.errors import InputError
from fastgen.ledger import Ledger
from fastgen.runs import OpenRun, open_run
from fastgen.storage.log.format import Position, TornTail
from fastgen.storage.log.segments import segment_files
from fastgen.storage.runfolder import RunFolder

SLICE_COMMITS: Final = 500
"""Some 10 ms of work."""


class Follower:
    """A reader of the run in ``run_dir``; call `take_up` again and again."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.live: LiveFigures | None = None
        """``None`` until there is a run."""
        self.trouble: str | None = None
        self.is_behind = False
        """The last slice was not the log's end."""
        self.counted = 0
        """Commits that the run had when it last saved its counts: some seconds ago."""
        self.threshold = 0.0
        """ROUGE-L above which the run rejects an instruction."""
        self.target = 0
        """Instructions asked for; it may change when the run is resumed."""
        self._run: OpenRun | None = None
        self._items: Iterator[tuple[Commit, Position] | TornTail] | None = None
        self._position: Position | None = None
        self._looked_at: tuple[int, int] | None = None
        self._began_anew = False

    @property
    def ledger(self) -> Ledger:
        """The counts of what was read."""
        return self.live.figures.ledger if self.live is not None else Ledger()

    @property
    def share_read(self) -> float | None:
        """Of the log, about (0..1); ``None`` where nothing tells."""
        return min(1.0, self.ledger.commits / self.counted) if self.counted else None

    def take_up(self) -> bool:
        """Read one slice; whether there may be more to read at once."""
        try:
            self.is_behind = self._begin() and self._read_slice()
        except InputError as error:
            self.is_behind = self._begin_anew_or_tell(error)
        return self.is_behind

    def _begin(self) -> bool:
        """Whether there is something to read."""
        if self._run is None:
            if not RunFolder(self.run_dir).exists():
                return False
            self._run = open_run(self.run_dir)
            self.live = LiveFigures(self._run.seeds, self._run.rules)
            self.threshold, self.trouble = self._run.meaning["threshold"], None
        if self._items is None:
            looked_at, self._looked_at = self._looked_at, _end_of(self._run.folder.log_path)
            if looked_at == self._looked_at:
                return False
            self.counted = self._run.folder.ledger_snapshot()[0].commits
            self.target = self._run.folder.header().options["num_instructions"]
            self._items = self._run.folder.commits(self._position)
        return True

    def _read_slice(self) -> bool:
        assert self._items is not None  # noqa: S101 - `_begin` came before
        assert self.live is not None  # noqa: S101
        passed = 0
        for item in islice(self._items, SLICE_COMMITS):
            passed += 1
            if not isinstance(item, TornTail):
                commit, self._position = item
                self.live.take(commit)
        if passed == SLICE_COMMITS:
            return True
        self._items, self._began_anew, self.trouble = None, False, None
        return False

    def _begin_anew_or_tell(self, error: InputError) -> bool:
        """What was read may have been taken back since: once, all is read anew. Met again, it is damage."""
        self._items = self._looked_at = None
        if self._position is None or self._began_anew:
            self.trouble = str(error)
            return False
        self._began_anew = True
        self._run = self._position = None
        return True


def _end_of(log: Path) -> tuple[int, int] | None:
    """Number and size in bytes of the last segment, to see cheaply whether anything was written; ``None``: no log."""
    with contextlib.suppress(IndexError, OSError):
        number, path = segment_files(log)[-1]
        return number, path.stat().st_size
    return None
