"""Loads the model and its tokenizer, decides what is computed in, merges adapters, and writes the weights.

Weights are written in the base model's own precision. Guarantees: every defect of a model is an `InputError` of one
line. Imports torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from fastgen.errors import InputError, StoppedError
from fastgen.tune import data as rows_of
from fastgen.tune.folder import BaseModel
from fastgen.tune.options import DEFAULT_EPOCHS, Dtype, TrainingOptions
from fastgen.tune.progress import Callback, Job, Watcher, in_one_line

_DROPOUT = 0.0  # so that a resumed training is the uninterrupted one, whatever the device


@dataclass(frozen=True, slots=True)
class Precision:
    """What is computed in, and what the weights that are trained, or frozen beneath adapters, are held in."""

    device: str
    autocast: bool
    weights: torch.dtype

    def __str__(self) -> str:
        """For people."""
        held = str(self.weights).removeprefix("torch.")
        return f"{self.device}, {'bfloat16' if self.autocast else held} (weights in {held})"


def choose_precision(dtype: Dtype, *, lora: bool) -> Precision:
    """bfloat16 where the device multiplies in it: most GPUs, and CPUs with AVX-512 BF16 or AMX (docs/tune.md).

    Weights that are trained are held in float32, since small steps vanish in bfloat16; frozen ones need not be.

    :raises InputError: the device cannot do what was asked for.
    """
    gpu = torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_multiplies_bf16()
    if dtype == "bfloat16" and gpu and not fast:
        raise InputError("--dtype bfloat16: this GPU cannot; leave it out or choose float32")
    use_bf16 = fast if dtype == "auto" else dtype == "bfloat16"
    return Precision("cuda" if gpu else "cpu", use_bf16, torch.bfloat16 if use_bf16 and lora else torch.float32)


def _cpu_multiplies_bf16() -> bool:
    """Others emulate it, slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load_tokenizer(base: BaseModel, *, for_chat: bool) -> Any:  # noqa: ANN401 - a tokenizer of the library's
    """The model's tokenizer, which can pad and end a text.

    :raises InputError: it cannot be read, has no end-of-text token, or no chat template where one is needed.
    """
    with _reading(base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(base.folder)
    if tokenizer.eos_token is None:
        raise InputError(f"--base-model {base.name}: its tokenizer has no end-of-text token; name another model")
    if for_chat and not tokenizer.chat_template:
        raise InputError(
            f"--base-model {base.name}: has no chat template, so chats cannot be written down; "
            "use --format prompt-completion, or a chat model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(base: BaseModel, precision: Precision) -> Any:  # noqa: ANN401 - a model of the library's
    """The model with its weights, on the CPU; the trainer moves it.

    :raises InputError: it cannot be read as a causal language model.
    """
    with _reading(base, "model"):
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=precision.weights, use_safetensors=True)
    model.config.use_cache = False
    return model


def adapters(options: TrainingOptions) -> Any:  # noqa: ANN401 - a configuration of the library's
    """LoRA (Hu et al., 2021) on every linear layer but the output's; ``None`` for full tuning."""
    if not options.lora:
        return None
    return LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.alpha,
        lora_dropout=_DROPOUT,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def save_weights(model: Any, base: BaseModel, folder: Path) -> None:  # noqa: ANN401 - a model of the library's
    """Write the weights, adapters merged, in the base model's precision; everything else is the base's own files."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload(safe_merge=True)
    model.to(_stored_dtype(base)).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):  # of another version's form; the base's own follow
        (folder / name).unlink(missing_ok=True)
    base.copy_small_files(folder)


def _stored_dtype(base: BaseModel) -> torch.dtype:
    config = base.config()
    name = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


@contextmanager
def _reading(base: BaseModel, what: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a broken file makes a dozen parsers raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"--base-model {base.name}: its {what} cannot be read as a causal language model's ({reason}); "
            "name a whole model folder"
        ) from None


WARMUP_SHARE: Final = 0.03
_CHECKPOINTS: Final = 2  # the newest may be half-written when the process is killed
_IGNORED: Final = -100  # a label that counts for no loss, as torch has it


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model and what there is to say of its training."""

    model: Any
    steps: int
    seconds: float
    figures: dict[str, Any]


def train(job: Job) -> Trained:
    """Train to the last step, from the newest whole checkpoint if there is one.

    :raises InputError: an unreadable model, a loss that is no number, or too little memory.
    :raises StoppedError: it was asked to stop; the checkpoint is whole. :raises DiskError: nothing can be written.
    """
    with in_one_line(job):
        _be_quiet()
        set_seed(job.options.seed)
        precision = choose_precision(job.machine.dtype, lora=job.options.lora)
        watcher = Watcher(job)
        trainer = build_trainer(job, precision, watcher)
        watcher.target = trainer_steps(trainer)
        _say_start(job, trainer, precision)
        started_s = time.monotonic()
        checkpoint = job.place.last_checkpoint()
        trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
        if watcher.stopped:
            step = trainer.state.global_step
            raise StoppedError(f"stopped after step {step} of {watcher.target}; the same command goes on from there")
        figures = {**_data_figures(trainer, job), "precision": str(precision), "parameters": _parameters(trainer.model)}
        return Trained(trainer.model, trainer.state.global_step, time.monotonic() - started_s, figures)


def build_trainer(job: Job, precision: Precision, watcher: Watcher) -> Any:  # noqa: ANN401 - the library's
    """TRL's trainer on the prepared rows, ready to train.

    :raises InputError: no row has room for any token of its answer within ``--max-length``.
    """
    tokenizer = load_tokenizer(job.base, for_chat=job.is_chat)
    trainer = SFTTrainer(
        model=load_model(job.base, precision),
        args=_arguments(job, precision),
        train_dataset=_dataset(job, rows_of.TRAIN, tokenizer),
        eval_dataset=_dataset(job, rows_of.EVAL, tokenizer) if job.has_eval else None,
        processing_class=tokenizer,
        peft_config=adapters(job.options),
        callbacks=[type("Watching", (Callback, TrainerCallback), {})(watcher)],
    )
    trainer.remove_callback(PrinterCallback)
    if len(trainer.train_dataset) == 0:
        raise InputError(f"--max-length {job.options.max_length}: every prompt is as long as that; allow more tokens")
    return trainer


def trainer_steps(trainer: Any) -> int:  # noqa: ANN401 - the library's
    """Optimiser steps of the whole training."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    per_epoch: int = -(
        -len(trainer.train_dataset) // (args.per_device_train_batch_size * args.gradient_accumulation_steps)
    )
    epochs: float = args.num_train_epochs
    return max(1, math.ceil(per_epoch * epochs))


def _arguments(job: Job, precision: Precision) -> Any:  # noqa: ANN401 - the library's
    options, micro = job.options, job.machine.micro_batch(job.options)
    every = job.machine.save_every
    return SFTConfig(
        output_dir=str(job.place.training),
        max_steps=options.steps or -1,
        num_train_epochs=options.epochs or DEFAULT_EPOCHS,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=options.batch_size // micro,
        learning_rate=options.rate,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_SHARE,
        weight_decay=0.0,
        max_length=options.max_length,
        completion_only_loss=True,
        packing=False,
        bf16=precision.autocast,
        use_cpu=precision.device == "cpu",
        gradient_checkpointing=precision.device != "cpu",  # a GPU's memory is short, a CPU's time is
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=_CHECKPOINTS,
        eval_strategy="steps" if job.has_eval else "no",
        eval_steps=every,
        eval_on_start=job.has_eval and job.place.last_checkpoint() is None,
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
    )


def _dataset(job: Job, split: str, tokenizer: Any) -> Any:  # noqa: ANN401 - the library's
    """The prepared rows, in a cache of the tuning's own, so that nothing is left behind elsewhere.

    Chats are the trainer's to write down. Texts become tokens here: a prompt's own and a completion's own, one after
    the other, since that is what the model is given and what it writes. Tokens of both at once differ where a prompt
    ends in line breaks, as 5 of the 13 templates do.
    """
    path = rows_of.read_prepared(job.place.training, split)
    rows = datasets.Dataset.from_json(str(path), cache_dir=str(job.place.training / "cache"))
    if job.is_chat:
        return rows
    return rows.map(_tokens, fn_kwargs={"tokenizer": tokenizer}, remove_columns=rows.column_names)


def _tokens(row: dict[str, str], tokenizer: Any) -> dict[str, list[int]]:  # noqa: ANN401 - the library's
    """``input_ids`` with the end-of-text token, and ``completion_mask`` (1: counts for the loss)."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    if prompt and prompt[-1] == tokenizer.eos_token_id:  # some tokenisers end every text
        prompt.pop()
    completion.append(tokenizer.eos_token_id)
    return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}


def _say_start(job: Job, trainer: Any, precision: Precision) -> None:  # noqa: ANN401 - the library's
    figures = _data_figures(trainer, job)
    checkpoint = job.place.last_checkpoint()
    trained, total = _parameters(trainer.model)
    job.reporter.say(
        f"tuning {job.base.name} on {precision}: {trained:,} of {total:,} parameters, {figures['train_rows']:,} rows, "
        f"{trainer_steps(trainer):,} steps of {job.options.batch_size} rows"
        + (f", going on after step {checkpoint[0]:,}" if checkpoint else "")
    )
    if figures["cut_rows"] or figures["dropped_rows"]:
        job.reporter.say(
            f"--max-length {job.options.max_length}: {figures['cut_rows']:,} rows lose their end and "
            f"{figures['dropped_rows']:,} are left out, since their prompt is as long as that"
        )


def _data_figures(trainer: Any, job: Job) -> dict[str, Any]:  # noqa: ANN401 - the library's
    """Rows used; those cut (at least as long as allowed) and those left out because their prompt filled it all."""
    train = trainer.train_dataset
    path = rows_of.read_prepared(job.place.training, rows_of.TRAIN)
    with path.open("rb") as file:
        given = sum(1 for _ in file)
    longest = job.options.max_length
    return {
        "train_rows": len(train),
        "eval_rows": len(trainer.eval_dataset) if trainer.eval_dataset is not None else 0,
        "cut_rows": sum(len(row["input_ids"]) >= longest for row in train),
        "dropped_rows": given - len(train),
        "completion_tokens": sum(sum(label != _IGNORED for label in row["labels"]) for row in train),
    }


def _parameters(model: Any) -> tuple[int, int]:  # noqa: ANN401 - the library's
    """(trained, all)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _be_quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def write_model(trained: Trained, job: Job) -> Path:
    """Write weights and the base's own files into a scratch folder of the tuning.

    :raises InputError: too little memory. :raises DiskError: it cannot be written.
    """
    with in_one_line(job):
        scratch = job.place.scratch()
        save_weights(trained.model, job.base, scratch)
        return scratch
