"""Flat arrays with room to grow that neither move nor stall: address space is reserved, memory is taken when touched.

Guarantees: a reserved array reads as zero, keeps its address for life, and costs physical memory only for the pages
that were written. Where the platform refuses the reservation, a smaller one is made; :func:`check_room` then turns a
full array into one clear line instead of a crash.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.errors import StoppedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALL_PAGES = 1 << 20  # bytes at the front that are left to small pages, so that a small pool stays small
_SMALLEST = 1 << 20
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.12 on


def reserve_array(dtype: type[np.generic], rows: int, columns: int = 0) -> NDArray[Any]:
    """Make a zeroed array of up to ``rows`` rows (one-dimensional when ``columns`` is 0)."""
    row_bytes = np.dtype(dtype).itemsize * max(columns, 1)
    while True:
        try:
            space = _reserve(rows * row_bytes)
            break
        except (OSError, ValueError, MemoryError):
            if rows * row_bytes <= _SMALLEST:
                raise
            rows //= 2
    array = np.frombuffer(space, dtype, count=rows * max(columns, 1))
    return array.reshape(rows, columns) if columns else array


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


def check_room(array: NDArray[Any], rows: int) -> None:
    """Make sure that ``rows`` rows exist.

    :raises StoppedError: they do not.
    """
    if array.shape[0] < rows:
        raise StoppedError(
            f"the similarity pool is full: {rows} rows needed where this machine reserved {array.shape[0]}; "
            "raise its address-space limit (ulimit -v) and run the same command again"
        )
