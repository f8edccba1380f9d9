"""How fast a run recovers when one of its three servers is killed, returns, or is stopped.

``python -m benchmarks.failover [--kills 20] [--stops 3]``

The servers are three processes of the test server with a fixed number of slots and a fixed time a token, so the rate
of a full server is known: slots / seconds a token. One ``fastgen generate`` with ``--concurrency auto`` uses them.
Servers are killed (SIGKILL) and started again at the same address one after the other, then stopped (SIGSTOP) and
continued. Generated tokens are read from the servers ten times a second. *Recovered after* is the time from the event
to the start of the first second in which the servers generate at least 95 % of the wanted rate: two thirds of the full
rate while one server is away, the full rate from the moment that it listens again. The full rate is the median before
the first kill.

At the end the run is interrupted and drained. *lost* are request numbers that were given out and never committed,
*doubled* are completions that were committed twice.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import orjson

from benchmarks.harness import ROOT, finish, print_table
from fastgen.methods.base import Commit
from fastgen.store.run_folder import RunFolder

SERVERS = 3
SLOTS, SECONDS_PER_TOKEN = 32, 0.004
LONGEST_WARM_UP_S, STEADY_S, AWAY_S, BACK_S, STOPPED_S = 60.0, 8.0, 6.0, 7.5, 12.0
SAMPLE_S, WINDOW_S = 0.1, 1.0
ENOUGH = 0.95
IDEAL_PER_S = SERVERS * SLOTS / SECONDS_PER_TOKEN


@dataclass(slots=True)
class Server:
    """One server process, which can be killed and started again at the same address."""

    process: subprocess.Popen[str] | None = None
    port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it listens."""
        engine = ["--slots", str(SLOTS), "--seconds-per-token", str(SECONDS_PER_TOKEN)]
        command = [sys.executable, "-m", "fastgen.simulator", "--port", str(self.port), *engine]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1].removesuffix("/v1\n"))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Return when it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def tokens(self) -> int | None:
        """Generated so far; ``None`` while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/faults", timeout=0.5) as answer:  # noqa: S310 - our own server
                return int(orjson.loads(answer.read())["generation_tokens"])
        except (OSError, ValueError):
            return None


class Meter:
    """Counts the generated tokens of one server over time, in a thread; counts continue over restarts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        total = last = 0
        while not self._ended.wait(SAMPLE_S):
            if (now := self._server.tokens()) is not None:
                total += now - last if now >= last else now
                last = now
            self.samples.append((time.monotonic(), total))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def at(self, moment_s: float) -> float:
        """Tokens at a moment, between two samples."""
        later = next((i for i, (at_s, _) in enumerate(self.samples) if at_s >= moment_s), None)
        if not later:
            return float(self.samples[-1][1] if later is None else self.samples[0][1])
        (before_s, before), (after_s, after) = self.samples[later - 1], self.samples[later]
        return before + (after - before) * (moment_s - before_s) / (after_s - before_s)


def rate(meters: list[Meter], begin_s: float) -> float:
    """Tokens/s of all servers in the window that begins then."""
    return sum(meter.at(begin_s + WINDOW_S) - meter.at(begin_s) for meter in meters) / WINDOW_S


def recovered_after(meters: list[Meter], event_s: float, until_s: float, wanted_per_s: float) -> float:
    """Seconds from the event to the first window with the wanted rate; infinite if there is none."""
    steps = int((until_s - WINDOW_S - event_s) / SAMPLE_S)
    moments = (event_s + step * SAMPLE_S for step in range(max(0, steps)))
    return next((at_s - event_s for at_s in moments if rate(meters, at_s) >= wanted_per_s), float("inf"))


@dataclass(frozen=True, slots=True)
class Fault:
    """When a server went away, when it was back, and until when nothing else happened."""

    gone_s: float
    back_s: float
    until_s: float


def kill(server: Server) -> Fault:
    """Kill a server, wait, start it again, wait."""
    gone_s = time.monotonic()
    server.kill()
    time.sleep(AWAY_S)
    server.start()
    back_s = time.monotonic()
    time.sleep(BACK_S)
    return Fault(gone_s, back_s, time.monotonic())


def stop(server: Server) -> Fault:
    """Stop a server, wait, continue it, wait."""
    gone_s = time.monotonic()
    server.signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    server.signal(signal.SIGCONT)
    back_s = time.monotonic()
    time.sleep(BACK_S)
    return Fault(gone_s, back_s, time.monotonic())


@contextmanager
def generating(run: Path, servers: list[Server]) -> Iterator[subprocess.Popen[str]]:
    """Run ``generate`` with a target that it never reaches, and interrupt it at the end."""
    places = [part for server in servers for part in ("--base-url", f"{server.url}/v1")]
    flags = ["--run-dir", str(run), "--num-instructions", "10000000", "--request-timeout", "600"]
    command = [sys.executable, "-m", "fastgen", "generate", *flags, *places]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)


def wait_until_warm(meters: list[Meter]) -> None:
    """Return when the servers are nearly full, or the time limit is over."""
    deadline_s = time.monotonic() + LONGEST_WARM_UP_S
    while time.monotonic() < deadline_s:
        time.sleep(WINDOW_S)
        if rate(meters, time.monotonic() - WINDOW_S - SAMPLE_S) > 0.9 * IDEAL_PER_S:
            return


def lost_and_doubled(run: Path) -> tuple[int, int, int]:
    """(completions committed, request numbers never committed, completions committed twice)."""
    items: list[Commit] = list(RunFolder(run).whole_commits())
    times = Counter((commit.request, commit.choice) for commit in items)
    numbers = {commit.request for commit in items}
    return len(items), max(numbers) + 1 - len(numbers), sum(count - 1 for count in times.values())


def row(what: str, seconds: list[float], wanted_s: float | None) -> tuple[str, int, float, float, str]:
    """One line of the table."""
    return what, len(seconds), statistics.median(seconds), max(seconds), "-" if wanted_s is None else f"≤ {wanted_s:g}"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=3)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastgen-failover-")))
        servers = [Server() for _ in range(SERVERS)]
        for server in servers:
            server.start()
            stack.callback(server.kill)
        meters = [stack.enter_context(Meter(server)) for server in servers]
        draw = random.Random(1)
        with generating(folder / "run", servers) as process:
            wait_until_warm(meters)
            time.sleep(STEADY_S)
            warm_s = time.monotonic()
            kills = [kill(draw.choice(servers)) for _ in range(given.kills)]
            stops = [stop(draw.choice(servers)) for _ in range(given.stops)]
        _, said = process.communicate(timeout=120)
        report(folder / "run", meters, warm_s, kills, stops, said)
    return 0


def report(run: Path, meters: list[Meter], warm_s: float, kills: list[Fault], stops: list[Fault], said: str) -> None:
    """Print the table and the figures."""
    full = statistics.median(rate(meters, warm_s - STEADY_S + 0.5 * step) for step in range(1, 14))
    share = full * (SERVERS - 1) / SERVERS
    times = {
        "killed: to the survivors' share": (kills, share, 5.0),
        "brought back: to the full rate": (kills, full, 10.0),
        "stopped: to the survivors' share": (stops, share, None),
        "continued: to the full rate": (stops, full, None),
    }
    rows, figures = [], dict[str, object]()
    for what, (faults, wanted, limit_s) in times.items():
        back = what.startswith(("brought", "continued"))
        spans = [(f.back_s, f.until_s) if back else (f.gone_s, f.back_s) for f in faults]
        if seconds := [round(recovered_after(meters, begin, end, ENOUGH * wanted), 2) for begin, end in spans]:
            rows.append(row(what, seconds, limit_s))
            figures[what] = seconds
    away = [sum(m.at(f.back_s) - m.at(f.gone_s) for m in meters) / (f.back_s - f.gone_s) / share for f in kills + stops]
    committed, lost, doubled = lost_and_doubled(run)
    print_table(("event", "times", "median s", "worst s", "wanted s"), rows)
    print(f"\nfull rate {full:,.0f} tokens/s ({full / IDEAL_PER_S:.1%} of what the slots can give)")
    if away:
        mean = statistics.mean(away)
        print(f"while a server was away: {mean:.1%} of the survivors' share on average, detection included")
    print(f"{committed} completions committed, {lost} lost, {doubled} doubled")
    told = [line for line in said.splitlines() if "server faults met" in line or "stopped answering" in line]
    print("\n".join(told))
    figures |= {"full_tokens_per_s": full, "share_while_away": away, "committed": committed, "lost": lost}
    finish("failover", figures | {"doubled": doubled})


if __name__ == "__main__":
    sys.exit(main())
