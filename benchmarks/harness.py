"""What benchmarks share: test servers in other processes, statistics, tables, and the environment of a measurement.

The last line that a benchmark prints is one line of JSON (`finish`).
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from fastgen.simulator.answers import Writer

ROOT = Path(__file__).resolve().parent.parent
_PROMPT_HEAD = (
    "Write a series of varied tasks that a language model could be asked to do. Mind the following requirements.\n"
)


@dataclass(frozen=True, slots=True)
class Server:
    """A test server in another process (several servers may share one)."""

    base_url: str
    process: subprocess.Popen[str]

    def ask(self, route: str, body: object = None) -> dict[str, Any]:
        """Return the JSON answer to a GET of the route or, with a body, to a POST."""
        url = self.base_url.removesuffix("/v1") + route
        with urllib.request.urlopen(url, data=None if body is None else orjson.dumps(body), timeout=60) as answer:  # noqa: S310 - our own server
            said: dict[str, Any] = orjson.loads(answer.read())
        return said


@contextmanager
def test_servers(instances: int, *flags: str) -> Iterator[list[Server]]:
    """Run ``python -m fastgen.simulator`` with these flags, on free ports unless a flag says otherwise."""
    command = [sys.executable, "-m", "fastgen.simulator", "--port", "0", "--instances", str(instances), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(instances)]
            if not all(line.startswith("listening on ") for line in lines):
                raise RuntimeError(f"the test server did not start: {lines!r}")
            yield [Server(line.split()[-1], process) for line in lines]
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def test_server(*flags: str) -> Iterator[Server]:
    """Run one test server."""
    with test_servers(1, *flags) as (server,):
        yield server


def instruction_prompts(count: int, seed: int = 0, head_characters: int = 800) -> list[str]:
    """Return ``count`` different prompts like those of the instruction stage.

    Each has the same head of ``head_characters``, eight numbered instructions, and the next number.
    """
    pool: list[str] = []
    for i in range(64):
        lines = Writer(seed, similar_share=0.0).answer(f"{i}\n9.").strip().splitlines()
        pool += [line.partition(". ")[2] if number else line.strip() for number, line in enumerate(lines)]
    head = (_PROMPT_HEAD * (head_characters // len(_PROMPT_HEAD) + 1))[:head_characters]
    draw = random.Random(seed)
    return [
        f"{head}\n" + "".join(f"{k}. {item}\n" for k, item in enumerate(draw.sample(pool, 8), 1)) + "9."
        for _ in range(count)
    ]


class Stopwatch:
    """Wall and CPU seconds of this process since the stopwatch was made."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return (wall, CPU) seconds so far."""
        return time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Return CPU seconds (user and system) of a process with its threads, and of its ended children. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user, system, users, systems = map(int, fields[11:15])
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return (user + system) / ticks_per_s, (users + systems) / ticks_per_s


def memory_bytes(name: str) -> int:
    """Return a figure of this process in ``/proc/self/status``, such as VmRSS or RssShmem. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


# -- statistics --------------------------------------------------------------------------------------------------------

# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1 on (any table of the distribution).
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_BEYOND = 2.086  # for more repeats; a little too wide


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval, which is infinite after a single repeat."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_list(self) -> list[float | None]:
        """Return estimate, low and high for JSON, ``None`` for what is not finite."""
        return [value if math.isfinite(value) else None for value in (self.estimate, self.low, self.high)]


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean and Student's t interval.

    :raises ValueError: when there are no values.
    """
    if not values:
        raise ValueError("no values")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    freedom = len(values) - 1
    half = _quantile(freedom) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def pooled_intervals(groups: Sequence[Sequence[float]]) -> list[Interval]:
    """Return the geometric mean of each group, and its interval by the relative spread of all groups together.

    A few repeats say little about their own spread. Several groups that were measured in turn say more.

    :raises ValueError: when a group has no values, or one that is not positive.
    """
    logs = [[math.log(value) for value in group] for group in groups]
    means = [mean_interval(group).estimate for group in logs]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - mean) ** 2 for group, mean in zip(logs, means, strict=True) for value in group)
    spread = _quantile(freedom) * math.sqrt(squares / freedom) if freedom else math.inf
    halves = [spread / math.sqrt(len(group)) for group in groups]
    return [
        Interval(math.exp(mean), _exp(mean - half), _exp(mean + half)) for mean, half in zip(means, halves, strict=True)
    ]


def _quantile(freedom: int) -> float:
    return _T_95[freedom - 1] if freedom <= len(_T_95) else _BEYOND


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Return the median of paired ratios, and the t interval of their geometric mean.

    :raises ValueError: when there are no ratios, or one is not positive.
    """
    of_logs = mean_interval([math.log(ratio) for ratio in ratios])
    return Interval(statistics.median(ratios), _exp(of_logs.low), _exp(of_logs.high))


def _exp(value: float) -> float:
    return math.exp(value) if value < math.inf else math.inf


# -- output ------------------------------------------------------------------------------------------------------------


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, numbers with three significant digits."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def finish(name: str, figures: Mapping[str, Any]) -> None:
    """Print the environment and, as the last line, everything as JSON."""
    where = environment()
    print("\n" + ", ".join(f"{key} {value}" for key, value in where.items()))
    print(orjson.dumps({"benchmark": name, "environment": where, "figures": figures}).decode())


def environment() -> dict[str, str]:
    """Return hardware, versions, commit and date."""
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
    """Return the commit, marked as dirty when files differ from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()
