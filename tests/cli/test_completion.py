"""Completion in the shell: the scripts that are written, and bash completing by one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastgen.cli.help import COMMANDS
from tests.command_help import Said, fastgen

_COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_fastgen
printf '%s\\n' "${COMPREPLY[@]}"
"""


def install(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Said:
    for name in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return fastgen("--install-completion", *arguments)


@pytest.fixture(scope="session")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "fastgen.bash"
    assert fastgen("--install-completion", "--shell", "bash", "--output", path).code == 0
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["exp"], {"export"}),
        (["seeds", ""], {"check"}),
        (["embedded", ""], {"status", "remove"}),
        (["export", "--form"], {"--format"}),
        (["export", "--split"], {"--split"}),
        (["generate", "--index", ""], {"lsh", "exact", "exhaustive"}),
        (["generate", "--api", "c"], {"completions", "chat"}),
        (["generate", "--instruction.temp"], {"--instruction.temperature"}),
        (["--install"], {"--install-completion"}),
        (["nothing-begins-so"], {""}),
    ],
)
def test_bash_completes_commands_options_and_values(bash_script: Path, words: list[str], offered: set[str]) -> None:
    command = ["bash", "--norc", "-c", _COMPLETE, "bash", str(bash_script), "fastgen", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {*done.stdout.split("\n")} - {""} == offered - {""}
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_offers_every_command(bash_script: Path) -> None:
    command = ["bash", "--norc", "-c", _COMPLETE, "bash", str(bash_script), "fastgen", ""]
    offered = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {*offered} == {command.name.split()[0] for command in COMMANDS if not command.name.startswith("-")}


def test_bash_is_set_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'\n")
    said = install(tmp_path, monkeypatch, "--shell", "bash")
    script = tmp_path / ".local/share/bash-completion/completions/fastgen"
    assert said.code == 0
    assert said.out.startswith(f"{script} has the completion")
    assert "complete -F _fastgen fastgen" in script.read_text()
    first = (tmp_path / ".bashrc").read_text()
    assert first.startswith("alias ll='ls -l'\n")
    assert str(script) in first
    assert install(tmp_path, monkeypatch, "--shell", "bash").code == 0
    assert (tmp_path / ".bashrc").read_text() == first


def test_zsh_gets_a_function_in_its_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install(tmp_path, monkeypatch, "--shell", "zsh").code == 0
    script = tmp_path / ".zsh/completions/_cyclopts_fastgen"
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#compdef fastgen\n")
    for command in COMMANDS:
        assert command.name.split()[-1] in text
    assert "--instruction.temperature" in text
    assert "lsh exact exhaustive" in text
    assert f"fpath=({script.parent} $fpath)" in (tmp_path / ".zshrc").read_text()
    if (zsh := shutil.which("zsh")) is not None:
        subprocess.run([zsh, "-f", "-n", script], check=True)


def test_a_named_file_changes_no_file_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "somewhere" / "fastgen.zsh"
    said = install(tmp_path, monkeypatch, "--shell", "zsh", "--output", output)
    assert said.out == f"{output} has the completion; load it in your shell\n"
    assert {path.name for path in tmp_path.iterdir()} == {"somewhere"}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    said = install(tmp_path, monkeypatch, "--shell", "bash", "--output", tmp_path / "file" / "script")
    assert said.code == 2
    assert said.last == (
        f"fastgen: --install-completion: {tmp_path / 'file'} cannot be written ({os.strerror(17)}); name a file with "
        "--output"
    )
