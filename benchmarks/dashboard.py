"""What the live page costs a run: ``fastgen generate`` without it, with it, and with a viewer.

``python -m benchmarks.dashboard [--instructions 8000] [--concurrency 256] [--repeats 5]``

The three take turns, in another order each time, against one test server without latency in another process. A first
run does not count. Figures of each:

- *wall*: from the start of the command to its end, with interpreter and imports;
- *steady*: seconds from the first to the last commit in the run's log: the rate, without start and end;
- *CPU*: user and system time of the run's process, all threads; and that of the page's process.

Ratios compare runs of the same turn with the one without a page; given are the median and a 95 % interval. Linux only:
the CPU time of a process is read from ``/proc`` (clock ticks, 10 ms). The viewer is a thread of this process, so it
takes CPU time on the same machine, as a browser would. On two cores the run and the server use one each, and the page
gets what is left.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import ROOT, cpu_seconds, finish, print_table, ratio_interval, test_server
from fastgen.store.run_folder import RunFolder

MODES: Final = ("off", "on", "viewed")
PAGE: Final = re.compile(r"dashboard at (\S+)")
"""The line in which a run names its page."""
FIGURES: Final = ("wall_s", "steady_s", "cpu_s")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run; ``completions_per_s`` is the steady rate, ``states`` counts what the viewer received."""

    wall_s: float
    steady_s: float
    completions_per_s: float
    cpu_s: float
    page_cpu_s: float
    states: int = 0


class Viewer(threading.Thread):
    """Reads the page's events to their end and counts them."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.states = 0
        self._url = url + "events"

    def run(self) -> None:
        """See `threading.Thread.run`."""
        with urllib.request.urlopen(self._url, timeout=600) as events:  # noqa: S310 - our own page
            for line in events:
                if line.startswith(b"event: end"):
                    return
                self.states += line.startswith(b"data: ")
        raise RuntimeError("the page ended before its run")


def measure(base_url: str, mode: str, instructions: int, concurrency: int) -> Measured:
    """Measure one run in a new folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name) / "run")
        command = [sys.executable, "-m", "fastgen", "generate", "--run-dir", str(folder.path), "--base-url", base_url]
        command += ["--num-instructions", str(instructions), "--concurrency", str(concurrency)]
        command += [] if mode == "off" else ["--dashboard", "--dashboard-port", "0"]
        began_s = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            viewer = _watch(process) if mode == "viewed" else None
            said = _until_it_ends(process)
            wall_s = time.perf_counter() - began_s
            cpu_s, page_cpu_s = cpu_seconds(process.pid)
        if process.returncode or "the dashboard" in said.replace("dashboard at", ""):
            raise RuntimeError(f"the run ended with {process.returncode}: {said[-500:]}")
        if viewer is not None:
            viewer.join(30)
        ledger = folder.ledger()
        steady_s = ledger.last_s - ledger.started_s
        rate = ledger.completions.total() / steady_s
        return Measured(wall_s, steady_s, rate, cpu_s, page_cpu_s, viewer.states if viewer else 0)


def _watch(process: subprocess.Popen[str]) -> Viewer:
    """Open the page as soon as the run prints its address."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := PAGE.search(line):
            viewer = Viewer(found[1])
            viewer.start()
            return viewer
    raise RuntimeError("the run named no page")


def _until_it_ends(process: subprocess.Popen[str]) -> str:
    """Return its stderr; the process stays a zombie, whose times can be read."""
    assert process.stderr is not None
    said = process.stderr.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return said


def measure_all(instructions: int, concurrency: int, repeats: int) -> dict[str, list[Measured]]:
    """Measure all modes in turn."""
    runs: dict[str, list[Measured]] = {mode: [] for mode in MODES}
    with test_server() as server:
        measure(server.base_url, "off", min(1000, instructions), concurrency)  # compiles the kernels
        for turn in range(repeats):
            first = turn % len(MODES)
            for mode in MODES[first:] + MODES[:first]:
                runs[mode].append(measure(server.base_url, mode, instructions, concurrency))
    return runs


def summarise(runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians, and ratios to the runs without a page with their intervals (median, low, high)."""
    summary: dict[str, Any] = {}
    for mode, measured in runs.items():
        names = (*FIGURES, "completions_per_s", "page_cpu_s", "states")
        summary[mode] = {name: statistics.median(getattr(one, name) for one in measured) for name in names}
        if mode == "off":
            continue
        for name in FIGURES:
            pairs = zip(measured, runs["off"], strict=True)
            ratio = ratio_interval([getattr(one, name) / getattr(off, name) for one, off in pairs])
            summary[mode][f"{name.removesuffix('_s')}_ratio"] = ratio.as_list()
    return summary


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", type=int, default=8000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    summary = summarise(measure_all(given.instructions, given.concurrency, given.repeats))
    columns = ("completions_per_s", *FIGURES, "page_cpu_s", "states")
    print_table(("page", *columns), [(mode, *(summary[mode][name] for name in columns)) for mode in MODES])
    print()
    ratios = [
        (f"{mode}: {name}", *(summary[mode][f"{name.removesuffix('_s')}_ratio"]))
        for mode in MODES[1:]
        for name in FIGURES
    ]
    print_table(
        ("ratio to off", "median", "95 % from", "to"),
        [(name, *("-" if value is None else f"{value:.4f}" for value in values)) for name, *values in ratios],
    )
    finish("dashboard", summary | {"settings": vars(given)})


if __name__ == "__main__":
    main()
