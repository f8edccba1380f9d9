"""`fastgen tune` without its heavy libraries: the data, the folder, flags, the card, and servers for its model."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.errors import InputError, how_to_install
from fastgen.servers.choose import choose_servers
from fastgen.servers.embedded import EmbeddedCache
from fastgen.servers.spec import ServerSpec
from fastgen.telemetry.progress import QuietReporter, Shown
from fastgen.tune.data import TuningData, prepare, source_fingerprint, split_path
from fastgen.tune.folder import BaseModel, TuningFolder, local_base, write_card
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions
from fastgen.tune.progress import Job, Watcher, append_loss, cut_losses, read_losses, smoothed
from tests.export_help import Task, extend_run, make_run, numbered, read_rows, rows


def prepared(tmp_path: Path, options: DataOptions, seed: int = 0) -> tuple[TuningData, list[dict[str, Any]]]:
    """What was prepared: its description, and the rows of both files."""
    folder = tmp_path / "prepared"
    folder.mkdir(exist_ok=True)
    data = prepare(options, seed, folder)
    return data, [*read_rows(split_path(folder, "train")), *read_rows(split_path(folder, "eval"))]


def write_rows(path: Path, *found: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in found))
    return path


def model_folder(path: Path, **config: Any) -> Path:
    """Looks like a model's folder."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def call(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and what was said, of ``fastgen tune`` in this process."""
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        code = cli.run(["tune", *map(str, arguments)])
    return code, err.getvalue()


# the data


def test_a_runs_rows_are_those_that_export_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(40))
    data, found = prepared(tmp_path, DataOptions(run_dir=run, eval_share=0), seed=3)
    assert found == rows(run, "--format", "prompt-completion", "--seed", "3")
    assert (data.train_rows, data.eval_rows, data.is_chat) == (len(found), 0, False)


def test_held_out_rows_share_no_instruction_with_the_others(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(60))
    data, _ = prepared(tmp_path, DataOptions(run_dir=run, eval_share=0.25, format="messages"))
    train, held_out = (
        {row["prompt"][0]["content"].partition("\n\n")[0] for row in read_rows(tmp_path / "prepared" / f"{name}.jsonl")}
        for name in ("train", "eval")
    )
    assert train
    assert held_out
    assert not train & held_out
    assert len(train | held_out) == 60
    assert data.eval_rows == 2 * len(held_out)


def test_chats_are_split_before_the_assistants_last_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    file = write_rows(tmp_path / "chat.jsonl", {"messages": turns})
    data, found = prepared(tmp_path, DataOptions(data=file, eval_share=0))
    assert found == [{"prompt": turns[:2], "completion": turns[2:]}]
    assert data.is_chat


def test_rows_with_prompt_and_completion_are_taken_as_they_are(tmp_path: Path) -> None:
    given = [{"prompt": f"Say {n}:", "completion": f" {n}"} for n in range(5)]
    file = write_rows(tmp_path / "data.jsonl", *({**row, "id": n} for n, row in enumerate(given)))
    assert prepared(tmp_path, DataOptions(data=file, eval_share=0))[1] == given


@pytest.mark.parametrize("form", ["prompt-completion", "messages"])
def test_an_alpaca_file_becomes_text_or_chats(tmp_path: Path, form: Any) -> None:
    flat = [{"instruction": f"Name colour {n}.", "input": "Kind: dark", "output": "Navy."} for n in range(30)]
    file = tmp_path / "alpaca.json"
    file.write_bytes(orjson.dumps(flat))
    _, found = prepared(tmp_path, DataOptions(data=file, eval_share=0, format=form))
    assert len(found) == 30
    if form == "messages":
        assert found[0]["prompt"] == [{"role": "user", "content": "Name colour 0.\n\nKind: dark"}]
        assert found[0]["completion"] == [{"role": "assistant", "content": "Navy."}]
    else:
        assert all("Name colour" in row["prompt"] and row["completion"].strip() == "Navy." for row in found)
        assert len({row["prompt"].replace(str(n), "") for n, row in enumerate(found)}) > 3, "templates are drawn"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(20))
    first, second, other = (prepared(tmp_path, DataOptions(run_dir=run), seed)[0].sha256 for seed in (1, 1, 2))
    assert first == second != other


def test_a_run_keeps_its_fingerprint_while_it_grows_and_a_file_does_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(5))
    before = source_fingerprint(DataOptions(run_dir=run))
    extend_run(run, numbered(9, 5), first=5)
    assert source_fingerprint(DataOptions(run_dir=run)) == before
    file = write_rows(tmp_path / "data.jsonl", {"prompt": "a", "completion": "b"})
    before = source_fingerprint(DataOptions(data=file))
    write_rows(file, {"prompt": "a", "completion": "c"})
    assert source_fingerprint(DataOptions(data=file)) != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}', "data.jsonl:1: 'prompt' and 'completion' have to be texts"),
        ('{"prompt": "a", "completion": "  "}', "the latter not empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "data.jsonl:1: 'messages' has to end with an answer"),
        ('{"messages": 3}', "'messages' has to end with an answer"),
        ('{"text": "a"}', "data.jsonl:1: nothing to tune on; give rows with prompt and completion"),
        ('{"instruction": "a", "input": null, "output": ""}', "nothing to tune on"),
        ('{"prompt": "a", "completion": "b"}\n{oops', "data.jsonl:2: broken JSON"),
        (
            '{"prompt": "a", "completion": "b"}\n{"instruction": "a", "input": 3, "output": "b"}',
            "data.jsonl:2: nothing",
        ),
        ("", "has no rows, so there is nothing to tune on"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, DataOptions(data=tmp_path / "data.jsonl", eval_share=0))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_and_chats_are_not_mixed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = write_rows(tmp_path / "data.jsonl", {"prompt": "a", "completion": "b"}, {"messages": turns})
    with pytest.raises(InputError, match="has texts and chats"):
        prepared(tmp_path, DataOptions(data=file, eval_share=0))


def test_a_run_without_instances_is_nothing_to_tune_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [Task("Describe a stone in plain words.", None)])
    for share in (0.0, 0.1):
        with pytest.raises(InputError) as caught:
            prepared(tmp_path, DataOptions(run_dir=run, eval_share=share))
        assert "\n" not in str(caught.value)


def test_the_description_of_the_data_has_no_paths(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(5), model="/secret/place/our-model")
    of_run, _ = prepared(tmp_path, DataOptions(run_dir=run, eval_share=0))
    of_file, _ = prepared(
        tmp_path, DataOptions(data=write_rows(tmp_path / "my.jsonl", {"prompt": "a", "completion": "b"}), eval_share=0)
    )
    assert "our-model" in of_run.source
    assert of_file.source == "the file my.jsonl"
    assert "/" not in of_run.source + of_file.source


# the folder


def test_only_whole_checkpoints_count_and_torn_ones_are_removed(tmp_path: Path) -> None:
    place = TuningFolder(tmp_path / "out")
    with place.locked():
        place.clear()
        for step in (50, 100, 150):
            (place.training / f"checkpoint-{step}").mkdir()
        for step in (50, 100):
            place.mark_complete(step)
        assert place.last_checkpoint() == (100, place.training / "checkpoint-100")
        assert not (place.training / "checkpoint-150").exists()


def test_a_folder_is_used_by_one_tuning_at_a_time_and_free_after_a_kill(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, signal\nfrom fastgen.tune.folder import TuningFolder\n"
        "with TuningFolder(pathlib.Path(sys.argv[1])).locked():\n    print(1, flush=True)\n    signal.pause()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(InputError, match="in use by process"),
            TuningFolder(tmp_path / "out").locked(),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with TuningFolder(tmp_path / "out").locked():
        pass


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for path, words in ((tmp_path / "mine", "holds files but no tuning"), (tmp_path / "mine/thesis.txt", "is a file")):
        with pytest.raises(InputError, match=words), TuningFolder(path).locked():
            pass
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_changed_configuration_is_refused_with_its_name() -> None:
    folder = TuningFolder(Path("out"))
    folder.check_configuration({"steps": 5}, {"steps": 5})
    with pytest.raises(InputError, match=r"--output out: was begun with learning rate 0\.1, not 0\.2; repeat"):
        folder.check_configuration({"learning_rate": 0.1}, {"learning_rate": 0.2})
    with pytest.raises(InputError, match=r"with steps 5, not none; repeat"):
        folder.check_configuration({"steps": 5}, {})


def test_publishing_moves_the_model_and_removes_the_training(tmp_path: Path) -> None:
    place = TuningFolder(tmp_path / "out")
    with place.locked():
        place.clear()
        place.begin({"steps": 1}, {})
        assert place.begun() == {"format": 1, "meaning": {"steps": 1}, "data": {}}
        scratch = place.scratch()
        (scratch / "config.json").write_text("{}")
        assert place.finished() is None
        place.publish(scratch, {"figures": {}})
    assert sorted(p.name for p in place.path.iterdir()) == ["config.json", "tuning.json"]
    assert place.finished() == {"format": 1, "figures": {}}


def test_a_finished_tuning_prints_its_figures_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the check for the libraries is skipped. Nothing else asks for them where the model is there."""
    module = importlib.import_module("fastgen.tune.tune")
    monkeypatch.setattr(module, "check_libraries", lambda: None)
    for name in (
        "GOMP_SPINCOUNT",
        "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.setenv(name, "0")
    model, run = model_folder(tmp_path / "base"), make_run(tmp_path / "run", numbered(2))
    base = local_base(str(model))
    assert base is not None
    meaning = module._configuration(base, DataOptions(run_dir=run), TrainingOptions())
    place = TuningFolder(tmp_path / "out")
    with place.locked():
        place.clear()
        place.begin(meaning, {})
        place.publish(place.scratch(), {"meaning": meaning, "figures": {"steps": 3, "loss_last_tenth": 1.5}})
    flags = ["--run-dir", str(run), "--base-model", str(model), "--output", str(place.path), "--json"]
    assert cli.run(["tune", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"output": str(place.path), "was_there": True, "steps": 3, "loss_last_tenth": 1.5}


def test_the_losses_after_a_checkpoint_are_forgotten_and_a_torn_line_too(tmp_path: Path) -> None:
    path = tmp_path / "loss.jsonl"
    for step in (1, 2, 3):
        append_loss(path, {"step": step, "loss": float(step)})
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    cut_losses(path, 2)
    append_loss(path, {"step": 3, "loss": 9.0})
    assert [row["loss"] for row in read_losses(path)] == [1.0, 2.0, 9.0]


def test_losses_are_smoothed_over_the_steps_before() -> None:
    assert smoothed([4.0, 2.0, 0.0, 1.0], 2) == [4.0, 3.0, 1.0, 0.5]


class Showing(QuietReporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def show(self, progress: Shown) -> None:
        self.lines.append(progress.line())


def test_each_step_is_written_and_shown_and_a_stop_saves_a_checkpoint(tmp_path: Path) -> None:
    place, reporter = TuningFolder(tmp_path / "out"), Showing()
    place.training.mkdir(parents=True)
    base, options = BaseModel(tmp_path, "m"), TrainingOptions(steps=2)
    job = Job(base, place, False, True, options, MachineOptions(), reporter, stopping=lambda: True)
    watcher, args = Watcher(job), None
    (place.training / "checkpoint-1").mkdir()
    state, control = SimpleNamespace(global_step=1, max_steps=2), SimpleNamespace()
    watcher.on_log(args, state, control, logs={"eval_loss": 2.5})
    watcher.on_step_begin(args, state, control)
    watcher.on_step_end(args, state, control)
    assert control.should_save
    assert control.should_training_stop
    logs = {"loss": 3.0, "num_tokens": 40, "learning_rate": 0.1, "grad_norm": 1.0}
    watcher.on_log(args, state, control, logs=logs)
    watcher.on_save(args, state, control)
    assert place.last_checkpoint() == (1, place.training / "checkpoint-1")
    assert [row.get("tokens") for row in read_losses(place.losses)] == [None, 40]
    assert [line.partition(" · ")[0] for line in reporter.lines] == ["step 1/2"]
    assert "loss 3.000 · held-out loss 2.500" in reporter.lines[0]
    with pytest.raises(InputError, match="the loss is not a number at step 1"):
        watcher.on_log(args, state, control, logs={**logs, "loss": float("nan")})
    last = SimpleNamespace(global_step=2, max_steps=2)
    assert watcher.on_step_end(args, last, SimpleNamespace()) == SimpleNamespace(), "nothing is left to stop"


# the base model


def test_a_models_fingerprint_changes_with_weights_and_configuration(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", hidden_size=8)
    base = local_base(str(folder))
    assert base is not None
    first = base.fingerprint()
    assert first == base.fingerprint()
    (folder / "model.safetensors").write_bytes(b"Weights")
    second = base.fingerprint()
    (folder / "config.json").write_text("{}")
    assert len({first, second, base.fingerprint()}) == 3


def test_everything_but_weights_and_an_earlier_tunings_record_is_copied(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "tuning.json", "model.safetensors.index.json"):
        (folder / name).write_text(name)
    base = local_base(str(folder))
    assert base is not None
    (tmp_path / "copy").mkdir()
    base.copy_small_files(tmp_path / "copy")
    copied = sorted(p.name for p in (tmp_path / "copy").iterdir())
    assert copied == ["LICENSE", "chat_template.jinja", "config.json", "tokenizer.json"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        local_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no \*\.safetensors"):
        local_base(str(tmp_path))
    assert local_base("some/name-on-the-hub") is None


# flags and the card


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "--steps: 0 is below 1"),
        (["--steps", "5", "--epochs", "1"], "--epochs says how long already"),
        (["--epochs", "inf"], "--epochs: inf is not a number above 0"),
        (["--learning-rate", "-1"], "--learning-rate: -1.0 is not a number above 0"),
        (["--max-length", "1"], "--max-length: 1 leaves no room"),
        (["--lora-rank", "0"], "--lora-rank: 0 is below 1"),
        (["--format", "alpaca"], "alpaca"),
    ],
)
def test_flags_out_of_range_are_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    code, said = call("--base-model", "m", "--output", tmp_path / "out", "--run-dir", tmp_path, *flags)
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_source_and_a_fitting_batch_are_asked_for(tmp_path: Path) -> None:
    for options in (DataOptions(), DataOptions(run_dir=tmp_path, data=tmp_path)):
        with pytest.raises(InputError, match="one of the two"):
            options.check()
    with pytest.raises(InputError, match="--include-seeds: is about a run"):
        DataOptions(data=tmp_path, include_seeds=True).check()
    with pytest.raises(InputError, match="--eval-share"):
        DataOptions(data=tmp_path, eval_share=1).check()
    with pytest.raises(InputError, match="does not divide --batch-size 8"):
        MachineOptions(micro_batch_size=3).check(TrainingOptions())


def test_the_configuration_of_a_tuning_has_every_default_written_out() -> None:
    lora, full = TrainingOptions().configuration(), TrainingOptions(lora=False, steps=7).configuration()
    assert (lora["epochs"], lora["learning_rate"], lora["lora_alpha"]) == (2.0, 2e-4, 32)
    assert (full["steps"], full["learning_rate"], full["method"]) == (7, 2e-5, "full")
    assert "lora_rank" not in full


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="the extra is installed here")
def test_a_missing_extra_is_one_line_that_names_it(tmp_path: Path) -> None:
    code, said = call("--base-model", "m", "--output", tmp_path / "out", "--run-dir", tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert how_to_install("tune") in said


def test_the_card_says_what_it_is_and_how_it_was_made() -> None:
    result = {
        "fastgen": "1.2.3",
        "base_model": "tiny`model",
        "meaning": {"base_model": "abc", "source": "run 1", "steps": 100, "learning_rate": 2e-4},
        "data": {"train_rows": 1234, "source": "the fastgen run 5", "sha256": "f" * 64},
        "figures": {"steps": 100, "loss_last_tenth": 1.23456, "precision": "cpu, float32"},
        "plot": True,
    }
    card = write_card("my-model", result)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "`tiny'model` tuned by fastgen 1.2.3 on 1,234 rows of the fastgen run 5." in card
    assert "| learning rate | 0.0002 |" in card
    assert "| loss last tenth | 1.235 |" in card
    assert "![loss](loss.png)" in card


# the model's server on a machine without a GPU


def cpu_servers(model: str | None, cache_dir: Path) -> tuple[ServerSpec, ...]:
    """Chosen on a machine without a GPU, where the embedded server was set up before."""
    home = EmbeddedCache.below(cache_dir).home
    (home / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    (home / "venv" / "bin" / "python").touch()
    (home / "checked.json").write_text('{"versions": {"vllm": "1"}}')
    return asyncio.run(choose_servers(model, "", cache_dir=cache_dir, report=print, gpus=lambda: ()))


def test_the_embedded_server_serves_a_model_folder_under_the_name_that_was_given(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tuned", max_position_embeddings=8192)
    (spec,) = cpu_servers(str(folder), tmp_path / "cache")
    command = list(spec.command)
    assert spec.model == str(folder)
    assert command[command.index("--model") + 1] == str(folder)
    assert command[command.index("--served-model-name") + 1] == str(folder)
    assert command[command.index("--max-model-len") + 1] == "4096"


def test_a_relative_folder_is_served_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "tuned")
    monkeypatch.chdir(tmp_path)
    (spec,) = cpu_servers("tuned", tmp_path / "cache")
    command = list(spec.command)
    assert spec.model == "tuned"
    assert command[command.index("--model") + 1] == os.fspath(tmp_path / "tuned")


def test_a_model_with_a_short_context_gets_no_longer_one(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tuned", max_position_embeddings=512)
    (spec,) = cpu_servers(str(folder), tmp_path / "cache")
    assert spec.command[spec.command.index("--max-model-len") + 1] == "512"


def test_a_folder_without_a_whole_model_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "stopped" / "training").mkdir(parents=True)
    with pytest.raises(InputError, match="no whole model is there"):
        cpu_servers(str(tmp_path / "stopped"), tmp_path / "cache")
    with pytest.raises(InputError, match="serves only smollm2-135m-instruct and model folders"):
        cpu_servers("some/other-model", tmp_path / "cache")
