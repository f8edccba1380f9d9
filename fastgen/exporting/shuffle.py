"""Shuffles and deduplicates rows of any number on disk.

Every row gets 128 bits that only its content and the seed decide; the order of these numbers is the order of the rows.
So equal rows meet, and one is left; the order is uniform over seeds and does not depend on the order of adding, and
rows that a grown run adds leave the others in the order they had. Rows are dealt into 64 files by 6 of the bits, and a
file that is too large for memory is dealt out again (a distribution sort). Needs as much disk as the rows have bytes,
and memory for one file's worth. Knows nothing of what is in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from fastgen.exporting.draws import digest

LOADED_BYTES: Final = 64 << 20
"""Most bytes of rows that are held in memory at once."""

_KEY_BYTES: Final = 16
_DIGIT_BITS: Final = 6
_FILES: Final = 1 << _DIGIT_BITS
_MOST_DEPTH: Final = 8 * _KEY_BYTES // _DIGIT_BITS - 1
_SIZE_BYTES: Final = 4
_BUFFER_BYTES: Final = 64 << 10


class Shuffle:
    """Rows on their way: `add` each, then iterate once. ``folder`` is empty and this object's own.

    :raises OSError: from every method, when the folder cannot be written.
    """

    def __init__(self, folder: Path, seed: int, *, loaded_bytes: int = LOADED_BYTES) -> None:
        self._seed = seed
        self._loaded_bytes = loaded_bytes
        self._piles = _Piles(folder, depth=0)

    def add(self, row: bytes) -> None:
        """One more row."""
        self._piles.add(digest(self._seed, "shuffle", row), row)

    def __iter__(self) -> Iterator[bytes]:
        return _in_order(self._piles, self._loaded_bytes)

    def close(self) -> None:
        """Close what is open; the folder is the caller's to remove."""
        with suppress(OSError):  # a full disk refuses what is still in the buffers
            self._piles.close()


class _Piles:
    """Rows with their keys, in a file for each value of the key's digit ``depth`` (of 6 bits, the highest is 0)."""

    def __init__(self, folder: Path, depth: int) -> None:
        self.depth = depth
        self._shift = 8 * _KEY_BYTES - _DIGIT_BITS * (depth + 1)
        self._paths = [folder / f"{depth}-{number:02}" for number in range(_FILES)]
        self._files: dict[int, IO[bytes]] = {}

    def add(self, key: bytes, row: bytes) -> None:
        """Append a row to its pile; the key has `_KEY_BYTES`."""
        number = int.from_bytes(key) >> self._shift & _FILES - 1
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = self._paths[number].open("wb", buffering=_BUFFER_BYTES)
        file.write(key + len(row).to_bytes(_SIZE_BYTES) + row)

    def finish(self) -> list[Path]:
        """The files, in order."""
        for file in self._files.values():
            file.close()
        return [self._paths[number] for number in sorted(self._files)]

    def close(self) -> None:
        """Close what is open."""
        for file in self._files.values():
            file.close()


def _in_order(piles: _Piles, loaded_bytes: int) -> Iterator[bytes]:
    for path in piles.finish():
        if path.stat().st_size <= loaded_bytes or piles.depth == _MOST_DEPTH:
            rows = dict(_read(path))
            path.unlink()
            yield from (rows[key] for key in sorted(rows))
        else:
            yield from _in_order(_dealt_again(path, piles.depth + 1), loaded_bytes)


def _dealt_again(path: Path, depth: int) -> _Piles:
    folder = path.with_name(f"{path.name}.d")
    folder.mkdir()
    finer, known = _Piles(folder, depth), b""
    for key, row in _read(path):
        if key != known:  # a row that fills the pile by being there again and again
            finer.add(key, row)
        known = key
    path.unlink()
    return finer


def _read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        while key := file.read(_KEY_BYTES):
            yield key, file.read(int.from_bytes(file.read(_SIZE_BYTES)))
