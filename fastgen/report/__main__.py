"""``python -m fastgen.report RUN_DIR DESCRIPTOR``: the page of a run that goes on, started by `activation`.

DESCRIPTOR is the inherited socket that listens already. Standard input brings samples, a line of JSON each; its end is
the run's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastgen.report.live import give_way


def main(run_dir: str, descriptor: str) -> None:
    """Serve until the run ends."""
    give_way()
    from fastgen.report.live import serve_beside_a_run

    serve_beside_a_run(Path(run_dir), int(descriptor), sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
