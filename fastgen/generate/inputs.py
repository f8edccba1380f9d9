"""Texts that no kept instruction may resemble, such as the tasks of a benchmark that a tuned model will be judged on.

They are compared by the rule of the similarity filter (exact ROUGE-L above the threshold) but are not part of the pool:
they feed no prompt and have no pool index.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from fastgen import __version__
from fastgen.errors import InputError
from fastgen.generate.checkpoint import Saved, take_up
from fastgen.generate.options import Options, check_same_meaning, meaning, model_names, saved_values, stage_models
from fastgen.methods.self_instruct.plan import Plan
from fastgen.methods.self_instruct.prompts import PromptSet, parse_prompts, read_prompt_files
from fastgen.methods.self_instruct.rules import Method
from fastgen.methods.self_instruct.seeds import default_seed_path, parse_seed_tasks, read_seed_file, seed_fingerprint
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.run_folder import RunFolder, Store
from fastgen.store.tables import read_texts
from fastgen.types import SeedTask

if TYPE_CHECKING:
    from fastgen.similarity.bands import Bands
    from fastgen.similarity.novelty import NoveltyFilter


FIELD = "instruction"


def load_forbidden(paths: Iterable[Path]) -> tuple[str, ...]:
    """The ``instruction`` of each row of JSON-lines or Parquet files, the definition of each SuperNI task (.json).

    :raises InputError: a file cannot be read or used, with file and line.
    """
    return tuple(text for path in paths for _, batch in read_texts(path, FIELD) for text in batch)


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of the texts, in hexadecimal; empty for none."""
    if not texts:
        return ""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def filter_of_forbidden(texts: Sequence[str], similarity: SimilarityOptions) -> NoveltyFilter | None:
    """An exact filter over the texts, by the run's own rule; ``None`` for no texts."""
    if not texts:
        return None
    from fastgen.similarity.novelty import NoveltyFilter

    forbidden = NoveltyFilter(
        threshold=similarity.threshold, reject_at=similarity.reject_at, tokenizer=similarity.tokenizer, index="exact"
    )
    forbidden.add(texts)
    return forbidden


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


COMPILES_AFTER_S = 3.0  # loading compiled kernels takes half a second


@asynccontextmanager
async def planned(
    options: Options, material: Material, say: Callable[[str], None]
) -> AsyncIterator[asyncio.Future[Plan]]:
    """Make the plan of a run that has nothing yet, and load its filter's kernels, beside the block.

    The first error of that work ends the block, so that nobody waits for servers of a run that cannot start. Work that
    is unfinished at the end of the block is abandoned.

    :raises InputError: the similarity options do not fit together.
    """
    made: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(_plan_and_prepare(made, options, material, say))
            yield made
            work.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _plan_and_prepare(
    made: asyncio.Future[Plan], options: Options, material: Material, say: Callable[[str], None]
) -> None:
    plan, novelty = await asyncio.to_thread(_make_plan, options, material, say)
    made.set_result(plan)
    await _prepare(novelty, say)


def _make_plan(options: Options, material: Material, say: Callable[[str], None]) -> tuple[Plan, NoveltyFilter]:
    """The plan and its filter. Takes a moment: not for the event loop."""
    from fastgen.similarity.novelty import NoveltyFilter

    novelty = NoveltyFilter(**asdict(options.similarity))
    if novelty.bands is not None:
        say(_shown(novelty.bands))
    plan = Plan(
        *(method_of(options), material.seeds, material.prompts, novelty),
        target=options.job.num_instructions,
        clock=time.time,
        forbidden=filter_of_forbidden(material.forbidden, options.similarity),
        classification_batch=options.speed.classification_batch,
    )
    return plan, novelty


def method_of(options: Options) -> Method:
    """What the options say of the method."""
    asked = options.method
    return Method(
        rules=options.rules,
        sampling=options.sampling.by_stage(),
        seed=asked.seed,
        num_prompt_instructions=asked.num_prompt_instructions,
        num_machine_instructions=asked.num_machine_instructions,
        demonstrations=asked.demonstrations,
        samples_per_prompt=asked.samples_per_prompt,
        classification_only=asked.classification_only,
    )


def _shown(bands: Bands) -> str:
    return (
        f"similarity index: {bands.bands} MinHash bands of {bands.rows} rows, expected to meet "
        f"{bands.recall:.4%} of all true neighbours ({bands.at_bound:.2%} at the lowest possible overlap)"
    )


async def _prepare(novelty: NoveltyFilter, say: Callable[[str], None]) -> None:
    """Load the filter's kernels while the first requests are sent; commits that need them wait for them.

    The thread is a daemon: a run that is stopped does not wait for compilers.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def load() -> None:
        error = None
        try:
            novelty.prepare()
        except BaseException as failure:  # noqa: BLE001 - raised by the owner below
            error = failure
        with suppress(RuntimeError):  # the loop is closed: the owner has stopped waiting
            loop.call_soon_threadsafe(end, error)

    thread = Thread(target=load, name="kernels", daemon=True)
    slow = loop.call_later(
        COMPILES_AFTER_S,
        say,
        "compiling the similarity filter (once on a machine, up to a minute); the first requests are sent meanwhile",
    )
    try:
        thread.start()
        if (error := await ended) is not None:
            raise error
    finally:
        slow.cancel()


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
