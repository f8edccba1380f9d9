"""One dedup in one folder, what it must refuse, and ways to die in the middle of it."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgen.dedup.job import Counts, Journal, dedup
from fastgen.errors import InputError
from fastgen.similarity.options import SimilarityOptions
from fastgen.telemetry.progress import QuietReporter
from tests.dedup_data import make_rows, similarity


@dataclass(frozen=True)
class Job:
    """Files of one dedup in one folder."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "in.jsonl"

    @property
    def kept(self) -> Path:
        return self.folder / "kept.jsonl"

    @property
    def rejected(self) -> Path:
        return self.folder / "rejected.jsonl"

    @property
    def journal(self) -> Path:
        return self.folder / "kept.jsonl.dedup"

    def run(self, rule: SimilarityOptions | None = None, **more: Any) -> Counts:
        return dedup(self.source, self.kept, self.rejected, rule or similarity(), QuietReporter(), **more)

    def results(self) -> tuple[bytes, bytes]:
        return self.kept.read_bytes(), self.rejected.read_bytes()

    def rejected_rows(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.rejected.read_bytes().splitlines()]

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def text_of(row: bytes) -> str:
    text: str = orjson.loads(row)["instruction"]
    return text


def refused(run: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        run()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def write_pool(job: Job) -> Path:
    path = job.folder / "pool.jsonl"
    path.write_bytes(make_rows(1)[0])
    return path


def log_lines(job: Job) -> int:
    segment = job.journal / "log" / "000000.jsonl"
    return segment.read_bytes().count(b"\n") if segment.exists() else 0


def die(of: signal.Signals = signal.SIGKILL) -> None:
    os.kill(os.getpid(), of)


def in_killed_child(body: Callable[[], object]) -> None:
    """Run in a forked process that must die of its own SIGKILL, which spares each point of death a start-up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: the child uses none of the other threads
        child = os.fork()
    if child == 0:
        with suppress(BaseException):
            body()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def after(count: int, real: Callable[..., Any], of: signal.Signals = signal.SIGKILL) -> Callable[..., Any]:
    """``real``, which dies once it has done its work for the ``count``-th time."""
    calls = iter(range(1, count + 1))

    def counted(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        if next(calls, 0) == count:
            die(of)
        return result

    return counted


def die_after_two_batches(job: Job, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", after(3, Journal.append))
        in_killed_child(lambda: job.run(**more))
