"""What a run is made from: seeds, prompts, forbidden texts; the user's, the package's or, on resume, its own.

Every input is read once. What was parsed and what is kept in the run folder are the same bytes, so a file that changes
meanwhile, or a pipe that can be read only once, does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastgen.decontamination import load_forbidden
from fastgen.errors import InputError
from fastgen.options import Options
from fastgen.records import SeedTask
from fastgen.seeds import default_seed_path, parse_seed_tasks, read_seed_file
from fastgen.stages.prompt_files import read_prompt_files
from fastgen.stages.prompts import PromptSet, parse_prompts
from fastgen.storage.store import RunFolder


@dataclass(frozen=True, slots=True)
class Material:
    """Loaded seeds, prompts and forbidden texts; ``seed_file`` and ``prompt_files`` (by name) are their very bytes."""

    seeds: tuple[SeedTask, ...]
    prompts: PromptSet
    seed_file: bytes
    prompt_files: Mapping[str, bytes]
    forbidden: tuple[str, ...] = ()

    def keep_in(self, folder: RunFolder) -> None:
        """Write what was loaded into a new run folder, so that it stands alone.

        :raises DiskError: the folder cannot be written.
        """
        folder.keep(self.seed_file, self.prompt_files, self.forbidden)


def load_material(folder: RunFolder, options: Options) -> Material:
    """Load what the options name, else what the run was begun with, else what ships with fastgen.

    :raises InputError: a file is missing or broken, with line and field, or no run can come of it.
    """
    begun = folder.exists()
    seeds_path = options.method.seed_tasks or (folder.seeds_path if begun else default_seed_path())
    seed_file = read_seed_file(seeds_path)
    prompt_files = read_prompt_files(options.method.prompts or (folder.prompts_path if begun else None))
    seeds = parse_seed_tasks(seeds_path, seed_file)
    if options.method.classification_only and not any(seed.is_classification for seed in seeds):
        raise InputError(
            f"--classification-only: none of the {len(seeds)} seed tasks in {seeds_path} is a classification task; "
            'mark some with "is_classification": true, name other --seed-tasks, or leave the flag out'
        )
    given = options.method.decontaminate
    return Material(
        seeds=seeds,
        prompts=parse_prompts(options.server.api, prompt_files),
        seed_file=seed_file,
        prompt_files={name: file.content for name, file in prompt_files.items()},
        forbidden=load_forbidden(given) if given else folder.forbidden(),
    )
