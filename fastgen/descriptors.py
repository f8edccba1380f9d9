"""How many connections this process may have open at once, after raising its limit of open files as far as it goes."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Final

_SHARE: Final = 0.75
"""Of the descriptors that are free: the rest is for logs, snapshots, pages, health checks, and idle connections."""
_MOST: Final = 1 << 20


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, where the system lets us; return the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else soft


def most_connections(limit: int) -> int:
    """Connections that fit beside what is open already, at least 1, where ``limit`` files may be open."""
    folders = (Path("/proc/self/fd"), Path("/dev/fd"))
    used = next((len(list(folder.iterdir())) for folder in folders if folder.is_dir()), 0)
    return max(1, int(_SHARE * (min(limit, _MOST) - used)))
