"""What every benchmark needs: a test server in another process, a table, and where and when it was measured.

Knows nothing of what is measured. Figures are printed as they are; every benchmark's last line is one line of JSON.
"""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fastgen.simulator.answers import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
_PROMPT_HEAD = (
    "Write a series of varied tasks that a language model could be asked to do. Mind the following requirements.\n"
)


@dataclass(frozen=True, slots=True)
class ServerReport:
    """A test server's counters at one moment (``GET /faults``); ``cpu_s`` is its process's CPU time."""

    cpu_s: float
    monotonic_s: float
    busy_s: float
    answered: int
    connections: int


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A test server that runs in another process."""

    base_url: str
    process: subprocess.Popen[str]

    def report(self) -> ServerReport:
        """Its counters now."""
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/faults", timeout=30) as answer:  # noqa: S310 - our own server
            seen = orjson.loads(answer.read())
        return ServerReport(*(seen[name] for name in ("cpu_s", "monotonic_s", "busy_s", "answered", "connections")))


@contextmanager
def test_server(*arguments: str) -> Iterator[ServerProcess]:
    """``python -m fastgen.simulator --port 0 ARGUMENTS``, ended on leaving."""
    command = [sys.executable, "-m", "fastgen.simulator", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise RuntimeError(f"the test server did not start: {line!r}")
            yield ServerProcess(line.split()[-1], process)
        finally:
            process.terminate()
            process.wait(timeout=30)


def instruction_prompts(count: int, seed: int = 0, head_characters: int = 800) -> list[str]:
    """Return ``count`` different prompts like the first stage's.

    A common head of ``head_characters``, eight numbered instructions, the next number.
    """
    pool = [item for i in range(64) for item in _items(Writer(seed, similar_share=0.0).answer(f"{i}\n9."))]
    head = (_PROMPT_HEAD * (head_characters // len(_PROMPT_HEAD) + 1))[:head_characters]
    draw = random.Random(seed)
    return [
        f"{head}\n" + "".join(f"{k}. {item}\n" for k, item in enumerate(draw.sample(pool, 8), 1)) + "9."
        for _ in range(count)
    ]


def _items(answer: str) -> list[str]:
    return [line.partition(". ")[2] if i else line.strip() for i, line in enumerate(answer.strip().splitlines())]


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU seconds, user and system, of a process with its threads, and of those that it has waited for. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user, system, users, systems = map(int, fields[11:15])
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return (user + system) / ticks_per_s, (users + systems) / ticks_per_s


def memory_bytes(name: str) -> int:
    """A figure of this process as the kernel has it: VmRSS, RssShmem, ... Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def environment() -> dict[str, str]:
    """Where and when: hardware, versions, commit, date."""
    return {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("aiohttp", "uvloop", "orjson")},
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """The commit measured, with a mark when files differ from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, numbers to three significant digits."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def finish(name: str, figures: Mapping[str, Any]) -> None:
    """Print the environment for people and, last, everything as one line of JSON."""
    where = environment()
    print("\n" + ", ".join(f"{key} {value}" for key, value in where.items()))
    print(orjson.dumps({"benchmark": name, "environment": where, "figures": figures}).decode())


class Stopwatch:
    """Wall and CPU seconds of this process since its making."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(wall, CPU) seconds so far."""
        return time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
