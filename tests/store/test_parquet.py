"""Parquet in, Parquet out, decided like JSON lines."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgen.dedup.job import Counts, dedup
from fastgen.errors import how_to_install
from fastgen.telemetry.progress import QuietReporter
from tests.dedup_data import make_texts, similarity, write_rows
from tests.dedup_help import (
    Job,
    refused,
    text_of,
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.source.write_bytes(b"PAR1 and so on")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "fastgen.store.parquet", raising=False)
    refused(job.run, how_to_install("parquet"))


def write_parquet(path: Path, count: int) -> Any:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = make_texts(count)
    columns = {
        "id": pa.array(range(count), pa.int16()),
        "instruction": pa.array(texts).dictionary_encode(),
        "turns": pa.array([[{"role": "user", "n": i}] * (i % 3) for i in range(count)]),
        "score": pa.array([None if i % 5 == 0 else i / 7 for i in range(count)], pa.float32()),
    }
    table = pa.table(columns).replace_schema_metadata({"made by": "a test"})
    pq.write_table(table, path, row_group_size=700)
    return table


def run_parquet(job: Job, **more: Any) -> Counts:
    names = [job.folder / name for name in ("in.parquet", "kept.parquet", "rejected.parquet")]
    return dedup(names[0], names[1], names[2], similarity(), QuietReporter(), **more)


def test_a_path_leads_to_a_text_within_a_parquet_row(job: Job) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    chats = [[{"role": "user", "content": t}, {"role": "assistant", "content": "Yes."}] for t in make_texts(60)]
    pq.write_table(pa.table({"id": range(60), "messages": chats}), job.folder / "in.parquet")
    job.source.write_bytes(b"".join(orjson.dumps({"messages": chat}) + b"\n" for chat in chats))
    counts = run_parquet(job, field="messages.0.content")
    assert counts == job.run(field="messages.0.content")
    assert 0 < counts.kept < 60
    assert pq.read_table(job.folder / "kept.parquet").column_names == ["id", "messages"]
    for field, named in {
        "messages.0.text": "missing; name the field",
        "messages.content": "missing; name the field",
        "messages.0": "not of text",
        "nothing.0": "missing; name the field that holds the text (there: id, messages)",
        "messages.2.content": ":1: messages.2.content: missing in this row",
    }.items():
        refused(partial(run_parquet, job, field=field, overwrite=True), named)


def test_parquet_rows_come_out_whole_and_decided_like_json_lines(job: Job) -> None:
    table = write_parquet(job.folder / "in.parquet", 2000)
    pq = pytest.importorskip("pyarrow.parquet")
    job.source.write_bytes(b"".join(orjson.dumps({"instruction": t}) + b"\n" for t in make_texts(2000)))
    assert run_parquet(job) == job.run()
    kept, rejected = pq.read_table(job.folder / "kept.parquet"), pq.read_table(job.folder / "rejected.parquet")
    lines = [row["line"] for row in job.rejected_rows()]
    assert kept.schema.equals(pq.read_schema(job.folder / "in.parquet"), check_metadata=True)
    assert kept.schema.metadata == {b"made by": b"a test"}
    assert kept.to_pylist() == [row for n, row in enumerate(table.to_pylist(), 1) if n not in set(lines)]
    assert rejected.column_names == ["line", "row", "rouge_l", "neighbour"]
    assert [row["row"] for row in rejected.to_pylist()] == [table.slice(n - 1, 1).to_pylist()[0] for n in lines]
    for ours, theirs in zip(rejected.to_pylist(), job.rejected_rows(), strict=True):
        assert {**ours, "row": None, "neighbour": {**ours["neighbour"], "file": str(job.source)}} == {
            **theirs,
            "row": None,
        }


def test_a_killed_parquet_run_ends_with_the_bytes_of_one_that_was_not(job: Job) -> None:
    write_parquet(job.folder / "in.parquet", 3000)
    outputs = [job.folder / name for name in ("kept.parquet", "rejected.parquet")]
    run_parquet(job)
    expected = [path.read_bytes() for path in outputs]
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from fastgen.dedup.job import dedup\nfrom fastgen.dedup.job import Journal\n"
        "from fastgen.generate.options import SimilarityOptions\nfrom fastgen.telemetry.progress import QuietReporter\n"
        "real, calls = Journal.append, iter(range(1, 5))\n"
        "def append(self, body):\n    real(self, body)\n    next(calls) == 4 and os.kill(os.getpid(), 9)\n"
        "Journal.append = append\nfiles = [Path(name) for name in sys.argv[1:]]\n"
        "dedup(*files, SimilarityOptions(index='exhaustive'), QuietReporter(), overwrite=True)"
    )
    killed = subprocess.run([sys.executable, "-c", script, job.folder / "in.parquet", *outputs], check=False)
    assert killed.returncode == -signal.SIGKILL
    run_parquet(job, overwrite=True)
    assert [path.read_bytes() for path in outputs] == expected


def test_a_parquet_pool_and_a_json_input_go_together_and_the_other_way_round(job: Job) -> None:
    table = write_parquet(job.folder / "in.parquet", 30)
    rows = write_rows(job.source, 30)
    assert job.run(against=[job.folder / "in.parquet"]) == Counts(30, 0, 30, 30)
    assert job.rejected_rows()[4]["neighbour"]["text"] == table["instruction"][4].as_py()
    odd = job.folder / "odd.jsonl"
    odd.write_bytes(b"".join(rows[:29]) + b'{"instruction":"%b \\ud800"}\n' % text_of(rows[29]).encode())
    assert run_parquet(job, against=[odd]) == Counts(30, 0, 30, 30)


def test_bad_parquet_is_reported_in_one_line(job: Job) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = job.folder / "in.parquet"
    for columns, words in (
        ({"prompt": ["a"]}, ["instruction: missing", "prompt"]),
        ({"instruction": [1]}, ["int64", "not of text"]),
        ({"instruction": ["a"] * 200 + [None]}, ["in.parquet:201", "null"]),
    ):
        pq.write_table(pa.table(columns), path)
        refused(lambda: run_parquet(job), *words)
    path.write_bytes(path.read_bytes()[:-6])
    refused(lambda: run_parquet(job), "in.parquet", "Parquet")
    path.write_bytes(b'{"instruction": "a"}\n')
    refused(lambda: run_parquet(job), "not a Parquet file")
    pq.write_table(pa.table({"instruction": ["a"]}), path)
    refused(
        lambda: dedup(path, job.kept, job.rejected, similarity(), QuietReporter()), "--output", "the input is Parquet"
    )
    assert job.files() == {"in.parquet"}


def test_an_empty_parquet_file_gives_two_empty_ones_of_the_right_schema(job: Job) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    schema = pa.schema([("instruction", pa.string()), ("n", pa.int8())])
    pq.write_table(schema.empty_table(), job.folder / "in.parquet")
    assert run_parquet(job) == Counts(0, 0, 0, 0)
    assert pq.read_table(job.folder / "kept.parquet").schema.equals(schema)
    assert pq.read_table(job.folder / "rejected.parquet").num_rows == 0
