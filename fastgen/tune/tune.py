"""The story of a tuning: data, training, model folder; stopped at any point, the same command goes on.

Knows what happens in which order; how is told elsewhere in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastgen import __version__
from fastgen.errors import InputError
from fastgen.store.output import check_output
from fastgen.store.tables import as_disk_error
from fastgen.telemetry.progress import Reporter
from fastgen.tune.data import TuningData, prepare, source_fingerprint
from fastgen.tune.folder import BaseModel, TuningFolder, check_same_meaning, write_card
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions
from fastgen.tune.progress import Job, LossLog, plot

if TYPE_CHECKING:
    from fastgen.tune.training import Trained


_LIBRARIES: Final = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class Tuned:
    """The finished model's folder and figures; ``was_there`` says that nothing was left to do."""

    path: Path
    figures: dict[str, Any]
    was_there: bool = False


def check_libraries() -> None:
    """:raises InputError: a library of the extra is not installed."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"tune needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'fastgen[tune]'"
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
    """Tune the model and write it to the folder ``output``; goes on with what was begun there.

    :raises InputError: data, model, folder or flags that cannot be used, or not enough memory.
    :raises StoppedError: ``stopping`` became true; the same call goes on. :raises DiskError: nothing can be written.
    """
    data.check()
    machine.check(training)
    check_output("--output", output, [path for path in (data.run_dir, data.data, base.folder) if path is not None])
    meaning = _meaning(base, data, training)
    place = TuningFolder(output)
    with place.locked():
        if (done := place.finished()) is not None:
            check_same_meaning(output, done["meaning"], meaning)
            place.forget_training()
            return Tuned(output, done["figures"], was_there=True)
        prepared = _begin(place, meaning, data, training.seed, reporter)
        return _train(place, meaning, prepared, base, training, machine, reporter, stopping)


def _meaning(base: BaseModel, data: DataOptions, training: TrainingOptions) -> dict[str, Any]:
    """What decides the result; a stopped tuning goes on only with the same."""
    about_run = {"include_seeds": data.include_seeds, "max_instructions": data.max_instructions}
    return {
        "base_model": base.fingerprint(),
        "source": source_fingerprint(data),
        "format": data.format,
        **(about_run if data.run_dir is not None else {}),
        "eval_share": data.eval_share,
        **training.meaning(),
    }


def _begin(
    place: TuningFolder, meaning: dict[str, Any], data: DataOptions, seed: int, reporter: Reporter
) -> TuningData:
    """The data: what was prepared when this tuning was begun, or prepared now."""
    if (begun := place.begun()) is not None:
        check_same_meaning(place.path, begun["meaning"], meaning)
        return TuningData(**begun["data"])
    with as_disk_error(place.path):
        place.clear()
        prepared = prepare(data, seed, place.training)
        place.begin(meaning, prepared.as_dict())
    reporter.say(f"{prepared.train_rows:,} rows to tune on and {prepared.eval_rows:,} held out, of {prepared.source}")
    return prepared


def _train(
    place: TuningFolder,
    meaning: dict[str, Any],
    data: TuningData,
    base: BaseModel,
    training: TrainingOptions,
    machine: MachineOptions,
    reporter: Reporter,
    stopping: Callable[[], bool],
) -> Tuned:
    from fastgen.tune.training import train, write_model

    job = Job(base, place, data.is_chat, data.eval_rows > 0, training, machine, reporter, stopping)
    trained = train(job)
    scratch = write_model(trained, job)
    figures = _figures(trained, LossLog(place.losses).read())
    title = f"{base.name}, {figures['steps']} steps"
    drawn = plot(LossLog(place.losses).read(), scratch / "loss.png", title)
    if not drawn:
        reporter.say("no picture of the loss, since matplotlib is not installed: pip install 'fastgen[tune]'")
    result = {
        "fastgen": __version__,
        "base_model": base.name,
        "meaning": meaning,
        "data": data.as_dict(),
        "figures": figures,
        "plot": drawn,
    }
    with as_disk_error(place.path):
        (scratch / "README.md").write_text(write_card(place.path.resolve().name, result), encoding="utf-8")
        place.publish(scratch, result)
    return Tuned(place.path, figures)


def _figures(trained: Trained, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the whole training, over all its starts; the time is this start's."""
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
    tenth = max(1, len(losses) // 10)
    measured = {"eval_loss_before": held_out[0], "eval_loss_after": held_out[-1]} if held_out else {}
    trained_parameters, parameters = trained.figures["parameters"]
    return {
        **{name: value for name, value in trained.figures.items() if name != "parameters"},
        "parameters": parameters,
        "trained_parameters": trained_parameters,
        "steps": trained.steps,
        "tokens": sum(row["tokens"] for row in rows if "tokens" in row),
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        **measured,
        "seconds_since_last_start": round(trained.seconds, 1),
    }
