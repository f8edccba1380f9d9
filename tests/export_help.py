"""A run folder with chosen content, and the command line that exports it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from fastgen.cli import app as cli
from fastgen.generate.options import JobOptions, Options, run_configuration, saved_values
from fastgen.methods.base import Answered, Commit, Created, Kept, Labelled, Rejection
from fastgen.methods.self_instruct.seeds import load_seed_tasks, seed_fingerprint
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Completion, Span

SEEDS = tuple(
    {
        "id": f"seed_task_{number}",
        "name": f"seed_{number}",
        "instruction": f"Explain to a newcomer how step {number} of the recipe works.",
        "instances": [{"input": "" if number % 2 else f"Step: {number}", "output": f"Stir {number} times."}],
        "is_classification": False,
    }
    for number in range(4)
)
USUAL = Options()
INSTANCES = (("", "An answer."), ("Text: some words", "Another answer."))


@dataclass(frozen=True)
class Task:
    """An instruction of a run: its instances, or ``None`` where they are still to come."""

    instruction: str
    instances: Sequence[tuple[str, str]] | None = INSTANCES
    is_classification: bool = False
    reasoning: str = ""


def numbered(count: int, first: int = 0) -> list[Task]:
    """Different instructions, every third one a classification task."""
    return [
        Task(f"Describe thing number {n} in plain words.", is_classification=n % 3 == 0) for n in range(first, count)
    ]


def make_run(
    path: Path, tasks: Sequence[Task], options: Options = USUAL, *, model: str = "some-model", **more: str
) -> Path:
    """A run with these instructions, of these options; its target is what it has, unless the options name another.

    ``more`` is the rest of the configuration.
    """
    folder = RunFolder(path)
    store = Store(folder)
    if options.job.num_instructions == JobOptions().num_instructions:
        options = replace(options, job=JobOptions(num_instructions=len(tasks)))
    seeds = b"".join(orjson.dumps(seed) + b"\n" for seed in SEEDS)
    folder.seeds_path.write_bytes(seeds)
    fingerprint = seed_fingerprint(load_seed_tasks(folder.seeds_path))
    what = run_configuration(options, model=model, contents={"seed_tasks": fingerprint, "prompts": "p"}) | more
    store.begin(what, saved_values(options), "1.2.3")
    list(store.replay())
    folder.save_inputs(seeds, {})
    _append(store, list(_commits(tasks, 0)))
    return path


def extend_run(path: Path, tasks: Sequence[Task], first: int) -> None:
    """More instructions, numbered from ``first``."""
    store = Store(RunFolder(path))
    list(store.replay())
    _append(store, list(_commits(tasks, first)))


def _append(store: Store, commits: list[Commit]) -> None:
    if commits:
        store.append(commits)
    for commit in commits:
        store.ledger.apply(commit)
    store.close()


def _commits(tasks: Sequence[Task], first: int) -> Iterator[Commit]:
    for number, task in enumerate(tasks, start=first):
        text = f"{task.instruction}\n10. Too short."
        kept = Kept((0, len(task.instruction)), number, (1, 0.25), ((1, 0.25), (4, 0.2)))
        rejection = Rejection((len(text) - 10, len(text)), "too_short")
        outcome = Created((kept,), (rejection,))
        yield Commit(3 * number, 0, "instruction", None, (0, 1, 2), Completion(text, "stop", 400, 20), outcome, 1e9)
        answer = Labelled(task.is_classification)
        yield Commit(3 * number + 1, 0, "classification", number, (), Completion(" No", "stop", 50, 1), answer, 1e9)
        if task.instances is not None:
            yield _instance_commit(3 * number + 2, number, task.instances, task.reasoning)


def _instance_commit(request: int, number: int, instances: Sequence[tuple[str, str]], reasoning: str) -> Commit:
    text, spans = "", list[tuple[Span, Span]]()
    for source, output in instances:
        middle = len(text) + len(source)
        spans.append(((len(text), middle) if source else (0, 0), (middle, middle + len(output))))
        text += source + output
    completion = Completion(text, "stop", 90, 30, reasoning)
    return Commit(request, 0, "instance", number, (), completion, Answered(tuple(spans), ()), 1e9)


@dataclass(frozen=True)
class Said:
    """How an export ended, and the one line it said."""

    code: int
    out: bytes
    line: str


def call(run: Path, output: Path | str, *flags: str | Path) -> Said:
    """``fastgen export`` in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run(["export", "--run-dir", str(run), "--output", str(output), *map(str, flags)])
        out.flush()
    lines = err.getvalue().splitlines()
    assert len(lines) == 1, lines
    return Said(code, out.buffer.getvalue(), lines[0])


def rows(run: Path, *flags: str) -> list[dict[str, Any]]:
    """What an export writes to standard output as JSON lines."""
    said = call(run, "-", *flags)
    assert said.code == 0, said.line
    return [orjson.loads(line) for line in said.out.splitlines()]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
