"""Opens a run folder for readers: its seeds, rules and meaning, as they were when the run was made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastgen.records import SeedTask
from fastgen.rules import Rules
from fastgen.seeds import load_seed_tasks
from fastgen.store import RunFolder


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder and what is needed to make sense of its commits."""

    folder: RunFolder
    meaning: dict[str, Any]
    seeds: tuple[SeedTask, ...]
    rules: Rules


def open_run(run_dir: Path) -> OpenRun:
    """:raises InputError: there is no run, or it is damaged or newer than this version."""
    folder = RunFolder(run_dir)
    meaning = folder.header().meaning
    saved: dict[str, Any] = {f.name: meaning[f.name] for f in fields(Rules) if f.name in meaning}
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    rules = Rules(**values)
    return OpenRun(folder, meaning, load_seed_tasks(folder.seeds_path), rules)
