"""The data set card: true to the run, readable by the hub's loader, and silent on what is private."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fastgen.cli.app import app
from fastgen.export.card import _quoted
from fastgen.generate.options import JobOptions, MethodOptions, Options, SamplingOptions, ServerOptions
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder
from tests.export_help import Task, call, make_run, numbered

OPTIONS = Options(
    job=JobOptions(num_instructions=77),
    server=ServerOptions(
        base_url=("http://10.1.2.3:8000/v1",),
        api_key_env="MY_SECRET_KEY",
        extra_body='{"min_p": 0.05, "guided": true, "user": "ann@example.org"}',
        server_args="--download-dir /home/ann/models",
    ),
    method=MethodOptions(seed=3, num_machine_instructions=1),
    similarity=SimilarityOptions(threshold=0.6, reject_at="ge"),
    rules=replace(PRESETS["default"], max_words=99, capitalise=True),
    sampling=SamplingOptions(instruction=replace(SamplingOptions().instruction, temperature=0.9, stop=("\n\n", "END"))),
)


def card(run: Path, output: Path, *flags: str) -> str:
    said = call(run, output, "--card", *flags)
    assert said.code == 0, said.line
    return (output / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", numbered(30), OPTIONS)


def test_a_card_counts_what_was_written_and_what_the_run_did(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", "--format", "messages", "--include-seeds", "--split", "train=0.5,test=0.5")
    for fact in (
        "| instructions | 34 | 52,445 |",
        "| instances | 64 | 82,439 |",
        "| instances an instruction | 1.88 | 1.57 |",
        "| classification tasks | 29.4% | 22.1% |",
        "| instances with an empty input | 50.0% | 43.5% |",
        "| mean words of an instruction | 7.5 | 15.9 |",
        "| mean words of an input that is not empty | 2.9 | 12.7 |",
        "| mean words of an output | 2.1 | 18.9 |",
        "4 of the instructions are seed tasks; the others are by the model",
        "60 instructions written by the model, 50.0% of them kept, 30 with at least one valid instance",
        "- too short: 30",
        "is at or above 0.6",
        "by fastgen 1.2.3.",
        "| instruction | 0.9 | 0.5 | 2 |",
        "Self-training amplifies",
    ):
        assert fact in text, fact
    rows = [line for line in text.splitlines() if line.startswith(("| train |", "| test |"))]
    assert len(rows) == 2
    assert sum(int(row.split("|")[4]) for row in rows) == 34


def test_the_command_in_a_card_is_what_differs_from_the_preset_and_means_the_same_run(
    run: Path, tmp_path: Path
) -> None:
    text = card(run, tmp_path / "out", "--format", "messages")
    command = text.partition("```\n")[2].partition("\n```")[0].replace("\\\n", "")
    words = [word[1:].encode().decode("unicode_escape") if word[:2] == "$\\" else word for word in shlex.split(command)]
    assert words[:6] == ["fastgen", "generate", "--model", "some-model", "--num-instructions", "77"]
    given = dict(zip(words[6::2], words[7::2], strict=False))
    assert given["--num-machine-instructions"] == "1"
    assert "--preset" not in words
    assert "--lsh-recall" not in words
    body = json.loads(words[words.index("--extra-body") + 1])
    assert body == {"min_p": 0.05, "guided": True, "user": "…"}
    words[words.index("--extra-body") + 1] = OPTIONS.server.extra_body
    place = words.index("--seed-tasks")
    _, bound, _ = app.parse_args(
        [*words[1:place], *words[place + 2 :], "--run-dir", "x"], print_error=False, exit_on_error=False
    )
    options = bound.arguments["options"]
    assert (options.method, options.similarity, options.rules) == (OPTIONS.method, OPTIONS.similarity, OPTIONS.rules)
    assert options.sampling.by_step() == OPTIONS.sampling.by_step()
    assert options.server.extra_body == OPTIONS.server.extra_body


@pytest.mark.parametrize("text", ["plain", "it's", "\n\n", "\n16.", "a\\b\n'é`$x`\u2028\t", "```\n```"])
def test_every_value_is_one_word_of_one_line_that_a_shell_reads_back(text: str) -> None:
    quoted = _quoted(text)
    assert len(quoted.splitlines()) == 1
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == text


def test_a_card_of_a_plain_run_has_a_plain_command(tmp_path: Path) -> None:
    paper = make_run(tmp_path / "paper", numbered(3), Options(method=MethodOptions(preset="paper")))
    text = card(paper, tmp_path / "out", "--format", "messages")
    assert "the original's rules;" in text
    assert "--preset paper" in text


def test_a_card_contains_no_servers_keys_paths_or_generated_text(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", "--format", "raw")
    for private in ("10.1.2.3", "MY_SECRET_KEY", "ann", str(tmp_path), "thing number"):
        assert private not in text


def test_licence_and_terms_are_the_users_or_marked_as_open(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "open", "--format", "alpaca")
    assert "\nlicense: unknown\n" in text
    assert "Check the terms of each model" in text
    flags = ("--license", "cc-by-4.0", "--model-terms", "Apache-2.0; its output is free.")
    text = card(run, tmp_path / "stated", "--format", "alpaca", *flags)
    assert "\nlicense: cc-by-4.0\n" in text
    assert "Apache-2.0; its output is free." in text
    assert "Check the terms" not in text


def test_a_card_says_which_rows_were_chosen_and_what_was_kept_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(30))
    RunFolder(run).save_inputs(
        open_run(run).folder.seeds_path.read_bytes(), {}, {"decontaminate": ["one text", "another"]}
    )
    text = card(run, tmp_path / "out", "--format", "parquet", "--max-instructions", "12", "--seed", "4")
    assert "At most 12 instructions were taken, drawn with seed 4." in text
    assert "resemble one of 2 texts of evaluation tasks" in text
    assert "| train | train.parquet | 24 | 12 |" in text


def test_a_models_name_can_break_neither_the_front_matter_nor_the_text(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    run = make_run(tmp_path / "run", numbered(2), model='x"\n---\n# `<script>` : [1')
    text = card(run, tmp_path / "out", "--format", "raw")
    matter = yaml.safe_load(text.split("---\n")[1])
    assert matter["pretty_name"] == 'Self-Instruct data of x" --- # `<script>` : [1'
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}]
    assert "\n# `<script>`" not in text


def test_a_card_names_every_model_that_wrote_for_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(2), instance_model="large-model")
    text = card(run, tmp_path / "out", "--format", "parquet")
    assert text.count("`some-model`, with `large-model` for the instance stage") == 2
    assert "--instance-model large-model" in text
    (model,) = {row["instance_model"] for row in pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()}
    assert model == "large-model"


def test_a_run_without_any_rejection_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [Task("Name three rivers of Asia, please.")])
    assert "Rejected, by rule:\n\n- too short: 1" in card(run, tmp_path / "out", "--format", "raw")
