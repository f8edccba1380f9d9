"""The loss of a tuning, step by step: a file of JSON lines, and a picture of it.

Each line has ``step`` and either ``loss``, ``learning_rate``, ``grad_norm``, ``tokens`` (of the step) and ``seconds``,
or ``eval_loss``. Losses are natural-log cross-entropies per token of a completion. Knows nothing of trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastgen.storage.files import replacing

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
