"""The commands that show a run as a page: one to keep, one that follows the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastgen.display import tell
from fastgen.errors import INTERRUPTED, InputError
from fastgen.options import MAX_PORT
from fastgen.report.options import ReportOptions


def report(
    *,
    run_dir: Path,
    output: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    options: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
) -> int:
    """Write a run as one HTML page to look at: charts, samples to search in, figures beside the original study's.

    Parameters
    ----------
    run_dir
        Folder of the run; it may still go on.
    output
        HTML file to write (- is standard output); it needs no network to be looked at.
    """
    from fastgen.report.build import report as write

    done = write(run_dir, output, options)
    notes = [done.unfinished] if done.unfinished else []
    if done.parsed is None:
        notes.append("verbs not counted: pip install 'fastgen[report]'")
    shown = f" ({'; '.join(notes)})" if notes else ""
    tell(f"{output}: report of {done.complete} instructions{shown}")
    return 0


def dashboard(*, run_dir: Path, port: int = 8642) -> int:
    """Show a run as a live page on this machine until Ctrl-C: one that goes on, also without --dashboard, or ended.

    Parameters
    ----------
    run_dir
        Folder of the run; it is only read.
    port
        Port of the page (0: any free port).
    """
    from fastgen.dashboard.page import serve_alone

    if not 0 <= port <= MAX_PORT:
        raise InputError(f"--port: {port} is not within 0 to {MAX_PORT}")
    serve_alone(run_dir, port, tell)
    return INTERRUPTED
