"""A server that judges, and `fastgen judge` on it."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen import cli
from fastgen.testing import Event, FaultServer

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


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]


def fastgen(*arguments: str | Path) -> Said:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


@contextmanager
def judging_server(
    write: Write = lambda prompt, _: answer(prompt), *, model: str = "judge-1", script: tuple[Event, ...] = ()
) -> Iterator[FaultServer]:
    """The shipped server in a thread of its own, so that the command has this one and its signals."""
    server, loop = FaultServer(model=model, write=write, script=script), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.listen(), loop).result()
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.refuse(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def judge(run: Path, server: FaultServer, *more: str | Path) -> Said:
    """``fastgen judge`` on this server."""
    return fastgen("judge", "--run-dir", run, "--base-url", server.base_url, *more)


def figures(run: Path, *more: str) -> dict[str, Any]:
    """What ``--summary`` says, as JSON."""
    said = fastgen("judge", "--run-dir", run, "--summary", "--json", *more)
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found
