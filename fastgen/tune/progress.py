"""The loss of a tuning, step by step: a file of JSON lines, and a picture of it.

Each line has ``step`` and either ``loss``, ``learning_rate``, ``grad_norm``, ``tokens`` (of the step) and ``seconds``,
or ``eval_loss``. Losses are natural-log cross-entropies per token of a completion. Knows nothing of trainers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import DiskError, FastgenError, InputError
from fastgen.store.files import replacing
from fastgen.telemetry.progress import Reporter, duration
from fastgen.tune.folder import BaseModel, TuningFolder
from fastgen.tune.options import MachineOptions, TrainingOptions

_SMOOTHING_STEPS = 20


@dataclass(frozen=True, slots=True)
class LossLog:
    """The file; written a line at a time, so that what was seen before a kill is there."""

    path: Path

    def append(self, values: Mapping[str, Any]) -> None:
        """One more line."""
        with self.path.open("ab") as file:
            file.write(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE))

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last one is passed over."""
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [orjson.loads(line) for line in lines]

    def cut(self, step: int) -> None:
        """Forget what came after the step: a resumed training measures it again."""
        kept = [row for row in self.read() if row["step"] <= step]
        text = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in kept)
        with replacing(self.path, durable=False) as sink:
            sink.write(text)


def smoothed(losses: list[float], window: int = _SMOOTHING_STEPS) -> list[float]:
    """The mean of each loss and up to ``window - 1`` before it."""
    return [sum(part) / len(part) for i in range(len(losses)) for part in [losses[max(0, i + 1 - window) : i + 1]]]


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw the losses as a PNG; false where matplotlib is not installed."""
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


_OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")
_CANNOT_WRITE: Final = ("No space left", "failed writing file", "unexpected pos", "Disk quota")


@dataclass(frozen=True, slots=True)
class Job:
    """All that a training needs to know; ``stopping`` says whether somebody asked it to stop."""

    base: BaseModel
    place: TuningFolder
    is_chat: bool
    has_eval: bool
    options: TrainingOptions
    machine: MachineOptions
    reporter: Reporter
    stopping: Callable[[], bool] = field(default=lambda: False)


@contextmanager
def in_one_line(job: Job) -> Iterator[None]:
    """Too little memory and full disks, which the libraries tell in as many ways as there are, as errors of ours.

    :raises InputError: the memory does not hold the training. :raises DiskError: the folder cannot be written.
    """
    try:
        yield
    except MemoryError:
        raise _too_little_memory(job) from None
    except Exception as error:
        text = str(error)
        if isinstance(error, FastgenError):
            raise
        if any(words in text for words in _OUT_OF_MEMORY):
            raise _too_little_memory(job) from None
        if isinstance(error, OSError) or any(words in text for words in _CANNOT_WRITE):
            reason = " ".join(text.split())[:160]
            raise DiskError(f"--output {job.place.path}: cannot be written ({reason}); make room and go on") from None
        raise


def _too_little_memory(job: Job) -> InputError:
    micro = job.machine.micro_batch(job.options)
    smaller = f"--micro-batch-size below {micro} or " if micro > 1 else ""
    other = "" if job.options.lora else ", or tune adapters only with --lora"
    return InputError(
        f"--base-model {job.base.name}: the memory does not hold the training; take {smaller}a --max-length below "
        f"{job.options.max_length}{other}; --micro-batch-size may change when the tuning goes on"
    )


@dataclass(frozen=True, slots=True)
class TuneProgress:
    """One look at a training; ``loss`` is the step's, rates are over the steps since the last start."""

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
        """Loss and speed."""
        held_out = "" if self.eval_loss is None else f" · held-out loss {self.eval_loss:.3f}"
        return f"loss {self.loss:.3f}{held_out} · {self.tokens_per_s:,.0f} tokens/s · {self.steps_per_s:.2f} steps/s"

    def line(self) -> str:
        """All of it in one line."""
        return f"step {self.complete}/{self.target} · {self.details()} · ETA {self.eta}"


class Watcher:
    """What happens at each step: the loss is written down and shown, a checkpoint marked, a wish to stop heard."""

    def __init__(self, job: Job) -> None:
        self.target = 0
        self.stopped = False
        self._job = job
        self._log = LossLog(job.place.losses)
        checkpoint = job.place.last_checkpoint()
        self._log.cut(checkpoint[0] if checkpoint else -1)
        self._eval_loss: float | None = None
        self._tokens = self._steps = 0
        self._training_s = 0.0
        self._step_started_s = 0.0

    def step_begins(self) -> None:
        """A step begins; evaluations and checkpoints between steps are no training."""
        self._step_started_s = time.monotonic()

    def step_ends(self) -> None:
        """It is over."""
        self._training_s += time.monotonic() - self._step_started_s
        self._steps += 1

    def logged(self, step: int, logs: dict[str, Any]) -> None:
        """What the trainer measured.

        :raises InputError: the loss is no number any more.
        """
        if "eval_loss" in logs:
            self._eval_loss = logs["eval_loss"]
            self._log.append({"step": step, "eval_loss": logs["eval_loss"]})
        elif "loss" in logs:
            self._step(step, logs)

    def _step(self, step: int, logs: dict[str, Any]) -> None:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"--learning-rate {self._job.options.rate:g}: the loss is no number any more at step {step}; lower it"
            )
        tokens, self._tokens = int(logs["num_tokens"]) - self._tokens, int(logs["num_tokens"])
        values = {"step": step, "loss": loss, "learning_rate": logs["learning_rate"], "grad_norm": logs["grad_norm"]}
        self._log.append({**values, "tokens": tokens})
        per_s = 1 / self._training_s if self._training_s else 0.0
        progress = TuneProgress(step, self.target, loss, self._eval_loss, self._tokens * per_s, self._steps * per_s)
        self._job.reporter.show(progress)

    def saved(self, step: int) -> None:
        """The checkpoint of this step is whole."""
        self._job.place.mark_complete(step)

    def wants_stop(self) -> bool:
        """Whether somebody asked for a stop; remembered in ``stopped``."""
        self.stopped = self._job.stopping()
        return self.stopped


class Callback:
    """The trainer's events as the watcher's; becomes a TrainerCallback where it is used."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """Before a step."""
        self._watcher.step_begins()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ANN401
        """After a step, before its log, evaluation and checkpoint."""
        self._watcher.step_ends()
        if state.global_step < state.max_steps and self._watcher.wants_stop():
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
        """After a measurement."""
        self._watcher.logged(state.global_step, logs or {})

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """After a checkpoint."""
        self._watcher.saved(state.global_step)
