"""What each fault costs a run, and what its user sees.

``python -m benchmarks.reliability [--instructions 150] [--kills 20]``

Every row is real: command lines in separate processes, the test server in another, real signals, real files, a real
full disk (a tmpfs, where mounting is permitted). *Injected* is counted by the server or by this script. *Lost* are
commits (judged completions, one log line each) that were in the log before the fault and are missing, changed or
doubled after the last resume; and requests that failed permanently. What the user sees is quoted from standard error.
``docs/reliability.md`` has the table.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

from benchmarks.harness import ROOT, Server, finish, print_table, test_server
from fastgen.methods.base import Commit
from fastgen.simulator.answers import Writer
from fastgen.simulator.faults import USUAL_FAULTS, Fault
from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.run_folder import RunFolder

FASTGEN = [sys.executable, "-m", "fastgen"]
FIRST = 32  # requests that fail without exception before a quarter of all does
EACH_WAIT_S = 300.0
_COUNTED = re.compile(r"(\w+) (\d+)(?=,|$)")  # of "server faults met: timeout 129, all_down 12"
_NOISE = re.compile(r"^  |making|compiling|\d+/\d+ complete|instructions complete|resuming with")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    injected: str
    lost: str
    seen: str


@dataclass(frozen=True, slots=True)
class Ended:
    """An exit code and what was said on standard error."""

    code: int
    said: tuple[str, ...]

    def seen(self) -> str:
        """What of it is about the fault, as one cell of a table."""
        lines = [line for line in self.said if not _NOISE.search(line)]
        lines = lines if self.code else lines[-1:]
        text = lines[-1] if lines else "nothing but the progress"
        text = re.sub(r"/\S*/(run\S*|log\S*|new\b)", r"…/\1", re.sub(r"(http://)?127\.0\.0\.1:\d+(/v1)?", "HOST", text))
        return f"exit {self.code}: {text}".replace("|", r"\|")


def start(
    run: Path,
    url: str | None,
    count: int,
    *flags: str,
    prepare: Callable[[], None] | None = None,
    stderr: int = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start ``fastgen generate``."""
    place = ["--base-url", url] if url else []
    command = [*FASTGEN, "generate", "--run-dir", str(run), *place, "--num-instructions", str(count), *flags]
    environment = {**os.environ, **(env or {})}
    return subprocess.Popen(command, stderr=stderr, text=True, cwd=ROOT, env=environment, preexec_fn=prepare)  # noqa: PLW1509 - sets a limit only


def carry_out(*arguments: str | Path) -> Ended:
    """Another ``fastgen`` command, to its end."""
    done = subprocess.run([*FASTGEN, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT)
    return Ended(done.returncode, tuple(done.stderr.splitlines()))


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for it."""
    _, said = process.communicate(timeout=EACH_WAIT_S)
    return Ended(process.returncode, tuple((said or "").splitlines()))


def commits(run: Path) -> list[Commit]:
    """What is committed."""
    folder = RunFolder(run)
    return list(folder.whole_commits()) if folder.exists() else []


def wait_for(run: Path, process: subprocess.Popen[str], size: int) -> None:
    """Return when the log has more than ``size`` bytes, or the process ends."""
    log = run / "log" / "000000.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size > size):
        time.sleep(0.002)


def injected(server: Server) -> int:
    """Return the number of faults that the server has injected so far."""
    return int(sum(server.ask("/faults")["injected"].values()))


def lost(run: Path, before: list[Commit]) -> str:
    """The cell of what was lost or doubled."""
    now = commits(run)
    changed = sum(1 for i, commit in enumerate(before) if i >= len(now) or now[i] != commit)
    doubled = len(now) - len({(c.request, c.choice) for c in now})
    return f"{changed} of {len(before)} commits" + (f", {doubled} doubled" if doubled else "") + given_up(run)


def given_up(run: Path) -> str:
    """The rest of that cell: requests that were recorded as failed."""
    failures = RunFolder(run).ledger().failures
    return "".join(f"; {count} requests recorded as {kind}" for kind, count in failures.items())


# -- servers -----------------------------------------------------------------------------------------------------------


GROUPS: dict[str, tuple[Fault, ...]] = {
    "connections reset or closed, also in the middle of an answer": (
        *(Fault.RESET, Fault.DISCONNECT, Fault.RESET_MID_BODY, Fault.TRUNCATED_BODY),
    ),
    "no answer, or a late one": (Fault.HANG, Fault.SLOW),
    "429, 500, 502, 503, with and without Retry-After": (
        *(Fault.RATE_LIMIT, Fault.RATE_LIMIT_RETRY_AFTER, Fault.OVERLOADED, Fault.OVERLOADED_RETRY_AFTER),
        *(Fault.SERVER_ERROR, Fault.BAD_GATEWAY),
    ),
    "answers that are no valid answer (JSON, choices, types, text)": (
        *(Fault.INVALID_JSON, Fault.EMPTY_CHOICES, Fault.MISSING_CHOICE, Fault.EXTRA_CHOICE),
        *(Fault.DUPLICATE_INDEX, Fault.WRONG_TYPES, Fault.NULL_TEXT),
    ),
    "answers that lack a finish reason or token counts": (Fault.NULL_FINISH_REASON, Fault.NO_USAGE),
    "answers that are aborted or 2 MB long": (Fault.ABORTED, Fault.HUGE),
    "prompts refused as too long": (Fault.PROMPT_TOO_LONG,),
    "all of these mixed": tuple(USUAL_FAULTS),
}
"""The server faults by what a user would call them: one row each."""


def server_faults(folder: Path, instructions: int, name: str) -> Row:
    """One group: a run for each kind (one run for the mixture), all of which must reach their target."""
    kinds = [GROUPS[name]] if name == "all of these mixed" else [(kind,) for kind in GROUPS[name]]
    runs = [_server_fault(folder / str(number), instructions, several) for number, several in enumerate(kinds)]
    faults: Counter[str] = Counter()
    for run in runs:
        faults.update({kind: int(count) for kind, count in _COUNTED.findall(run.seen)})
    seen = ", ".join(f"{kind} {count}" for kind, count in faults.most_common()) or "nothing but the progress"
    given_up = "; ".join(sorted({run.lost for run in runs}))
    return Row(f"server: {name}", f"{sum(int(run.injected) for run in runs)} times", given_up, f"exit 0: {seen}")


def _server_fault(folder: Path, instructions: int, kinds: tuple[Fault, ...]) -> Row:
    """One run: these faults for the first requests without exception, then for a quarter of all."""
    run = folder / "run"
    run.parent.mkdir(parents=True)
    script = ",".join(kinds[i % len(kinds)].value for i in range(FIRST))
    plan = ("--script", script, "--faults", ",".join(kinds), "--fault-rate", "0.25", "--slow", "0.5")
    flags = ("--request-timeout", "1") if kinds == (Fault.HANG,) else ()
    with test_server(*plan, "--latency", "0.005") as server:
        ended = end(start(run, server.base_url, instructions, "--concurrency", "16", *flags))
        count = injected(server)
    complete = RunFolder(run).ledger().complete
    assert (ended.code, complete) == (0, instructions), ended
    return Row("", str(count), f"nothing: {complete} of {instructions} instructions" + given_up(run), ended.seen())


def late_server(folder: Path) -> Row:
    """Connections refused until the client has said that it waits."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = folder / "run"
    process = start(run, f"http://127.0.0.1:{port}/v1", 20)
    assert process.stderr is not None
    told = next(line.strip() for line in process.stderr if "waiting up to" in line)
    with test_server("--port", str(port)):
        ended = end(process)
    cell = f"nothing: {RunFolder(run).ledger().complete} of 20 instructions" + given_up(run)
    return Row("connections refused at the start", "until told", cell, Ended(ended.code, (told,)).seen())


def restarted_server(folder: Path, times: int = 5) -> Row:
    """A server that is killed and comes back, several times in one run."""
    run = folder / "run"
    process, port = None, "0"
    for _ in range(times):
        with test_server("--latency", "0.01", "--port", port) as server:
            port = server.base_url.rsplit(":", 1)[1].removesuffix("/v1")
            process = process or start(run, server.base_url, 1500, "--concurrency", "16")
            log = run / "log" / "000000.jsonl"
            wait_for(run, process, (log.stat().st_size if log.exists() else 0) + 20_000)
            server.process.kill()
    assert process is not None
    before = commits(run)
    with test_server("--port", port):
        ended = end(process)
    return Row("server killed and started again", f"{times} times", lost(run, before), ended.seen())


def failing_server(folder: Path) -> Row:
    """Nothing but errors for longer than the outage timeout, then a server that works."""
    run = folder / "run"
    with test_server() as server:
        end(start(run, server.base_url, 50))
    before = commits(run)
    with test_server("--fault-rate", "1", "--faults", "500,invalid-json,reset") as server:
        stopped = end(start(run, server.base_url, 100, "--outage-timeout", "3"))
        count = injected(server)
    with test_server() as server:
        end(start(run, server.base_url, 100))
    return Row("server: nothing but errors", f"{count} times", lost(run, before), stopped.seen())


# -- processes ---------------------------------------------------------------------------------------------------------


def kills(folder: Path, count: int) -> Row:
    """SIGKILL at random moments, under a server of which a quarter of all answers are faults."""
    run, moments = folder / "run", random.Random(1)
    before: list[Commit] = []
    bad = 0
    with test_server("--fault-rate", "0.25", "--latency", "0.005") as server:
        for _ in range(count):
            process = start(run, server.base_url, 1_000_000, "--concurrency", "32")
            log = run / "log" / "000000.jsonl"
            wait_for(run, process, (log.stat().st_size if log.exists() else 0) + moments.randrange(60_000))
            time.sleep(moments.uniform(0, 0.05))  # the moment itself
            process.kill()
            process.communicate()
            now = commits(run)
            bad += now[: len(before)] != before
            before = now
        ended = end(start(run, server.base_url, RunFolder(run).ledger().complete + 20))
    row = Row("SIGKILL at random moments", f"{count} times in a row", lost(run, before), ended.seen())
    assert not bad, row
    return row


def signalled(folder: Path, name: str, *numbers: signal.Signals) -> Row:
    """Other signals in the middle of a run, then the same command."""
    run = folder / "run"
    with test_server("--latency", "0.05") as server:
        process = start(run, server.base_url, 1_000_000, "--concurrency", "16", "--request-timeout", "2")
        wait_for(run, process, 40_000)
        for number in numbers:
            process.send_signal(number)
            if number is signal.SIGSTOP:
                time.sleep(5)  # longer than a request may take
        before = commits(run)
        if signal.SIGCONT in numbers:
            wait_for(run, process, 120_000)
            process.send_signal(signal.SIGINT)
        ended = end(process)
        end(start(run, server.base_url, RunFolder(run).ledger().complete + 5))
    return Row(name, "once", lost(run, before), ended.seen())


def two_writers(folder: Path) -> Row:
    """A second process on the same folder."""
    run = folder / "run"
    with test_server("--latency", "0.01") as server:
        first = start(run, server.base_url, 600, "--concurrency", "8")
        wait_for(run, first, 20_000)
        before = commits(run)
        second = end(start(run, server.base_url, 600))
        end(first)
    return Row("a second process on the run folder", "once", lost(run, before), second.seen())


# -- disks -------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], bool]]:
    """A tmpfs under ``folder``, mounted or remounted as told; false where that is not permitted."""
    folder.mkdir()

    def mount(options: str) -> bool:
        options = f"remount,{options}" if os.path.ismount(folder) else options
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    try:
        yield mount
    finally:
        if os.path.ismount(folder):
            subprocess.run(["umount", "-l", folder], check=True)


def full_disk(folder: Path) -> Row:
    """Disks that are full at different moments of a run; more room each time."""
    sizes_kb = (4, 104, 120, 128, 136, 140, 300, 600, 1200)
    ended, before, changed = Ended(0, ()), list[Commit](), 0
    with small_disk(folder / "disk") as mount, test_server() as server:
        run = folder / "disk" / "run"
        for size_kb in sizes_kb:
            if not mount(f"size={size_kb}k"):
                return Row("disk full", "not permitted here", "-", "-")
            ended = end(start(run, server.base_url, 1_000_000, "--quiet"))
            assert (ended.code, len(ended.said)) == (3, 1), ended
            now = commits(run)
            changed += now[: len(before)] != before
            before = now
        mount("size=64m")
        end(start(run, server.base_url, RunFolder(run).ledger().complete + 20))
        cell = lost(run, before)
    assert not changed
    return Row("disk full (tmpfs)", f"{len(sizes_kb)} times, at different steps", cell, ended.seen())


def read_only(folder: Path) -> Row:
    """A run folder on a disk that has become read-only."""
    with small_disk(folder / "disk") as mount, test_server() as server:
        run = folder / "disk" / "run"
        if not mount("size=64m"):
            return Row("run folder read-only", "not permitted here", "-", "-")
        end(start(run, server.base_url, 50))
        before = commits(run)
        mount("ro")
        ended = end(start(run, server.base_url, 100))
        command = [*FASTGEN, "export", "--run-dir", str(run), "--output", "-"]
        exported = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
        assert exported.stdout.count(b"\n") == 50
        return Row("run folder read-only", "once", lost(run, before), ended.seen() + " (status and export still work)")


def size_limit(folder: Path) -> Row:
    """``ulimit -f``."""
    run = folder / "run"
    with test_server() as server:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (300_000, 300_000))
        ended = end(start(run, server.base_url, 1_000_000, prepare=limit))
        before = commits(run)
        end(start(run, server.base_url, RunFolder(run).ledger().complete + 20))
    return Row("limit on file sizes (ulimit -f)", "once", lost(run, before), ended.seen())


def damaged(folder: Path, flips: int = 100) -> tuple[Row, Row]:
    """Flipped bits in the middle of the log, which must be named; and a torn end, which must be dropped."""
    run = folder / "run"
    with test_server() as server:
        end(start(run, server.base_url, 50))
        log = run / "log" / "000000.jsonl"
        whole, before = log.read_bytes(), commits(run)
        places = random.Random(2)
        found = 0
        said = ""
        for _ in range(flips):
            spoilt = bytearray(whole)
            place = places.randrange(len(whole) - 200)
            spoilt[place] ^= 1 << places.randrange(8)
            log.write_bytes(spoilt)
            try:
                commits(run)
            except Exception as error:  # noqa: BLE001 - whatever is raised must name the line
                said = str(error)
                found += f"000000.jsonl:{whole[:place].count(10) + 1}: " in said
        log.write_bytes(spoilt)
        ended = end(start(run, server.base_url, 60))
        log.write_bytes(whole)
        flipped = Row("one bit of the log flipped", f"{flips} times", f"{flips - found} undetected", ended.seen())
        log.write_bytes(whole + whole[-300:-100])
        torn = end(start(run, server.base_url, 60))
        return flipped, Row("a line cut short at the log's end", "once", lost(run, before), torn.seen())


def damaged_end(folder: Path, flips: int = 8) -> Row:
    """Flipped bits in the log's last newline, and zeros in place of its last lines: all of it had been synced."""
    run = folder / "run"
    with test_server() as server:
        end(start(run, server.base_url, 50))
    log = run / "log" / "000000.jsonl"
    whole, before = log.read_bytes(), commits(run)
    spoilt = [whole[:-1] + bytes([10 ^ 1 << bit]) for bit in range(flips)]
    spoilt += [whole[:-size] + bytes(size) for size in (100, 1000, 10_000)]
    found, ended = 0, Ended(0, ())
    for content in spoilt:
        log.write_bytes(content)
        ended = carry_out("export", "--run-dir", run, "--output", os.devnull)
        found += ended.code == 2 and "000000.jsonl:" in ended.said[-1]
    log.write_bytes(whole)
    cell = f"{len(spoilt) - found} undetected; {lost(run, before)}"
    return Row("the log's end changed after it was synced", f"{len(spoilt)} times", cell, ended.seen())


def lost_files(folder: Path) -> Row:
    """Remove the lock or the log of a running run."""
    ended, cells = Ended(0, ()), set()
    with test_server("--latency", "0.01") as server:
        for name in ("lock", "log/000000.jsonl"):
            run = folder / name.replace("/", "-") / "run"
            process = start(run, server.base_url, 1_000_000, "--concurrency", "8")
            wait_for(run, process, 20_000)
            copy = (run / name).read_bytes()
            (run / name).unlink()
            ended = end(process)
            assert ended.code == 3, ended
            if name != "lock":
                (run / name).write_bytes(copy)
            before = commits(run)
            end(start(run, server.base_url, RunFolder(run).ledger().complete + 5))
            cells.add(lost(run, before).split(" of ")[0])
    return Row("lock or log removed under a run", "once each", f"{'/'.join(cells)} commits", ended.seen())


def derived(folder: Path) -> Row:
    """Every file that is derived from the log, with four kinds of rubbish in it."""
    run = folder / "run"
    with test_server() as server:
        end(start(run, server.base_url, 50))
        before, times, ended = commits(run), 0, Ended(0, ())
        for name in ("ledger.json", "checkpoint.npz", "metrics.jsonl"):
            for rubbish in (b"", b"\0" * 4096, b"{}\n", os.urandom(4096)):
                (run / name).write_bytes(rubbish)
                ended = end(start(run, server.base_url, RunFolder(run).ledger().complete + 1))
                assert ended.code == 0, (name, rubbish[:8], ended)
                times += 1
    return Row(
        "rubbish in ledger.json, checkpoint.npz, metrics.jsonl", f"{times} times", lost(run, before), ended.seen()
    )


def displays(folder: Path) -> Row:
    """Standard error that is full, closed, or a full pipe without a reader."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(65536))
    os.set_blocking(writing, True)
    full = os.open("/dev/full", os.O_WRONLY)
    with test_server() as server:
        for name, stderr, prepare in (
            ("full", full, None),
            ("closed", subprocess.DEVNULL, partial(os.close, 2)),
            ("unread", writing, None),
        ):
            process = start(folder / name / "run", server.base_url, 50, stderr=stderr, prepare=prepare)
            assert process.wait(EACH_WAIT_S) == 0, name
            assert RunFolder(folder / name / "run").ledger().complete == 50
    for descriptor in (reading, writing, full):
        os.close(descriptor)
    return Row("standard error full, closed, or unread", "once each", "nothing: 50 of 50 instructions", "exit 0")


def killed_refilter(folder: Path) -> Row:
    """A refilter that is killed as soon as its log begins; the folder is refused, the same command makes it."""
    run, output = folder / "run", folder / "new"
    with test_server() as server:
        end(start(run, server.base_url, 1500, "--concurrency", "64", "--quiet"))
        again = [*FASTGEN, "refilter", "--run-dir", str(run), "--output", str(output)]
        process = subprocess.Popen(again, stderr=subprocess.DEVNULL, cwd=ROOT)
        while not (output / "log").exists():
            time.sleep(0.001)
        process.kill()
        process.wait()
        refused = end(start(output, server.base_url, 1600))
        assert refused.code == 2, refused
        assert carry_out(*again[len(FASTGEN) :]).code == 0
    before, now = (RunFolder(one).ledger().complete for one in (run, output))
    return Row("refilter killed", "once", f"{before - now} of {before} instructions", refused.seen())


def voids(folder: Path) -> list[Row]:
    """Each step in turn gives nothing that can be read."""
    good = Writer(similar_share=0.0).answer

    def stage_of(prompt: str) -> str:
        said = good(prompt, 0)
        if said in (" Yes", " No"):
            return "classification"
        return "instance" if "Output:" in said or "Class label:" in said else "instruction"

    rows = []
    for stage in ("instruction", "classification", "instance"):
        run, asked = folder / stage / "run", [0]

        def write(prompt: str, choice: int, stage: str = stage, asked: list[int] = asked) -> str:
            is_void = stage_of(prompt) == stage
            asked[0] += is_void
            return "" if is_void else good(prompt, choice)

        with in_a_thread(FaultServer(write=write)) as server:
            ended = end(start(run, server.base_url, 1000, "--concurrency", "16"))
        assert ended.code == 3, ended
        ledger = RunFolder(run).ledger()
        cell = f"{ledger.complete} complete and {ledger.kept} kept stay"
        rows.append(Row(f"every answer of the {stage} step is empty", f"{asked[0]} answers", cell, ended.seen()))
    return rows


def kernel_cache(folder: Path) -> Row:
    """Compiled kernels that are cut short, zeroed or changed on disk."""
    cache, run = folder / "cache", folder / "run"
    with test_server() as server:
        for number, kept in enumerate((1.0, 0.5, 0.0)):
            for path in cache.rglob("*.nb?"):
                whole = path.read_bytes()
                path.write_bytes(whole[: int(kept * len(whole))] or bytes(len(whole)))
            ended = end(start(run, server.base_url, 20 + number, env={"NUMBA_CACHE_DIR": str(cache)}))
            assert ended.code == 0, ended
    return Row("compiled kernels cut short, zeroed", "once each", "nothing", ended.seen())


def little_room(folder: Path) -> Row:
    """Limits on open files and on address space."""
    with test_server("--engine", "h100-8b") as server:
        files = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (128, 128))
        space = partial(resource.setrlimit, resource.RLIMIT_AS, (4 << 30, 4 << 30))
        for name, prepare in (("space", space), ("files", files)):
            ended = end(start(folder / name / "run", server.base_url, 100, prepare=prepare))
            assert ended.code == 0, (name, ended)
    name = "ulimit -v 4 GB, ulimit -n 128 (--concurrency auto)"
    return Row(name, "once each", "nothing: 100 of 100 instructions", ended.seen())


def moved(folder: Path) -> Row:
    """A run folder that was moved, and a copy of it."""
    run, elsewhere = folder / "run", folder / "elsewhere" / "run"
    elsewhere.parent.mkdir()
    with test_server() as server:
        end(start(run, server.base_url, 50))
        before = commits(run)
        shutil.copytree(run, folder / "run-copy")
        shutil.move(run, elsewhere)
        end(start(folder / "run-copy", server.base_url, 60))
        ended = end(start(elsewhere, server.base_url, 60))
    cells = {lost(elsewhere, before), lost(folder / "run-copy", before)}
    return Row("run folder moved, and copied", "once each", " / ".join(cells), ended.seen())


def table(instructions: int, kill_count: int) -> list[Row]:
    """All rows; those of servers several at a time."""
    with tempfile.TemporaryDirectory(prefix="fastgen-reliability-") as name:
        folder = Path(name)

        def own(row: Callable[[Path], Row]) -> Row:
            return row(Path(tempfile.mkdtemp(dir=folder)))

        with ThreadPoolExecutor(4) as several:
            rows = list(several.map(lambda name: own(lambda at: server_faults(at, instructions, name)), GROUPS))
        sigint, term = signal.SIGINT, signal.SIGTERM
        stop = "stopped for 5 s (Ctrl-Z) with a request timeout of 2 s, then Ctrl-C"
        others: tuple[Callable[[Path], Row], ...] = (
            late_server,
            restarted_server,
            failing_server,
            lambda at: kills(at, kill_count),
            lambda at: signalled(at, "SIGINT (Ctrl-C)", sigint),
            lambda at: signalled(at, "SIGINT twice", sigint, sigint),
            lambda at: signalled(at, "SIGTERM", term),
            lambda at: signalled(at, stop, signal.SIGSTOP, signal.SIGCONT),
            two_writers,
            full_disk,
            read_only,
            size_limit,
            moved,
            damaged_end,
            lost_files,
            derived,
            killed_refilter,
            displays,
            kernel_cache,
            little_room,
        )
        several_rows = [*damaged(Path(tempfile.mkdtemp(dir=folder))), *voids(Path(tempfile.mkdtemp(dir=folder)))]
        return [*rows, *(own(row) for row in others), *several_rows]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", type=int, default=150, help="of each run under server faults")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    rows = table(given.instructions, given.kills)
    print_table(("fault", "injected", "lost", "what the user sees"), [astuple(row) for row in rows])
    finish("reliability", {"settings": vars(given), "rows": [astuple(row) for row in rows]})


if __name__ == "__main__":
    main()
