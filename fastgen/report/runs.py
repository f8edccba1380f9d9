"""``fastgen runs``: the runs below a folder, each in one line.

It reads the header and the saved counts of each run and no log, so it is fast however large the runs are. The counts of
a run at work are some seconds old.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastgen.errors import InputError
from fastgen.methods.catalogue import SELF_INSTRUCT
from fastgen.store.files import is_locked
from fastgen.store.run_folder import RunFolder

RunState = Literal["done", "running", "resumable", "damaged"]
"""``running``: a process writes it now. ``resumable``: it is short of its target, and the same command resumes it."""
_HEADERS = {"run.json", "unfinished-run.json"}
_STATES = {"done": "done", "running": "running", "resumable": "can be resumed", "damaged": "damaged"}
_UNITS = ((86_400 * 2, 86_400, "days"), (3_600 * 2, 3_600, "h"), (60 * 2, 60, "min"), (0, 1, "s"))


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in a few figures.

    Counts are as they were last saved, ``None`` where that is not known. Times are Unix times: of the first and the
    last commit, ``None`` before there is one. ``problem`` says why a run is damaged.
    """

    path: Path
    state: RunState
    complete: int | None = None
    kept: int | None = None
    target: int | None = None
    method: str = ""
    model: str = ""
    began_s: float | None = None
    last_s: float | None = None
    problem: str = ""

    @property
    def progress(self) -> str:
        """The count against the target, for people."""
        complete, target = ("?" if number is None else f"{number:,}" for number in (self.complete, self.target))
        return f"{complete} of {target}"

    def as_dict(self, now_s: float) -> dict[str, Any]:
        """Plain JSON values. ``age_s`` is the time since the last commit."""
        return {
            "run_dir": str(self.path),
            "state": self.state,
            "complete": self.complete,
            "kept": self.kept,
            "target": self.target,
            "method": self.method,
            "model": self.model,
            "began_s": self.began_s,
            "last_s": self.last_s,
            "age_s": None if self.last_s is None else round(max(0.0, now_s - self.last_s), 1),
            "problem": self.problem or None,
        }


def summary_of(path: Path) -> RunSummary:
    """The figures of the run in a folder. Never raises for a damaged one."""
    folder = RunFolder(path)
    try:
        header = folder.header()
        method = str(header.configuration.get("method", SELF_INSTRUCT))
        model, target = str(header.configuration["model"]), int(header.options["num_instructions"])
    except (InputError, TypeError, ValueError) as error:
        return RunSummary(path, "damaged", problem=str(error))
    counts = folder.saved_counts().ledger
    is_known = counts.commits > 0 or not _has_content(folder.log_path)
    complete, kept = (counts.complete, counts.kept) if is_known else (None, None)
    state: RunState = "resumable"
    if is_locked(path / "lock"):
        state = "running"
    elif complete is not None and complete >= target:
        state = "done"
    times = counts.started_s or None, counts.last_s or None
    return RunSummary(path, state, complete, kept, target, method, model, *times)


def _has_content(log: Path) -> bool:
    try:
        return any(path.stat().st_size for path in log.iterdir())
    except OSError:
        return False


def runs_below(folder: Path) -> Iterator[RunSummary]:
    """The runs in a folder and below it, by path. Links to folders are not followed.

    :raises InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; name the one that holds the runs")
    return _below(folder)


def _below(folder: Path) -> Iterator[RunSummary]:
    for parent, folders, files in os.walk(folder):
        if _HEADERS & {*files} and ("log" in folders or "seed_tasks.jsonl" in files):
            folders.clear()  # a run holds no runs
            yield summary_of(Path(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def render(found: Sequence[RunSummary], folder: Path, *, clock: Callable[[], float] = time.time) -> str:
    """The runs for people, one in a line."""
    if not found:
        return f"{folder}: no runs there"
    now_s = clock()
    rows: list[tuple[str, ...]] = [("run", "state", "complete", "method", "model", "last answer")]
    rows += [
        (_name(one.path, folder), _STATES[one.state], one.progress, one.method, one.model, _ago(one, now_s))
        if one.state != "damaged"
        else (_name(one.path, folder), _STATES[one.state], one.problem, "", "", "")
        for one in found
    ]
    rows = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
    whole = [row for row in rows if row[1] != _STATES["damaged"]]  # problems are long, and have the rest of the line
    widths = [max(len(row[i]) for row in (rows if i < 2 else whole)) for i in range(len(rows[0]))]  # noqa: PLR2004
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _name(path: Path, folder: Path) -> str:
    return str(path) if path == folder else str(path.relative_to(folder))


def _ago(one: RunSummary, now_s: float) -> str:
    if one.last_s is None:
        return "-"
    age_s = max(0.0, now_s - one.last_s)
    unit_s, unit = next((unit_s, unit) for least, unit_s, unit in _UNITS if age_s >= least)
    return f"{age_s / unit_s:.0f} {unit} ago"
