"""``metrics.jsonl`` in the run folder: the samples of a run as JSON lines, oldest first, for plots.

Append-only, one `Sample` a line. Guarantees: a line that a crash or a full disk cut off is skipped by readers and
spoils no later line; a write that fails is logged once and never stops the run; the file grows by a line every 5 s in
the first three hours and by one a minute after two days, so that a week takes some 25 MB. Nothing depends on the file:
it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from fastgen.store.files import open_own
from fastgen.telemetry.figures import Limit, Sample

log = logging.getLogger(__name__)
METRICS_FILE: Final = "metrics.jsonl"
FIRST_EVERY_S, LAST_EVERY_S = 5.0, 60.0
_SHARE = 1 / 2000  # of the session's age between two lines: about 2,000 lines each time that it grows by a factor e
_TAIL_BYTES = 1 << 16
_LONGEST_S = 366 * 86400.0  # of a window; what claims more is no figure of a run


def every_s(session_s: float) -> float:
    """Seconds between two lines at a session's age."""
    return min(max(FIRST_EVERY_S, session_s * _SHARE), LAST_EVERY_S)


class MetricsFile:
    """The writer. One a run. `append` may run in a worker thread, one call at a time."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._torn = True  # what is there may lack its line end
        self._has_warned = False

    def append(self, sample: Sample) -> None:
        """Write one line. An error of the disk is not raised."""
        line = sample.as_line()
        try:
            with os.fdopen(open_own(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0) as sink:
                if self._torn and self._lacks_line_end():
                    line = b"\n" + line
                self._torn = sink.write(line) != len(line)
        except OSError as error:
            self._torn = True
            if not self._has_warned:
                log.warning("%s: cannot be written (%s); the run continues without", self._path, error.strerror)
            self._has_warned = True

    def _lacks_line_end(self) -> bool:
        with self._path.open("rb") as source:
            if source.seek(0, os.SEEK_END) == 0:
                return False
            source.seek(-1, os.SEEK_END)
            return source.read(1) != b"\n"


def read_metrics(run_dir: Path) -> Iterator[Sample]:
    """Every whole sample of a run, oldest first. None if there is no such file. The run may be active."""
    with contextlib.suppress(OSError), (run_dir / METRICS_FILE).open("rb") as lines:
        for line in lines:
            if (sample := _decoded(line)) is not None:
                yield sample


def last_sample(run_dir: Path) -> Sample | None:
    """The newest whole sample of a run, read from the file's end."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as source:
            source.seek(max(0, source.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = source.read().splitlines()
    except OSError:
        return None
    return next((sample for line in reversed(lines) if (sample := _decoded(line)) is not None), None)


def limit_shares(run_dir: Path) -> dict[str, float]:
    """Share of a run's measured time (0..1) that each limit was the binding one, largest first."""
    seconds: dict[str, float] = {}
    with contextlib.suppress(OSError), (run_dir / METRICS_FILE).open("rb") as lines:
        for line in lines:  # two fields only: the whole samples of a long run would take a second
            with contextlib.suppress(ValueError, KeyError, TypeError):
                values = orjson.loads(line)
                limit, window_s = Limit(values["limit"]), float(values["window_s"])
                if 0 <= window_s <= _LONGEST_S:
                    seconds[limit] = seconds.get(limit, 0.0) + window_s
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {name: round(spent / total, 4) for name, spent in ordered if spent} if total else {}


def _decoded(line: bytes) -> Sample | None:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return Sample.from_dict(orjson.loads(line))
    return None
