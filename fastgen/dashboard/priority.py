"""Gives way: what shows a run must take nothing from it. Imports nothing, so that it can be the first thing done."""

from __future__ import annotations

import contextlib
import os


def give_way() -> None:
    """Let this process have only what no other wants: the scheduler's idle class, or the lowest priority there is."""
    if hasattr(os, "SCHED_IDLE"):  # Linux
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(19)
