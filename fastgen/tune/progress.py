"""The progress of a tuning: the file of losses, its picture, and what happens at each step of the training.

Each line of ``loss.jsonl`` has ``step`` and either ``loss``, ``learning_rate``, ``grad_norm`` and ``tokens`` (of the
step), or ``eval_loss``. Losses are natural-log cross-entropies per token of a completion.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fastgen.errors import InputError
from fastgen.store.files import replacing
from fastgen.telemetry.progress import Reporter, duration
from fastgen.tune.folder import BaseModel, TuningFolder
from fastgen.tune.options import MachineOptions, TrainingOptions

_SMOOTHING_STEPS = 20


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a training. ``stopping`` becomes true when the user asks for a stop."""

    base: BaseModel
    place: TuningFolder
    is_chat: bool
    has_eval: bool
    options: TrainingOptions
    machine: MachineOptions
    reporter: Reporter
    stopping: Callable[[], bool] = field(default=lambda: False)


class Watcher:
    """Writes and shows the loss of each step, marks checkpoints, and stops the training when the user asks for it.

    Its methods are the events of a ``TrainerCallback`` of transformers.

    :raises InputError: when the loss is not finite.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        checkpoint = job.place.last_checkpoint()
        cut_losses(job.place.losses, checkpoint[0] if checkpoint else -1)
        self._eval_loss: float | None = None
        self._tokens = self._steps = 0
        self._training_s = 0.0  # without evaluations and checkpoints
        self._step_started_s = 0.0

    def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """Before a step."""
        self._step_started_s = time.monotonic()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ANN401
        """After a step, before its log, evaluation and checkpoint."""
        self._training_s += time.monotonic() - self._step_started_s
        self._steps += 1
        if state.global_step < state.max_steps and self._job.stopping():
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
        """After a measurement."""
        if "eval_loss" in (logs or {}):
            self._eval_loss = logs["eval_loss"]
            append_loss(self._job.place.losses, {"step": state.global_step, "eval_loss": logs["eval_loss"]})
        elif "loss" in (logs or {}):
            self._log_step(state.global_step, state.max_steps, logs)

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """After a checkpoint."""
        self._job.place.mark_complete(state.global_step)

    def _log_step(self, step: int, target: int, logs: Mapping[str, Any]) -> None:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"--learning-rate {self._job.options.rate:g}: the loss is not a number at step {step}; lower it"
            )
        tokens, self._tokens = int(logs["num_tokens"]) - self._tokens, int(logs["num_tokens"])
        values = {"step": step, "loss": loss, "learning_rate": logs["learning_rate"], "grad_norm": logs["grad_norm"]}
        append_loss(self._job.place.losses, {**values, "tokens": tokens})
        per_s = 1 / self._training_s if self._training_s else 0.0
        progress = TuneProgress(step, target, loss, self._eval_loss, self._tokens * per_s, self._steps * per_s)
        self._job.reporter.show(progress)


@dataclass(frozen=True, slots=True)
class TuneProgress:
    """The state of a training. ``loss`` is the step's, rates are over the steps since the last start."""

    complete: int
    target: int
    loss: float
    eval_loss: float | None
    tokens_per_s: float
    steps_per_s: float

    @property
    def eta(self) -> str:
        """Time to the last step, as hours:minutes:seconds, or a dash."""
        return duration((self.target - self.complete) / self.steps_per_s) if self.steps_per_s > 0 else "-"

    def details(self) -> str:
        """Return loss and speed."""
        held_out = "" if self.eval_loss is None else f" · held-out loss {self.eval_loss:.3f}"
        return f"loss {self.loss:.3f}{held_out} · {self.tokens_per_s:,.0f} tokens/s · {self.steps_per_s:.2f} steps/s"

    def line(self) -> str:
        """Return all of it in one line."""
        return f"step {self.complete}/{self.target} · {self.details()} · ETA {self.eta}"


# -- the file of losses ------------------------------------------------------------------------------------------------


def append_loss(path: Path, values: Mapping[str, Any]) -> None:
    """Append a line. After a kill the lines so far are there."""
    with path.open("ab") as file:
        file.write(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE))


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines, without a torn last one."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [orjson.loads(line) for line in lines]


def cut_losses(path: Path, step: int) -> None:
    """Remove the lines after the step. A resumed training measures them again."""
    kept = [row for row in read_losses(path) if row["step"] <= step]
    with replacing(path, durable=False) as sink:
        sink.write(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in kept))


def smoothed(losses: list[float], window: int = _SMOOTHING_STEPS) -> list[float]:
    """Return the mean of each loss and up to ``window - 1`` before it."""
    return [sum(part) / len(part) for i in range(len(losses)) for part in [losses[max(0, i + 1 - window) : i + 1]]]


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw the losses as a PNG. Return false where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if train:
        steps, losses = [step for step, _ in train], [loss for _, loss in train]
        axes.plot(steps, losses, color="#9bb8d3", linewidth=1, label="training, each step")
        label = f"training, mean of {_SMOOTHING_STEPS} steps"
        axes.plot(steps, smoothed(losses), color="#1f5f99", linewidth=2, label=label)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#c2571a", marker="o", linewidth=2, label="held-out instructions")
    axes.set(xlabel="optimiser step", ylabel="loss (nats per token of a completion)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
