"""Faults for real: killed processes, failing servers, full disks, damaged files. Nothing that was committed is lost.

Every run here is a separate process that uses the command line. Most are forked from the test process, which
has imported and compiled everything, so that a start costs a tenth of a second instead of one.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import orjson
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from fastgen.cli.app import run as command_line
from fastgen.generate import checkpoint as checkpointing
from fastgen.generate.checkpoint import Checkpointer
from fastgen.methods.base import Answered, Commit, Created
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.self_instruct.seeds import load_seed_tasks
from fastgen.similarity.novelty import warm_up
from fastgen.simulator.__main__ import main as fault_server
from fastgen.simulator.faults import Fault
from fastgen.store.ledger import Ledger
from fastgen.store.log import LogWriter, segment_files
from fastgen.store.run_folder import RunFolder
from fastgen.types import Failure

WAIT_S = 100
FORK = multiprocessing.get_context("fork")
EXACT = ("--index", "exhaustive", "--tokenizer", "rouge")  # rouge_score itself can then say what is similar
SEGMENT_BYTES = 20_000


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """What a forked run needs at once is there before the first fork."""
    import uvloop

    import fastgen.export.export
    import fastgen.generate.run
    import fastgen.report.status  # noqa: F401 - imported here, so that no fork has to

    uvloop.new_event_loop().close()
    warm_up("exhaustive")
    warm_up("lsh")


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """No process outlives its test, whatever that ends with."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@dataclass(frozen=True, slots=True)
class Job:
    """A command line in a separate process, and the file with its output."""

    process: ForkProcess
    said: Path

    def ended(self) -> tuple[int, list[str]]:
        """Exit code (negative: the signal) and lines, when it has ended."""
        self.process.join(WAIT_S)
        assert self.process.exitcode is not None, f"still running after {WAIT_S} s: {self.said.read_text()}"
        return self.process.exitcode, self.said.read_text().splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the process has ended; looks every few milliseconds."""
        deadline_s = time.monotonic() + WAIT_S
        while self.process.is_alive() and not condition():
            assert time.monotonic() < deadline_s, self.said.read_text()
            self.process.join(0.002)

    def wait_for_bytes(self, run: Path, size: int) -> None:
        """Until the run's log has grown beyond ``size``."""
        self.wait_for(lambda: written(run) > size)


def fork(target: Callable[[list[str]], int], arguments: list[str], said: Path, prepare: Callable[[], object]) -> Job:
    said.touch()
    process = FORK.Process(target=_in_fork, args=(target, arguments, said, prepare), daemon=True)
    process.start()
    return Job(process, said)


def _in_fork(
    target: Callable[[list[str]], int], arguments: list[str], said: Path, prepare: Callable[[], object]
) -> None:
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - this process's own
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare()
    sys.exit(target(arguments))


def nothing() -> None:
    """No preparation."""


def small_segments() -> None:
    """Log segments that are closed and compressed every few dozen completions."""
    defaults = LogWriter.__init__.__kwdefaults__
    assert defaults is not None
    assert "segment_bytes" in defaults
    defaults["segment_bytes"] = SEGMENT_BYTES


def generate(
    run: Path, url: str, count: int, *flags: str, said: Path | None = None, prepare: Callable[[], object] = nothing
) -> Job:
    arguments = ["generate", "--run-dir", str(run), "--base-url", url, "--num-instructions", str(count), *flags]
    return fork(command_line, arguments, said or run.with_name(f"{run.name}.said"), prepare)


@contextmanager
def server(*arguments: str, port: int = 0) -> Iterator[str]:
    """The shipped server's command line in a separate process. Yields its base URL."""
    reading, writing = os.pipe()
    process = FORK.Process(target=_serve, args=([*arguments, "--port", str(port)], writing), daemon=True)
    process.start()
    os.close(writing)
    try:
        with os.fdopen(reading) as lines:
            yield lines.readline().removeprefix("listening on ").strip()
    finally:
        process.kill()
        process.join()


def _serve(arguments: list[str], writing: int) -> None:
    os.dup2(writing, 1)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - this process's own
    sys.exit(fault_server(arguments))


def faults_of(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/faults", timeout=WAIT_S) as answer:  # noqa: S310 - ours
        seen: dict[str, Any] = orjson.loads(answer.read())
        return seen


def commits(run: Path) -> list[Commit]:
    folder = RunFolder(run)
    return list(folder.whole_commits()) if folder.exists() else []


def written(run: Path) -> int:
    """Bytes of log, closed segments counted as full."""
    segments = segment_files(run / "log")
    try:
        return SEGMENT_BYTES * segments[-1][0] + segments[-1][1].stat().st_size if segments else 0
    except FileNotFoundError:  # closed meanwhile
        return SEGMENT_BYTES * (segments[-1][0] + 1)


def call(*arguments: str | Path) -> int:
    """A command line in this process."""
    return command_line([str(argument) for argument in arguments])


def export(run: Path, *flags: str) -> list[dict[str, Any]]:
    output = run.with_name(f"{run.name}.jsonl")
    assert call("export", "--run-dir", run, "--output", output, "--overwrite", *flags) == 0
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file's size, time of change and content."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns, p.read_bytes()) for p in found}


# -- killed ------------------------------------------------------------------------------------------------------------

KILLS = 24


def test_killed_again_and_again_under_a_faulty_server_a_run_loses_changes_and_doubles_nothing(tmp_path: Path) -> None:
    run, moments = tmp_path / "run", random.Random(20221221)
    flags = ("--concurrency", "32", *EXACT)
    before: list[Commit] = []
    rows: list[dict[str, Any]] = []
    with server("--fault-rate", "0.25", "--latency", "0.002", "--seed", "3") as url:
        for kill in range(KILLS):
            job = generate(run, url, 100_000, *flags, prepare=small_segments)
            if kill % 3 == 0:  # also while it starts
                job.process.join(moments.uniform(0.0, 0.3))
            else:
                job.wait_for_bytes(run, written(run) + moments.randrange(30_000))
                job.process.join(moments.uniform(0.0, 0.02))
            job.kill()
            assert job.process.exitcode == -signal.SIGKILL, job.said.read_text()
            now = commits(run)
            assert now[: len(before)] == before
            before = now
            if kill % 6 == 5:
                exported = export(run)
                assert exported[: len(rows)] == rows
                rows = exported
        target = RunFolder(run).ledger().complete + 20
        command = [
            sys.executable,
            "-m",
            "fastgen",
            "generate",
            "--run-dir",
            str(run),
            "--num-instructions",
            str(target),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
        injected = faults_of(url)["injected"]
    assert done.returncode == 0, done.stderr
    after = export(run)
    assert after[: len(rows)] == rows
    assert len(after) == target
    assert len(segment_files(run / "log")) > 3, "segments were closed and compressed along the way"
    assert sum(injected.values()) > 100
    assert_whole(run, before)
    assert_filtered(run)


def assert_whole(run: Path, before: list[Commit]) -> None:
    """No commit was lost, changed or doubled; every instruction has one number and is settled at most once."""
    now = commits(run)
    assert now[: len(before)] == before
    assert max(Counter((c.request, c.choice) for c in now).values()) == 1
    numbers = [k.number for c in now if isinstance(c.outcome, Created) for k in c.outcome.kept]
    assert numbers == [*range(len(numbers))]
    settled = Counter(c.subject for c in now if isinstance(c.outcome, Answered) or _gives_up(c))
    assert set(settled.values()) <= {1}
    rows = export(run)
    assert len({row["id"] for row in rows}) == len(rows)
    ledger = Ledger()
    for commit in now:
        ledger.apply(commit)
    counted = RunFolder(run).ledger()
    assert (counted.complete, counted.kept, counted.rejected) == (ledger.complete, ledger.kept, ledger.rejected)
    assert counted.complete == len(rows)


def _gives_up(commit: Commit) -> bool:
    return isinstance(commit.outcome, Failure) and commit.outcome.settles


def assert_filtered(run: Path) -> None:
    """Every kept instruction passes the rules and rouge_score, against all seeds and all that were kept before it."""
    rules, scorer = PRESETS["default"], RougeScorer(["rougeL"])

    def rouge_l(one: str, other: str) -> float:
        return float(scorer.score(one, other)["rougeL"].fmeasure)

    pool = [
        (seed.instruction, Counter(tokenize(seed.instruction, None)))
        for seed in load_seed_tasks(run / "seed_tasks.jsonl")
    ]
    scored = similar = 0
    for commit in commits(run):
        if not isinstance(commit.outcome, Created):
            continue
        rejected = [r for r in commit.outcome.rejected if r.neighbour is not None]
        for text, at in [(item_text(commit.completion.text, r.span, rules), r.neighbour) for r in rejected]:
            kept_here = [item_text(commit.completion.text, k.span, rules) for k in commit.outcome.kept]
            other = [*(entry[0] for entry in pool), *kept_here][at[0] if at else 0]
            assert rouge_l(other, text) > 0.7
            similar += 1
        for kept in commit.outcome.kept:
            text = item_text(commit.completion.text, kept.span, rules)
            assert check_instruction(text, rules) is None
            words = Counter(tokenize(text, None))
            for other, others in pool:
                # Two texts share no longer sequence than they share words, so the rest cannot reach 0.5.
                if 2 * (words & others).total() > 0.5 * (words.total() + others.total()):
                    assert rouge_l(other, text) <= 0.7
                    scored += 1
            pool.append((text, words))
    assert similar > 10
    assert scored > 10


def test_a_run_killed_at_any_step_of_its_beginning_is_begun_by_the_same_command(tmp_path: Path) -> None:
    with server() as url:
        for step in ("lock", "seed_tasks.jsonl", "prompts", "run.json", "log", "log/000000.jsonl", "ledger.json"):
            run = tmp_path / step.replace("/", "-")
            job = generate(run, url, 100_000)
            job.wait_for((run / step).exists)
            job.kill()
            code, said = generate(run, url, 5).ended()
            assert code == 0, said
            assert len(export(run)) >= 5
            assert_whole(run, [])


def eager_checkpoints() -> None:
    """Small segments, and a checkpoint whenever the pool has grown by a twentieth."""
    small_segments()
    defaults = Checkpointer.__init__.__kwdefaults__
    assert defaults is not None
    assert {"growth", "least_growth"} <= defaults.keys()
    defaults.update(growth=0.05, least_growth=5)


def slow_checkpoints() -> None:
    """The same, and a file is written in pieces of a few bytes, so that a kill meets one half done."""
    eager_checkpoints()
    checkpointing._PIECE_BYTES = 512


def test_a_run_killed_while_a_checkpoint_is_written_resumes_from_the_last_whole_one(tmp_path: Path) -> None:
    run, moments = tmp_path / "run", random.Random(8)
    flags = ("--concurrency", "16", *EXACT)
    unfinished, checkpoint = run / ".checkpoint.npz.tmp", run / "checkpoint.npz"
    before: list[Commit] = []
    met = used = 0
    with server("--latency", "0.002", "--seed", "3") as url:
        for kill in range(10):
            job = generate(run, url, 100_000, *flags, prepare=slow_checkpoints)
            job.wait_for_bytes(run, written(run) + 20_000)
            if kill % 2:
                job.wait_for(checkpoint.exists)
                job.process.join(moments.uniform(0.0, 0.02))
            else:
                job.wait_for(unfinished.exists)
            job.kill()
            assert job.process.exitcode == -signal.SIGKILL, job.said.read_text()
            met += unfinished.exists()
            used += checkpoint.exists()
            now = commits(run)
            assert now[: len(before)] == before
            before = now
        assert met >= 3, "some of the kills met a file half written"
        assert used >= 5
        whole = checkpoint.read_bytes()
        target = RunFolder(run).ledger().complete + 20
        code, said = generate(run, url, target, *flags, prepare=eager_checkpoints).ended()
        assert code == 0, said
        assert not any("not used" in line for line in said)
        assert not unfinished.exists()
        assert checkpoint.read_bytes() != whole, "a clean end saves anew"
        assert_whole(run, before)
        assert_filtered(run)
        checkpoint.write_bytes(whole)  # stale, but of this run
        code, said = generate(run, url, target + 10, *flags, prepare=eager_checkpoints).ended()
        assert code == 0, said
        assert not any("not used" in line for line in said)
        checkpoint.write_bytes(whole[:-9])
        code, said = generate(run, url, target + 20, *flags, prepare=eager_checkpoints).ended()
        assert code == 0, said
        assert sum("not used" in line for line in said) == 1
    assert_whole(run, before)
    assert_filtered(run)


# -- servers -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_server_fault_costs_only_time(tmp_path: Path) -> None:
    """Each kind for the first dozen requests without exception, then for a quarter of all."""
    first = 12
    with ExitStack() as stack:
        jobs: dict[Fault, tuple[str, Job]] = {}
        for kind in Fault:
            script = ("--script", ",".join([kind] * first), "--faults", kind, "--fault-rate", "0.25", "--slow", "0.1")
            url = stack.enter_context(server(*script, "--seed", "7"))
            timeout = ("--request-timeout", "0.5") if kind is Fault.HANG else ()
            jobs[kind] = url, generate(tmp_path / kind, url, 12, "--concurrency", "6", *timeout)
        for kind, (url, job) in jobs.items():
            code, said = job.ended()
            assert code == 0, (kind, said)
            assert not [line for line in said if "Traceback" in line], (kind, said)
            assert faults_of(url)["injected"][kind] > first
            assert len(export(tmp_path / kind)) == 12
            assert_whole(tmp_path / kind, [])
            failures = dict(RunFolder(tmp_path / kind).ledger().failures)
            # What blames the request is recorded; everything else is asked again.
            # A choice that is missing next to good ones is recorded too: only it is requested again.
            recorded = {Fault.PROMPT_TOO_LONG: {"prompt_too_long"}, Fault.MISSING_CHOICE: {"lost_choice"}}
            assert set(failures) <= recorded.get(kind, set()), (kind, failures)
            assert failures or kind is not Fault.PROMPT_TOO_LONG
            of_faults = [line for line in said if "taken " not in line and " complete · " not in line]
            assert len(of_faults) < 15, "lines per kind of fault, never per request"


def test_a_server_that_refuses_connections_is_waited_for_and_used_as_soon_as_it_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = generate(tmp_path / "run", f"http://127.0.0.1:{port}/v1", 5, "--server-timeout", "60")
    job.wait_for(lambda: "waiting up to" in job.said.read_text())
    with server(port=port) as url:
        code, said = job.ended()
        assert code == 0, said
        assert str(port) in url
    assert len(export(tmp_path / "run")) == 5


def test_a_server_killed_and_started_again_during_a_run_costs_only_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with server("--latency", "0.01") as url:
        job = generate(run, url, 400, "--concurrency", "16")
        job.wait_for_bytes(run, 30_000)
    assert job.process.is_alive(), job.said.read_text()
    job.wait_for(lambda: "taken out until it answers" in job.said.read_text())
    with server("--latency", "0.01", port=int(url.rsplit(":", 1)[1].removesuffix("/v1"))):
        code, said = job.ended()
    assert code == 0, said
    assert RunFolder(run).ledger().failures == {}
    assert_whole(run, [])


def test_a_server_that_answers_nothing_but_errors_ends_the_run_resumable_and_no_instruction_is_given_up(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with server() as url:
        assert generate(run, url, 20).ended()[0] == 0
    before = commits(run)
    with server("--fault-rate", "1", "--faults", "500,invalid-json,reset") as url:
        code, said = generate(run, url, 40, "--outage-timeout", "1.5", "--max-attempts", "2").ended()
    assert code == 3
    assert "run the same command again" in said[-1]
    assert commits(run) == before
    with server() as url:
        assert generate(run, url, 40).ended()[0] == 0
    assert_whole(run, before)


def test_a_process_may_be_paused_longer_than_its_request_and_outage_timeouts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--concurrency", "8", "--request-timeout", "0.4", "--outage-timeout", "1.2")
    with server("--latency", "0.05", "--fault-rate", "0.25", "--faults", "500,reset") as url:
        job = generate(run, url, 60, *flags)
        job.wait_for_bytes(run, 20_000)
        assert job.process.pid is not None
        os.kill(job.process.pid, signal.SIGSTOP)
        job.process.join(2.5)  # the stop itself
        assert job.process.is_alive()
        os.kill(job.process.pid, signal.SIGCONT)
        code, said = job.ended()
    assert code == 0, said
    assert_whole(run, [])


def jumping_clock() -> None:
    """A wall clock that is set back and forth by months, between any two looks at it."""
    jumps = random.Random(5)
    real = time.time
    time.time = lambda: real() + jumps.uniform(-1e7, 1e7)


def test_a_clock_that_jumps_changes_nothing_but_the_times_in_the_log(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with server("--fault-rate", "0.25") as url:
        code, said = generate(run, url, 30, "--concurrency", "8", "--log-json", prepare=jumping_clock).ended()
    assert code == 0, said
    events = [orjson.loads(line) for line in said[:-1]]
    etas = [event["eta_s"] for event in events if event["event"] == "progress" and event["eta_s"] is not None]
    assert all(0 <= eta_s < 1e5 for eta_s in etas)
    assert call("status", "--run-dir", run) == 0
    assert_whole(run, [])


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs (or remounts it with other options); skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if os.path.ismount(place) else ["-o", options]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_stops_the_run_with_one_line_at_any_moment_and_it_resumes_with_more_room(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    with server() as url:
        for size_kb in (4, 104, 120, 128, 136, 140, 144, 400):  # too small for seeds, prompts, header, log ...
            disk = small_disk(f"size={size_kb}k")
            run = disk / f"run-{size_kb}"
            code, said = generate(run, url, 5000, "--quiet", said=tmp_path / "said").ended()
            assert code == 3, said
            assert len(said) == 1, said
            assert "No space left on device" in said[0]
            again, said = generate(run, url, 5000, "--quiet", said=tmp_path / "said").ended()
            assert (again, len(said)) == (3, 1), said
            before = commits(run)
            small_disk("size=64m")
            code, said = generate(run, url, max(10, RunFolder(run).ledger().complete + 5 if before else 10)).ended()
            assert code == 0, said
            assert_whole(shutil.copytree(run, tmp_path / run.name), before)
            shutil.rmtree(run)
        assert before, "the largest disk was full only in the middle of the log"


def test_a_read_only_run_folder_is_read_as_ever_and_refused_for_writing_in_one_line(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    run = small_disk("size=64m") / "run"
    with server() as url:
        assert generate(run, url, 8, prepare=small_segments).ended()[0] == 0
        shutil.copytree(run, tmp_path / "run")
        rows = export(tmp_path / "run")
        before = files(run)
        small_disk("ro")
        output = tmp_path / "out.jsonl"
        assert call("export", "--run-dir", run, "--output", output) == 0
        assert [orjson.loads(line) for line in output.read_bytes().splitlines()] == rows
        assert call("status", "--run-dir", run) == 0
        assert files(run) == before
        said = tmp_path / "said"
        job = fork(command_line, ["generate", "--run-dir", str(run), "--num-instructions", "20"], said, nothing)
        code, lines = job.ended()
    assert (code, len(lines)) == (3, 1), lines
    assert "Read-only file system" in lines[0]


def test_status_and_export_write_nothing_into_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with server() as url:
        job = generate(run, url, 100_000, prepare=small_segments)
        job.wait_for_bytes(run, 2 * SEGMENT_BYTES)
        job.kill()  # leaves a checkpoint behind the log's end, perhaps a torn line, perhaps a half-done compression
    before = files(run)
    for arguments in (["status"], ["status", "--json"], *(["export", "--output", "-", "--format", f] for f in FORMATS)):
        assert call(*arguments, "--run-dir", run) == 0
    assert files(run) == before
    assert capsys.readouterr().out


FORMATS = ("raw", "instances", "rejected")


def file_size_limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_limit_on_file_sizes_stops_the_run_with_one_line_and_it_resumes_without_the_limit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with server() as url:
        code, said = generate(run, url, 5000, "--quiet", prepare=file_size_limit).ended()
        assert (code, len(said)) == (3, 1), said
        assert "File too large" in said[0]
        before = commits(run)
        assert before
        assert generate(run, url, RunFolder(run).ledger().complete + 5).ended()[0] == 0
    assert_whole(run, before)


# -- damage and bad input ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 15 instructions in one segment, closed properly; copy it before changing it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with server() as url:
        assert generate(run, url, 15, "--concurrency", "8").ended()[0] == 0
    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("what", ["string", "number", "checksum", "newline"])
def test_a_flipped_byte_in_the_middle_of_the_log_is_named_with_file_and_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    log = run / "log" / "000000.jsonl"
    content = bytearray(log.read_bytes())
    lines = content.splitlines(keepends=True)
    number = len(lines) // 2
    start = sum(map(len, lines[:number]))
    place = {"string": b'"text":"', "number": b'"req":', "checksum": b'{"crc":"', "newline": b"\n"}[what]
    content[content.index(place, start) + (0 if what == "newline" else len(place) + 1)] ^= 0x01
    log.write_bytes(content)
    for arguments in (
        ["export", "--output", str(tmp_path / "out.jsonl")],
        ["generate", "--num-instructions", "99", "--base-url", "http://127.0.0.1:9/v1", "--quiet"],
    ):
        assert call(*arguments, "--run-dir", run) == 2
        assert f"log/000000.jsonl:{number + 1}: " in one_line(capsys)
    assert not (tmp_path / "out.jsonl").exists()
    assert log.read_bytes() == content, "what is damaged is left as it is"


def test_a_log_that_lost_whole_lines_at_its_end_is_reported_and_resumed(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    log = run / "log" / "000000.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-3]))
    before = commits(run)
    with server() as url:
        code, said = generate(run, url, 30, "--concurrency", "8").ended()
    assert code == 0, said
    assert sum("the end of the log is gone" in line and ": 3 commits that " in line for line in said) == 1
    assert_whole(run, before)


def test_a_moved_and_a_copied_run_folder_are_the_same_run(finished: Path, tmp_path: Path) -> None:
    rows = export(finished)
    copied = shutil.copytree(finished, tmp_path / "copied")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(shutil.copytree(finished, tmp_path / "run"), moved)
    with server() as url:
        for run in (copied, moved):
            assert export(run) == rows
            code, said = generate(run, url, 20).ended()
            assert code == 0, said
            assert export(run)[:15] == rows
    assert len(export(finished)) == 15


def test_a_second_process_on_a_folder_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with server("--latency", "0.01") as url:
        first = generate(run, url, 100_000, "--concurrency", "4")
        first.wait_for_bytes(run, 10_000)
        second = fork(command_line, ["generate", "--run-dir", str(run)], tmp_path / "second.said", nothing)
        code, said = second.ended()
        assert (code, len(said)) == (2, 1)
        assert f"--run-dir {run}: in use by process {first.process.pid}" in said[0]
        before = commits(run)
        first.wait_for(lambda: len(commits(run)) > len(before))
        first.kill()
        assert generate(run, url, RunFolder(run).ledger().complete + 3).ended()[0] == 0
    assert_whole(run, before)


SEED = {"id": "a", "name": "a", "instruction": "Name a river in Europe.", "is_classification": False}
GOOD = orjson.dumps(SEED | {"instances": [{"input": "", "output": "The Rhine"}]})
BAD_SEEDS = {
    "missing": (None, "No such file or directory"),
    "empty": (b"", "holds no seed task"),
    "blank": (b" \n\n", "holds no seed task"),
    "binary": (bytes(range(256)), "seeds.jsonl:1: holds a NUL byte"),
    "latin": (GOOD.replace(b"Rhine", b"Rh\xf4ne"), "seeds.jsonl:1: "),
    "broken": (GOOD + b'\n{"id": "b", \n', "seeds.jsonl:2: broken JSON"),
    "cut": (GOOD[:-9], "seeds.jsonl:1: broken JSON"),
    "list": (b"[1]", "seeds.jsonl:1: found a list"),
    "without instances": (orjson.dumps(SEED), "seeds.jsonl:1: instances: missing"),
    "null": (GOOD.replace(b'"Name a river in Europe."', b"null"), "seeds.jsonl:1: instruction: found null"),
    "yes": (GOOD.replace(b"false", b'"no"'), "seeds.jsonl:1: is_classification: found text"),
    "doubled": (GOOD + b"\n" + GOOD, 'seeds.jsonl:2: id: "a" is also on line 1'),
}


@pytest.mark.parametrize("name", BAD_SEEDS)
def test_a_bad_seed_file_is_refused_naming_line_and_field(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, named = BAD_SEEDS[name]
    seeds = tmp_path / "seeds.jsonl"
    if content is not None:
        seeds.write_bytes(content)
    assert (
        call("generate", "--run-dir", tmp_path / "run", "--seed-tasks", seeds, "--base-url", "http://127.0.0.1:9") == 2
    )
    assert named in one_line(capsys)
    assert call("seeds", "check", seeds) == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--preset", "papre"], '"papre" for --preset'),
        (["--num-instructions", "-5"], "--num-instructions: -5"),
        (["--num-instructions", "0"], "--num-instructions"),
        (["--concurrency", "-1"], "--concurrency: -1"),
        (["--threshold", "-0.1"], "--threshold: -0.1"),
        (["--threshold", "nan"], "--threshold: nan"),
        (["--min-words", "-1"], "--min-words: -1"),
        (["--max-attempts", "0"], "--max-attempts: 0"),
        (["--outage-timeout", "-3"], "--outage-timeout: -3"),
        (["--instruction.temperature", "-1"], "--instruction.temperature: -1"),
        (["--extra-body", "{"], "--extra-body"),
        (["--base-url", "ftp://x"], "--base-url ftp://x"),
        (["--config", "no-such.toml"], "--config no-such.toml"),
        (["--prompts", "no-such-folder"], "--prompts no-such-folder"),
    ],
)
def test_a_bad_flag_is_refused_by_name(
    flags: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("generate", "--run-dir", tmp_path / "run", *flags) == 2
    assert named in one_line(capsys)


def test_an_invalid_run_path_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    newer = shutil.copytree(finished, tmp_path / "newer")
    header = orjson.loads((newer / "run.json").read_bytes())
    (newer / "run.json").write_bytes(orjson.dumps(header | {"format": 99, "fastgen": "9.9"}))
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    text = (damaged / "run.json").read_text()
    (damaged / "run.json").write_text(text.replace("test-model-base", "test-modem"))
    gone = shutil.copytree(finished, tmp_path / "gone")
    (gone / "log" / "000000.jsonl").unlink()
    for run, named in (
        (file, "is a file"),
        (file / "below", "file"),
        (other, "holds files but no run"),
        (tmp_path / ("x" * 300), "File name too long"),
        (newer, "written by fastgen 9.9"),
        (damaged, "run.json: damaged"),
        (gone, "log segment 000000 is missing"),
    ):
        asking = ["generate", "--base-url", "http://127.0.0.1:9", "--num-instructions", "99", "--quiet"]
        for arguments in (asking, ["status"], ["export", "--output", "-"]):
            assert call(*arguments, "--run-dir", run) == 2
            said = one_line(capsys)
            assert named in said or (arguments is not asking and "no run here" in said)


def test_an_export_replaces_its_output_only_when_whole_and_never_a_device_or_a_link(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link, pipe = tmp_path / "target.jsonl", tmp_path / "link.jsonl", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    assert call("export", "--run-dir", finished, "--output", link) == 0
    assert link.is_symlink()
    assert target.read_bytes().count(b"\n") == 15
    job = fork(command_line, ["export", "--run-dir", str(finished), "--output", str(pipe)], tmp_path / "said", nothing)
    assert pipe.read_bytes() == target.read_bytes()
    assert job.ended()[0] == 0
    assert pipe.is_fifo()
    capsys.readouterr()
    for output in (tmp_path, target / "below", tmp_path / "none" / "x", tmp_path / ("x" * 300)):
        assert call("export", "--run-dir", finished, "--output", output) == 2
        assert f"--output {output}: cannot be written" in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "pipe", "said", "target.jsonl"]
    assert "instance" in {commit.step for commit in commits(finished)}
