"""What a run is made from is read once: what was loaded is what its folder keeps."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.generate.options import JobOptions, MethodOptions, Options, ServerOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.self_instruct.prompts import FILES
from fastgen.methods.self_instruct.seeds import default_seed_path
from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.reader import open_run
from fastgen.telemetry.progress import QuietReporter
from tests.command_help import fastgen


def test_seed_tasks_may_come_through_a_pipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seeds = b"".join(default_seed_path().read_bytes().splitlines(keepends=True)[:50])
    with in_a_thread(FaultServer()) as server:
        command = [sys.executable, "-m", "fastgen", "generate", "--run-dir", str(run), "--num-instructions", "5"]
        done = subprocess.run(
            [*command, "--base-url", server.base_url, "--seed-tasks", "/dev/fd/0"],
            input=seeds,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert (run / "seed_tasks.jsonl").read_bytes() == seeds
        assert fastgen("export", "--run-dir", run, "--output", tmp_path / "out.jsonl").code == 0
        assert fastgen("generate", "--run-dir", run, "--num-instructions", "8").code == 0


class Editor(QuietReporter):
    """Edits files when the run says its first word, which it does after it has loaded them."""

    def __init__(self, *files: Path) -> None:
        self._files = files

    def say(self, text: str) -> None:
        """Replace the content of the files by one line."""
        for file in self._files:
            file.write_text("edited\n")


@pytest.mark.parametrize("edited", ["seeds", "prompts"])
def test_files_that_are_edited_while_a_server_starts_do_no_harm(tmp_path: Path, edited: str) -> None:
    run, seeds, prompts = tmp_path / "run", tmp_path / "seeds.jsonl", tmp_path / "prompts"
    seeds.write_bytes(default_seed_path().read_bytes())
    prompts.mkdir()
    demonstration = {"instruction": "Is it raining? Say yes or no.", "is_classification": True}
    (prompts / "classification.jsonl").write_text(json.dumps(demonstration) + "\n")
    before = {"seeds": seeds.read_bytes(), "prompts": (prompts / "classification.jsonl").read_bytes()}
    target = {"seeds": seeds, "prompts": prompts / "classification.jsonl"}[edited]

    async def main() -> None:
        async with FaultServer() as server:
            options = Options(
                job=JobOptions(num_instructions=5),
                server=ServerOptions(base_url=(server.base_url,)),
                method=MethodOptions(seed_tasks=seeds, prompts=prompts),
            )
            editor = Editor(target)
            await generate(Place(run, run), options, editor, Stopper(editor))

    asyncio.run(main())
    assert target.read_text() == "edited\n"
    assert (run / "seed_tasks.jsonl").read_bytes() == before["seeds"]
    assert (run / "prompts" / "classification.jsonl").read_bytes() == before["prompts"]
    assert sorted(path.name for path in (run / "prompts").iterdir()) == sorted(FILES)
    assert len(open_run(run).seeds) == len(before["seeds"].splitlines())
    with in_a_thread(FaultServer()) as server:
        more = ("--base-url", server.base_url, "--num-instructions", "8")
        assert fastgen("generate", "--run-dir", run, *more).code == 0
