"""A benchmark of our own in the layout of Super-NaturalInstructions, and the command line that evaluates on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from fastgen.simulator.server import FaultServer, in_a_thread
from tests.command_help import Said, fastgen

TASKS: list[dict[str, Any]] = [
    {
        "Categories": ["Title Generation"],
        "Definition": ["Write a title for the story."],
        "Instances": [
            {
                "id": f"t1-{n}",
                "input": f"Story number {n} about a patient gardener, his {n} lemon trees and one long dry summer.",
                "output": [f"The gardener and his {n} trees", f"Lemons in the summer of {n}"],
            }
            for n in range(5)
        ],
    },
    {
        "Categories": ["Word Analogy"],
        "Definition": ["Complete the analogy."],
        "Instances": [{"id": f"t2-{n}", "input": f"hand : glove. foot {n} :", "output": ["sock"]} for n in range(3)],
    },
]
NAMES = ("task1_titles", "task2_analogies")


def superni(folder: Path, tasks: list[dict[str, Any]] = TASKS) -> Path:
    """The benchmark's folder; its list names a task that is not there, as a part of the benchmark does."""
    data = folder / "superni"
    (data / "tasks").mkdir(parents=True)
    (data / "splits" / "default").mkdir(parents=True)
    for name, task in zip(NAMES, tasks, strict=True):
        (data / "tasks" / f"{name}.json").write_bytes(orjson.dumps(task))
    (data / "splits" / "default" / "test_tasks.txt").write_text("\n".join((*NAMES, "task3_absent", "")))
    return data


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def call(*flags: str | Path) -> Said:
    """``fastgen evaluate`` in this process."""
    return fastgen("evaluate", *flags)


RIGHT = {i["input"]: i["output"][0] for task in TASKS for i in task["Instances"]}


def knowing(prompt: str, _: int) -> str:
    """The right answer for most, then another example, as a base model continues."""
    said = next((right for text, right in RIGHT.items() if text in prompt), "no idea")
    return f" {said}\n\nInput: something else\n\nOutput: more"


@contextmanager
def served(
    write: Callable[[str, int], str] = knowing, model: str = "test-model-base", max_model_len: int = 1 << 20
) -> Iterator[FaultServer]:
    """A server in a separate thread."""
    with in_a_thread(FaultServer(write=write, model=model, max_model_len=max_model_len)) as server:
        yield server
