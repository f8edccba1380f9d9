"""Flat arrays with room to grow that neither move nor stall: address space is reserved, memory is taken when touched.

Guarantees: a reserved array reads as zero and costs physical memory only for the pages that were written. Where the
address space is not there for the asking (``ulimit -v``, ``vm.overcommit_memory=2``), an array starts small, and
:func:`with_room` copies it into a larger one ahead of the batch that needs it. When that is refused too, it is one
clear line instead of a crash.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.errors import StoppedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALL_PAGES = 1 << 20  # bytes at the front that are left to small pages, so that a small pool stays small
_SMALLEST = 1 << 20  # bytes of an array that has to grow
_LEFT_FREE = 1 << 36  # bytes of address space that are left to everything else in the process
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.12 on


def reserve_array(dtype: type[np.generic], rows: int) -> NDArray[Any]:
    """Make a zeroed one-dimensional array of up to ``rows`` rows.

    It has fewer rows, and grows by :func:`with_room`, where the address space for all of them is not plentiful.
    """
    row_bytes = np.dtype(dtype).itemsize
    if rows * row_bytes > _SMALLEST and not _is_free(rows * row_bytes + _LEFT_FREE):
        rows = _SMALLEST // row_bytes
    return np.frombuffer(_reserve(rows * row_bytes), dtype, count=rows)


def _is_free(size: int) -> bool:
    try:
        _reserve(size).close()
    except (OSError, ValueError, OverflowError, MemoryError):
        return False
    return True


def with_room(array: NDArray[Any], rows: int, used: int, most: int) -> NDArray[Any]:
    """``array`` where it has ``rows`` rows, else a larger reserved one that begins with its first ``used`` rows.

    :raises StoppedError: more than ``most`` rows are needed, or the machine gives no address space for them.
    """
    if len(array) >= rows:
        return array
    if rows > most:
        raise StoppedError(
            f"the similarity pool is full: it needs {rows} rows and has {most} at most; export this run, begin another"
        )
    for wanted in (min(most, rows + rows // 2), rows):
        try:
            larger: NDArray[Any] = np.frombuffer(_reserve(wanted * array.itemsize), array.dtype, count=wanted)
        except (OSError, ValueError, OverflowError, MemoryError):
            continue
        larger[:used] = array[:used]
        return larger
    raise StoppedError(
        f"the similarity pool is full: this machine gives no {rows * array.itemsize / 1e6:,.0f} MB of address space "
        "for one array; raise the limit (ulimit -v) and run the same command again"
    )


def _reserve(size: int) -> mmap.mmap:
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_MAP_NORESERVE if hasattr(mmap, "MADV_HUGEPAGE") else 0)
    space = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE") and size > 2 * _SMALL_PAGES:
        # Lookups are random, and with small pages most of their time would go into address translation.
        space.madvise(mmap.MADV_HUGEPAGE, _SMALL_PAGES, size - _SMALL_PAGES)
    return space
