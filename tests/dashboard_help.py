"""A run to show, its newest sample, and a reader of it."""

from __future__ import annotations

from pathlib import Path

from fastgen.report.live_view import Follower
from fastgen.telemetry.figures import Sample
from tests.export_help import Task, make_run, numbered

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
SAMPLE = Sample(time_s=1e9, target=9, complete=9, kept=9, novelty=7.25)


def make_hostile_run(path: Path) -> Path:
    """Nine complete instructions, the last one hostile."""
    return make_run(path, [*numbered(8), Task(f"Translate {HOSTILE}", [("", HOSTILE)])])


def read_all(follower: Follower) -> Follower:
    """The same, with all read that there is."""
    while follower.read_more():
        assert follower.is_behind
    return follower
