"""What a run is made from is read once: what was loaded is what its folder keeps."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from fastgen.generate.options import JobOptions, MethodOptions, Options, ServerOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.self_instruct.prompts import FILES, read_prompt_files
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


def test_a_new_run_is_warned_of_demonstrations_in_another_language(tmp_path: Path) -> None:
    run, seeds, prompts = tmp_path / "run", tmp_path / "seeds.jsonl", tmp_path / "prompts"
    row = {"instances": [{"input": "", "output": "x"}], "is_classification": True}
    texts = ("Schreibe ein Gedicht.", "Wie groß ist der Mond?", "Erkläre den Begriff mit einem Bild.", "Ist das wahr?")
    seeds.write_text("".join(json.dumps(row | {"id": str(n), "instruction": t}) + "\n" for n, t in enumerate(texts)))
    with in_a_thread(FaultServer()) as server:
        command = ["generate", "--base-url", server.base_url, "--num-instructions", "3", "--seed-tasks", str(seeds)]
        said = fastgen(*command, "--run-dir", run)
        assert (said.code, said.err.count("the seed tasks are in German")) == (0, 1)
        said = fastgen("generate", "--run-dir", run, "--num-instructions", "5")
        assert (said.code, said.err.count("the seed tasks are in")) == (0, 0)
        assert fastgen("prompts", "init", prompts, "--language", "de").code == 0
        (prompts / "base.toml").unlink()  # the test server recognises the words of the English templates
        (prompts / "chat.toml").unlink()
        said = fastgen(*command, "--run-dir", tmp_path / "other", "--prompts", prompts)
        assert (said.code, said.err.count("the seed tasks are in")) == (0, 0)


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


def test_a_run_keeps_the_prompts_that_shipped_when_it_was_begun(tmp_path: Path) -> None:
    """Also one that was begun with ``--prompts``, where the user's folder has only some of the files."""
    run, earlier, own = tmp_path / "run", tmp_path / "earlier", tmp_path / "own"
    earlier.mkdir()
    own.mkdir()
    for name, file in read_prompt_files(None, preset="paper").items():  # those of the default preset, until it had more
        (earlier / name).write_bytes(file.content)
    demonstration = {"instruction": "Is it raining? Say yes or no.", "is_classification": True}
    for folder in (earlier, own):
        (folder / "classification.jsonl").write_text(json.dumps(demonstration) + "\n")
    with in_a_thread(FaultServer()) as server:
        begun = ("generate", "--run-dir", run, "--base-url", server.base_url, "--num-instructions")
        assert fastgen(*begun, "5", "--prompts", earlier).code == 0
        stored = {path.name: path.read_bytes() for path in (run / "prompts").iterdir()}
        assert fastgen(*begun, "8").code == 0
        assert fastgen(*begun, "10", "--prompts", own).code == 0
        (own / "classification.jsonl").write_text(json.dumps(demonstration | {"instruction": "Is it dry?"}) + "\n")
        refused = fastgen(*begun, "12", "--prompts", own)
    assert refused.code == 2
    assert {path.name: path.read_bytes() for path in (run / "prompts").iterdir()} == stored


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_new_run_stores_the_prompts_of_its_preset(tmp_path: Path, preset: Literal["default", "paper"]) -> None:
    with in_a_thread(FaultServer()) as server:
        flags = ("--base-url", server.base_url, "--num-instructions", "5", "--preset", preset)
        assert fastgen("generate", "--run-dir", tmp_path / "run", *flags).code == 0
    stored = {path.name: path.read_bytes() for path in (tmp_path / "run" / "prompts").iterdir()}
    assert stored == {name: file.content for name, file in read_prompt_files(None, preset=preset).items()}
