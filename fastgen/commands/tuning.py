"""The command that tunes a model."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastgen.commands.environment import cache_dir
from fastgen.display import tell
from fastgen.tuning.options import DataOptions, MachineOptions, TrainingOptions

if TYPE_CHECKING:
    from fastgen.tuning.base import BaseModel


def tune(
    *,
    base_model: str,
    output: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - frozen
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    quiet: bool = False,
) -> int:
    """Tune a model on a run's instances (loss on the outputs only); the same command goes on with a stopped tuning.

    Parameters
    ----------
    base_model
        Model to start from: a folder, a name on the Hugging Face hub, or smollm2-135m-instruct, which comes with the
        embedded CPU server.
    output
        Folder for the tuned model, which vLLM serves; holds the checkpoints until it is finished.
    quiet
        Say nothing but errors and the last line.
    """
    from fastgen.progress import choose_reporter
    from fastgen.tuning.tune import check_libraries
    from fastgen.tuning.tune import tune as run_tuning

    check_libraries()
    reporter = choose_reporter(quiet=quiet, log_json=False)
    try:
        with warnings.catch_warnings(), _stop_signals() as stop:
            warnings.simplefilter("ignore")  # of the libraries, about each other
            base = _base(base_model, reporter.say)
            done = run_tuning(*(base, output, data, training, machine), reporter=reporter, stopping=lambda: stop[0])
    finally:
        reporter.close()
    state = "is there already" if done.was_there else f"written, {done.figures['steps']} steps"
    held_out = ""
    if "eval_loss_after" in done.figures:
        held_out = (
            f"; loss on held-out instructions {done.figures['eval_loss_before']:.3f} -> "
            f"{done.figures['eval_loss_after']:.3f}"
        )
    tell(f"{output}: model {state}{held_out}; serve it with: vllm serve {output}")
    return 0


def _base(name: str, report: Callable[[str], None]) -> BaseModel:
    """The base model as a folder; nothing of the libraries' is imported before their environment is set."""
    from fastgen.embedded import EMBEDDED_MODEL, ensure_embedded
    from fastgen.tuning.base import BaseModel, hub_base, local_base

    _set_environment(os.environ)
    found = local_base(name)
    if found is None and name == EMBEDDED_MODEL:
        found = BaseModel(asyncio.run(ensure_embedded(cache_dir(), report=report)).model_dir, name)
    if found is None:
        return hub_base(name)
    os.environ["HF_HUB_OFFLINE"] = "1"  # all is on this disk: nothing may be asked for behind the user's back
    return found


def _set_environment(environment: MutableMapping[str, str]) -> None:
    """No telemetry; threads that do not spin for each other; and one GPU.

    With several GPUs in sight the trainer would split batches among threads; and where other work wants the cores,
    spinning threads stall each other for seconds a step.
    """
    environment.setdefault("GOMP_SPINCOUNT", "0")
    environment["HF_HUB_DISABLE_TELEMETRY"] = environment["DO_NOT_TRACK"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


@contextmanager
def _stop_signals() -> Iterator[list[bool]]:
    """``[True]`` once somebody asked for a stop (Ctrl-C, SIGTERM); a second Ctrl-C does not wait for the step."""
    stop = [False]

    def ask(*_: object) -> None:
        stop[0] = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
