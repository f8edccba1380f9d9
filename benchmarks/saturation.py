"""Is a server ever idle? ``fastgen generate`` against simulated engines, compared with the most that those could do.

``python -m benchmarks.saturation [--scenarios steady,two-steps,four-steps,slowed,...,original]``

Each scenario starts simulated vLLM servers (``python -m fastgen.simulator --engine ...``: continuous batching at the
speed of an 8B model on an H100, see `fastgen.simulator.batching`) and the real command line, in separate processes on
one machine. ``--seconds`` after the first request the run is interrupted as with Ctrl-C. Figures are of the time
between ``--warm`` seconds and that moment.

- *share* is the output tokens/s over the ideal: the same engine with a queue that is never empty, fed with the lengths
  of the sequences that ended in that time.
- *saturation* is the share of each second that a full batch would have needed for the same work. Unlike tokens/s it
  does not depend on the lengths that happened to come up. Recovery is measured by it: from the event to the first
  second from which three in a row have a mean of at least 0.95. The *ramp* is the same from the first request.
- *queue* is the mean number of waiting sequences over ``max_num_seqs``, *occupancy* that of running ones.

Events happen after half of the time; figures then start ``--warm`` seconds after them. ``two-steps`` and
``four-steps`` run Magpie with conversations of one and two turns instead of Self-Instruct. ``watched`` is ``steady``
with ``--dashboard`` and a viewer. ``eight`` is compared with eight times ``steady``. ``original`` runs the control flow
of the original (`benchmarks.original_loop`) on the same engine and compares its complete instructions a minute with
those of ``steady``, ramp and drain included.

Everything happens in real time unless ``--speed`` says otherwise. With ``--speed 4`` the engines' time passes four
times as fast, which shows longer runs if the client keeps up. What the client does by the clock (reading metrics,
probing dead servers) then takes four times as long in the engines' time.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.dashboard import PAGE, Viewer
from benchmarks.harness import ROOT, Server, cpu_seconds, finish, print_table, test_server, test_servers
from fastgen.simulator.batching import ENGINES
from fastgen.store.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RECOVERED = 0.95
HOLD_SECONDS = 3
DEAD_S = 3.0
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What all scenarios share; times are simulated seconds after the first request."""

    engine: str = "h100-8b"
    concurrency: str = "auto"
    seconds: float = 60.0
    warm_s: float = 10.0
    speed: float = 1.0
    processes: bool = False
    flags: tuple[str, ...] = ()

    @property
    def server_flags(self) -> list[str]:
        """The flags of the servers."""
        processes = ["--processes"] if self.processes else []
        return ["--engine", self.engine, "--speed", str(self.speed), *processes, *self.flags]

    @property
    def event_s(self) -> float:
        """When the event happens."""
        return self.seconds / 2


@dataclass(frozen=True, slots=True)
class Scenario:
    """Servers, and what happens to them."""

    name: str
    instances: int = 1
    change: str | None = None
    lasts_s: float = 0.0
    watched: bool = False
    client_flags: tuple[str, ...] = ()

    def back_s(self, settings: Settings) -> float | None:
        """Return the time from which recovery counts; ``None`` where nothing happens."""
        return None if self.change is None else settings.event_s + self.lasts_s

    def counts_from_s(self, settings: Settings) -> float:
        """Return the time from which the figures count."""
        return settings.warm_s + (self.back_s(settings) or 0.0)


def scenarios(engine: str) -> dict[str, Scenario]:
    """Return all by name, except ``original``, which needs no client."""
    seats = ENGINES[engine].max_num_seqs
    known = (
        Scenario("steady"),
        Scenario("two-steps", client_flags=("--method", "magpie")),
        Scenario("four-steps", client_flags=("--method", "magpie", "--turns", "2")),
        Scenario("slowed", change="slow=3"),
        Scenario("restarted", change=f"stop={DEAD_S:g}", lasts_s=DEAD_S),
        Scenario("doubled", change=f"max-num-seqs={2 * seats}"),
        Scenario("halved", change=f"max-num-seqs={seats // 2}"),
        Scenario("watched", watched=True),
        Scenario("eight", instances=8),
    )
    return {scenario.name: scenario for scenario in known}


@dataclass(frozen=True, slots=True)
class Window:
    """One server's means over the seconds that count."""

    tokens_per_s: float
    ideal_tokens_per_s: float
    saturation: float
    occupancy: float
    queue: float


@dataclass(frozen=True, slots=True)
class Result:
    """A scenario's figures, summed or averaged over its servers; CPU in cores, over the seconds that count."""

    scenario: str
    tokens_per_s: float
    ideal_tokens_per_s: float
    share: float
    saturation: float
    occupancy: float
    queue: float
    recovered_after_s: float | None
    ramp_s: float | None  # from the first request until the server was saturated
    client_cores: float
    server_cores: float
    completions_per_s: float
    complete_per_minute: float
    late_s: float  # worst delay of an answer by the servers' own process


def window(seconds: dict[str, list[float]], from_s: float, to_s: float, ideal_tokens_per_s: float) -> Window:
    """Return the means over the whole seconds between two times.

    :raises ValueError: when there is none.
    """
    span = slice(int(from_s + 0.999), int(to_s))
    if not seconds["tokens"][span]:
        raise ValueError(f"no second between {from_s:g} and {to_s:g} s")
    capacity = fmean(seconds["capacity"][span])
    return Window(
        tokens_per_s=fmean(seconds["tokens"][span]),
        ideal_tokens_per_s=ideal_tokens_per_s,
        saturation=fmean(seconds["saturation"][span]),
        occupancy=fmean(seconds["running"][span]) / capacity,
        queue=fmean(seconds["waiting"][span]) / capacity,
    )


def recovered_after_s(saturation: Sequence[float], back_s: float, to_s: float) -> float | None:
    """Return how long after ``back_s`` the server was saturated again; ``None`` if it never was until ``to_s``."""
    first = int(back_s + 0.999)
    for second in range(first, int(to_s) - HOLD_SECONDS + 1):
        if fmean(saturation[second : second + HOLD_SECONDS]) >= RECOVERED:
            return max(0.0, second - back_s)
    return None


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(scenario: Scenario, settings: Settings) -> Result:
    """Run one scenario.

    :raises RuntimeError: when the client ends by itself.
    """
    with tempfile.TemporaryDirectory() as name, running_servers(scenario, settings) as up:
        run = Path(name)
        flags = [*scenario.client_flags, *(("--dashboard", "--dashboard-port", "0") if scenario.watched else ())]
        with client(run, up, settings.concurrency, *flags) as process:
            wait_for_first_request(up, process, run)
            if scenario.watched:
                Viewer(page_of(run)).start()
            from_s = scenario.counts_from_s(settings)
            sleep_until(up[0], from_s, settings.speed)
            before, client_before_s = [server.ask("/sim/stats") for server in up], cpu_seconds(process.pid)[0]
            sleep_until(up[0], settings.seconds, settings.speed)
            after, client_after_s = [server.ask("/sim/stats") for server in up], cpu_seconds(process.pid)[0]
            if process.poll() is not None:
                raise ended(run)
            process.send_signal(signal.SIGINT)
            process.wait(END_TIMEOUT_S)
        complete, took_s = RunFolder(run / "run").ledger().complete, up[0].ask("/sim/stats")["now_s"]
        windows = [
            window(stats["seconds"], from_s, stats["now_s"], ideal(server, from_s, stats["now_s"]))
            for server, stats in zip(up, after, strict=True)
        ]
    return _result(scenario, settings, before, after, windows, client_after_s - client_before_s, complete / took_s)


def running_servers(scenario: Scenario, settings: Settings) -> AbstractContextManager[list[Server]]:
    """Run the scenario's servers, with its event."""
    event = ("--at", f"{settings.event_s}:{scenario.change}") if scenario.change else ()
    return test_servers(scenario.instances, *settings.server_flags, *event)


def ideal(server: Server, from_s: float, to_s: float) -> float:
    """Return what the engine would write a second if its queue were never empty, with the lengths of that time."""
    return float(server.ask("/sim/ideal", {"from_s": from_s, "to_s": to_s})["tokens_per_s"])


def page_of(run: Path) -> str:
    """Return the address of the live page that the client has printed.

    :raises RuntimeError: when it has printed none.
    """
    if found := PAGE.search((run / "said").read_text(encoding="utf-8")):
        return found[1]
    raise RuntimeError("the run named no page")


def _result(
    scenario: Scenario,
    settings: Settings,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    windows: Sequence[Window],
    client_cpu_s: float,
    complete_per_s: float,
) -> Result:
    real_s = after[0]["monotonic_s"] - before[0]["monotonic_s"]
    processes = len(after) if settings.processes else 1
    server_cpu_s = sum(a["cpu_s"] - b["cpu_s"] for a, b in list(zip(after, before, strict=True))[:processes])
    answered = sum(a["sequences"] - b["sequences"] for a, b in zip(after, before, strict=True))
    back_s = scenario.back_s(settings)
    tokens, ideal = sum(w.tokens_per_s for w in windows), sum(w.ideal_tokens_per_s for w in windows)
    return Result(
        scenario=scenario.name,
        tokens_per_s=tokens,
        ideal_tokens_per_s=ideal,
        share=tokens / ideal,
        saturation=fmean(w.saturation for w in windows),
        occupancy=fmean(w.occupancy for w in windows),
        queue=fmean(w.queue for w in windows),
        recovered_after_s=None
        if back_s is None
        else recovered_after_s(after[0]["seconds"]["saturation"], back_s, after[0]["now_s"]),
        ramp_s=recovered_after_s(after[0]["seconds"]["saturation"], 0.0, settings.event_s),
        client_cores=client_cpu_s / real_s,
        server_cores=server_cpu_s / real_s,
        completions_per_s=answered / (after[0]["now_s"] - before[0]["now_s"]),
        complete_per_minute=complete_per_s * 60,
        late_s=max(stats["lateness"]["worst_s"] for stats in after),
    )


@contextmanager
def client(run: Path, servers: Sequence[Server], concurrency: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``fastgen generate`` with a target that it never reaches, and kill it at the end; stderr goes to ``said``."""
    urls = [part for server in servers for part in ("--base-url", server.base_url)]
    fixed = [] if concurrency == "default" else ["--concurrency", concurrency]
    command = [sys.executable, "-m", "fastgen", "generate", "--run-dir", str(run / "run"), *urls, *fixed, *flags]
    with (run / "said").open("wb") as said:
        process = subprocess.Popen([*command, "--num-instructions", "10000000"], stderr=said, cwd=ROOT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for_first_request(servers: Sequence[Server], process: subprocess.Popen[bytes], run: Path) -> None:
    """Return when the first server has a request.

    :raises RuntimeError: when the client ends before, or does not ask in time.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while servers[0].ask("/sim/stats")["now_s"] == 0:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise ended(run)
        time.sleep(0.05)


def ended(run: Path) -> RuntimeError:
    """Return the error to raise when the client has ended, with its last line."""
    said = (run / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return RuntimeError(f"fastgen generate ended: {said[-1] if said else 'without a message'}")


def sleep_until(server: Server, simulated_s: float, speed: float) -> None:
    """Sleep until a simulated time of the server, counted from its first request."""
    time.sleep(max(0.0, simulated_s - server.ask("/sim/stats")["now_s"]) / speed)


def original_loop(settings: Settings, instructions: int) -> float:
    """Run the original's loop on one engine and print its table; return its complete instructions a minute.

    It runs in a separate process: its pools fork, which is safe only in a process without threads.
    """
    with test_server(*settings.server_flags) as server:
        wanted = ("--base-url", server.base_url, "--instructions", str(instructions))
        command = [sys.executable, "-m", "benchmarks.original_loop", *wanted]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    table, _, last = said.strip().rpartition("\n")
    print(table)
    return float(orjson.loads(last)["figures"]["complete_per_minute"])


def print_results(results: Sequence[Result]) -> None:
    """Print one line for each scenario."""
    columns = (
        *("scenario", "output tokens/s", "ideal", "share", "saturation", "occupancy", "queue/batch"),
        *("ramp s", "recovered s", "completions/s", "client cores", "servers' cores"),
    )
    print_table(
        columns,
        [
            (
                *(r.scenario, r.tokens_per_s, r.ideal_tokens_per_s, r.share, r.saturation, r.occupancy, r.queue),
                "" if r.ramp_s is None else r.ramp_s,
                "" if r.recovered_after_s is None else r.recovered_after_s,
                *(r.completions_per_s, r.client_cores, r.server_cores),
            )
            for r in results
        ],
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default="steady", help="several with commas, or 'all' (default: %(default)s)")
    parser.add_argument("--engine", choices=list(ENGINES), default="h100-8b")
    parser.add_argument("--concurrency", default="auto", help="passed on; 'default' leaves the flag out")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm", type=float, default=10.0)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--processes", action="store_true", help="run each server in its own process")
    parser.add_argument("--original-instructions", type=int, default=100)
    parser.add_argument("--flags", default="", help="more arguments for the servers, in one string")
    return parser.parse_args()


def main() -> None:
    """Run and print."""
    given = _parse()
    settings = Settings(
        given.engine,
        *(given.concurrency, given.seconds, given.warm, given.speed, given.processes),
        flags=tuple(given.flags.split()),
    )
    known = scenarios(given.engine)
    wanted = [*known, "original"] if given.scenarios == "all" else given.scenarios.split(",")
    if {"eight", "original", "watched"} & set(wanted) and "steady" not in wanted:
        wanted.insert(0, "steady")
    if unknown := set(wanted) - {*known, "original"}:
        sys.exit(f"--scenarios: unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}, original")
    results: dict[str, Result] = {}
    for name in wanted:
        if name in known:
            results[name] = measure(known[name], settings)
            print(orjson.dumps(asdict(results[name])).decode(), file=sys.stderr, flush=True)
    print_results(list(results.values()))
    factors = {}
    if "eight" in results:
        factors["eight_over_eight_times_one"] = results["eight"].tokens_per_s / (8 * results["steady"].tokens_per_s)
        print(f"\neight servers: {factors['eight_over_eight_times_one']:.3f} of eight times one")
    if "watched" in results:
        factors["watched_over_steady"] = results["watched"].saturation / results["steady"].saturation
        print(f"\nwith a live page and a viewer: {factors['watched_over_steady']:.4f} of the saturation without")
    if "original" in wanted:
        print()
        original = original_loop(settings, given.original_instructions)
        factors["complete_over_original"] = results["steady"].complete_per_minute / original
        print(f"\ncomplete instructions a minute: {factors['complete_over_original']:.1f} times the original's loop")
    figures = {name: asdict(result) for name, result in results.items()}
    finish("saturation", figures | factors | {"settings": asdict(settings)})


if __name__ == "__main__":
    main()
