"""A run to show, its newest sample, and a reader of it."""

from __future__ import annotations

from pathlib import Path

from fastgen.report.live_view import Follower
from fastgen.telemetry.figures import Rates, Sample, StageSample
from tests.export_help import Task, make_run, numbered

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
MODEL = f"a/{'long' * 40} {HOSTILE} \u202e"
SAMPLE = Sample(
    time_s=1e9,
    window_s=5.0,
    session_s=3725.0,
    target=9,
    complete=9,
    kept=9,
    novelty=7.25,
    recent=Rates(60.0, 12.5, 1100.0, 2.5, 90.0, 60.0, 120.0),
    faults_in_window=3,
    stages={"instruction": StageSample(requests=4), "instance": StageSample(requests=5)},
)


def make_hostile_run(path: Path) -> Path:
    """Nine complete instructions, the last one hostile, by a model whose name is hostile."""
    return make_run(path, [*numbered(8), Task(f"Translate {HOSTILE}", [("", HOSTILE)])], model=MODEL)


def read_all(follower: Follower) -> Follower:
    """The same, with all read that there is."""
    while follower.read_more():
        assert follower.is_behind
    return follower
