"""The lock of a folder: one holder, which the next process names, and which ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.errors import DiskError, FolderInUse
from fastgen.store.files import Lock

HOLD = """
import sys
from pathlib import Path
from fastgen.store.files import Lock
lock = Lock(Path(sys.argv[1]), named="it", instead="go")
print("held", flush=True)
sys.stdin.read()
"""


def take(file: Path) -> Lock:
    return Lock(file, named="--run-dir x", instead="name another folder")


def test_the_second_process_learns_who_holds_it_and_what_to_do(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        told = f"--run-dir x: in use by process {holder.pid} on .+; wait for it, stop it, or name another folder"
        with pytest.raises(FolderInUse, match=told):
            take(tmp_path / "lock")
        holder.send_signal(signal.SIGKILL)
    take(tmp_path / "lock").release()


def test_it_can_be_released_twice_and_taken_again(tmp_path: Path) -> None:
    first = take(tmp_path / "lock")
    with pytest.raises(FolderInUse, match=f"process {os.getpid()} on"):
        take(tmp_path / "lock")
    first.release()
    second = take(tmp_path / "lock")
    first.release()
    with pytest.raises(FolderInUse):
        take(tmp_path / "lock")
    second.release(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_its_holder_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second opens the file, the first removes and releases it, the second locks a file without a name."""
    import fcntl

    file, real = tmp_path / "lock", fcntl.flock
    first = take(file)

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        first.release(remove=True)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = take(file)
    assert file.exists()
    with pytest.raises(FolderInUse):
        take(file)
    second.release()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"--run-dir x: cannot be written .+; fix that or name another folder"):
        take(tmp_path / "absent" / "lock")
