"""Where the embedded server is kept: finished set-ups by key, the one being built, the lock for one builder at a time.

::

    CACHE/embedded/
      lock                  held (flock) while someone builds or removes; gone with its process
      setup.log             what the installers said last
      building-KEY/         a set-up in the making, or what a killed one left; never used, removed by the next builder
      KEY/                  finished: it got its name by one atomic rename, after the check
        checked.json        what was built and seen to work
        venv/  model/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastgen.embedded.recipe import EMBEDDED_MODEL, recipe_key
from fastgen.errors import DiskError, FolderInUse, InputError
from fastgen.storage.locking import Lock

_LOCK_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class EmbeddedServerSpec:
    """A finished set-up: the Python that has vLLM, the folder with the model, and the name to serve it under."""

    python: Path
    model_dir: Path
    model: str = EMBEDDED_MODEL


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """What is on disk. ``path`` holds everything; ``size_bytes`` counts it all, unfinished and outdated set-ups too."""

    path: Path
    ready: bool
    size_bytes: int
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmbeddedCache:
    """The folder above, below the cache folder of fastgen."""

    root: Path
    key: str

    @classmethod
    def below(cls, cache_dir: Path) -> EmbeddedCache:
        """The cache for this recipe on this Python."""
        return cls(cache_dir.absolute() / "embedded", recipe_key())

    @property
    def home(self) -> Path:
        """Where the finished set-up is."""
        return self.root / self.key

    @property
    def building(self) -> Path:
        """Where it is built."""
        return self.root / f"building-{self.key}"

    @property
    def log_path(self) -> Path:
        """What the installers say."""
        return self.root / "setup.log"

    def finished(self) -> EmbeddedServerSpec | None:
        """The finished set-up, if there is one and its Python still exists."""
        return spec_in(self.home) if self.versions() and spec_in(self.home).python.exists() else None

    def versions(self) -> dict[str, str]:
        """Versions of what was seen to work; empty without a finished set-up."""
        try:
            marker = json.loads((self.home / "checked.json").read_text(encoding="utf-8"))
            return {str(name): str(version) for name, version in marker["versions"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def finish(self, versions: dict[str, str]) -> None:
        """Mark the built set-up as checked and give it its name, in one step.

        :raises OSError: the disk refuses.
        """
        marker = self.building / "checked.json"
        with marker.open("w", encoding="utf-8") as file:
            json.dump({"key": self.key, "versions": versions}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self.building.rename(self.home)

    def clear_leftovers(self) -> None:
        """Remove unfinished set-ups of any recipe, and a finished one of this recipe that is broken; hold the lock."""
        for leftover in [*self.root.glob("building-*"), self.home]:
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def try_lock(self) -> Iterator[bool]:
        """True if this process holds the lock for the block, false if another does.

        :raises DiskError: the cache folder cannot be written.
        """
        remedy = "set FASTGEN_CACHE_DIR to a folder that can"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{self.root}: cannot be written ({error.strerror}); {remedy}") from None
        lock = None
        with contextlib.suppress(FolderInUse):
            lock = Lock(self.root / "lock", named=str(self.root), instead=remedy)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    @asynccontextmanager
    async def lock(self, report: Callable[[str], None]) -> AsyncIterator[None]:
        """Hold the lock; waits, with one line to say so, while another process does."""
        said = False
        while True:
            with self.try_lock() as held:
                if held:
                    yield
                    return
            if not said:
                report("another fastgen is setting up the embedded CPU server; waiting for it")
                said = True
            await asyncio.sleep(_LOCK_POLL_S)


def spec_in(folder: Path) -> EmbeddedServerSpec:
    """The set-up in a folder, finished or not."""
    return EmbeddedServerSpec(folder / "venv" / "bin" / "python", folder / "model")


def embedded_status(cache_dir: Path) -> EmbeddedStatus:
    """What there is of the embedded server below ``cache_dir``."""
    cache = EmbeddedCache.below(cache_dir)
    finished = cache.finished()
    return EmbeddedStatus(
        cache.root, finished is not None, size_bytes(cache.root), cache.versions() if finished is not None else {}
    )


def remove_embedded(cache_dir: Path) -> int:
    """Remove all of it; return the bytes that were freed. A server that still runs from it keeps what it has loaded.

    :raises InputError: another process is setting it up right now.
    :raises DiskError: something cannot be removed.
    """
    cache = EmbeddedCache.below(cache_dir)
    if not cache.root.exists():
        return 0
    with cache.try_lock() as held:
        if not held:
            raise InputError(f"{cache.root}: another fastgen is setting it up right now; stop it first")
        size = size_bytes(cache.root)
        try:
            shutil.rmtree(cache.root)
        except OSError as error:
            raise DiskError(f"{error.filename}: cannot be removed ({error.strerror})") from None
    return size


def size_bytes(folder: Path) -> int:
    """What the folder takes on disk; files that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118  # tens of thousands of files
    return total
