"""A job's folder: one writer, a log that resumes, and a configuration that may not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastgen.errors import DamagedLogError, DiskError, FolderInUse, InputError, RunFolderError
from fastgen.store.job_folder import JobFolder, check_configuration, read_object

ENTRIES = [{"n": number} for number in range(3)]


def open_folder(path: Path) -> JobFolder:
    return JobFolder(path, named=f"--output {path}", instead="name another")


def written(path: Path, entries: list[dict[str, Any]]) -> None:
    with open_folder(path) as folder:
        list(folder.replay("id"))
        folder.append(entries)


def test_what_was_appended_is_replayed_in_order_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    written(path, ENTRIES[:2])
    written(path, ENTRIES[2:])
    with open_folder(path) as folder:
        found = list(folder.replay("id"))
    assert [{"n": one["n"]} for one in found] == ENTRIES


def test_a_torn_end_is_dropped_and_damage_before_it_is_not(tmp_path: Path) -> None:
    written(tmp_path, ENTRIES)
    segment = tmp_path / "log" / "000000.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-4])
    with open_folder(tmp_path) as folder:
        assert len(list(folder.replay("id"))) == 2
    segment.write_bytes(whole.replace(b'"n":1', b'"n":7'))
    with open_folder(tmp_path) as folder, pytest.raises(DamagedLogError, match=r"000000\.jsonl:3: "):
        list(folder.replay("id"))


def test_nothing_is_written_before_the_log_was_replayed_or_after_it_was_closed(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        with pytest.raises(RuntimeError, match="replayed"):
            folder.append(ENTRIES)
        list(folder.replay("id"))
    with pytest.raises(RuntimeError, match="replayed"):
        folder.append(ENTRIES)


def test_a_close_while_the_log_is_replayed_opens_nothing(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.close()
    assert not folder.open_log("id", None)
    assert not (tmp_path / "log").exists()


def test_a_cleared_log_begins_anew(tmp_path: Path) -> None:
    written(tmp_path, ENTRIES)
    with open_folder(tmp_path) as folder:
        folder.clear_log()
        assert list(folder.replay("another id")) == []
        folder.append(ENTRIES[:1])
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["000000.jsonl"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_lock_file_that_is_gone_or_another_stops_the_next_sync(tmp_path: Path, replace: bool) -> None:
    with open_folder(tmp_path) as folder:
        list(folder.replay("id"))
        folder.append(ENTRIES)
        folder.sync()
        (tmp_path / "lock").unlink()
        if replace:
            (tmp_path / "lock").touch()
        with pytest.raises(DiskError, match="was removed or replaced"):
            folder.sync()


def test_a_second_writer_and_a_path_that_is_no_folder_are_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a"), pytest.raises(FolderInUse, match=r"in use by process .+ or name another"):
        open_folder(tmp_path / "a")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="is, or lies under, a file; name a folder"):
            open_folder(path)


def test_a_file_that_holds_no_object_is_damaged_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert read_object(tmp_path / "a.json") is None
    for content in (b"", b"[1]", b"{"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(RunFolderError, match=r"a\.json: damaged"):
            read_object(tmp_path / "a.json")


def test_the_first_three_differences_of_a_configuration_are_named() -> None:
    def check(saved: dict[str, Any], asked: dict[str, Any]) -> None:
        check_configuration(
            saved, asked, holds="out: was begun with", remedy="repeat it", label=lambda name: f"--{name}"
        )

    check({"a": 1}, {"a": 1, "b": None})
    with pytest.raises(InputError, match=r"^out: was begun with --a 1, not 2; repeat it$"):
        check({"a": 1, "b": [1]}, {"a": 2, "b": [1]})
    with pytest.raises(
        InputError, match=r"with --a none, not 1; --b none, not 2; --c 3, not 4; and 1 more; repeat it$"
    ):
        check({"c": 3, "d": 5}, {"a": 1, "b": 2, "c": 4})
