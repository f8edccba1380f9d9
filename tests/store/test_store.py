"""The run folder: one writer, any number of readers, a ledger that always agrees with the log."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest

from fastgen.errors import DamagedLogError, DiskError, FastgenError, InputError, RunFolderError
from fastgen.generate.options import Options, run_configuration, saved_values
from fastgen.generate.run import free_bytes
from fastgen.methods.base import Answered, Commit, Created, Kept, Labelled, Rejection
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks, seed_fingerprint
from fastgen.store.ledger import Ledger
from fastgen.store.log import LogWriter, TornTail, seal, segment_files
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder, RunHeader, Store
from fastgen.types import Completion, Failure

COMPLETION = Completion("Name three rivers.", "stop", 100, 7)


def commits() -> list[Commit]:
    kept = Created(
        (Kept((0, 18), 0, (3, 0.25), ()),), (Rejection((0, 4), "too_short"), Rejection((0, 9), "similar", (5, 0.9)))
    )
    return [
        Commit(0, 0, "instruction", None, (1, 2), COMPLETION, kept, 10.0),
        Commit(1, 0, "classification", 0, (), Completion("No", "stop", 50, 1), Labelled(False), 11.0),
        Commit(2, 0, "instance", 0, (), COMPLETION, Answered((((0, 0), (0, 4)),), ("duplicate",)), 12.0),
        Commit(3, 0, "instruction", None, (1,), Completion("", None), Failure("http_500", "x"), 13.0),
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


def test_a_reader_sees_the_run_while_it_is_written_with_or_without_a_saved_ledger(tmp_path: Path) -> None:
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


def test_a_saved_ledger_of_another_log_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits())
    store.close()
    snapshot = orjson.loads((path / "ledger.json").read_bytes())
    del snapshot["crc"]
    snapshot["counts"]["kept"] = 77
    for position in ([0, 200, 12345], [0, 10**6, 12345]):
        (path / "ledger.json").write_bytes(seal(snapshot | {"position": position}, 0)[0])
        assert RunFolder(path).saved_counts().ledger.kept == 77
        assert RunFolder(path).ledger() == store.ledger


def test_a_torn_end_is_dropped_and_reported(tmp_path: Path) -> None:
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
    assert list(RunFolder(path).whole_commits()) == commits()


def test_a_line_that_is_no_commit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    store.job.log.append([{"surprise": 1}])
    store.close()
    with pytest.raises(DamagedLogError, match="upgrade fastgen"):
        list(RunFolder(path).commits())


def test_a_second_writer_is_refused_by_name_and_let_in_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    script = (
        "import sys; from pathlib import Path; from fastgen.store.run_folder import RunFolder, Store\n"
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


def test_a_flipped_byte_in_the_ledger_or_in_the_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits())
    store.server_figures = {"prefix_cache_hit_rate": 0.5}
    store.close()
    whole = (path / "ledger.json").read_bytes()
    assert RunFolder(path).saved_counts().server == {"prefix_cache_hit_rate": 0.5}
    (path / "ledger.json").write_bytes(whole.replace(b'"kept":1', b'"kept":9'))
    assert RunFolder(path).ledger() == store.ledger
    assert RunFolder(path).saved_counts().server == {}
    header = (path / "run.json").read_bytes()
    (path / "run.json").write_bytes(header.replace(b'"model": "m"', b'"model": "n"'))
    with pytest.raises(RunFolderError, match=r"run\.json: damaged"):
        RunFolder(path).header()
    (path / "run.json").write_bytes(orjson.dumps(orjson.loads(header)))
    assert RunFolder(path).header().configuration["model"] == "m", "the layout of the file says nothing"


@pytest.mark.parametrize(
    ("options", "named"), [({"seed": 1 << 70}, "--seed"), ({"base_url": ["\udcff"]}, "--base-url")]
)
def test_an_option_that_json_cannot_hold_is_refused_by_name(
    tmp_path: Path, options: dict[str, object], named: str
) -> None:
    store = Store(RunFolder(tmp_path / "run"))
    with pytest.raises(InputError, match=f"{named}: .* cannot be kept"):
        store.begin({}, options, "0")
    store.close()


def test_a_folder_in_which_a_run_was_only_about_to_begin_is_free_for_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    folder = RunFolder(path)
    Store(folder).close()
    folder.save_inputs(b"seeds", {"base.toml": b"prompts"}, {"decontaminate": ["forbidden"]})
    (path / ".run.json.tmp").write_bytes(b"{")
    assert not folder.exists()
    folder.save_inputs(b"seeds", {"base.toml": b"prompts"})
    assert folder.texts("decontaminate") == ()
    (path / "lock").unlink()
    with pytest.raises(RunFolderError, match="holds files but no run"):
        folder.exists()


def test_a_folder_that_is_no_name_or_may_not_be_looked_into_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFolderError, match="File name too long"):
        RunFolder(tmp_path / ("x" * 300)).exists()
    begin(tmp_path / "run").close()
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "run.json").mkdir()
    with pytest.raises(RunFolderError, match=r"run\.json: cannot be read"):
        RunFolder(tmp_path / "run").header()


def test_a_place_where_the_seeds_or_prompts_cannot_be_kept_is_a_disk_error(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Store(RunFolder(path)).close()
    (path / "prompts").write_text("in the way")
    with pytest.raises(DiskError, match="prompts: cannot be written"):
        RunFolder(path).save_inputs(b"", {})
    with pytest.raises(DiskError, match="cannot be written"):
        RunFolder(tmp_path / "none").write_header(RunHeader("r", "0", {}, {}))


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_lock_is_taken_also_where_there_is_no_room_to_say_by_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    monkeypatch.setattr(os, "write", full_disk)
    store = Store(RunFolder(path))
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="in use by another process"):
        Store(RunFolder(path))
    store.close()
    Store(RunFolder(path)).close()


def test_a_file_system_without_locks_and_a_read_only_one_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RunFolderError, match="cannot lock files"):
        Store(RunFolder(tmp_path / "run"))
    monkeypatch.setattr(os, "open", full_disk)
    with pytest.raises(DiskError, match="cannot be written"):
        Store(RunFolder(tmp_path / "run"))


def test_a_write_that_fails_leaves_no_temporary_file_and_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    begin(path).close()
    header = (path / "run.json").read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DiskError, match="No space left"):
        RunFolder(path).write_header(RunHeader("r", "0", {}, {}))
    assert (path / "run.json").read_bytes() == header
    assert not (path / ".run.json.tmp").exists()


def test_the_ledger_is_saved_only_when_it_has_all_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits()[:1])
    store.save_ledger()
    store.append(commits()[1:])  # the process is stopped before these are counted
    store.save_ledger()
    store.close()
    snapshot = RunFolder(path).saved_counts().ledger
    assert snapshot.commits == 1
    assert RunFolder(path).ledger().commits == 4


def test_closed_segments_are_compressed_and_a_lost_last_one_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LogWriter.__init__.__kwdefaults__ or {}, "segment_bytes", 300)
    path = tmp_path / "run"
    store = begin(path)
    for commit in commits():
        append(store, [commit])
    store.compress_closed()
    store.close()
    store.compress_closed()
    segments = segment_files(path / "log")
    assert {p.suffix for _, p in segments[:-1]} == {".zst"}
    assert segments[-1][1].suffix == ".jsonl"
    assert list(RunFolder(path).whole_commits()) == commits()
    segments[-1][1].unlink()
    with pytest.raises(DamagedLogError, match=f"segment {segments[-1][0]:06d} is missing"):
        list(RunFolder(path).commits())
    with pytest.raises(DamagedLogError, match="is missing"):
        RunFolder(path).ledger()
    (path / "ledger.json").unlink()
    assert list(RunFolder(path).commits()), "the remedy that the message names"


def test_a_log_that_is_shorter_than_when_it_was_counted_is_reported_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits())
    store.close()
    segment = path / "log" / "000000.jsonl"
    content = segment.read_bytes()
    lost = len(content.splitlines(keepends=True)[-1])
    segment.write_bytes(content[:-lost])
    again = Store(RunFolder(path))
    assert list(again.replay()) == commits()[:-1]
    assert again.torn is None
    assert again.lost_bytes == lost
    again.close()
    assert RunFolder(path).ledger() == again.ledger


def test_a_store_that_was_closed_during_its_replay_writes_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path)
    append(store, commits())
    store.close()
    interrupted = Store(RunFolder(path))
    replay = interrupted.replay()
    next(replay)
    interrupted.close()
    other = Store(RunFolder(path))
    list(other.replay())
    append(other, commits()[-1:])
    before = (path / "log" / "000000.jsonl").read_bytes()
    assert len(list(replay)) == len(commits()), "its thread continues to read"
    assert (path / "log" / "000000.jsonl").read_bytes() == before
    other.close()
    with pytest.raises(RuntimeError, match="replay"):
        interrupted.append(commits())


def test_close_waits_for_a_compression_before_it_releases_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    began, go_on = threading.Event(), threading.Event()

    def slow(_path: Path) -> None:
        began.set()
        assert go_on.wait(20)

    monkeypatch.setitem(LogWriter.__init__.__kwdefaults__ or {}, "segment_bytes", 300)
    monkeypatch.setattr("fastgen.store.job_folder.compress_segment", slow)
    store = begin(path)
    for commit in commits():
        append(store, [commit])
    compressing = threading.Thread(target=store.compress_closed)
    compressing.start()
    assert began.wait(20)
    closing = threading.Thread(target=store.close)
    closing.start()
    with pytest.raises(RunFolderError, match="in use"):
        Store(RunFolder(path))
    go_on.set()
    compressing.join(20)
    closing.join(20)
    Store(RunFolder(path)).close()


def test_a_run_whose_last_segment_is_only_a_header_resumes_in_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    monkeypatch.setitem(LogWriter.__init__.__kwdefaults__ or {}, "segment_bytes", 300)
    store = begin(path)
    append(store, commits()[:2])
    store.job.log.roll()
    store.close()  # as after a disk that was full when the first line of the new segment was due
    again = Store(RunFolder(path))
    assert list(again.replay()) == commits()[:2]
    assert [number for number, _ in segment_files(path / "log")] == [0]
    append(again, commits()[2:])
    again.close()
    assert list(RunFolder(path).whole_commits()) == commits()


def test_the_forbidden_texts_are_kept_and_a_damaged_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begin(path).close()
    folder = RunFolder(path)
    assert folder.texts("decontaminate") == ()
    folder.save_inputs(b"", {}, {"decontaminate": ["Name a river.", "\u00e9"]})
    assert folder.texts("decontaminate") == ("Name a river.", "\u00e9")
    (path / "decontaminate.json").write_bytes(b"[")
    with pytest.raises(RunFolderError, match=r"decontaminate\.json: damaged"):
        folder.texts("decontaminate")


def test_sync_makes_what_was_appended_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begin(tmp_path / "run")
    append(store, commits())
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    store.sync()
    store.sync()
    assert len(synced) == 1
    store.close()


def begin_with_seeds(path: Path) -> RunFolder:
    folder = RunFolder(path)
    store = Store(folder)
    folder.save_inputs(default_seed_path().read_bytes(), {})
    fingerprint = seed_fingerprint(load_seed_tasks(folder.seeds_path))
    store.begin(
        run_configuration(Options(), model="m", contents={"seed_tasks": fingerprint, "prompts": "p"}),
        saved_values(Options()),
        "0",
    )
    store.close()
    return folder


def test_a_seed_file_that_is_not_the_runs_own_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = begin_with_seeds(tmp_path / "run")
    assert open_run(folder.path).seeds == load_seed_tasks(default_seed_path())
    lines = folder.seeds_path.read_bytes().splitlines(keepends=True)
    folder.seeds_path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(RunFolderError, match=r"seed_tasks\.jsonl: is not what the run was made with") as caught:
        open_run(folder.path)
    assert "\n" not in str(caught.value)
    folder.seeds_path.write_bytes(b"\n".join(lines))
    assert len(open_run(folder.path).seeds) == len(lines), "the layout of the file says nothing"


def test_a_folder_that_is_gone_does_not_end_the_watch_over_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "gone") == math.inf
