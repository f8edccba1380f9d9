"""The run folder: one writer, any number of readers, a ledger that always agrees with the log."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from fastgen.commits import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome, Kept, Rejection
from fastgen.errors import DamagedLogError, DiskError, FastgenError, RunFolderError
from fastgen.ledger import Ledger
from fastgen.log import TornTail
from fastgen.records import Completion, Failure, Stage
from fastgen.store import RunFolder, Store

COMPLETION = Completion("Name three rivers.", "stop", 100, 7)


def commits() -> list[Commit]:
    kept = InstructionOutcome(
        (Kept((0, 18), 0, (3, 0.25), ()),), (Rejection((0, 4), "too_short"), Rejection((0, 9), "similar", (5, 0.9)))
    )
    return [
        Commit(0, 0, Stage.INSTRUCTION, None, (1, 2), COMPLETION, kept, 10.0),
        Commit(1, 0, Stage.CLASSIFICATION, 0, (), Completion("No", "stop", 50, 1), ClassificationOutcome(False), 11.0),
        Commit(2, 0, Stage.INSTANCE, 0, (), COMPLETION, InstanceOutcome((((0, 0), (0, 4)),), ("duplicate",)), 12.0),
        Commit(3, 0, Stage.INSTRUCTION, None, (1,), Completion("", None), Failure("http_500", "x"), 13.0),
    ]


def begin(path: Path) -> Store:
    store = Store(RunFolder(path))
    store.begin({"model": "m", "preset": "default"}, {"num_instructions": 5}, "0")
    assert list(store.replay()) == []
    return store


def append(store: Store, what: list[Commit]) -> None:
    store.append(what)
    for commit in what:
        store.ledger.apply(commit)


def test_what_one_session_appends_the_next_replays(tmp_path: Path) -> None:
    store = begin(tmp_path / "run")
    append(store, commits()[:2])
    append(store, commits()[2:])
    store.close()
    again = Store(RunFolder(tmp_path / "run"))
    assert list(again.replay()) == commits()
    assert again.ledger == store.ledger
    again.close()


def test_the_ledger_counts_what_the_commits_say(tmp_path: Path) -> None:
    store = begin(tmp_path / "run")
    append(store, commits())
    ledger = store.ledger
    store.close()
    assert (ledger.kept, ledger.complete, ledger.empty, ledger.pending, ledger.instances) == (1, 1, 0, 0, 1)
    assert ledger.rejected == {"too_short": 1, "similar": 1}
    assert ledger.rejected_instances == {"duplicate": 1}
    assert ledger.failures == {"http_500": 1}
    assert ledger.generated_tokens == 15
    assert ledger.yield_per_1000_tokens == pytest.approx(1000 / 15)
    assert ledger.acceptance == pytest.approx(1 / 3)
    assert Ledger.from_dict(orjson.loads(orjson.dumps(ledger.as_dict()))) == ledger


def test_a_reader_sees_the_run_while_it_is_written_with_or_without_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits()[:1])
    store.save_ledger()
    append(store, commits()[1:])
    folder = RunFolder(path)
    assert folder.ledger() == store.ledger
    (path / "ledger.json").write_text("{nonsense")
    assert folder.ledger() == store.ledger
    (path / "ledger.json").unlink()
    assert folder.ledger() == store.ledger
    store.close()


def test_a_snapshot_of_another_log_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits())
    store.close()
    snapshot = orjson.loads((path / "ledger.json").read_bytes())
    snapshot["position"] = [0, 200, 12345]
    snapshot["counts"]["kept"] = 77
    (path / "ledger.json").write_bytes(orjson.dumps(snapshot))
    assert RunFolder(path).ledger() == store.ledger


def test_a_torn_end_is_dropped_and_told(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits())
    store.close()
    segment = path / "log" / "000000.jsonl"
    segment.write_bytes(segment.read_bytes()[:-7])
    again = Store(RunFolder(path))
    assert list(again.replay()) == commits()[:-1]
    assert isinstance(again.torn, TornTail)
    append(again, commits()[-1:])
    again.close()
    assert [c[0] for c in RunFolder(path).commits() if not isinstance(c, TornTail)] == commits()


def test_a_line_that_is_no_commit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    store._open_writer().append([{"surprise": 1}])
    store.close()
    with pytest.raises(DamagedLogError, match="upgrade fastgen"):
        list(RunFolder(path).commits())


def test_a_second_writer_is_refused_by_name_and_let_in_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    script = (
        "import sys; from pathlib import Path; from fastgen.store import RunFolder, Store\n"
        "from fastgen.errors import RunFolderError\n"
        "try: Store(RunFolder(Path(sys.argv[1])))\n"
        "except RunFolderError as error: print(error); sys.exit(error.exit_code)\n"
    )
    busy = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert busy.returncode == 2
    assert "in use by process" in busy.stdout
    store.close()
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0


def test_a_run_path_that_is_a_file_or_holds_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    for path in (file, other):
        with pytest.raises(RunFolderError, match=re.escape(str(path))):
            RunFolder(path).exists()
    with pytest.raises(FastgenError, match=r"is a file|lies under"):
        Store(RunFolder(file / "below"))


def test_a_missing_damaged_or_newer_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RunFolderError, match="no run here"):
        RunFolder(path).header()
    path.mkdir()
    (path / "run.json").write_bytes(b"\xff\x00")
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder(path).header()
    (path / "run.json").write_bytes(
        orjson.dumps({"format": 99, "run": "r", "fastgen": "9.9", "meaning": {}, "options": {}})
    )
    with pytest.raises(RunFolderError, match=r"written by fastgen 9\.9"):
        RunFolder(path).header()


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    store = Store(folder)
    (tmp_path / "run" / ".run.json.tmp").mkdir()
    with pytest.raises(DiskError, match=r"run\.json: cannot be written"):
        store.begin({}, {}, "0")
    store.close()
