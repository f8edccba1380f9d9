"""Files that fastgen owns in a folder: opened without following links, checked, locked, and replaced in one step.

A run folder may come from another person. A symbolic link under the name of one of our files would send what we write
to its target, so every file that fastgen writes in such a folder is opened here.

`open_own`, `replacing` and `sync_directory` raise `OSError`. `disk_errors` turns it into an error for the user.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from fastgen.errors import DiskError, FolderInUse, InputError, RunFolderError, flag_name

_HOLDER_BYTES = 200


def check_storable(options: Mapping[str, Any]) -> None:
    """:raises InputError: a number of more than 64 bits, or text that is not Unicode: no run folder can keep it."""
    for name, value in options.items():
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise InputError(f"{flag_name(name)}: {value!r:.60} cannot be kept ({error}); change it") from None


def open_own(path: Path, flags: int) -> int:
    """Open a regular file for writing, as `os.open` does, and return the descriptor.

    :raises OSError: the disk refused, or the name belongs to a symbolic link, a folder, a pipe or a device.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, remove it", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file, remove it", str(path))
    return descriptor


def is_still_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that its name leads to: it was neither removed nor replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name the file and the remedy when a write fails.

    :raises DiskError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror or error}); everything committed is kept: make room or fix "
            f"the permissions, then run the same command again"
        ) from error


def temporary_for(path: Path) -> Path:
    """Where a file is while `replacing` writes it."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a temporary file next to ``path``, which replaces it when the block ends. An exception leaves the old file.

    What a killed process left under the temporary name (`temporary_for`) is removed first. ``durable`` syncs the
    content before the replacement and the folder after it.

    :raises OSError: the file cannot be written.
    """
    temporary = temporary_for(path)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as sink:
            yield sink
            sink.flush()
            if durable:
                os.fsync(sink.fileno())
        temporary.replace(path)
        if durable:
            sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write or replace a small file in one step, durably.

    :raises DiskError: it cannot be written; the old one stays.
    """
    with disk_errors(path), replacing(path) as sink:
        sink.write(content)


def sync_directory(directory: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """A file, locked with ``flock``, that names its holder. Held from construction to `release`. Never waits.

    The lock ends with its process, however that ends. Of two processes one gets it, also while a holder removes the
    file.

    :param file: made if it is missing; its folder must exist. :param named: how messages begin, such as
        ``--run-dir runs/a``. :param instead: what the user can do instead of waiting, such as ``name another folder``.
    :raises FolderInUse: another process (or another `Lock` of this one) holds it; the message names the process.
    :raises RunFolderError: the file system cannot lock. :raises DiskError: the file cannot be made.
    """

    def __init__(self, file: Path, *, named: str, instead: str) -> None:
        self.file = file
        while (descriptor := _take(file, named, instead)) is None:
            pass
        self._descriptor: int | None = descriptor
        with contextlib.suppress(OSError):  # on a full disk, the message to the next process lacks the holder
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())

    @property
    def is_held(self) -> bool:
        """Whether the lock file is still there and ours: another process can lock a file that takes its place."""
        return self._descriptor is not None and is_still_at(self._descriptor, self.file)

    def release(self, *, remove: bool = False) -> None:
        """Let other processes lock the file. With ``remove`` it is removed. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if remove:
            with contextlib.suppress(OSError):  # a file that stays does no harm
                self.file.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Whether a process holds the `Lock` of this file. It is asked with a shared lock, for which a `Lock` makes way."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, so nobody has one
        return False
    finally:
        os.close(descriptor)
    return False


def _is_only_looked_at(descriptor: int) -> bool:
    """Whether a lock that was refused is kept from us by no more than calls of `is_locked`, which take no time."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    return False


def _take(file: Path, named: str, instead: str) -> int | None:
    """The descriptor of the locked file, or ``None`` where it is worth another try at once.

    That is so if the last holder removed the file before, or if others only look whether it is locked.
    """
    try:
        descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DiskError(f"{named}: cannot be written ({error.strerror}); fix that or {instead}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_still_at(descriptor, file):
            return descriptor
    except BlockingIOError:
        if _is_only_looked_at(descriptor):
            os.close(descriptor)
            return None
        holder = os.read(descriptor, _HOLDER_BYTES).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise FolderInUse(f"{named}: in use by {holder}; wait for it, stop it, or {instead}") from None
    except OSError as error:
        os.close(descriptor)
        raise RunFolderError(
            f"{named}: its file system cannot lock files ({error.strerror}); name a folder on another"
        ) from None
    os.close(descriptor)
    return None
