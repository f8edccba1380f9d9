"""Help, versions, and the distribution's name: what users read before they have run anything."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastgen as package
from fastgen.cli.app import app
from fastgen.cli.help import COMMANDS, EXAMPLES, Command, first_page, shown_default
from fastgen.doctor import EXTRAS
from fastgen.errors import DISTRIBUTION, how_to_install
from fastgen.methods.self_instruct.rules import BANNED_WORDS
from tests.command_help import fastgen

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TYPED = [command for command in COMMANDS if not command.name.startswith("-")]


def page(*arguments: str) -> str:
    said = fastgen(*arguments)
    assert said.code == 0
    assert said.err == ""
    return said.out


def ids(command: Command) -> str:
    return command.name


# -- the first page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--help-all"]])
def test_the_first_page_is_short_and_has_examples_groups_and_exit_codes(arguments: list[str]) -> None:
    out = page(*arguments)
    lines = out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 90
    headings = [line for line in lines if line in {command.group for command in COMMANDS}]
    assert headings == ["Make", "Look", "Export", "Train and evaluate", "Tools"]
    assert "  fastgen generate --num-instructions 30 --run-dir runs/demo" in lines
    assert [line for line in lines if "2 bad input" in line and "3 stopped" in line and "130" in line]
    for command in COMMANDS:
        assert f"  {command.name}" in out


def test_the_first_page_lists_every_command_that_exists() -> None:
    groups = {command.name.split()[0] for command in COMMANDS if " " in command.name}
    typed = {command.name for command in COMMANDS}
    registered = {name for name in app if name not in {"--help", "-h", "--help-all", "--version"}}
    assert registered == {name.split()[0] for name in typed}
    for group in groups:
        inner = {name for name in app[group] if not name.startswith("-")}
        assert {f"{group} {name}" for name in inner} == {name for name in typed if name.startswith(f"{group} ")}


def test_the_first_page_loads_no_command() -> None:
    script = "import sys\nfrom fastgen.cli import run\nrun(['--help'])\nprint('LOADED', sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = done.stdout.splitlines()[-1]
    assert "'fastgen.cli.help'" in loaded
    for name in ("fastgen.cli.commands", "fastgen.generate", "fastgen.methods", "fastgen.doctor", "rich.console"):
        assert f"'{name}'" not in loaded


def test_without_a_terminal_the_first_page_has_no_colours() -> None:
    assert "\x1b" not in first_page()


# -- the pages of commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", TYPED, ids=ids)
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_a_page_is_plain_text_without_markup_tuples_or_empty_defaults(command: Command, flag: str) -> None:
    out = page(*command.name.split(), flag)
    assert out.startswith(f"Usage: fastgen {command.name}")
    assert "\nExamples\n" in out
    for mark in (
        ":func:",
        ":class:",
        "``",
        "`",
        "[default: (",
        "',)",
        "False]",
        "True]",
        "[default: ]",
        "[default: {}]",
        "\x1b",
    ):
        assert mark not in out, mark
    assert max(map(len, out.splitlines())) <= 120


def test_every_example_is_a_command_line_that_fastgen_takes() -> None:
    lines = [line for lines in EXAMPLES.values() for line in lines if not line.startswith("#")]
    assert {*EXAMPLES} == {command.name for command in COMMANDS}
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "fastgen"
        app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_generate_shows_the_most_used_options_and_all_of_them_when_asked() -> None:
    short, whole = page("generate", "--help"), page("generate", "--help-all")
    assert len(short.splitlines()) < 110
    of_short, of_whole = (set(re.findall(r"^  (--[a-z.-]+)", text, re.MULTILINE)) for text in (short, whole))
    assert of_short < of_whole
    assert {"--run-dir", "--num-instructions", "--base-url", "--method", "--concurrency"} <= of_short
    assert len(of_short) <= 25
    assert len(of_whole) > 100
    assert "--help-all shows all of them" in short
    assert "--help-all shows all of them" not in whole
    assert page("generate", "--help") == short  # the flag of one command line does not stay


def test_logs_and_metrics_are_not_mixed_with_the_job() -> None:
    whole = page("generate", "--help-all")
    job, display = (
        whole.split(f"\n{title}\n")[1].split("\n\n")[0] for title in ("The job", "Display, logs and metrics")
    )
    assert "--num-instructions" in job
    for flag in ("--log-json", "--metrics-port", "--dashboard", "--quiet"):
        assert flag in display
        assert flag not in job


def text_of(flag: str, out: str) -> str:
    """What a page says of an option, on one line."""
    found = re.search(rf"^  {re.escape(flag)}\b.*?(?=^  --|^\S|\Z)", out, re.MULTILINE | re.DOTALL)
    assert found is not None, flag
    return " ".join(found[0].split())


def test_sampling_and_rules_show_their_value_of_each_preset() -> None:
    out = page("generate", "--help-all")
    assert text_of("--instruction.temperature", out).endswith("[default: 0.7; with --api chat: 1]")
    assert text_of("--instruction.max-tokens", out).endswith(
        "[default: 512; with --api chat: 1024; with --preset paper: 1024]"
    )
    assert text_of("--classification.temperature", out).endswith("[default: 0]")
    assert '[default: "\\n\\n" "\\n16."; with --api chat: none;' in text_of("--instruction.stop", out)
    assert text_of("--max-words", out).endswith("[default: 150; of other methods: 1000]")
    assert text_of("--index", out).endswith("[default: lsh; with --preset paper: exact]")
    banned = text_of("--banned-words", out)
    assert f'[default: none; with --preset paper: "{BANNED_WORDS[0]}" "' in banned
    assert banned.endswith(" ...]")
    assert text_of("--capitalise", out).endswith("[default: off; with --preset paper: on]")


def test_refilter_shows_no_defaults_since_the_runs_options_apply() -> None:
    out = page("refilter", "--help-all")
    assert "default:" not in out
    assert "stay those of the run" in out


def test_a_flag_that_is_on_by_default_shows_how_to_switch_it_off() -> None:
    out = page("generate", "--help-all")
    assert "--reject-media-requests, --no-reject-media-requests" in out
    assert "--no-quiet" not in out
    assert "--lora, --full" in page("tune", "--help")


@pytest.mark.parametrize("group", ["seeds", "embedded"])
def test_a_group_of_commands_lists_them_with_a_summary(group: str) -> None:
    out = page(group, "--help")
    for command in COMMANDS:
        if command.name.startswith(f"{group} "):
            assert re.search(rf"^  {command.name.split()[1]} +{re.escape(command.summary)}$", out, re.MULTILINE)


def test_a_narrow_terminal_wraps_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    texts = [line for line in page("status", "--help").splitlines() if not line.startswith("Usage")]
    assert max(map(len, texts)) <= 60


def test_an_unknown_option_names_the_page_that_lists_them() -> None:
    said = fastgen("status", "--run-dir", "x", "--nothing")
    assert said.code == 2
    assert "'fastgen status --help' lists" in said.last
    assert "'fastgen generate --help-all' lists" in fastgen("generate", "--run-dir", "x", "--nothing").last
    assert "'fastgen seeds check --help' lists" in fastgen("seeds", "check", "x", "--nothing").last
    assert "'fastgen --help' lists" in fastgen("nothing").last


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, None), (False, None), ("", None), ("{}", None), ((), None)),
        *(
            (True, "on"),
            (0, "0"),
            (0.0, "0"),
            (900.0, "900"),
            ("auto", "auto"),
            (("Write a program",), '"Write a program"'),
        ),
    ],
)
def test_defaults_are_written_as_users_would(value: object, shown: str | None) -> None:
    assert shown_default(value) == shown


# -- versions and the distribution's name ------------------------------------------------------------------------------


def test_version_is_one_short_block() -> None:
    lines = page("--version").splitlines()
    version = re.escape(package.__version__)
    assert re.fullmatch(rf"{DISTRIBUTION} {version}( \(commit [0-9a-f]{{12}}(-dirty)?\))?", lines[0])
    assert lines[1] == f"Python {sys.version.split()[0]}"
    assert lines[2].startswith("vLLM ")
    assert len(lines) == 3


def test_the_project_and_its_messages_have_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["scripts"] == {"fastgen": "fastgen.cli:main"}
    (every,) = PROJECT["optional-dependencies"]["all"]
    name, _, extras = every.rstrip("]").partition("[")
    assert name == DISTRIBUTION
    assert {*extras.split(",")} == {*EXTRAS} - {"vllm"}


def test_only_one_place_says_how_to_install_an_extra() -> None:
    assert how_to_install("parquet").startswith("pip install ")
    assert "[parquet]" in how_to_install("parquet")
    for path in (ROOT / "fastgen").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "fastgen[" not in text, path
        if path.name not in {"errors.py", "embedded.py"}:
            assert "pip install" not in text, path
