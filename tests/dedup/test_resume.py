"""A killed `fastgen dedup` costs nothing, and nothing is silently reused, replaced or mixed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from fastgen.dedup.job import Journal, Outputs, dedup
from fastgen.errors import DamagedLogError, DiskError
from fastgen.similarity.novelty import IndexKind, NoveltyFilter
from fastgen.store.tables import JsonlSink
from fastgen.telemetry.progress import QuietReporter
from tests.command_help import file_size_limit
from tests.dedup_data import similarity, write_rows
from tests.dedup_help import (
    Job,
    after,
    die,
    die_after_two_batches,
    in_killed_child,
    log_lines,
    refused,
    text_of,
    write_pool,
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


RUN = """\
import sys
from pathlib import Path
from fastgen.dedup.job import dedup
from fastgen.generate.options import SimilarityOptions
from fastgen.telemetry.progress import QuietReporter
folder = Path(sys.argv[1])
names = [folder / name for name in ("in.jsonl", "kept.jsonl", "rejected.jsonl")]
dedup(*names, SimilarityOptions(index="lsh"), QuietReporter(), against=[folder / "pool.jsonl"])
"""


def test_a_process_killed_at_several_points_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = Job(tmp_path / "whole"), Job(tmp_path / "killed")
    for job in (whole, killed):
        job.folder.mkdir()
        write_rows(job.source, 60_000)
        write_rows(job.folder / "pool.jsonl", 500, seed=2)
    pool = "pool.jsonl"
    counts = whole.run(similarity("lsh"), against=[whole.folder / pool])
    for lines in (3, 40, 110):
        with subprocess.Popen([sys.executable, "-c", RUN, str(killed.folder)]) as process:
            while process.poll() is None and log_lines(killed) < lines:
                os.sched_yield()
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert lines <= log_lines(killed) < 236
        assert not killed.kept.exists()
        assert not killed.rejected.exists()
    assert killed.run(similarity("lsh"), against=[killed.folder / pool]) == counts
    expected = whole.rejected.read_bytes().replace(bytes(whole.folder), bytes(killed.folder))
    assert killed.results() == (whole.kept.read_bytes(), expected)
    assert killed.files() == {"in.jsonl", pool, "kept.jsonl", "rejected.jsonl"}


def torn_write(count: int) -> Callable[[int, bytes], int]:
    """``os.write``, of which the ``count``-th writes half of a log line before the process dies."""
    calls = iter(range(1, count + 1))
    real = os.write

    def write(file: int, block: bytes) -> int:
        if next(calls) < count:
            return real(file, block)
        real(file, block[: len(block) // 2])
        die()
        raise AssertionError

    return write


POINTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "before the first decision": (Journal, "begin_anew", lambda real: after(1, real)),
    "after the pools": (Journal, "append", lambda real: after(1, real)),
    "after the first batch": (Journal, "append", lambda real: after(2, real)),
    "after some batches": (Journal, "append", lambda real: after(4, real)),
    "within the log's header": (os, "write", lambda _: torn_write(1)),
    "within a batch's decisions": (os, "write", lambda _: torn_write(4)),
    "with all decided": (Journal, "append", lambda real: after(7, real)),
    "with both outputs whole": (Journal, "mark_done", lambda real: after(1, real)),
    "between the two names": (Path, "replace", lambda real: after(3, real)),
    "with both names given": (Outputs, "publish", lambda real: after(1, real)),
    "with the log removed": (Path, "rmdir", lambda real: after(1, real)),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_whatever_moment_it_dies_at_the_same_command_finishes_it(
    job: Job, monkeypatch: pytest.MonkeyPatch, point: str, overwrite: bool
) -> None:
    rows = write_rows(job.source, 1500)
    counts = job.run()
    expected = job.results()
    if not overwrite:
        job.kept.unlink()
        job.rejected.unlink()
    owner, name, wrap = POINTS[point]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrap(getattr(owner, name)))
        in_killed_child(lambda: job.run(overwrite=overwrite))
    assert job.run(overwrite=overwrite) == counts
    assert job.results() == expected
    assert job.files() == {"in.jsonl", "kept.jsonl", "rejected.jsonl"}
    assert counts.rows == len(rows)


def test_half_an_output_never_gets_its_name_because_an_earlier_try_was_done(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(job.source, 1500)
    job.run()
    expected = job.results()
    job.kept.unlink()
    job.rejected.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "mark_done", after(1, Journal.mark_done))
        in_killed_child(job.run)
    (job.folder / "kept.jsonl.partial").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(JsonlSink, "write", after(3, JsonlSink.write))
        in_killed_child(job.run)
    job.run()
    assert job.results() == expected


@pytest.mark.parametrize("index", get_args(IndexKind))
def test_a_run_that_is_killed_again_and_again_makes_progress_each_time(
    job: Job, monkeypatch: pytest.MonkeyPatch, index: IndexKind
) -> None:
    write_rows(job.source, 4000)
    job.run(similarity(index))
    expected = job.results()
    job.kept.unlink()
    job.rejected.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", after(2, Journal.append))
        for _ in range(6):
            before = log_lines(job)
            in_killed_child(lambda: job.run(similarity(index)))
            assert log_lines(job) > before
    job.run(similarity(index))
    assert job.results() == expected


def test_what_is_decided_is_not_decided_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(job.source, 1500)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", after(4, Journal.append))
        in_killed_child(job.run)
    decided: list[str] = []
    real = NoveltyFilter.filter

    def spy(self: NoveltyFilter, texts: Sequence[str]) -> Any:
        decided.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(NoveltyFilter, "filter", spy)
    job.run()
    assert decided[-len(rows) + 3 * 256 :] == [text_of(row) for row in rows[3 * 256 :]]
    assert len(decided) <= len(rows) - 3 * 256 + 1  # one more is the warm-up's


def test_a_full_disk_stops_it_resumable(job: Job) -> None:
    write_rows(job.source, 8000)
    job.run()
    expected = job.results()
    with file_size_limit(len(expected[0]) // 2), pytest.raises(DiskError, match="run the same command again"):
        job.run(overwrite=True)
    assert job.results() == expected
    job.run(overwrite=True)
    assert job.results() == expected


@pytest.mark.parametrize("name", ["kept.jsonl", "rejected.jsonl"])
def test_a_finished_output_is_replaced_only_with_overwrite(job: Job, name: str) -> None:
    write_rows(job.source, 100)
    (job.folder / name).write_bytes(b"precious\n")
    refused(job.run, name, "--overwrite")
    assert (job.folder / name).read_bytes() == b"precious\n"
    assert job.files() == {"in.jsonl", name}
    assert job.run(overwrite=True).rows == 100
    assert b"precious" not in (job.folder / name).read_bytes()


CHANGES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "--threshold": lambda _: {"rule": similarity(threshold=0.6)},
    "--index": lambda _: {"rule": similarity("lsh")},
    "--tokenizer": lambda _: {"rule": similarity(tokenizer="rouge")},
    "--reject-at": lambda _: {"rule": similarity(reject_at="ge")},
    "--field": lambda _: {"field": "id"},
    "--against": lambda job: {"against": [write_pool(job)]},
}


@pytest.mark.parametrize("flag", CHANGES)
def test_an_unfinished_run_is_not_resumed_under_other_parameters(
    job: Job, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    write_rows(job.source, 1500)
    die_after_two_batches(job, monkeypatch)
    changed = CHANGES[flag](job)
    refused(lambda: job.run(**changed), flag, "--overwrite")
    job.run()
    expected = job.results()
    job.kept.unlink()
    job.rejected.unlink()
    if flag != "--field":
        die_after_two_batches(job, monkeypatch)
        job.run(**changed, overwrite=True)
        assert job.results() != expected or flag in {"--index", "--tokenizer"}


def test_an_unfinished_run_is_not_resumed_from_another_or_a_changed_input(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(job.source, 1500)
    die_after_two_batches(job, monkeypatch)
    other = job.folder / "other.jsonl"
    write_rows(other, 1500, seed=9)
    refused(
        lambda: dedup(other, job.kept, job.rejected, similarity(), QuietReporter()),
        "INPUT",
        "other.jsonl",
        "--overwrite",
    )
    job.source.write_bytes(b"".join([*rows[:300], b'{"instruction":"changed"}\n', *rows[301:]]))
    refused(job.run, "in.jsonl", "lines 257 to 512", "--overwrite")
    job.source.write_bytes(b"".join(rows[:256]))
    refused(job.run, "in.jsonl", "ends earlier", "--overwrite")
    assert job.run(overwrite=True).rows == 256
    assert job.files() == {"in.jsonl", "other.jsonl", "kept.jsonl", "rejected.jsonl"}


def test_an_unfinished_run_is_not_resumed_against_a_changed_pool(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(job.source, 1500)
    pool = write_pool(job)
    die_after_two_batches(job, monkeypatch, against=[pool])
    pool.write_bytes(b'{"instruction": "something else"}\n')
    refused(lambda: job.run(against=[pool]), "pool.jsonl", "--overwrite")
    assert job.run(against=[pool], overwrite=True).against == 1


def test_fixing_a_line_that_was_not_decided_yet_keeps_the_earlier_decisions(job: Job) -> None:
    rows = write_rows(job.source, 1500)
    job.source.write_bytes(b"".join([*rows[:700], b"{broken\n", *rows[701:]]))
    refused(job.run, "in.jsonl:701")
    assert log_lines(job) == 4
    job.source.write_bytes(b"".join(rows))
    assert job.run().rows == 1500


def test_two_at_once_on_one_output_are_refused(job: Job) -> None:
    write_rows(job.source, 10)
    with Journal(job.journal, {}):
        refused(job.run, "in use")
    refused(job.run, "unfinished")
    assert job.run(overwrite=True).rows == 10


def test_a_damaged_log_is_reported_and_never_read_as_a_shorter_one(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(job.source, 1500)
    die_after_two_batches(job, monkeypatch)
    segment = job.journal / "log" / "000000.jsonl"
    content = bytearray(segment.read_bytes())
    content[content.index(b'"rows"') + 8] ^= 1
    segment.write_bytes(content)
    with pytest.raises(DamagedLogError, match="remove this folder"):
        job.run()


def test_other_files_in_the_folder_for_unfinished_work_are_left_alone(job: Job) -> None:
    write_rows(job.source, 10)
    job.journal.mkdir()
    (job.journal / "diary.txt").write_text("mine")
    job.run()
    assert [path.name for path in job.journal.iterdir()] == ["diary.txt"]
