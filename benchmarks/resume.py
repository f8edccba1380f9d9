"""How long a run takes to start again, compared with parsing its log with orjson alone.

``python -m benchmarks.resume [--instructions 1000000] [--index lsh]``

A run of invented instructions is written through the store, as `generate` would: five instructions a completion, one
classification and one instance answer each, closed segments compressed. Its state is saved at 95 % and at the end.
Then, each in a separate process:

- *orjson*: ``orjson.loads`` over the log's lines, which are already in memory: no file, no decompression, no checksums;
- *checkpoint*: from a fresh plan to one that is ready to ask, with the checkpoint of the end;
- *stale*: the same with the one of 95 %: the last 5 % come from the log;
- *replay*: the same without a checkpoint: the whole log.

Every run has to load the compiled kernels. That comes before and has its own figure. The files are in the page cache.
Peak memory is that of the process (``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from benchmarks.harness import ROOT, finish, print_table
from fastgen.generate.checkpoint import capture, load_checkpoint, make_copy_memory, write_checkpoint
from fastgen.generate.options import Options, run_configuration, saved_values
from fastgen.methods.base import Answered, Commit, Created, Kept, Labelled
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks
from fastgen.similarity.novelty import IndexKind, NoveltyFilter, warm_up
from fastgen.store.log import open_segment, segment_files
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Completion

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("orjson", "checkpoint", "stale", "replay")
_PER_COMPLETION = 5
_STALE_SHARE = 0.05
_CHUNK = 20_000
_WORDS = 40_000
_NO = Completion(" No", "stop", 600, 2)


def instructions(count: int, seed: int = 0) -> Iterator[str]:
    """Invented instructions: 6 to 18 invented words with frequencies after Zipf."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il", "or", "un")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(_WORDS)]
    weights = [*accumulate(1 / rank for rank in range(1, _WORDS + 1))]
    for _ in range(count):
        yield " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(6, 18))).capitalize() + "."


def commits(texts: list[str], first: int, request: int) -> list[Commit]:
    """Return the commits of a run of these instructions, numbered from ``first``."""
    made: list[Commit] = []
    for at in range(0, len(texts), _PER_COMPLETION):
        some = texts[at : at + _PER_COMPLETION]
        made.append(_instruction_commit(some, first + at, request))
        for i in range(len(some)):
            number, output = first + at + i, f"Input: {some[i][:30]}\nOutput: {' '.join(some[:2])}"
            spans = (((7, 37), (46, len(output))),)
            done = Completion(output, "stop", 900, 60)
            made += [
                Commit(request + 1 + 2 * i, 0, "classification", number, (), _NO, Labelled(False), 1e9),
                Commit(request + 2 + 2 * i, 0, "instance", number, (), done, Answered(spans, ()), 1e9),
            ]
        request += 1 + 2 * len(some)
    return made


def _instruction_commit(texts: list[str], first: int, request: int) -> Commit:
    text, kept = "", []
    for i, instruction in enumerate(texts):
        text += f"\n{9 + i}. " if i else " "
        kept.append(Kept((len(text), len(text) + len(instruction)), first + i, (3, 0.3), ((5, 0.4),)))
        text += instruction
    demonstrations = tuple(range(8))
    outcome = Created(tuple(kept), ())
    return Commit(request, 0, "instruction", None, demonstrations, Completion(text, "stop", 400, 120), outcome, 1e9)


def fresh_plan(index: IndexKind) -> Plan:
    """A plan with the shipped seeds and prompts, as `generate` makes it."""
    seeds, prompts = load_seed_tasks(default_seed_path()), load_prompts("completions")
    method = self_instruct(PRESETS["default"], seeds, prompts, SAMPLING_PRESETS["default"])
    return Plan(method, NoveltyFilter(index=index), target=1 << 60, clock=time.time)


def make_run(path: Path, count: int, index: IndexKind) -> dict[str, float]:
    """Write the run and its two checkpoints (``stale.npz`` next to the folder)."""
    store = Store(RunFolder(path))
    store.begin(
        run_configuration(Options(), model="m", contents={"seed_tasks": "s", "prompts": "p"}),
        saved_values(Options()),
        "0",
    )
    plan, texts, request = fresh_plan(index), instructions(count), 0
    plan.resume(store.replay())
    stale_at, stale = int(count * (1 - _STALE_SHARE)), path.with_name("stale.npz")
    first, cuts = 0, sorted({*range(0, count, _CHUNK), stale_at, count})
    for begin, end in pairwise(cuts):
        block = commits([next(texts) for _ in range(end - begin)], first, request)
        store.append(block)
        for commit in block:
            store.ledger.apply(commit)
        plan.resume(block)
        first, request = end, block[-1].request + 1
        if end == stale_at:
            write_checkpoint(store, capture(plan.state, store), [])
            store.folder.checkpoint_path.rename(stale)
    store.sync()
    store.compress_closed()
    figures = save_while_running(plan, store)
    store.close()
    return figures | {"log_bytes": sum(p.stat().st_size for p in store.folder.log_path.iterdir())}


def save_while_running(plan: Plan, store: Store) -> dict[str, float]:
    """Save as a run in progress does, and how long a batch of decisions waits for it."""
    memory = make_copy_memory(int(1.01 * capture(plan.state, store).size) + (1 << 20))
    began_s = time.perf_counter()
    copied = capture(plan.state, store).copy_into(memory)
    copy_s = time.perf_counter() - began_s
    assert copied is not None
    began_s = time.perf_counter()
    size = write_checkpoint(store, copied, [])
    return {"checkpoint_bytes": size, "copy_s": copy_s, "write_s": time.perf_counter() - began_s}


def parse(path: Path) -> dict[str, float]:
    """``orjson.loads`` over every line."""
    total_s, lines = 0.0, 0
    for _, segment in segment_files(path / "log"):
        with open_segment(segment) as content:
            found = content.read().splitlines()
        began_s = time.perf_counter()
        for line in found:
            orjson.loads(line)
        total_s, lines = total_s + time.perf_counter() - began_s, lines + len(found)
    return {"seconds": total_s, "lines": lines}


def start(path: Path, index: IndexKind) -> dict[str, float]:
    """From nothing to a plan that has asked its first request."""
    began_s = time.perf_counter()
    warm_up(index)
    kernels_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    store, plan = Store(RunFolder(path)), fresh_plan(index)
    saved = load_checkpoint(store, plan)
    assert plan.next() is not None
    seconds = time.perf_counter() - began_s
    figures = {"seconds": seconds, "kernels_s": kernels_s, "instructions": len(plan.state.pool)}
    store.close()
    return figures | {"from_checkpoint": 0 if saved is None else saved.instructions}


def one(kind: str, path: Path, count: int, index: IndexKind) -> dict[str, float]:
    """Measure one kind, in this process."""
    if kind == "make":
        return make_run(path, count, index)
    checkpoint = path / "checkpoint.npz"
    if kind == "stale":
        shutil.move(path.with_name("stale.npz"), checkpoint)
    elif kind == "replay":
        checkpoint.unlink()
    figures = parse(path) if kind == "orjson" else start(path, index)
    return figures | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def in_process(kind: str, path: Path, given: argparse.Namespace) -> dict[str, float]:
    """Measure one kind in a separate process."""
    options = ["--instructions", str(given.instructions), "--index", given.index, "--one", kind, "--at", str(path)]
    command = [sys.executable, "-m", "benchmarks.resume", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = orjson.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", type=int, default=1_000_000)
    parser.add_argument("--index", choices=("lsh", "exact", "exhaustive"), default="lsh")
    parser.add_argument("--folder", type=Path, help="where the run is made (default: the temporary folder)")
    parser.add_argument("--one", choices=("make", *KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(orjson.dumps(one(given.one, given.at, given.instructions, given.index)).decode())
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        path = Path(name) / "run"
        made = in_process("make", path, given)
        os.sync()
        measured = {kind: in_process(kind, path, given) for kind in KINDS}
    alone_s = measured["orjson"]["seconds"]
    rows = [
        (kind, m["seconds"], m["seconds"] / alone_s, m["peak_bytes"] / 1e6, m.get("from_checkpoint", 0))
        for kind, m in measured.items()
    ]
    print_table(("start", "seconds", "x orjson", "peak MB", "instructions from the checkpoint"), rows)
    size = made["checkpoint_bytes"]
    print(
        f"\ncheckpoint: {size / 1e6:,.0f} MB ({size / given.instructions:,.0f} bytes an instruction); a"
        f" batch of decisions waits {1e3 * made['copy_s']:.0f} ms for its copy, writing takes "
        f"{made['write_s']:.1f} s beside the run; log: {made['log_bytes'] / 1e6:,.0f} MB"
    )
    finish("resume", {"instructions": given.instructions, "index": given.index, "made": made, **measured})


if __name__ == "__main__":
    main()
