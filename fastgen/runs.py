"""Opens a run folder for readers: its seeds, rules and meaning, as they were when the run was made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastgen.errors import RunFolderError
from fastgen.method.rules import RULES_OF_EARLIER_RUNS, Rules
from fastgen.records import SeedTask
from fastgen.seeds import load_seed_tasks, seed_fingerprint
from fastgen.storage.store import RunFolder


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder and what is needed to make sense of its commits."""

    folder: RunFolder
    meaning: dict[str, Any]
    seeds: tuple[SeedTask, ...]
    rules: Rules


def unfinished(complete: int, target: int | None) -> str:
    """What a person should know of a run that is not at its end; empty for one that is, or of no known target."""
    if target is None or complete >= target:
        return ""
    return f"the run is not finished: {complete} of {target} instructions"


def open_run(run_dir: Path) -> OpenRun:
    """:raises InputError: there is no run, it is damaged or newer than this version, or its seed file was changed."""
    folder = RunFolder(run_dir)
    meaning = folder.header().meaning
    for name, value in RULES_OF_EARLIER_RUNS.items():
        meaning.setdefault(name, value)
    seeds = load_seed_tasks(folder.seeds_path)
    if meaning.get("seed_tasks", expected := seed_fingerprint(seeds)) != expected:
        raise RunFolderError(
            f"{folder.seeds_path}: is not what the run was made with, so its pool indexes mean other texts; restore it "
            f"from a copy"
        )
    saved: dict[str, Any] = {f.name: meaning[f.name] for f in fields(Rules) if f.name in meaning}
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    rules = Rules(**values)
    return OpenRun(folder, meaning, seeds, rules)
