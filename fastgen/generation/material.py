"""What a run is made from: seeds, prompts, forbidden texts; the user's, the package's or, on resume, its own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fastgen.decontamination import load_forbidden
from fastgen.errors import InputError
from fastgen.options import Options
from fastgen.records import SeedTask
from fastgen.seeds import default_seed_path, load_seed_tasks
from fastgen.stages.prompt_files import FILES
from fastgen.stages.prompts import PromptSet, load_prompts
from fastgen.storage.store import RunFolder


@dataclass(frozen=True, slots=True)
class Material:
    """Loaded seeds and prompts, and where they came from (``prompts_path`` is ``None`` for the shipped ones alone)."""

    seeds: tuple[SeedTask, ...]
    prompts: PromptSet
    seeds_path: Path
    prompts_path: Path | None
    forbidden: tuple[str, ...] = ()

    def keep_in(self, folder: RunFolder) -> None:
        """Copy the files that were used into a new run folder, so that it stands alone.

        :raises InputError: a source vanished. :raises DiskError: the folder cannot be written.
        """
        try:
            seeds = self.seeds_path.read_bytes()
            prompts = {name: self._prompt_file(name) for name in FILES}
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read any more ({error.strerror})") from None
        folder.keep(seeds, prompts, self.forbidden)

    def _prompt_file(self, name: str) -> bytes:
        if self.prompts_path is not None and (self.prompts_path / name).is_file():
            return (self.prompts_path / name).read_bytes()
        return files("fastgen").joinpath("prompts", name).read_bytes()


def load_material(folder: RunFolder, options: Options) -> Material:
    """Load what the options name, else what the run was begun with, else what ships with fastgen.

    :raises InputError: a file is missing or broken, with line and field, or no run can come of it.
    """
    begun = folder.exists()
    seeds_path = options.method.seed_tasks or (folder.seeds_path if begun else default_seed_path())
    prompts_path = options.method.prompts or (folder.prompts_path if begun else None)
    seeds = load_seed_tasks(seeds_path)
    if options.method.classification_only and not any(seed.is_classification for seed in seeds):
        raise InputError(
            f"--classification-only: none of the {len(seeds)} seed tasks in {seeds_path} is a classification task; "
            'mark some with "is_classification": true, name other --seed-tasks, or leave the flag out'
        )
    given = options.method.decontaminate
    forbidden = load_forbidden(given) if given else folder.forbidden()
    return Material(seeds, load_prompts(options.server.api, prompts_path), seeds_path, prompts_path, forbidden)
