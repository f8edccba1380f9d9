"""What an export of a large run costs in time and memory for each format, and whether memory grows with the run.

``python -m benchmarks.export [--instructions 1000000] [--folder DIR]``

The run is synthetic, with the proportions of the original's data (1.57 instances an instruction, 43.5 % of the inputs
empty; 16, 13 and 19 words in an instruction, input and output), and written by the store that writes real runs. Each
export is a separate process. ``all flags`` adds a split, a card, seeds and a sample of nine tenths. *peak* is the
largest resident set of the process. Each format is also exported at a tenth of the size: memory that is the same at
both sizes does not grow with the run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.harness import ROOT, finish, print_table
from fastgen.export.options import FORMATS
from fastgen.generate.options import JobOptions, Options, run_configuration, saved_values
from fastgen.methods.base import Answered, Commit, Created, Kept, Labelled
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks, seed_fingerprint
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Completion, Span

_WORDS = 40_000
_BLOCK = 512
_CHILD = """
import re, sys
from fastgen.cli import run
code = run(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""
_ALL_FLAGS = ("--include-seeds", "--split", "train=0.95,test=0.05", "--card", "--overwrite")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one export: seconds, bytes written, and the largest resident set in bytes."""

    wall_s: float
    output_bytes: int
    peak_bytes: int


def write_run(path: Path, count: int, seed: int = 0) -> None:
    """Write a finished run of ``count`` instructions into an empty folder; the same for the same arguments."""
    store = Store(RunFolder(path))
    options = Options(job=JobOptions(num_instructions=count))
    fingerprint = seed_fingerprint(load_seed_tasks(default_seed_path()))
    store.begin(
        run_configuration(options, model="synthetic", contents={"seed_tasks": fingerprint, "prompts": ""}),
        saved_values(options),
        "0",
    )
    list(store.replay())
    store.folder.save_inputs(default_seed_path().read_bytes(), {})
    commits = _commits(count, random.Random(seed))
    while block := list(islice(commits, _BLOCK)):
        store.append(block)
        for commit in block:
            store.ledger.apply(commit)
        store.compress_closed()
    store.close()


def _commits(count: int, draw: random.Random) -> Iterator[Commit]:
    for number in range(count):
        text = f"{_words(draw, 15).capitalize()} {number}."
        kept = Kept((0, len(text)), number, (draw.randrange(175), 0.31), ((draw.randrange(175), 0.42),))
        shown = tuple(draw.sample(range(175), 8))
        outcome = Created((kept,), ())
        request = 3 * number
        yield Commit(request, 0, "instruction", None, shown, Completion(text, "stop", 400, 25), outcome, 1e9)
        is_classification = draw.random() < 0.22
        answer = Completion(" Yes" if is_classification else " No", "stop", 600, 2)
        judged = Labelled(is_classification)
        yield Commit(request + 1, 0, "classification", number, (), answer, judged, 1e9)
        yield _instances(request + 2, number, draw)


def _instances(request: int, number: int, draw: random.Random) -> Commit:
    text, spans = "", list[tuple[Span, Span]]()
    for _ in range(draw.choices((1, 2, 3, 4), (65, 20, 8, 7))[0]):
        source = "" if draw.random() < 0.435 else _words(draw, 13)
        start = len(text) + len("Input: ")
        text += f"Input: {source}\nOutput: "
        output = _words(draw, 19)
        spans.append(((start, start + len(source)) if source else (0, 0), (len(text), len(text) + len(output))))
        text += f"{output}\n"
    completion = Completion(text, "stop", 900, len(text) // 5)
    return Commit(request, 0, "instance", number, (), completion, Answered(tuple(spans), ()), 1e9)


def _words(draw: random.Random, count: int) -> str:
    """Return invented words with Zipf's frequencies."""
    return " ".join(f"w{int(_WORDS ** draw.random()):x}" for _ in range(count))


def measure(run: Path, output: Path, *flags: str) -> Cost:
    """Export in a separate process and remove the output."""
    command = [sys.executable, "-c", _CHILD, "export", "--run-dir", str(run), "--output", str(output), *flags]
    begun_s = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - begun_s
    if done.returncode:
        raise RuntimeError(done.stderr)
    files = [output] if output.is_file() else list(output.iterdir())
    cost = Cost(wall_s, sum(file.stat().st_size for file in files), int(done.stdout) * 1024)
    for file in files:
        file.unlink()
    return cost


def _exports(folder: Path, count: int) -> dict[str, Cost]:
    run = folder / f"run-{count}"
    if not run.exists():
        begun_s = time.perf_counter()
        write_run(run, count)
        print(f"{count:,} instructions written in {time.perf_counter() - begun_s:.0f} s", file=sys.stderr)
    costs: dict[str, Cost] = {
        form: measure(run, folder / f"out.{form}", "--format", form) for form in FORMATS if form != "rejected"
    }
    sample = ("--max-instructions", str(count * 9 // 10))
    costs["parquet, all flags"] = measure(run, folder / "all", "--format", "parquet", *_ALL_FLAGS, *sample)
    return costs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--instructions", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keep the runs here for the next time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tenth, whole = _exports(folder, asked.instructions // 10), _exports(folder, asked.instructions)
    rows = [
        (
            form,
            c.wall_s,
            asked.instructions / c.wall_s,
            c.output_bytes / 1e6,
            tenth[form].peak_bytes / 1e6,
            c.peak_bytes / 1e6,
        )
        for form, c in whole.items()
    ]
    columns = ("format", "s", "instructions/s", "MB written", "peak MB at a tenth", "peak MB")
    print_table(columns, rows)
    finish("export", {"instructions": asked.instructions, "rows": [dict(zip(columns, r, strict=True)) for r in rows]})


if __name__ == "__main__":
    main()
