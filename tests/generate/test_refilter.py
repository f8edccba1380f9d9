"""Rebuilding a run under other rules, from its own completions."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastgen.cli import app as cli
from fastgen.generate.options import JobOptions, Options, ServerOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import Commit, Created
from fastgen.similarity.rouge import rouge_l_f1, tokenise
from fastgen.simulator.answers import Writer
from fastgen.simulator.server import FaultServer
from fastgen.store.ledger import Ledger
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import QuietReporter
from fastgen.types import Completion
from tests.command_help import file_size_limit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with many similar instructions."""
    return make(tmp_path_factory.mktemp("refilter") / "run", Writer(1, 0.4).answer)


def make(folder: Path, write: Callable[[str, int], str]) -> Path:
    async def main() -> None:
        async with FaultServer(write=write) as server:
            options = Options(job=JobOptions(num_instructions=40), server=ServerOptions(base_url=(server.base_url,)))
            await generate(Place(folder, folder), options, QuietReporter(), Stopper(QuietReporter()))

    asyncio.run(main())
    return folder


def commits(folder: Path) -> list[Commit]:
    return list(RunFolder(folder).whole_commits())


def kept_texts(folder: Path) -> list[str]:
    log = [c for c in commits(folder) if isinstance(c.outcome, Created)]
    return [
        " ".join(c.completion.text[k.span[0] : k.span[1]].split())
        for c in log
        if isinstance(c.outcome, Created)
        for k in c.outcome.kept
    ]


def test_the_same_rules_give_the_same_run(run: Path, tmp_path: Path) -> None:
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(tmp_path / "same")]) == 0
    assert commits(tmp_path / "same") == commits(run)
    assert open_run(tmp_path / "same").configuration == open_run(run).configuration


def test_a_lower_threshold_keeps_less_and_nothing_above_it(run: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict"
    assert (
        cli.run(
            ["refilter", "--run-dir", str(run), "--output", str(strict), "--threshold", "0.2", "--index", "exhaustive"]
        )
        == 0
    )
    texts = kept_texts(strict)
    assert 0 < len(texts) < len(kept_texts(run))
    tokens = [tokenise(text) for text in texts]
    assert all(rouge_l_f1(a, b) <= 0.2 for i, a in enumerate(tokens) for b in tokens[:i])
    ledger = RunFolder(strict).ledger()
    assert ledger.rejected["similar"] > RunFolder(run).ledger().rejected["similar"]
    assert 0 < ledger.complete <= ledger.kept


def test_a_higher_threshold_keeps_more_and_what_is_new_is_pending(run: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(loose), "--threshold", "1.0"]) == 0
    before, after = RunFolder(run).ledger(), RunFolder(loose).ledger()
    assert after.kept > before.kept
    assert after.complete == before.complete
    assert after.pending > before.pending


def test_other_rules_count_in_their_own_name_and_the_preset_is_recorded(run: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(short), "--max-words", "18"]) == 0
    assert RunFolder(short).ledger().rejected["too_long"] > 0
    assert kept_texts(short)
    assert all(len(text.split()) <= 18 for text in kept_texts(short))
    paper = tmp_path / "paper"
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(paper), "--preset", "paper"]) == 0
    found = open_run(paper)
    assert found.configuration["preset"] == "paper"
    assert found.rules.capitalise


def test_the_rebuilt_run_resumes_like_any_other(run: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(loose), "--threshold", "1.0"]) == 0

    async def main() -> str:
        async with FaultServer(write=Writer(1, 0.4).answer) as server:
            done = await asyncio.create_subprocess_exec(
                *((sys.executable, "-m", "fastgen", "generate", "--run-dir", str(loose), "--num-instructions", "45")),
                *("--base-url", server.base_url, "--quiet"),
                stderr=asyncio.subprocess.PIPE,
            )
            return (await done.communicate())[1].decode()

    assert "45 instructions complete" in asyncio.run(main())


def test_a_folder_with_a_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = commits(run)
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(run)]) == 2
    assert "--output" in capsys.readouterr().err
    assert commits(run) == before


def items(folder: Path) -> dict[int, int]:
    """How many items each instruction completion gave, kept or rejected."""
    log = [(c.request, c.outcome) for c in commits(folder)]
    return {n: len(o.kept) + len(o.rejected) for n, o in log if isinstance(o, Created)}


def test_a_completion_loses_no_item_when_demonstrations_of_its_prompt_do_not_survive(tmp_path: Path) -> None:
    """A model whose first item has no blank before it, so that only the next number tells that it is an item."""
    run, strict, again = tmp_path / "run", tmp_path / "strict", tmp_path / "again"
    make(run, lambda prompt, seed: Writer(1, 0.4).answer(prompt, seed).lstrip(" "))
    flags = ("--threshold", "0.2", "--index", "exhaustive")
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(strict), *flags]) == 0
    before = {c.request: len(c.demonstrations) for c in commits(run)}
    assert any(len(c.demonstrations) < before[c.request] for c in commits(strict)), "some did not survive"
    assert items(strict) == items(run)
    assert cli.run(["refilter", "--run-dir", str(strict), "--output", str(again), *flags]) == 0
    assert commits(again) == commits(strict)


NO_SERVER = ("--base-url", "http://127.0.0.1:9/v1", "--server-timeout", "1")
ENDS_IT = """
import os, signal, sys
from fastgen.cli import run
from fastgen.store.run_folder import Store

append = Store.append

def die_after(store, commits):
    append(store, commits)
    os.kill(os.getpid(), int(sys.argv[1]))

Store.append = die_after
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_refilter_leaves_no_run_and_can_be_repeated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: signal.Signals
) -> None:
    output = tmp_path / "new"
    command = ["refilter", "--run-dir", str(run), "--output", str(output)]
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_IT, str(int(how)), *command], capture_output=True, text=True, check=False
    )
    if how == signal.SIGINT:
        assert ended.returncode == 130
        assert "run the same command again to start over" in ended.stderr
    else:
        assert ended.returncode == -how
    assert any((output / "log").iterdir())
    for other in (["generate", *NO_SERVER], ["status"], ["export", "--output", "-"]):
        assert cli.run([*other, "--run-dir", str(output)]) == 2
        assert "refilter that did not finish" in capsys.readouterr().err
    assert cli.run(command) == 0
    assert commits(output) == commits(run)
    assert {path.name for path in output.iterdir()} >= {"run.json", "log"}
    assert not list(output.glob("unfinished*"))
    assert cli.run(command) == 2
    assert "is in the folder of a run" in capsys.readouterr().err


def test_a_refilter_on_a_full_disk_says_what_is_true_and_leaves_no_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    command = ["refilter", "--run-dir", str(run), "--output", str(output)]
    with file_size_limit(20_000):
        assert cli.run(command) == 3
    assert "the same command" in capsys.readouterr().err
    assert cli.run(["generate", "--run-dir", str(output), *NO_SERVER]) == 2
    capsys.readouterr()
    assert cli.run(command) == 0
    assert commits(output) == commits(run)


def test_a_folder_among_the_prompts_is_ignored_and_other_folders_are_not_changed(run: Path, tmp_path: Path) -> None:
    copied, mine = shutil.copytree(run, tmp_path / "copied"), tmp_path / "mine"
    (copied / "prompts" / "old").mkdir()
    command = ["refilter", "--run-dir", str(copied), "--output"]
    assert cli.run([*command, str(tmp_path / "new")]) == 0
    mine.mkdir()
    (mine / "file").write_text("mine")
    assert cli.run([*command, str(mine)]) == 2
    assert [path.name for path in mine.iterdir()] == ["file"]


def test_a_refilter_that_died_with_its_header_half_written_can_begin_again(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    output.mkdir()
    (output / "lock").write_bytes(b"")
    (output / ".unfinished-run.json.tmp").write_bytes(b"{")
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(output)]) == 0
    assert kept_texts(output) == kept_texts(run)


def test_rules_that_keep_nothing_remove_nothing_of_the_users(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    output.mkdir()
    (output / "unfinished-run.json").write_bytes(b"{}")
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    strict = ["--min-words", "149", "--max-words", "150"]
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(output), *strict]) == 2
    assert (output / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (output / "run.json").exists()


def test_a_prompt_that_lost_a_machine_demonstration_does_not_count_as_seeds_only() -> None:
    completion, ledger = Completion("x", "stop"), Ledger(seeds=175)
    for shown, demonstrations in ((None, (0, 1)), (8, (0, 1)), (None, (0, 200))):
        outcome = Created((), ())
        ledger.apply(Commit(0, 0, "instruction", None, demonstrations, completion, outcome, 1.0, shown))
    assert ledger.seed_only == 1
