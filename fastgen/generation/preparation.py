"""Makes a run's plan from its options and material, with the similarity filter ready by the time it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from threading import Thread, Timer
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


def make_plan(options: Options, material: Material, say: Callable[[str], None]) -> Plan:
    """The plan of a run that has nothing yet. Takes a moment: not for the event loop.

    :raises InputError: the similarity options do not fit together.
    """
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
    # A daemon, so that nobody who stops a run waits for compilers.
    Thread(target=_prepare, args=(novelty, say), name="kernels", daemon=True).start()
    return plan


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


def _prepare(novelty: NoveltyFilter, say: Callable[[str], None]) -> None:
    """Load the filter's kernels while the first requests go out; who needs them meanwhile waits for them."""
    slow = Timer(
        COMPILES_AFTER_S,
        say,
        ["compiling the similarity filter (once on a machine, up to a minute); the servers are asked meanwhile"],
    )
    slow.daemon = True
    slow.start()
    with suppress(Exception):  # it fails again where it is needed, and is told from there
        novelty.prepare()
    slow.cancel()
