"""How the C library keeps memory: set once a process, by the commands whose runs last for days."""

from __future__ import annotations

import contextlib

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BYTES = 512 << 10


def return_large_blocks() -> None:
    """Let blocks of 512 KiB or more go back to the system when they are freed; does nothing where that is unknown.

    By default glibc gives back only blocks larger than the largest that it ever freed, up to 32 MB (mallopt(3),
    "dynamic mmap threshold"); the texts of a growing pool, compression and snapshots then leave holes in arenas that
    never shrink, which looked like memory that grows with the run.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
