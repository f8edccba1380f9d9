"""Real trainings of a tiny random model by the real libraries; skipped without ``pip install -e '.[test,tune]'``."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgen.errors import InputError, StoppedError
from fastgen.telemetry.progress import QuietReporter
from fastgen.tune.folder import BaseModel, TuningFolder, local_base
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions
from fastgen.tune.progress import Job, read_losses
from fastgen.tune.tune import Tuned, tune
from tests.export_help import make_run, numbered

if importlib.util.find_spec("trl") is None:
    pytest.skip("the extra 'tune' is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about each other

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FAST = MachineOptions(save_every=2, dtype="float32")
SHORT = TrainingOptions(steps=6, batch_size=4, lora_rank=4, learning_rate=0.01)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A Llama of two narrow layers with random weights, and a byte-level tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    learned = ByteLevelBPETokenizer()
    texts = [f"Describe thing number {n} in plain words.\n\nOutput: An answer. Another answer." for n in range(9)]
    learned.train_from_iterator(texts, vocab_size=320, special_tokens=["<|end|>", "<|user|>", "<|assistant|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,  # adapters on frozen, tied, tiny embeddings could make no token likely
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = local_base(str(folder))
    assert found is not None
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", numbered(20))


def do(base: BaseModel, output: Path, data: DataOptions, training: TrainingOptions = SHORT, **more: Any) -> Tuned:
    return tune(base, output, data, training, more.pop("machine", FAST), reporter=QuietReporter(), **more)


def losses(output: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_losses(output / "loss.jsonl") if "loss" in row]


def stop_after(steps: int, output: Path) -> Callable[[], bool]:
    """Asks for a stop once that many steps were taken."""
    return lambda: len(losses(output)) >= steps - 1


def generate(folder: Path, prompt: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**given, max_new_tokens=24, do_sample=False)[0][given["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=False))


def job_of(base: BaseModel, folder: Path, data: DataOptions) -> Job:
    """Prepared, so that its trainer can be looked at."""
    from fastgen.tune.data import prepare

    place = TuningFolder(folder)
    place.training.mkdir(parents=True)
    found = prepare(data, 0, place.training)
    return Job(base, place, found.is_chat, found.eval_rows > 0, SHORT, FAST, QuietReporter())


def trainer_of(job: Job) -> Any:
    from fastgen.tune.training import build_trainer, choose_precision

    return build_trainer(job, choose_precision("float32", lora=True))


@pytest.mark.parametrize("form", ["prompt-completion", "messages"])
def test_only_the_completion_and_its_end_count_for_the_loss(
    base: BaseModel, run: Path, tmp_path: Path, form: Any
) -> None:
    job = job_of(base, tmp_path / "out", DataOptions(run_dir=run, eval_share=0, format=form))
    trainer = trainer_of(job)
    tokenizer = trainer.processing_class
    rows = [json.loads(line) for line in (job.place.training / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(trainer.train_dataset) == 40
    for row, tokens in zip(rows, trainer.train_dataset, strict=True):
        learnt = [token for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True) if label != -100]
        read = tokens["input_ids"][: len(tokens["input_ids"]) - len(learnt)]
        if form == "messages":
            completion = row["completion"][0]["content"]
            prompt = f"<|user|>{row['prompt'][0]['content']}<|end|><|assistant|>"
        else:
            prompt, completion = row["prompt"], row["completion"]
        assert tokenizer.decode(learnt) == completion + "<|end|>"
        assert tokenizer.decode(read) == prompt
        if form == "prompt-completion":
            assert read == tokenizer(prompt)["input_ids"], "what the model is given when it is asked"
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all(), "padding counts for nothing"


@pytest.mark.parametrize("lora", [True, False])
def test_a_tuned_model_has_learnt_its_data_and_is_a_whole_folder(base: BaseModel, tmp_path: Path, lora: bool) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "thing number", "completion": " An answer."}\n' * 8)
    options = TrainingOptions(
        steps=60, batch_size=8, lora_rank=16, learning_rate=0.03 if lora else 0.01, lora=lora, max_length=64
    )
    output = tmp_path / "out"
    done = do(base, output, DataOptions(data=file, eval_share=0), options, machine=replace(FAST, save_every=60))
    assert done.figures["loss_first_tenth"] > 2
    assert done.figures["loss_last_tenth"] < 0.1
    assert generate(output, "thing number").startswith(" An answer.<|end|>")
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "tuning.json", "loss.jsonl"}
    assert "training" not in names
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (base.folder / name).read_bytes()
    from safetensors import safe_open

    def shapes(folder: Path) -> dict[str, Any]:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return {key: (file.get_tensor(key).shape, file.get_tensor(key).dtype) for key in file.keys()}  # noqa: SIM118

    assert shapes(output) == shapes(base.folder)


def test_a_stopped_tuning_resumes_as_if_it_had_not_been_stopped(base: BaseModel, run: Path, tmp_path: Path) -> None:
    data = DataOptions(run_dir=run, eval_share=0.2)
    do(base, tmp_path / "whole", data)
    with pytest.raises(StoppedError, match="stopped after step 3 of 6; the same command resumes"):
        do(base, tmp_path / "parts", data, stopping=stop_after(3, tmp_path / "parts"))
    assert (tmp_path / "parts" / "training" / "checkpoint-3" / "complete").exists()
    do(base, tmp_path / "parts", data)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from fastgen.telemetry.progress import QuietReporter
from fastgen.tune.folder import local_base
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions
from fastgen.tune.folder import TuningFolder
from fastgen.tune.tune import tune

class Killing(TuningFolder):
    def mark_complete(self, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        super().mark_complete(step)

import fastgen.tune.tune
fastgen.tune.tune.TuningFolder = Killing
base, run, output = sys.argv[1:]
tune(local_base(base), Path(output), DataOptions(run_dir=Path(run), eval_share=0.2),
     TrainingOptions(steps=6, batch_size=4, lora_rank=4, learning_rate=0.01),
     MachineOptions(save_every=2, dtype="float32"), reporter=QuietReporter())
"""


def test_a_killed_tuning_resumes_from_its_last_whole_checkpoint(base: BaseModel, run: Path, tmp_path: Path) -> None:
    data, output = DataOptions(run_dir=run, eval_share=0.2), tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(base.folder), str(run), str(output)], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert (output / "training" / "checkpoint-4").is_dir()
    assert not (output / "training" / "checkpoint-4" / "complete").exists()
    assert [step for step, _ in losses(output)] == [1, 2, 3, 4]
    do(base, output, data)
    do(base, tmp_path / "whole", data)
    assert losses(output) == losses(tmp_path / "whole")
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_changed_configuration_is_refused_and_the_same_one_is_done_already(
    base: BaseModel, run: Path, tmp_path: Path
) -> None:
    data, output = DataOptions(run_dir=run, eval_share=0), tmp_path / "out"
    short = replace(SHORT, steps=2)
    do(base, output, data, short)
    weights = (output / "model.safetensors").stat().st_mtime_ns
    assert do(base, output, data, short).was_there
    assert (output / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(InputError, match=r"was begun with learning rate 0.01, not 0.02"):
        do(base, output, data, replace(short, learning_rate=0.02))
    with pytest.raises(InputError, match="include seeds False, not True"):
        do(base, output, replace(data, include_seeds=True), short)


def test_smaller_micro_batches_mean_the_same(base: BaseModel, run: Path, tmp_path: Path) -> None:
    data = DataOptions(run_dir=run, eval_share=0)
    do(base, tmp_path / "one", data)
    do(base, tmp_path / "two", data, machine=replace(FAST, micro_batch_size=2))
    for (_, one), (_, two) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def test_what_is_too_long_is_cut_or_left_out_and_counted(base: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    rows = [("Describe", " An answer."), ("Describe " * 60, " An answer."), ("Describe", " An answer." * 60)] * 2
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    options = replace(SHORT, steps=1, max_length=24)
    done = do(base, tmp_path / "out", DataOptions(data=file, eval_share=0), options)
    assert (done.figures["train_rows"], done.figures["dropped_rows"], done.figures["cut_rows"]) == (4, 2, 2)
    file.write_text(json.dumps({"prompt": "Describe " * 60, "completion": " An answer."}))
    with pytest.raises(InputError, match="--max-length 24: every prompt is as long as that"):
        do(base, tmp_path / "other", DataOptions(data=file, eval_share=0), options)


def test_a_loss_that_explodes_stops_the_training_with_its_remedy(base: BaseModel, run: Path, tmp_path: Path) -> None:
    data = DataOptions(run_dir=run, eval_share=0)
    with pytest.raises(InputError, match=r"--learning-rate 1e\+30: the loss is not a number"):
        do(base, tmp_path / "out", data, replace(SHORT, learning_rate=1e30, lora=False))


def test_models_that_cannot_be_read_are_one_line(base: BaseModel, run: Path, tmp_path: Path) -> None:
    import shutil

    def broken(name: str, change: Callable[[Path], object]) -> BaseModel:
        shutil.copytree(base.folder, tmp_path / name)
        change(tmp_path / name)
        return BaseModel(tmp_path / name, name)

    torn = broken("torn", lambda folder: (folder / "model.safetensors").write_bytes(b"junk" * 9))
    strange = broken("strange", lambda folder: (folder / "config.json").write_text('{"model_type": "cheese"}'))
    wordless = broken("wordless", lambda folder: (folder / "tokenizer.json").unlink())
    silent = broken("silent", lambda folder: (folder / "chat_template.jinja").unlink())
    chats = DataOptions(run_dir=run, eval_share=0, format="messages")
    for model, words in (
        (torn, "its model cannot be read"),
        (strange, "its (tokenizer|model) cannot be read"),
        (wordless, "its tokenizer cannot be read"),
        (silent, "has no chat template"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            do(model, tmp_path / f"out-{model.name}", chats)
        assert "\n" not in str(caught.value)


def test_too_little_memory_and_a_full_disk_are_reported_with_their_remedy(base: BaseModel, tmp_path: Path) -> None:
    import torch

    from fastgen.errors import DiskError
    from fastgen.tune.training import library_errors_mapped

    job = Job(base, TuningFolder(tmp_path), False, False, replace(SHORT, lora=False), FAST, QuietReporter())
    with pytest.raises(InputError, match=r"--micro-batch-size below 4 or a --max-length below 1024, or .* --lora"):  # noqa: SIM117
        with library_errors_mapped(job):
            torch.empty(1 << 60, dtype=torch.float32)
    with pytest.raises(DiskError, match="make room and run the same command again"), library_errors_mapped(job):
        torch.save(torch.zeros(1 << 16), "/dev/full")


def test_the_command_shows_its_progress_and_no_output_of_the_libraries(
    base: BaseModel, run: Path, tmp_path: Path
) -> None:
    flags = ["--steps", "3", "--batch-size", "4", "--eval-share", "0.2", "--dtype", "float32"]
    command = [sys.executable, "-m", "fastgen", "tune", "--run-dir", str(run), "--base-model", str(base.folder)]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), *flags], check=False, capture_output=True, text=True, env=env
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
    assert re.fullmatch(
        r"\d+ rows to tune on and \d+ held out, of the fastgen run \w+ \(written by some-model\)", lines[0]
    )
    assert lines[1].startswith("tuning tiny-llama on ")
    assert all(re.match(r"step \d/3 · loss \d+\.\d+ · held-out loss ", line) for line in lines[2:-1])
    assert "model written, 3 steps; loss on held-out instructions" in lines[-1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card + (tmp_path / "out" / "tuning.json").read_text()
    assert not list((tmp_path / "hf").rglob("*.arrow")), "nothing is left in the libraries' caches"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command_after_the_step_with_a_whole_checkpoint(
    base: BaseModel, run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--steps", "100000", "--save-every", "100000", "--batch-size", "2", "--eval-share", "0"]
    command = [sys.executable, "-m", "fastgen", "tune", "--run-dir", str(run), "--base-model", str(base.folder)]
    tuning = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out"), *flags], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert tuning.stderr is not None
    try:
        assert any(line.startswith("step ") for line in tuning.stderr), "it has begun"
        tuning.send_signal(number)
        said = tuning.communicate(timeout=60)[1].splitlines()
    finally:
        tuning.kill()
        tuning.communicate()
    assert tuning.returncode == 3
    assert re.fullmatch(r"fastgen: stopped after step \d+ of 100000; the same command resumes from there", said[-1]), (
        said
    )
    found = TuningFolder(tmp_path / "out").last_checkpoint()
    assert found is not None
    assert f"step {found[0]} of" in said[-1]
