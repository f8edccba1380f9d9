"""``python -m fastgen.report RUN_DIR DESCRIPTOR``: the live page of a run, started by `fastgen.telemetry.live_page`.

DESCRIPTOR is an inherited socket that is listening already. Standard input brings samples, a line of JSON each, and
ends with the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastgen.report import lower_priority


def main(run_dir: str, descriptor: str) -> None:
    """Serve until the run ends."""
    lower_priority()
    from fastgen.report.live import serve_beside_a_run

    serve_beside_a_run(Path(run_dir), int(descriptor), sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
