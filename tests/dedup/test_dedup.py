"""`fastgen dedup` from outside: what comes out, and which names and rules are refused."""

from __future__ import annotations

import os
import signal
import subprocess
from io import StringIO
from pathlib import Path
from typing import get_args

import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.dedup import job as dedup_progress
from fastgen.dedup.job import Counts, Journal, dedup
from fastgen.similarity.novelty import IndexKind, NoveltyFilter
from fastgen.similarity.options import SimilarityOptions
from fastgen.similarity.rouge import RejectAt, Tokenizer, rejects, rouge_l_f1, tokenise
from fastgen.telemetry.display import Display
from fastgen.telemetry.progress import JsonReporter, QuietReporter
from tests.dedup_data import make_rows, similarity, write_rows
from tests.dedup_help import (
    Job,
    after,
    die_after_two_batches,
    refused,
    text_of,
    write_pool,
)
from tests.export_help import make_run, numbered


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize("index", get_args(IndexKind))
@pytest.mark.parametrize(("tokenizer", "reject_at"), [("unicode", "gt"), ("rouge", "ge")])
def test_every_row_comes_out_once_in_order_to_the_byte_where_one_at_a_time_puts_it(
    job: Job, index: IndexKind, tokenizer: Tokenizer, reject_at: RejectAt
) -> None:
    rows = write_rows(job.source, 1500)
    counts = job.run(similarity(index, tokenizer=tokenizer, reject_at=reject_at))
    novelty = NoveltyFilter(index=index, tokenizer=tokenizer, reject_at=reject_at)
    novel = [novelty.filter([text_of(row)])[0].novel for row in rows]
    assert job.kept.read_bytes() == b"".join(row for row, keep in zip(rows, novel, strict=True) if keep)
    refused = [row.strip() for row, keep in zip(rows, novel, strict=True) if not keep]
    lines = job.rejected.read_bytes().splitlines()
    assert all(b'"row":%b,' % row in line for row, line in zip(refused, lines, strict=True))
    assert [row["line"] for row in job.rejected_rows()] == [n for n, keep in enumerate(novel, 1) if not keep]
    assert counts == Counts(1500, sum(novel), 1500 - sum(novel), 0)
    assert 200 < counts.rejected < 700
    assert job.files() == {"in.jsonl", "kept.jsonl", "rejected.jsonl"}


def test_a_rejected_row_names_a_kept_line_before_it_whose_score_breaks_the_rule(job: Job) -> None:
    rows = write_rows(job.source, 800)
    job.run()
    kept = set(job.kept.read_bytes().splitlines())
    for row in job.rejected_rows():
        neighbour = row["neighbour"]
        assert neighbour["file"] == str(job.source)
        assert neighbour["line"] < row["line"]
        assert rows[neighbour["line"] - 1].rstrip(b"\n").rstrip(b"\r") in {k.rstrip(b"\r") for k in kept}
        assert neighbour["text"] == text_of(rows[neighbour["line"] - 1])
        score = rouge_l_f1(tokenise(row["row"]["instruction"]), tokenise(neighbour["text"]))
        assert row["rouge_l"] == score
        assert rejects(score, 0.7)


def test_rows_like_those_of_other_files_are_rejected_and_the_other_files_are_not_written(job: Job) -> None:
    rows = write_rows(job.source, 300)
    pools = [job.folder / "pool.jsonl", job.folder / "more.jsonl"]
    pools[0].write_bytes(b"\n" + rows[5] + b'{"instruction":""}\n')
    pools[1].write_bytes(rows[250] + rows[17] + rows[17])
    counts = job.run(against=pools)
    assert counts.against == 5
    by_line = {refused["line"]: refused["neighbour"] for refused in job.rejected_rows()}
    assert by_line[6] == {"file": str(pools[0]), "line": 2, "text": text_of(rows[5])}
    assert by_line[18] == {"file": str(pools[1]), "line": 2, "text": text_of(rows[17])}
    assert by_line[251] == {"file": str(pools[1]), "line": 1, "text": text_of(rows[250])}
    assert set(job.kept.read_bytes().splitlines(keepends=True)) <= set(rows)


def test_a_supernaturalinstructions_task_is_a_pool_of_its_definitions(job: Job) -> None:
    rows = write_rows(job.source, 20)
    pool = job.folder / "task1_example.json"
    pool.write_bytes(orjson.dumps({"Definition": [text_of(rows[3])], "Instances": []}, option=orjson.OPT_INDENT_2))
    assert job.run(against=[pool]).against == 1
    assert {"file": str(pool), "line": 1, "text": text_of(rows[3])} in [r["neighbour"] for r in job.rejected_rows()]


def test_another_field_can_hold_the_text(job: Job) -> None:
    job.source.write_bytes(b'{"prompt":"one two three"}\n{"prompt":"one two three"}\n{"prompt":"four five"}\n')
    assert job.run(field="prompt") == Counts(3, 2, 1, 0)


def test_progress_shows_rows_kept_and_rejected(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_progress, "_TICK_S", 0.0)
    write_rows(job.source, 1000)
    said = StringIO()
    reporter = JsonReporter(Display(said))
    dedup(job.source, job.kept, job.rejected, similarity("lsh"), reporter)
    reporter.close()
    events = [orjson.loads(line) for line in said.getvalue().splitlines()]
    assert "MinHash bands" in events[0]["text"]
    progress = [event for event in events if event["event"] == "progress"]
    assert [event["complete"] for event in progress] == [256, 512, 768, 1000]
    assert all(event["kept"] + event["rejected"] == event["complete"] <= event["target"] for event in progress)


def test_progress_is_shown_while_a_run_catches_up_too(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(job.source, 1500)
    die_after_two_batches(job, monkeypatch)
    monkeypatch.setattr(dedup_progress, "_TICK_S", 0.0)
    said = StringIO()
    reporter = JsonReporter(Display(said))
    dedup(job.source, job.kept, job.rejected, similarity(), reporter)
    reporter.close()
    assert [orjson.loads(line)["complete"] for line in said.getvalue().splitlines()] == [
        256,
        512,
        768,
        1024,
        1280,
        1500,
    ]


def test_one_file_in_two_roles_is_refused(job: Job) -> None:
    write_rows(job.source, 3)
    link, hard = job.folder / "link.jsonl", job.folder / "hard.jsonl"
    link.symlink_to(job.source)
    hard.hardlink_to(job.source)
    pool = write_pool(job)
    before = job.files()

    def run(kept: Path, rejected: Path, *pools: Path) -> None:
        dedup(job.source, kept, rejected, similarity(), QuietReporter(), against=pools, overwrite=True)

    for output in (job.source, link, hard):
        refused(lambda output=output: run(output, job.rejected), "--output")  # type: ignore[misc]  # mypy takes the default for an argument
        refused(lambda output=output: run(job.kept, output), "--rejected")  # type: ignore[misc]
    refused(lambda: run(job.kept, job.kept), "--rejected")
    refused(lambda: run(pool, job.rejected, pool), "--output")
    refused(lambda: run(job.kept, job.rejected, job.source), "--against")
    assert job.files() == before
    assert job.source.read_bytes() == b"".join(make_rows(3))


def test_outputs_that_are_no_files_or_would_be_of_another_kind_are_refused(job: Job) -> None:
    write_rows(job.source, 3)
    (job.folder / "sub").mkdir()

    def run(kept: Path) -> None:
        dedup(job.source, kept, job.rejected, similarity(), QuietReporter(), overwrite=True)

    refused(lambda: run(Path(os.devnull)), "not a regular file")
    refused(lambda: run(job.folder / "sub"), "not a regular file")
    refused(lambda: run(job.folder / "kept.jsonl.gz"), ".gz")
    refused(lambda: run(job.folder / "kept.parquet"), "JSON lines")
    refused(lambda: run(job.folder / "nowhere" / "kept.jsonl"), "nowhere")
    refused(lambda: run(job.source / "kept.jsonl"), "in.jsonl")
    assert job.files() == {"in.jsonl", "sub"}


def test_an_output_that_is_a_link_stays_one(job: Job) -> None:
    write_rows(job.source, 3)
    target = job.folder / "target.jsonl"
    job.kept.symlink_to(target)
    counts = job.run()
    assert job.kept.is_symlink()
    assert target.read_bytes().count(b"\n") == counts.kept > 0


def test_a_rule_out_of_range_is_refused_before_anything_is_written(job: Job) -> None:
    write_rows(job.source, 3)
    refused(lambda: job.run(SimilarityOptions(threshold=1.5)), "threshold")
    assert job.files() == {"in.jsonl"}


def command(job: Job, *more: str | Path) -> int:
    files = [job.source, "--output", job.kept, "--rejected", job.rejected]
    return cli.run([str(argument) for argument in ("dedup", *files, *more)])


def test_the_command_does_the_same_and_says_what_it_did(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(job.source, 300)
    pools = [write_pool(job), job.folder / "more.jsonl"]
    pools[1].write_bytes(rows[1])
    rule = ["--index", "exhaustive", "--threshold", "0.6", "--reject-at", "ge", "--tokenizer", "rouge"]
    assert command(job, *rule, "--against", pools[0], "--against", pools[1], "--field", "instruction") == 0
    said = capsys.readouterr()
    assert said.out == ""
    results = job.results()
    counts = job.run(similarity("exhaustive", 0.6, "rouge", "ge"), against=pools, overwrite=True)
    assert job.results() == results
    assert said.err.splitlines()[-1].startswith(f"{counts.kept} of 300 rows kept")


def test_the_command_reports_bad_input_in_one_line(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.source.write_bytes(b"{\n")
    assert command(job, "--index", "exhaustive") == 2
    assert capsys.readouterr().err.startswith(f"fastgen: {job.source}:1: broken JSON")
    assert command(job, "--threshold", "7") == 2
    assert "--threshold" in capsys.readouterr().err
    assert command(job, "--index", "none") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ctrl_c_says_how_to_resume(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(job.source, 1500)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", after(3, Journal.append, signal.SIGINT))
        # a job in the background starts with SIGINT ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code = command(job, "--index", "exhaustive")
        finally:
            signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "same command" in capsys.readouterr().err
    assert command(job, "--index", "exhaustive") == 0
    results = job.results()
    job.run(overwrite=True)
    assert job.results() == results


def test_an_alpaca_export_can_be_read(job: Job, tmp_path: Path) -> None:
    run, exported = make_run(tmp_path / "run", numbered(10)), tmp_path / "data.json"
    assert cli.run(["export", "--run-dir", str(run), "--format", "alpaca", "--output", str(exported)]) == 0
    counts = dedup(exported, job.kept, job.rejected, similarity(), QuietReporter())
    assert counts.rows == 20
    rows = [orjson.loads(line) for line in job.kept.read_bytes().splitlines()]
    assert rows == [row for row in orjson.loads(exported.read_bytes()) if row in rows][: len(rows)]


@pytest.mark.parametrize("size_kb", range(16, 88, 4))
def test_a_full_disk_is_one_line_whatever_its_size(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], size_kb: int
) -> None:
    write_rows(job.source, 1500)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        outputs = ["--output", str(disk / "kept.jsonl"), "--rejected", str(disk / "rejected.jsonl")]
        assert cli.run(["dedup", str(job.source), *outputs, "--index", "exhaustive", "--quiet"]) == 3
        said = capsys.readouterr().err
        assert (said.count("\n"), "No space left on device" in said) == (1, True), said
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
