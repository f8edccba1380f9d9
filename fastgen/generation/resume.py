"""Begins a run, or takes it up where its log ends, if it still means the same.

What a run means is its options, model, seeds, prompts and forbidden texts (`fastgen.config.meaning`). It is written
down when the run begins; a start under which it would change is refused by name. Knows nothing of how the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastgen import __version__
from fastgen.config import check_same_meaning, meaning, model_names, saved_values, stage_models
from fastgen.decontamination import fingerprint
from fastgen.generation.checkpoint import Saved, take_up
from fastgen.generation.material import Material
from fastgen.method.plan import Plan
from fastgen.options import Options
from fastgen.seeds import seed_fingerprint
from fastgen.storage.runfolder import RunFolder
from fastgen.storage.store import Store


def models_of_begun(folder: RunFolder, options: Options, material: Material) -> dict[str, str] | None:
    """The models of a run that has begun, without asking a server; ``None`` of one that has not.

    :raises InputError: something else would change what the run means.
    """
    if not folder.exists():
        return None
    saved = folder.header().meaning
    models = model_names(options, saved)
    check_same_meaning(saved, _meaning(options, material, models), folder.path)
    return models


async def resume(store: Store, plan: Plan, options: Options, say: Callable[[str], None]) -> Saved | None:
    """Bring a fresh plan to the log's end, and say where that is; returns the snapshot that this began with.

    :raises DamagedLogError: the log is damaged other than at its torn end. :raises DiskError: it cannot be written.
    """
    folder, header = store.folder, store.folder.header()
    saved = await asyncio.to_thread(take_up, store, plan)
    folder.write_header(replace(header, options=saved_values(options)))
    if (torn := store.torn) is not None:
        say(f"{torn.path}: dropped {torn.size} bytes of an unfinished line that a crash left behind")
    if store.lost_commits:
        say(folder.loss_line(store.lost_commits))
    state = plan.state
    say(f"going on with {state.complete} of {state.target} instructions complete, {len(state.pool)} kept")
    return saved


def begin_or_check(store: Store, plan: Plan, options: Options, material: Material, models: Mapping[str, str]) -> None:
    """Begin a new run with the models that the servers named; of one that has begun, check that they are the same.

    :raises InputError: they are not. :raises DiskError: the folder cannot be written.
    """
    folder, asked = store.folder, _meaning(options, material, models)
    if folder.exists():
        check_same_meaning(folder.header().meaning, asked, folder.path)
        return
    material.keep_in(folder)
    store.begin(asked, saved_values(options), __version__)
    plan.resume(store.replay())


def _meaning(options: Options, material: Material, models: Mapping[str, str]) -> dict[str, Any]:
    return meaning(
        options,
        model=models["model"],
        seeds=seed_fingerprint(material.seeds),
        prompts=material.prompts.fingerprint,
        forbidden=fingerprint(material.forbidden),
        own_models=stage_models(models),
    )
