"""Every command of the docs is real: the command-line parser takes it, and it runs against the simulator.

A command runs as the page has it, except for what a small test must change: servers and models become the simulator's,
counts become small, and what starts a server on a GPU asks the simulator instead. The commands of a page run in order,
in one folder that has the files which the pages name. `PARSED_ONLY` lists what cannot run here, and `NOT_OURS` the
commands of other programs. A command that is in neither list, and does not run, fails the test.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import cyclopts
import orjson
import pytest
import zstandard

from fastgen.cli.app import app
from fastgen.simulator.server import FaultServer, in_a_thread
from tests.command_help import fastgen
from tests.docs.pages import ALL_PAGES, ROOT, USER_PAGES, Command, commands, name_of
from tests.evaluation_help import TASKS, superni, write_lines
from tests.export_help import make_run, numbered
from tests.judge_help import judging_server

MODEL: Final = "test-model"
ASKING: Final = ("generate", "judge", "evaluate")
"""The commands that ask a server."""
PARSED_ONLY: Final = {
    "tune": "trains a model, which needs the extra tune",
    "embedded remove": "removes the user's own server",
    "dashboard": "serves a page until Ctrl-C",
    "doctor": "reports what this machine lacks",
    "--install-completion": "changes the user's shell",
    "--push-to-hub": "needs an account and the network",
    "generate --prompts": "may be in a language that the simulator does not read",
}
"""Words that a command of fastgen has if these tests do not run it, and why."""
NOT_OURS: Final = (
    "python3.11 -m venv",
    ". .venv/bin/activate",
    "pip install",
    ".venv/bin/pip install",
    ".venv/bin/pytest",
    "python -m fastgen.simulator",
    "python -m benchmarks.",
    "export HF_TOKEN=",
    "vllm serve",
    "docker build",
    "docker compose down",
    "MODEL=",
)
"""How the commands of other programs begin."""
IMAGES: Final = ("fastgen", "fastgen:gpu")
"""The program, and the images of containers that run it."""
OWN_SERVER: Final = {
    "--server-args",
    "--num-servers",
    "--tensor-parallel-size",
    "--data-parallel-size",
    "--api-server-count",
}
SMALL: Final = {
    "--num-instructions": "2",
    "--max-instructions": "3",
    "--votes": "2",
    "--requests-per-minute": "60000",
    "--tokens-per-minute": "60000000",
}
"""Values that the tests put in place of those of the pages."""
CHANGED: Final = {*OWN_SERVER, *SMALL, "--base-url", "--model", "--role", "--output"}
ESSAY: Final = (
    "How bread rises, part {}. " + "Yeast eats the sugar of the flour and makes a gas, which the dough holds. " * 5
)


def of_fastgen(command: Command) -> tuple[str, ...]:
    """The arguments of a command of fastgen, or none. A container's are those behind its image.

    A command that is shortened by an ellipsis gets a run folder.
    """
    program = command.text.split()[0]
    if program not in {"fastgen", ".venv/bin/fastgen", "docker"}:
        return ()
    words = list(command.words)
    begin = next((at for at, word in enumerate(words) if word.removeprefix(".venv/bin/") in IMAGES), len(words))
    rest = words[begin + 1 :]
    needs_folder = "…" in command.text and "--run-dir" not in rest
    return (*rest, *(("--run-dir", f"runs/line-{command.line}") if needs_folder else ()))


OURS: Final = tuple(one for page in ALL_PAGES for one in commands(page) if of_fastgen(one))
PAGES: Final = tuple(page for page in USER_PAGES if any(of_fastgen(one) for one in commands(page)))


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_a_command_is_of_fastgen_or_of_a_known_program(page: Path) -> None:
    unknown = [str(one) for one in commands(page) if not of_fastgen(one) and not one.text.startswith(NOT_OURS)]
    assert not unknown, "name the language of the block if it is no shell command (```text), or add it to NOT_OURS"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_no_page_installs_the_other_project_of_this_name(page: Path) -> None:
    assert not re.search(r"pip install (-\S+ )*['\"]?fastgen\b(?!-selfinstruct)", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", OURS, ids=lambda one: f"{one.page}:{one.line}")
def test_the_parser_takes_every_command(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app.parse_args(of_fastgen(command), print_error=False, exit_on_error=False)


def test_the_parser_refuses_a_flag_that_there_is_not() -> None:
    with pytest.raises(cyclopts.UnknownOptionError):
        app.parse_args(["status", "--run-dir", "x", "--no-such-flag"], print_error=False, exit_on_error=False)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    """The simulator, as an instruct model."""
    with in_a_thread(FaultServer(model=MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def judge() -> Iterator[FaultServer]:
    """A server that judges."""
    with judging_server(model=MODEL) as running:
        yield running


@dataclass(frozen=True)
class Runs:
    """Runs for the commands that read one. ``large`` has the same content each time. ``whole`` was generated."""

    large: Path
    whole: Path

    def for_command(self, name: str) -> Path:
        """The run that suits a command: most need many rows, and some need completions as a server sent them."""
        return self.whole if name in {"refilter", "audit"} else self.large


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, server: FaultServer) -> Runs:
    """Finished runs."""
    folder = tmp_path_factory.mktemp("finished")
    said = fastgen("generate", "--base-url", server.base_url, "--num-instructions", "5", "--run-dir", folder / "whole")
    assert said.code == 0, said.err
    return Runs(make_run(folder / "large", numbered(120)), folder / "whole")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"instruction": task.instruction, "prompt": task.instruction, "input": ""} for task in numbered(20)]
    for name in ("data.jsonl", "tasks.jsonl", "benchmark.jsonl", "rows.jsonl"):
        write_lines(tmp_path / name, rows)
    chats = ({"messages": [{"role": "user", "content": row["instruction"]}]} for row in rows)
    write_lines(tmp_path / "chats.jsonl", chats)
    (tmp_path / "data.jsonl.zst").write_bytes(zstandard.compress((tmp_path / "data.jsonl").read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    write_lines(tmp_path / "essays.jsonl", ({"text": ESSAY.format(number)} for number in range(9)))
    for name in ("topics.txt", "personas.txt"):
        (tmp_path / name).write_text("bread\nrivers\nbees\n")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples" / "own_method.py", tmp_path / "mine.py")
    shutil.copy(ROOT / "seeds" / "seed_tasks.jsonl", tmp_path / "seeds.jsonl")
    data = superni(tmp_path)
    (data / "task1.json").write_bytes(orjson.dumps(TASKS[0]))
    shutil.copytree(data, tmp_path / "natural-instructions")
    monkeypatch.chdir(tmp_path)
    for name in ("EXAMPLE_KEY", "API_KEY_VARIABLE", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "not-a-key")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_run(
    page: Path, folder: Path, runs: Runs, server: FaultServer, judge: FaultServer
) -> None:
    for command in commands(page):
        words = of_fastgen(command)
        if not words or _why_not(words):
            continue
        _make_place(words, folder, runs)
        said = fastgen(*_small(words, judge if words[0] == "judge" else server))
        assert said.code == 0, f"{command}\n{said.err}"


def _why_not(words: Sequence[str]) -> str:
    """Why these tests only parse a command. Empty: they run it."""
    return next((why for what, why in PARSED_ONLY.items() if set(what.split()) <= set(words)), "")


def _make_place(words: Sequence[str], folder: Path, runs: Runs) -> None:
    """Give a command that reads a run one, and take away what its output would replace."""
    values = dict(pairwise(words))
    outputs = [folder / values[flag] for flag in ("--output", "--rejected") if flag in values]
    read = [folder / word for word in words if word.startswith("runs/") and folder / word not in outputs]
    for place in read if words[0] != "generate" else ():
        if not place.exists():
            shutil.copytree(runs.for_command(words[0]), place)
    for output in outputs:
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)


def _small(words: Sequence[str], server: FaultServer) -> list[str]:
    """The command, small and against the simulator."""
    name, *rest = words
    result, urls = [name], _addresses(server)
    while rest:
        word = rest.pop(0)
        flag, is_joined, value = word.partition("=")
        if flag in CHANGED:
            result += _changed(flag, value if is_joined else rest.pop(0), urls, server)
        else:
            result.append(word)
    if name in ASKING and not {"--base-url", "--compare", "--summary"} & set(result):
        result += ["--base-url", server.base_url]
    if name == "generate" and "--num-instructions" not in result:
        result += ["--num-instructions", SMALL["--num-instructions"]]
    return result + (["--dashboard-port", "0"] if "--dashboard" in result else [])


def _changed(flag: str, value: str, urls: Iterator[str], server: FaultServer) -> list[str]:
    """A flag with a value that suits the test, or nothing."""
    if flag in OWN_SERVER:
        return []
    match flag:
        case "--base-url":
            value = next(urls)
        case "--model":
            value = MODEL
        case "--role":
            value = _role(value, server)
        case "--output":
            value = "standard-output" if value == "-" else value
        case _:
            value = SMALL[flag]
    return [flag, value]


def _addresses(server: FaultServer) -> Iterator[str]:
    """The simulator under several names, so that several servers can be given."""
    yield server.base_url
    yield server.base_url.replace("127.0.0.1", "localhost")


def _role(given: str, server: FaultServer) -> str:
    name, _, rest = given.partition("=")
    url, _, more = rest.partition(",")
    _, _, key = more.partition(",")
    return f"{name}={server.base_url if url else ''},{MODEL}" + (f",{key}" if key else "")
