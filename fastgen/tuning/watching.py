"""What happens at each step of a training: its loss is written and shown, checkpoints marked, wishes to stop heard.

Told by a trainer's events; imports nothing of trainers itself.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from fastgen.errors import InputError
from fastgen.progress import duration
from fastgen.tuning.job import Job
from fastgen.tuning.losses import LossLog


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
