"""A checkpoint's file: whole or not used, replaced in one step or not at all."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen.generate.checkpoint import Abandoned, CheckpointFile, CheckpointUnusable, write_archive

FACTS = {"run": "r", "position": [0, 12, 34]}
CONTENTS = {"pool/texts": b"Name a river." * 40, "none": b"", "states": bytes(range(200))}


def write(path: Path, contents: dict[str, bytes]) -> None:
    write_archive(path, FACTS, {name: np.frombuffer(content, np.uint8) for name, content in contents.items()})


def read(path: Path) -> dict[str, bytes]:
    with CheckpointFile(path) as file:
        assert file.facts == FACTS | {"arrays": [*file.rows]}
        return {name: bytes(file.read(name, "u1")) for name in file.rows}


@given(st.dictionaries(st.from_regex(r"[a-z/]{1,8}", fullmatch=True), st.binary(max_size=300), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_what_is_written_is_read_also_by_numpy(tmp_path: Path, contents: dict[str, bytes]) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, contents)
    assert read(path) == contents
    with np.load(path) as archive:
        assert {name: archive[name].tobytes() for name in archive.files if name != "facts.json"} == contents


def test_every_flipped_bit_is_noticed_or_changes_nothing_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, CONTENTS)
    whole = path.read_bytes()
    assert len(whole) < 3000
    unnoticed = 0
    warnings.simplefilter("ignore")  # numpy's, over headers
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            found = read(path)
        except CheckpointUnusable:
            continue
        assert found == CONTENTS, f"byte {place}"
        unnoticed += 1
    assert unnoticed < 300, "times, versions and attributes of the archive's entries"


def test_every_cut_is_noticed_and_added_bytes_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, CONTENTS)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointUnusable):
            read(path)
    path.write_bytes(whole + b"\0")
    assert read(path) == CONTENTS


def test_a_missing_one_one_of_another_form_and_a_folder_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(CheckpointUnusable, match="there is none"):
        read(path)
    path.write_bytes(b'{"crc":"00000000","format":1}\n')
    with pytest.raises(CheckpointUnusable, match="it is damaged"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("facts.json", b"7")
    with pytest.raises(CheckpointUnusable, match="it is damaged"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        read(path)


def test_an_archive_that_is_compressed_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    np.savez_compressed(path, states=np.zeros(1 << 16, np.uint8))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("facts.json", orjson.dumps(FACTS | {"arrays": ["states"]}))
    with pytest.raises(CheckpointUnusable, match="states has another size"):
        read(path)


def test_an_array_that_is_missing_or_of_another_length_or_dtype_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, CONTENTS)
    with CheckpointFile(path) as file:
        with pytest.raises(CheckpointUnusable, match="it lacks index"):
            file.read("index", "u1")
        for target in (np.empty(7, np.uint8), np.empty(200, np.int8), np.empty(200, np.int64)):
            with pytest.raises(ValueError, match="states has another length or dtype"):
                file.read_into("states", target)


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` gives."""

    total: int
    used: int
    free: int


def test_abandoned_or_without_room_for_the_log_the_old_file_stays_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, CONTENTS)
    answers = iter([False, False, True])
    arrays = {name: np.zeros(500, np.uint8) for name in ("one", "two", "three")}
    with pytest.raises(Abandoned):
        write_archive(path, FACTS, arrays, is_abandoned=lambda: next(answers))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 200 << 20))
    with pytest.raises(OSError, match="too little room for the log"):
        write(path, {"texts": b"x"})
    assert read(path) == CONTENTS
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.npz"]
