"""The ``tune`` command: data, training, model folder. After a stop, the same command resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fastgen import __version__
from fastgen.errors import InputError, how_to_install
from fastgen.store.files import disk_errors
from fastgen.store.output import check_output
from fastgen.telemetry.progress import Reporter
from fastgen.tune.data import TuningData, prepare, source_fingerprint
from fastgen.tune.folder import BaseModel, TuningFolder, write_card
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions
from fastgen.tune.progress import Job, plot, read_losses

_LIBRARIES: Final = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class Tuned:
    """The folder and the figures of the finished model. ``was_there`` is true when nothing was left to do."""

    path: Path
    figures: dict[str, Any]
    was_there: bool = False


def check_libraries() -> None:
    """:raises InputError: when a library of the extra is not installed."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"tune needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"{how_to_install('tune')}"
        )


def tune(
    base: BaseModel,
    output: Path,
    data: DataOptions,
    training: TrainingOptions,
    machine: MachineOptions,
    *,
    reporter: Reporter,
    stopping: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Tune the model and write it to the folder ``output``. Resume a tuning that was begun there.

    :raises InputError: when data, model, folder or flags cannot be used, or the memory is too small.
    :raises StoppedError: when ``stopping`` became true; the same call resumes.
    :raises DiskError: when nothing can be written.
    """
    data.check()
    machine.check(training)
    check_output("--output", output, [path for path in (data.run_dir, data.data, base.folder) if path is not None])
    configuration = _configuration(base, data, training)
    place = TuningFolder(output)
    with place.locked():
        if (done := place.finished()) is not None:
            place.check_configuration(done["meaning"], configuration)
            place.forget_training()
            return Tuned(output, done["figures"], was_there=True)
        prepared = _prepared(place, configuration, data, training.seed, reporter)

        from fastgen.tune.training import train  # imports torch

        job = Job(base, place, prepared.is_chat, prepared.eval_rows > 0, training, machine, reporter, stopping)
        scratch, measured = train(job)
        losses = read_losses(place.losses)
        figures = _figures(measured, losses)
        has_plot = plot(losses, scratch / "loss.png", f"{base.name}, {figures['steps']} steps")
        if not has_plot:
            reporter.say(f"no picture of the loss, since matplotlib is not installed: {how_to_install('tune')}")
        result = {
            "fastgen": __version__,
            "base_model": base.name,
            "meaning": configuration,
            "data": asdict(prepared),
            "figures": figures,
            "plot": has_plot,
        }
        with disk_errors(output):
            (scratch / "README.md").write_text(write_card(output.resolve().name, result), encoding="utf-8")
            place.publish(scratch, result)
        return Tuned(output, figures)


def _configuration(base: BaseModel, data: DataOptions, training: TrainingOptions) -> dict[str, Any]:
    """Return what decides the result. A stopped tuning resumes only with the same."""
    about_run = {"include_seeds": data.include_seeds, "max_instructions": data.max_instructions}
    return {
        "base_model": base.fingerprint(),
        "source": source_fingerprint(data),
        "format": data.format,
        **(about_run if data.run_dir is not None else {}),
        "eval_share": data.eval_share,
        **training.configuration(),
    }


def _prepared(
    place: TuningFolder, configuration: dict[str, Any], data: DataOptions, seed: int, reporter: Reporter
) -> TuningData:
    """Return the data that was prepared when this tuning began, or prepare it now."""
    if (begun := place.begun()) is not None:
        place.check_configuration(begun["meaning"], configuration)
        return TuningData(**begun["data"])
    with disk_errors(place.path):
        place.clear()
        prepared = prepare(data, seed, place.training)
        place.begin(configuration, asdict(prepared))
    reporter.say(f"{prepared.train_rows:,} rows to tune on and {prepared.eval_rows:,} held out, of {prepared.source}")
    return prepared


def _figures(measured: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the whole training, over all its starts. Only the time is this start's."""
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
    tenth = max(1, len(losses) // 10)
    evaluated = {"eval_loss_before": held_out[0], "eval_loss_after": held_out[-1]} if held_out else {}
    return {
        **{name: value for name, value in measured.items() if name != "seconds"},
        "tokens": sum(row["tokens"] for row in rows if "tokens" in row),
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        **evaluated,
        "seconds_since_last_start": round(measured["seconds"], 1),
    }
