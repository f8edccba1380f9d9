"""The lock that keeps a folder to one process: a file, locked with flock, that names its holder.

Guarantees: the lock is gone with its process, however that ends; of two processes one gets it, also while a holder
removes the file. Knows nothing of what is locked: the caller says how the folder is named to its user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from fastgen.errors import DiskError, FolderInUse, RunFolderError
from fastgen.storage.files import is_still_at, open_own

_HOLDER_BYTES = 200


class Lock:
    """Held from construction to `release`; never waits.

    :param file: the lock's file, made if it is not there; its folder must be.
    :param named: how messages begin, such as ``--run-dir runs/a``. :param instead: what else the user can do than to
        wait, such as ``name another folder``.
    :raises FolderInUse: another process (or another `Lock` of this one) holds it; the message says which process.
    :raises RunFolderError: the file system cannot lock. :raises DiskError: the file cannot be made.
    """

    def __init__(self, file: Path, *, named: str, instead: str) -> None:
        self._file = file
        self._named = named
        while (descriptor := _take(file, named, instead)) is None:
            pass
        self._descriptor: int | None = descriptor
        with contextlib.suppress(OSError):  # a full disk: whoever comes second is told less
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())

    @property
    def is_held(self) -> bool:
        """Whether the lock's file is still there and ours: another process can lock a file that takes its place."""
        return self._descriptor is not None and is_still_at(self._descriptor, self._file)

    def check(self) -> None:
        """:raises DiskError: the lock's file was removed or replaced."""
        if not self.is_held:
            raise DiskError(
                f"{self._named}: {self._file} was removed or replaced, so another process may write here too; "
                f"everything committed is kept: make sure that no other process uses this folder, then run the same "
                f"command again"
            )

    def release(self, *, remove: bool = False) -> None:
        """Let others have it, and remove the file if told so. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if remove:
            with contextlib.suppress(OSError):  # a file that stays does no harm
                self._file.unlink(missing_ok=True)
        os.close(descriptor)


def _take(file: Path, named: str, instead: str) -> int | None:
    """The locked file; ``None`` where it was removed by its last holder before the lock was ours."""
    try:
        descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DiskError(f"{named}: cannot be written ({error.strerror}); mend that or {instead}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_still_at(descriptor, file):
            return descriptor
    except BlockingIOError:
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
