"""fastgen's whole pipeline compared with a rival's bare requests: completions a second, CPU, start-up, memory.

``python -m benchmarks.rivals [--instructions 3000] [--concurrency 256] [--repeats 3] [--python PYTHON]``

The rival is datatrove's inference runner, the fastest of those tried, in a separate environment (made here from PyPI
unless ``--python`` names one that has it). It sends the bodies that an earlier `generate` run sent, one prompt a
request, and writes the answers to a file: no parsing, no filter, no commits. fastgen runs `generate` with everything on
by default (several classification prompts share a request) and, as *one prompt a request*, without that. Each is a
separate process, in turn, against the same test server without latency in another process. *start* is the time from the
interpreter's first line to the first request. *CPU* is the process's own, its start included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from unittest.mock import patch

import orjson

from benchmarks.harness import ROOT, finish, print_table, test_server
from benchmarks.rival_datatrove import peak_mb

DATATROVE = ("datatrove==0.10.1", "aiofiles", "aiohttp", "aiosqlite", "httpx", "openai", "orjson", "pandas", "uvloop")
ONE = "fastgen, one prompt a request"
_COLUMNS = ("completions_per_s", "cpu_us", "start_s", "peak_mb")


def run_ours(base_url: str, instructions: int, concurrency: int, batch: int | None) -> None:
    """One `generate`, from the first import on; prints one line of JSON."""
    began_s = time.perf_counter()
    from benchmarks.pipeline import DEFAULT_BATCH, run_generate
    from fastgen.servers.openai import OpenAIBackend
    from fastgen.types import Completion, Request

    first_s: list[float] = []
    complete = OpenAIBackend.complete

    async def noting(self: OpenAIBackend, request: Request) -> tuple[Completion, ...]:
        if not first_s:
            first_s.append(time.perf_counter())
        return await complete(self, request)

    with patch.object(OpenAIBackend, "complete", noting):
        result = run_generate(base_url, instructions, concurrency, batch or DEFAULT_BATCH)
    ended_s = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "completions": result.completions,
        "wall_s": ended_s - first_s[0],
        "cpu_s": used.ru_utime + used.ru_stime,
        "start_s": first_s[0] - began_s,
        "peak_mb": peak_mb(),
    }
    print(orjson.dumps(figures).decode())


def _figures(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: failed\n{done.stderr[-2000:]}")
    seen: dict[str, float] = orjson.loads(done.stdout.splitlines()[-1])
    completions = seen["completions"]
    return seen | {"completions_per_s": completions / seen["wall_s"], "cpu_us": seen["cpu_s"] / completions * 1e6}


def rival_python(folder: Path) -> str:
    """An interpreter that has datatrove, made in ``folder``."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *DATATROVE], check=True)
    return python


def measure(python: str, instructions: int, concurrency: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """All in turn, after a pass of ours that records the bodies."""
    from benchmarks.pipeline import record_bodies

    results: dict[str, list[dict[str, float]]] = {"datatrove": [], "fastgen": [], ONE: []}
    with test_server() as server, tempfile.TemporaryDirectory() as name:
        bodies = Path(name) / "bodies.jsonl"
        bodies.write_bytes(b"\n".join(record_bodies(server.base_url, instructions, concurrency)) + b"\n")
        rival = [python, str(ROOT / "benchmarks" / "rival_datatrove.py"), server.base_url, str(bodies)]
        ours = [sys.executable, "-m", "benchmarks.rivals", "--ours", server.base_url]
        for _ in range(repeats):
            results["datatrove"].append(_figures([*rival, str(concurrency)]))
            size = ("--instructions", str(instructions), "--concurrency", str(concurrency))
            results["fastgen"].append(_figures([*ours, *size]))
            results[ONE].append(_figures([*ours, *size, "--batch", "1"]))
    return results


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", help="an interpreter that has datatrove; default: an environment is made")
    parser.add_argument("--ours", metavar="BASE_URL", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        run_ours(given.ours, given.instructions, given.concurrency, given.batch)
        return
    with tempfile.TemporaryDirectory() as name:
        python = given.python or rival_python(Path(name))
        results = measure(python, given.instructions, given.concurrency, given.repeats)
    medians = {
        name: {column: statistics.median(run[column] for run in runs) for column in _COLUMNS}
        for name, runs in results.items()
    }
    print_table(
        ("client", "completions/s", "CPU us a completion", "start s", "peak MB"),
        [(name, *figures.values()) for name, figures in medians.items()],
    )
    finish("rivals", {"medians": medians, "runs": results, "settings": vars(given)})


if __name__ == "__main__":
    main()
