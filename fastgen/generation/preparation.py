"""Makes a run's plan from its options and material, with the similarity filter ready by the time it is needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from threading import Thread
from typing import TYPE_CHECKING

from fastgen.decontamination import filter_of_forbidden
from fastgen.generation.material import Material
from fastgen.method.method import Method
from fastgen.method.plan import Plan
from fastgen.options import Options

if TYPE_CHECKING:
    from fastgen.index.bands import Bands
    from fastgen.method.novelty import NoveltyFilter

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
    from fastgen.method.novelty import NoveltyFilter

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
