"""The command that shows a run as a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    notes = []
    if done.target is not None and done.complete < done.target:
        notes.append(f"the run is not finished: {done.complete} of {done.target} instructions")
    if done.parsed is None:
        notes.append("verbs not counted: pip install 'fastgen[report]'")
    shown = f" ({'; '.join(notes)})" if notes else ""
    print(f"{output}: report of {done.complete} instructions{shown}", file=sys.stderr)
    return 0
