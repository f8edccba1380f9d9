"""A server that judges, and `fastgen judge` on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastgen.simulator.faults import Event
from fastgen.simulator.server import FaultServer, in_a_thread
from tests.command_help import Said, fastgen

Write = Callable[[str, int], str]
_CODE = re.compile(r'"code": "([a-z]{6})"')


def code_in(prompt: str) -> str:
    """The code that an answer has to repeat, as the end of the prompt asks."""
    codes: list[str] = _CODE.findall(prompt)
    return codes[-1]


def answer(prompt: str, score: int = 4, **other: Any) -> str:
    """What a good judge writes."""
    said = {"code": code_in(prompt), "valid_task": True, "input_fits": True, "output_right": True, "score": score}
    return json.dumps(said | other)


@contextmanager
def judging_server(
    write: Write = lambda prompt, _: answer(prompt), *, model: str = "judge-1", script: tuple[Event, ...] = ()
) -> Iterator[FaultServer]:
    """A server that judges, in a separate thread."""
    with in_a_thread(FaultServer(model=model, write=write, script=script)) as server:
        yield server


def judge(run: Path, server: FaultServer, *more: str | Path) -> Said:
    """``fastgen judge`` on this server."""
    return fastgen("judge", "--run-dir", run, "--base-url", server.base_url, *more)


def figures(run: Path, *more: str) -> dict[str, Any]:
    """What ``--summary`` says, as JSON."""
    said = fastgen("judge", "--run-dir", run, "--summary", "--json", *more)
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found
