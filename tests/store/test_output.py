"""Where a command may write: never into its inputs or a run, and over a user's file only when that was asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.errors import InputError
from fastgen.store.output import check_output, json_line, output_file
from fastgen.telemetry.progress import QuietReporter
from fastgen.tune.folder import BaseModel
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions
from fastgen.tune.tune import tune
from tests.command_help import fastgen
from tests.dedup_data import write_rows
from tests.export_help import Task, make_run, numbered

UNSAFE = "\u2028 \u2029 \x85 \x9b31m \u202e \u2066"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", numbered(20))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_of_run_files(run: Path, elsewhere: Path) -> Iterator[Path]:
    """Places in a run folder, by all the names that they can have."""
    log = run / "log" / "000000.jsonl"
    yield from (run / "run.json", log, run / "new.jsonl", run / "judgements" / "x" / "y.jsonl")
    yield run / "log" / ".." / "run.json"
    (elsewhere / "link").symlink_to(run / "run.json")
    (elsewhere / "folder").symlink_to(run)
    (elsewhere / "hard.jsonl").hardlink_to(log)
    yield from (elsewhere / "link", elsewhere / "folder" / "run.json", elsewhere / "hard.jsonl")


@pytest.mark.parametrize("command", ["export", "report", "generate"])
def test_no_command_writes_over_a_file_of_the_run_by_any_name(run: Path, tmp_path: Path, command: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = contents(run)
    for place in names_of_run_files(run, elsewhere):
        written = {"generate": ("--log-file", place)}.get(command, ("--output", place, "--overwrite"))
        said = fastgen(command, "--run-dir", run, *written)
        assert (said.code, len(said.err.splitlines())) == (2, 1), (place, said.err)
        assert said.err.startswith(f"fastgen: {written[0]} {place}: is "), said.err
        assert contents(run) == before


def test_other_commands_refuse_a_place_in_a_run_folder_too(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    rows = tmp_path / "in.jsonl"
    write_rows(rows, 3)
    for arguments in (
        ("refilter", "--run-dir", run, "--output", run / "strict"),
        ("export", "--run-dir", run, "--output", run / "data", "--card", "--format", "messages"),
        ("dedup", rows, "--output", run / "run.json", "--rejected", tmp_path / "r.jsonl", "--overwrite"),
        ("dedup", rows, "--output", tmp_path / "k.jsonl", "--rejected", run / "r.jsonl"),
        ("evaluate", "--data", rows, "--output", run),
        ("evaluate", "--compare", tmp_path, tmp_path, "--output", run),
    ):
        said = fastgen(*arguments)
        assert (said.code, "is in the folder of a run" in said.err) == (2, True), (arguments, said.err)
    base = BaseModel(tmp_path / "model", "model")
    parts = (DataOptions(run_dir=run), TrainingOptions(), MachineOptions())
    with pytest.raises(InputError, match="is in the folder of a run"):
        tune(base, run / "tuned", *parts, reporter=QuietReporter())
    assert contents(run) == before


def test_predictions_are_not_written_over_the_predictions_that_are_scored(tmp_path: Path) -> None:
    given = tmp_path / "predictions.jsonl"
    given.write_bytes(b'{"id": "a", "prediction": "b"}\n')
    said = fastgen("evaluate", "--data", tmp_path, "--predictions", given, "--output", tmp_path)
    assert (said.code, "which this command reads" in said.err) == (2, True)
    assert given.read_bytes() == b'{"id": "a", "prediction": "b"}\n'


def test_an_input_of_dedup_is_not_written_over_by_what_is_not_whole_yet(tmp_path: Path) -> None:
    rows = tmp_path / "kept.jsonl.partial"
    content = b"".join(write_rows(rows, 3))
    said = fastgen("dedup", rows, "--output", tmp_path / "kept.jsonl", "--rejected", tmp_path / "r.jsonl")
    assert (said.code, "kept.jsonl.partial first, which is another file" in said.err) == (2, True), said.err
    assert rows.read_bytes() == content


@pytest.mark.parametrize("command", ["export", "report"])
def test_a_file_that_is_there_is_replaced_only_with_overwrite(run: Path, tmp_path: Path, command: str) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.write_text("mine")
    link.symlink_to(mine)
    for place in (mine, link):
        said = fastgen(command, "--run-dir", run, "--output", place)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert f"--output {place}: is already there" in said.err
        assert "--overwrite" in said.err
        assert mine.read_text() == "mine"
    assert fastgen(command, "--run-dir", run, "--output", link, "--overwrite").code == 0
    assert link.is_symlink()
    assert mine.read_text() != "mine"
    assert fastgen(command, "--run-dir", run, "--output", "/dev/null").code == 0


def test_the_place_is_checked_before_the_run_is_read(run: Path, tmp_path: Path) -> None:
    (run / "log" / "000000.jsonl").write_bytes(b"damaged\n")
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for place in (mine, run / "run.json"):
        assert f"--output {place}: is " in fastgen("export", "--run-dir", run, "--output", place).err


def write_while_another_does(path: Path) -> None:
    with output_file(path) as (sink, _):
        sink.write(b"new")
        path.write_bytes(b"mine")


def test_a_file_that_comes_while_another_is_written_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is already there"):
        write_while_another_does(tmp_path / "out")
    assert contents(tmp_path) == {"out": b"mine"}


def test_an_output_that_holds_an_input_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "out" / "training" / "train.jsonl"
    source.parent.mkdir(parents=True)
    source.touch()
    with pytest.raises(InputError, match=r"holds .*train\.jsonl"):
        check_output("--output", tmp_path / "out", [source])


_KILLED_EXPORT = """
import os, signal, sys
from pathlib import Path
from fastgen.store.output import output_file
with output_file(Path(sys.argv[1])) as (sink, scratch):
    sink.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_removed_by_the_next_and_what_a_living_one_uses_is_not(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", _KILLED_EXPORT, folder / "a.jsonl"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = folder.iterdir()
    with output_file(folder / "living.jsonl") as (sink, scratch):
        assert not left.exists()
        sink.write(b"whole")
        assert fastgen("export", "--run-dir", run, "--output", folder / "b.jsonl").code == 0
        assert scratch.exists()
    assert {path.name for path in folder.iterdir()} == {"b.jsonl", "living.jsonl"}


def command(*arguments: str | Path) -> Sequence[str | Path]:
    return [sys.executable, "-m", "fastgen", *arguments]


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["status", "--json"], ["export", "--output", "-"]])
def test_a_standard_output_that_is_full_is_one_line(run: Path, arguments: list[str]) -> None:
    which = [] if arguments == ["--help"] else ["--run-dir", str(run)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command(*arguments, *which), stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr.decode()
    assert b"cannot be written (No space left on device); make room" in done.stderr


def test_a_reader_that_closes_early_is_no_error(run: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command("status", "--run-dir", run), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_error_of_another_file_is_not_taken_for_one_of_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(PermissionError):
        cli.run(["status"])


@pytest.mark.parametrize("form", ["raw", "instances", "alpaca", "messages", "prompt-completion", "rejected"])
def test_no_character_of_a_text_is_taken_for_a_line_end(tmp_path: Path, form: str) -> None:
    task = Task(f"Name a river.{UNSAFE}", ((f"in{UNSAFE}", f"out{UNSAFE}"),))
    run, output = make_run(tmp_path / "run", [task]), tmp_path / "out"
    assert fastgen("export", "--run-dir", run, "--format", form, "--output", output).code == 0
    text = output.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines == text.rstrip("\n").split("\n")
    assert not set(UNSAFE.replace(" ", "")) & set(text) - {"3", "1", "m"}
    if form == "instances":
        (row,) = map(orjson.loads, lines)
        assert (row["input"], row["output"]) == (f"in{UNSAFE}", f"out{UNSAFE}")


def test_a_line_loads_to_what_it_was_made_of() -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    line = json_line({"text": every})
    assert orjson.loads(line) == {"text": every}
    assert line.decode().splitlines() == [line.decode().removesuffix("\n")]
    assert "é 汉 \u200f" in json_line("é 汉 \u200f").decode()
