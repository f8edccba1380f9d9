"""The comparison of methods: the commands it runs, what it reads of a run, and one small comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import test_server as started_server
from benchmarks.methods import command_of, run, write_documents
from fastgen.methods.catalogue import METHODS


def test_each_method_is_the_command_of_a_user_with_its_own_flags(tmp_path: Path) -> None:
    folder, documents = tmp_path / "run", tmp_path / "documents.jsonl"
    server = ("--base-url", "http://127.0.0.1:1/v1")
    command = command_of("magpie --turns 2", folder, documents, server, 7)
    assert command[2:] == [
        *("fastgen", "generate", "--method", "magpie", "--turns", "2", "--num-instructions", "7"),
        *("--run-dir", str(folder), *server),
    ]
    assert "--documents" in command_of("backtranslate", folder, documents, server, 7)
    given = command_of("backtranslate --documents mine.jsonl", folder, documents, server, 7)
    assert given.count("--documents") == 1


def test_the_documents_are_long_outputs_of_the_shipped_seeds(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    count = write_documents(path)
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == count == len(set(texts))
    assert count >= 50
    assert min(map(len, texts)) >= 200


def test_a_command_that_is_refused_ends_the_comparison_with_its_last_line() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        run([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(2)"], 60.0)


@pytest.mark.parametrize(("code", "ended"), [(0, "all rows"), (3, "by itself: the end")])
def test_a_command_that_ends_says_how(code: int, ended: str) -> None:
    assert (
        run([sys.executable, "-c", f"import sys; print('the end', file=sys.stderr); sys.exit({code})"], 60.0) == ended
    )


def test_methods_are_compared_on_one_server_and_resumed(tmp_path: Path) -> None:
    methods = ("self-instruct --api completions", "self-instruct-chat", "magpie")
    assert {name.split()[0] for name in methods} <= {*METHODS}
    with started_server("--model", "plain-chat", "--seed", "3") as server:
        command = [sys.executable, "-m", "benchmarks.methods", "--base-url", server.base_url, "--methods", *methods]
        more = ["--rows", "3", "--show", "1", "--folder", str(tmp_path)]
        first = subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=300)
        again = subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=300)
    figures = json.loads(first.stdout.splitlines()[-1])["figures"]["methods"]
    assert [one["method"] for one in figures] == [*methods]
    for one in figures:
        assert one["rows"] == 3
        assert one["kept"] >= 3
        assert one["ended"] == "all rows"
        assert one["rows_per_1000"] == pytest.approx(1000 * 3 / one["tokens"])
        assert one["instruction_words"] > 0
        assert one["answer_words"] > 0
    assert first.stdout.count("\nasked: ") == 3
    assert json.loads(again.stdout.splitlines()[-1])["figures"]["methods"] == figures
