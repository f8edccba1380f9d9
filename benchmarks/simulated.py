"""Simulated servers and the real command line, in processes of their own, for benchmarks that put one on the other."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What all scenarios share; times are simulated seconds from the first request."""

    engine: str = "h100-8b"
    concurrency: str = "auto"
    seconds: float = 60.0
    warm_s: float = 10.0
    speed: float = 1.0
    processes: bool = False
    flags: tuple[str, ...] = ()

    @property
    def event_s(self) -> float:
        """When an event comes."""
        return self.seconds / 2


@dataclass(frozen=True, slots=True)
class Server:
    """A simulated server in another process."""

    base_url: str

    def stats(self) -> dict[str, Any]:
        """``GET /sim/stats``."""
        return self._ask("/sim/stats", None)

    def ideal_tokens_per_s(self, from_s: float, to_s: float) -> float:
        """``POST /sim/ideal``."""
        asked = orjson.dumps({"from_s": from_s, "to_s": to_s})
        return float(self._ask("/sim/ideal", asked)["tokens_per_s"])

    def _ask(self, route: str, body: bytes | None) -> dict[str, Any]:
        url = self.base_url.removesuffix("/v1") + route
        with urllib.request.urlopen(url, data=body, timeout=60) as answer:  # noqa: S310 - our own server
            said: dict[str, Any] = orjson.loads(answer.read())
        return said


@contextmanager
def simulated_servers(settings: Settings, instances: int, change: str | None = None) -> Iterator[list[Server]]:
    """``python -m fastgen.simulator`` with an engine, ended on leaving."""
    flags = ["--engine", settings.engine, "--speed", str(settings.speed), "--instances", str(instances)]
    flags += ["--processes"] if settings.processes else []
    flags += ["--at", f"{settings.event_s}:{change}"] if change else []
    command = [sys.executable, "-m", "fastgen.simulator", "--port", "0", *flags, *settings.flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(instances)]
            if not all(line.startswith("listening on ") for line in lines):
                raise RuntimeError(f"the simulated servers did not start: {lines!r}")
            yield [Server(line.split()[-1]) for line in lines]
        finally:
            process.terminate()


@contextmanager
def client(run: Path, servers: Sequence[Server], concurrency: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """``fastgen generate`` without an end, killed on leaving if it is still there; what it says goes to ``said``."""
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
    """Until it has come to the first server.

    :raises RuntimeError: it does not come.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while servers[0].stats()["now_s"] == 0:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise ended(run)
        time.sleep(0.05)


def ended(run: Path) -> RuntimeError:
    """Return what to raise when the client is not there any more, with its last words."""
    said = (run / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return RuntimeError(f"fastgen generate did not go on: {said[-1] if said else 'it said nothing'}")


def sleep_until(server: Server, simulated_s: float, speed: float) -> None:
    """Until the server's own time, from its first request on."""
    time.sleep(max(0.0, simulated_s - server.stats()["now_s"]) / speed)
