"""The flags of ``fastgen tune``: names, defaults, help and checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from fastgen.errors import InputError

TextFormat = Literal["prompt-completion", "messages"]
Dtype = Literal["auto", "float32", "bfloat16"]

DEFAULT_EPOCHS = 2.0  # as the method's own tuning
LORA_LEARNING_RATE = 2e-4
FULL_LEARNING_RATE = 2e-5

_DATA = Group("The data", sort_key=1)
_TRAINING = Group("The training", sort_key=2)
_MACHINE = Group("The machine (may change on resume)", sort_key=3)


@Parameter(name="*", group=_DATA)
@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What the model is tuned on."""

    run_dir: Path | None = None
    """Folder of the run whose instances are the data."""
    data: Path | None = None
    """A file instead of a run: JSON lines or one JSON array, as 'fastgen export' writes them, whose rows have prompt
    and completion, messages, or instruction, input and output."""
    format: TextFormat = "prompt-completion"
    """How instruction, input and output become text: the method's 13 templates, or chats in the model's own chat
    template. Rows of --data that have prompt or messages already are taken as they are."""
    include_seeds: Annotated[bool, Parameter(negative=())] = False
    """Also the run's seed tasks."""
    max_instructions: int | None = None
    """Use only this number of the run's instructions, drawn as 'fastgen export' draws them with --seed."""
    eval_share: float = 0.05
    """Share of the instructions that is kept out of the training to measure the loss on (0: none)."""

    def check(self) -> None:
        """:raises InputError: when there is no source or two, a flag does not fit it, or the share is out of range."""
        if (self.run_dir is None) == (self.data is None):
            raise InputError("--run-dir: name the run to tune on, or a file with --data; one of the two")
        if self.data is not None and (self.include_seeds or self.max_instructions is not None):
            flag = "--include-seeds" if self.include_seeds else "--max-instructions"
            raise InputError(f"{flag}: is about a run; leave it out with --data")
        if not 0 <= self.eval_share < 1:
            raise InputError(f"--eval-share: {self.eval_share} is not at least 0 and below 1")


@Parameter(name="*", group=_TRAINING)
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How the model is tuned; fixed from the first step to the last."""

    steps: int | None = None
    """Optimiser steps; instead of --epochs."""
    epochs: float | None = None
    """Passes over the data; 2 where neither this nor --steps is given."""
    batch_size: int = 8
    """Rows of one optimiser step."""
    learning_rate: float | None = None
    """The highest, after 3 % of the steps; it falls linearly to 0. Without it 2e-4 with --lora, 2e-5 with --full."""
    lora: Annotated[bool, Parameter(name="--lora", negative="--full")] = True
    """Tune low-rank adapters of all linear layers and merge them into the weights at the end, or all weights."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int | None = None
    """Scale of the adapters is alpha / rank; without it alpha is twice the rank."""
    max_length: int = 1024
    """Tokens of prompt and completion; what is longer loses its end, and a prompt of this length is left out."""
    seed: int = 0
    """Keys templates, the evaluation's share, the order of the rows and the adapters' first values."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise InputError("--steps: --epochs says how long already; give one of the two")
        counts = {
            "--steps": self.steps,
            "--batch-size": self.batch_size,
            "--lora-rank": self.lora_rank,
            "--lora-alpha": self.lora_alpha,
        }
        for flag, count in counts.items():
            if count is not None and count < 1:
                raise InputError(f"{flag}: {count} is below 1")
        for flag, value in (("--epochs", self.epochs), ("--learning-rate", self.learning_rate)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{flag}: {value} is not a number above 0")
        if self.max_length < 2:  # noqa: PLR2004 - one token of each
            raise InputError(f"--max-length: {self.max_length} leaves no room for a prompt and a completion")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed: {self.seed} is not at least 0 and below 2^32")

    @property
    def rate(self) -> float:
        """The learning rate, given or by default."""
        return self.learning_rate or (LORA_LEARNING_RATE if self.lora else FULL_LEARNING_RATE)

    @property
    def alpha(self) -> int:
        """The LoRA alpha, given or by default."""
        return self.lora_alpha or 2 * self.lora_rank

    def configuration(self) -> dict[str, Any]:
        """Return what decides the result, by flag; a stopped tuning resumes only with the same."""
        length = {"steps": self.steps} if self.steps is not None else {"epochs": self.epochs or DEFAULT_EPOCHS}
        adapters = {"lora_rank": self.lora_rank, "lora_alpha": self.alpha} if self.lora else {}
        return {
            **length,
            "batch_size": self.batch_size,
            "learning_rate": self.rate,
            "method": "lora" if self.lora else "full",
            **adapters,
            "max_length": self.max_length,
            "seed": self.seed,
        }


@Parameter(name="*", group=_MACHINE)
@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """How the training is carried out."""

    micro_batch_size: int | None = None
    """Rows that are in memory at once; a divisor of --batch-size. Without it all of them."""
    save_every: int = 50
    """Steps from one checkpoint, and one evaluation, to the next."""
    dtype: Dtype = "auto"
    """What is computed in: auto is bfloat16 on GPUs and CPUs that multiply in it, else float32."""

    def check(self, training: TrainingOptions) -> None:
        """:raises InputError: when a value is out of range or does not fit the batch."""
        if self.save_every < 1:
            raise InputError(f"--save-every: {self.save_every} is below 1")
        size = self.micro_batch_size
        if size is not None and (size < 1 or training.batch_size % size):
            raise InputError(f"--micro-batch-size: {size} does not divide --batch-size {training.batch_size}")

    def micro_batch(self, training: TrainingOptions) -> int:
        """Return the rows in memory at once."""
        return self.micro_batch_size or training.batch_size
