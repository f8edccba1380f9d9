"""Writes a run's instructions as files that other tools read. Streams: memory does not grow with the run.

A plain reader of the run folder: works while the run goes on, on a read-only folder, and on a run that never ended.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from fastgen.errors import DiskError, InputError
from fastgen.log import TornTail
from fastgen.plan import CONTAMINATED
from fastgen.records import Neighbour, SeedTask
from fastgen.runs import OpenRun, open_run
from fastgen.settled import RejectedInstruction, Settled, pool_id, rejected_instructions, settled_instructions

Format = Literal["raw", "instances", "rejected"]
_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def export(run_dir: Path, form: Format, output: Path, *, include_empty: bool = False) -> int:
    """Write the run to ``output`` (``-`` is standard output), replacing it only when whole; returns the number of rows.

    Rows are in the order of settling, so a later export of the same run begins with the same rows.

    :raises InputError: no run there, a damaged one, or no such place. :raises DiskError: the output cannot be written.
    """
    run = open_run(run_dir)
    count = 0
    with _replacing(output) as sink:
        for row in _rows(run, form, include_empty=include_empty):
            sink.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def _rows(run: OpenRun, form: Format, *, include_empty: bool) -> Iterator[dict[str, Any]]:
    commits = (item[0] for item in run.folder.commits() if not isinstance(item, TornTail))
    if form == "rejected":
        return (_rejected_row(rejected, run.seeds) for rejected in rejected_instructions(commits, run.rules))
    settled = (s for s in settled_instructions(commits, run.rules) if s.instances or include_empty)
    if form == "raw":
        return (_raw_row(s, run) for s in settled)
    return (row for s in settled for row in _instance_rows(s))


def _raw_row(settled: Settled, run: OpenRun) -> dict[str, Any]:
    return {
        "id": f"machine_{settled.number}",
        "instruction": settled.instruction,
        "is_classification": settled.is_classification,
        "instances": [{"input": i.input, "output": i.output} for i in settled.instances],
        "nearest_seed": _named(settled.nearest_seed, run.seeds),
        "nearest_checked": [_named(neighbour, run.seeds) for neighbour in settled.nearest_checked],
        "provenance": {
            "request_id": settled.request,
            "model": run.meaning["model"],
            "demonstration_ids": [pool_id(index, run.seeds) for index in settled.demonstrations],
            "seed": run.meaning["seed"],
        },
    }


def _instance_rows(settled: Settled) -> Iterator[dict[str, Any]]:
    for instance in settled.instances:
        yield {"instruction": settled.instruction, "input": instance.input, "output": instance.output}


def _rejected_row(rejected: RejectedInstruction, seeds: tuple[SeedTask, ...]) -> dict[str, Any]:
    return {
        "instruction": rejected.instruction,
        "rule": rejected.rule,
        "neighbour": _neighbour_of(rejected, seeds),
        "request_id": rejected.request,
    }


def _neighbour_of(rejected: RejectedInstruction, seeds: tuple[SeedTask, ...]) -> dict[str, Any] | None:
    if rejected.rule == CONTAMINATED and rejected.neighbour is not None:
        return {"id": f"forbidden_{rejected.neighbour[0]}", "rouge_l": rejected.neighbour[1]}
    return _named(rejected.neighbour, seeds)


def _named(neighbour: Neighbour | None, seeds: tuple[SeedTask, ...]) -> dict[str, Any] | None:
    return None if neighbour is None else {"id": pool_id(neighbour[0], seeds), "rouge_l": neighbour[1]}


@contextmanager
def _replacing(output: Path) -> Iterator[IO[bytes]]:
    if str(output) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        if output.exists() and not output.is_file():  # a pipe or a device: written to, never replaced
            with output.open("wb") as sink:
                yield sink
        else:
            with _beside(Path(os.path.realpath(output))) as sink:  # what a link points to; the link stays
                yield sink
    except OSError as error:
        kind = InputError if error.errno in _NO_SUCH_PLACE else DiskError
        raise kind(f"--output {output}: cannot be written ({error.strerror}); mend that or name another file") from None


@contextmanager
def _beside(target: Path) -> Iterator[IO[bytes]]:
    """A file of its own that takes the place of ``target`` once it is whole."""
    temporary = target.with_name(f".fastgen-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as sink:
            yield sink
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
