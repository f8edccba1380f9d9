"""The snapshot's file: whole or not used, replaced at once or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen.store.log import seal
from fastgen.store.snapshot import (
    SNAPSHOT_FORMAT,
    Abandoned,
    Part,
    SnapshotReader,
    SnapshotUnusable,
    forget_unfinished,
    write_snapshot,
)

FACTS = {"run": "r", "position": [0, 12, 34]}


def part(name: str, content: bytes) -> Part:
    return Part(name, "|u1", (len(content),), memoryview(content))


def write(path: Path, contents: dict[str, bytes], facts: dict[str, object] | None = None) -> None:
    write_snapshot(path, facts or FACTS, [part(*item) for item in contents.items()], go_on=lambda: True)


def read(path: Path) -> dict[str, bytes]:
    with SnapshotReader(path) as snapshot:
        assert snapshot.facts == FACTS
        return {name: bytes(snapshot.read(name)) for name in snapshot.parts}


CONTENTS = {"texts": b"Name a river." * 40, "none": b"", "states": bytes(range(200))}


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=300), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_what_is_written_is_read(tmp_path: Path, contents: dict[str, bytes]) -> None:
    write(tmp_path / "snapshot", contents)
    assert read(tmp_path / "snapshot") == contents


def test_every_flipped_bit_is_noticed_or_lies_in_padding(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    write(path, CONTENTS)
    whole = path.read_bytes()
    assert len(whole) < 3000
    unnoticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            assert read(path) == CONTENTS, f"byte {place}"
            unnoticed += 1
        except SnapshotUnusable:
            continue
    first_line = whole.index(b"\n") + 1
    assert unnoticed == len(whole) - first_line - sum(map(len, CONTENTS.values())), "padding carries nothing"


def test_every_cut_and_every_added_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    write(path, CONTENTS)
    whole = path.read_bytes()
    for content in [whole[:cut] for cut in range(len(whole))] + [whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(SnapshotUnusable):
            read(path)


def test_a_missing_one_a_newer_one_and_one_of_another_form_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with pytest.raises(SnapshotUnusable, match="there is none"):
        read(path)
    for header in ({"format": SNAPSHOT_FORMAT + 1}, {"format": SNAPSHOT_FORMAT}, {}):
        path.write_bytes(seal(header, 0)[0])
        with pytest.raises(SnapshotUnusable, match="another"):
            read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SnapshotUnusable, match="cannot be read"):
        read(path)


def test_a_part_that_is_not_there_or_of_another_size_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    write(path, CONTENTS)
    with SnapshotReader(path) as snapshot:
        with pytest.raises(SnapshotUnusable, match="it lacks index"):
            snapshot.read("index")
        with pytest.raises(SnapshotUnusable, match="states has another size"):
            snapshot.read_into("states", memoryview(bytearray(7)))


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` gives."""

    total: int
    used: int
    free: int


def test_given_up_or_without_room_for_the_log_the_old_file_stays_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshot"
    write(path, CONTENTS)
    answers = iter([True, True, False])
    with pytest.raises(Abandoned):
        write_snapshot(path, FACTS, [part("texts", b"x" * 500)], go_on=lambda: next(answers))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 200 << 20))
    with pytest.raises(OSError, match="too little room for the log"):
        write(path, {"texts": b"x"})
    assert read(path) == CONTENTS
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".snapshot.tmp").write_bytes(b"half")
    forget_unfinished(tmp_path / "snapshot")
    forget_unfinished(tmp_path / "snapshot")
    assert list(tmp_path.iterdir()) == []
