"""Opening a run folder for reading."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fastgen.errors import RunFolderError
from fastgen.generate.options import Options, run_configuration, saved_values
from fastgen.generate.run import free_bytes
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks, seed_fingerprint
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder, Store


def begin(path: Path) -> RunFolder:
    folder = RunFolder(path)
    store = Store(folder)
    folder.save_inputs(default_seed_path().read_bytes(), {})
    fingerprint = seed_fingerprint(load_seed_tasks(folder.seeds_path))
    store.begin(run_configuration(Options(), model="m", seeds=fingerprint, prompts="p"), saved_values(Options()), "0")
    store.close()
    return folder


def test_a_seed_file_that_is_not_the_runs_own_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    assert open_run(folder.path).seeds == load_seed_tasks(default_seed_path())
    lines = folder.seeds_path.read_bytes().splitlines(keepends=True)
    folder.seeds_path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(RunFolderError, match=r"seed_tasks\.jsonl: is not what the run was made with") as caught:
        open_run(folder.path)
    assert "\n" not in str(caught.value)
    folder.seeds_path.write_bytes(b"\n".join(lines))
    assert len(open_run(folder.path).seeds) == len(lines), "how the file is laid out says nothing"


def test_a_folder_that_is_gone_does_not_end_the_watch_over_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "gone") == math.inf
