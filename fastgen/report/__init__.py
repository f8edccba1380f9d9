"""Shows a run: the `report` command (HTML), the `status` command and the live page.

It reads a run folder and changes nothing.
"""

from __future__ import annotations

import contextlib
import os

PUBLIC = ("build", "compare", "live", "options", "runs", "status")
"""Modules that other rooms may import."""


def lower_priority() -> None:
    """Give this process only the CPU time that no other wants: the scheduler's idle class, or the lowest priority.

    It is here so that the page's process can call it before it imports anything heavy.
    """
    if hasattr(os, "SCHED_IDLE"):  # Linux
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(19)
