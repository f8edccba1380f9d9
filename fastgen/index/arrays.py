"""Flat arrays that grow in place.

Guarantees: growth is by a quarter, so at most a fifth of an array is unused; the bytes already there are not copied
when the allocator can extend or remap the block (on Linux, large blocks move by page table, not by byte), so growth
does not stall a batch. New room reads as zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALLEST = 1024


def grow_to(array: NDArray[Any], rows: int) -> None:
    """Give ``array`` at least ``rows`` rows, in place; no view of it may be in use."""
    if array.shape[0] < rows:
        # refcheck would count the tuple that kernels receive; its owner is the only holder between kernel calls.
        array.resize((max(rows, _SMALLEST, array.shape[0] + array.shape[0] // 4), *array.shape[1:]), refcheck=False)
