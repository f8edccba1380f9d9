"""Compiled kernels on disk: whatever is wrong with the files, the kernel runs and a line says so."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numba
import pytest

import fastgen.similarity.jit  # noqa: F401 - imported here, so that no fork has to

FORK = multiprocessing.get_context("fork")
SOURCE = """
from fastgen.similarity.jit import kernel

@kernel
def inner(number):
    return number + 1

@kernel
def outer(number):
    return inner(number) * 2
"""


def nothing() -> None:
    """No preparation."""


class Place:
    """A module with two small kernels, and a separate cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        (folder / "tiny.py").write_text(SOURCE)

    def run(self, prepare: Callable[[], object] = nothing) -> tuple[int, list[str]]:
        """Call a kernel in a separate process. Returns how many were loaded from the cache, and the lines logged."""
        here, there = FORK.Pipe()
        process = FORK.Process(target=self._call, args=(there, prepare))
        process.start()
        there.close()
        hits, lines = here.recv()
        process.join()
        return hits, lines

    def _call(self, answer: Connection, prepare: Callable[[], object]) -> None:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("fastgen").addHandler(handler)
        numba.config.CACHE_DIR = str(self.cache)  # type: ignore[attr-defined]  # made when numba is imported
        sys.path.insert(0, str(self.folder))
        sys.dont_write_bytecode = True
        prepare()
        tiny = importlib.import_module("tiny")
        assert tiny.outer(20) == 42
        answer.send((tiny.outer.stats.cache_hits.total(), lines))

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.cache.rglob(f"*{suffix}"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With the kernels compiled; every test leaves them so."""
    place = Place(tmp_path_factory.mktemp("kernels"))
    assert place.run() == (0, [])
    assert place.run() == (1, [])
    return place


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "zeroed": lambda content: bytes(len(content)),
    "zeroed in the middle": lambda content: content[:300] + bytes(100) + content[400:],
    "garbage": lambda content: b"\xff\x80garbage" * (len(content) // 9),
    "one bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
}


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_removed_and_made_again(place: Place, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    assert place.files(suffix)
    for path in place.files(suffix):
        path.write_bytes(damage(path.read_bytes()))
    hits, lines = place.run()
    assert hits == 0
    assert len(lines) == 1
    assert "removed and compiled again" in lines[0]


def test_what_was_compiled_again_is_whole(place: Place) -> None:
    assert place.run() == (1, [])


def full_disk() -> None:
    """Every write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def nearly_full_disk() -> None:
    """There is room for an index, but not for machine code."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.mark.parametrize("prepare", [full_disk, nearly_full_disk])
def test_without_room_kernels_are_compiled_in_each_process_and_one_line_says_so(
    tmp_path: Path, prepare: Callable[[], None]
) -> None:
    place = Place(tmp_path)
    hits, (line,) = place.run(prepare)
    assert hits == 0
    assert "cannot be written" in line
    assert "NUMBA_CACHE_DIR" in line
    assert place.run(prepare)[0] == 0
    assert place.run()[0] == 0
    assert place.run() == (1, [])


def test_old_code_is_not_taken_for_new_where_only_the_index_could_be_written(place: Place) -> None:
    source = place.folder / "tiny.py"
    try:
        source.write_text(SOURCE.replace("inner(number) * 2", "inner(number) + inner(number)"))
        assert place.run(nearly_full_disk)[0] == 0
        assert place.run()[0] == 0
    finally:
        source.write_text(SOURCE)
        place.run()


def test_a_cache_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.cache = Path("/dev/null/absent")
    place.run()
