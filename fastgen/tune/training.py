"""The training, by TRL's SFTTrainer: loss on completions only, checkpoints, progress, and a stop on request.

The order of rows, the learning rate and the first values of the adapters depend only on the seed and the step. A
training that is resumed from a checkpoint therefore equals the uninterrupted one (to the bit, on one CPU). The model's
weights are written in the base model's own precision. This module imports torch.
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

from fastgen.errors import DiskError, FastgenError, InputError, StoppedError
from fastgen.tune.data import EVAL, TRAIN, split_path
from fastgen.tune.folder import BaseModel
from fastgen.tune.options import DEFAULT_EPOCHS, Dtype, TrainingOptions
from fastgen.tune.progress import Job, Watcher

WARMUP_SHARE: Final = 0.03
_DROPOUT: Final = 0.0  # a resumed training equals the uninterrupted one on any device
_CHECKPOINTS: Final = 2  # the newest may be incomplete when the process is killed
_IGNORED: Final = -100  # torch's label of a token that does not count for the loss
_OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")
_CANNOT_WRITE: Final = ("No space left", "failed writing file", "unexpected pos", "Disk quota")


def train(job: Job) -> tuple[Path, dict[str, Any]]:
    """Train to the last step, from the newest whole checkpoint if there is one, and write the model.

    Returns a scratch folder of the tuning with the weights and the base model's own files, and the figures of the
    training: rows, parameters, ``precision``, ``steps``, and ``seconds`` since this start.

    :raises InputError: when the model cannot be read, the loss is not finite, or the memory is too small.
    :raises StoppedError: when ``job.stopping`` became true; the checkpoint is whole.
    :raises DiskError: when the folder cannot be written.
    """
    with library_errors_mapped(job):
        _silence_libraries()
        set_seed(job.options.seed)
        precision = choose_precision(job.machine.dtype, lora=job.options.lora)
        trainer = build_trainer(job, precision)
        _say_start(job, trainer, precision)
        checkpoint = job.place.last_checkpoint()
        started_s = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
        step, target = trainer.state.global_step, trainer.state.max_steps
        if step < target:
            raise StoppedError(f"stopped after step {step} of {target}; the same command resumes from there")
        trained_parameters, parameters = _parameters(trainer.model)
        figures = {
            **_data_figures(trainer, job),
            "precision": str(precision),
            "parameters": parameters,
            "trained_parameters": trained_parameters,
            "steps": step,
            "seconds": time.monotonic() - started_s,
        }
        scratch = job.place.scratch()
        _write_model(trainer.model, job.base, scratch)
        return scratch, figures


@contextmanager
def library_errors_mapped(job: Job) -> Iterator[None]:
    """Raise the libraries' many errors about too little memory and full disks as fastgen's errors of one line.

    :raises InputError: when the memory does not hold the training.
    :raises DiskError: when the folder cannot be written.
    """
    try:
        yield
    except FastgenError:
        raise
    except Exception as error:
        text = str(error)
        if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            raise _too_little_memory(job) from None
        if isinstance(error, OSError) or any(words in text for words in _CANNOT_WRITE):
            reason = " ".join(text.split())[:160]
            raise DiskError(
                f"--output {job.place.path}: cannot be written ({reason}); make room and run the same command again"
            ) from None
        raise


def _too_little_memory(job: Job) -> InputError:
    micro = job.machine.micro_batch(job.options)
    smaller = f"--micro-batch-size below {micro} or " if micro > 1 else ""
    other = "" if job.options.lora else ", or tune adapters only with --lora"
    return InputError(
        f"--base-model {job.base.name}: the memory does not hold the training; take {smaller}a --max-length below "
        f"{job.options.max_length}{other}; --micro-batch-size may change on resume"
    )


# -- the trainer -------------------------------------------------------------------------------------------------------


def build_trainer(job: Job, precision: Precision) -> Any:  # noqa: ANN401 - the library's
    """Return TRL's trainer on the prepared rows, ready to train.

    :raises InputError: when no row has room for a token of its completion within ``--max-length``.
    """
    tokenizer = load_tokenizer(job.base, for_chat=job.is_chat)
    trainer = SFTTrainer(
        model=load_model(job.base, precision),
        args=_arguments(job, precision),
        train_dataset=_dataset(job, TRAIN, tokenizer),
        eval_dataset=_dataset(job, EVAL, tokenizer) if job.has_eval else None,
        processing_class=tokenizer,
        peft_config=_adapters(job.options),
        callbacks=[type("WatcherCallback", (Watcher, TrainerCallback), {})(job)],
    )
    trainer.remove_callback(PrinterCallback)
    if len(trainer.train_dataset) == 0:
        raise InputError(f"--max-length {job.options.max_length}: every prompt is as long as that; allow more tokens")
    return trainer


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
        gradient_checkpointing=precision.device != "cpu",  # saves memory, costs time
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


def _adapters(options: TrainingOptions) -> Any:  # noqa: ANN401 - the library's
    """Return LoRA (Hu et al., 2021) on every linear layer but the output's, or ``None`` for full tuning."""
    if not options.lora:
        return None
    return LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.alpha,
        lora_dropout=_DROPOUT,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _dataset(job: Job, split: str, tokenizer: Any) -> Any:  # noqa: ANN401 - the library's
    """Return the prepared rows, cached in the tuning's folder, which removes them at the end.

    The trainer tokenises chats. Texts are tokenised here, prompt and completion separately, because that is what the
    model later reads and writes. Tokens of both together differ where a prompt ends in line breaks, as in 5 of the 13
    templates.
    """
    rows = datasets.Dataset.from_json(
        str(split_path(job.place.training, split)), cache_dir=str(job.place.training / "cache")
    )
    if job.is_chat:
        return rows
    return rows.map(_tokens, fn_kwargs={"tokenizer": tokenizer}, remove_columns=rows.column_names)


def _tokens(row: dict[str, str], tokenizer: Any) -> dict[str, list[int]]:  # noqa: ANN401 - the library's
    """Return ``input_ids`` with the end-of-text token, and ``completion_mask`` (1: counts for the loss)."""
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
        f"{_planned_steps(trainer):,} steps of {job.options.batch_size} rows"
        + (f", resuming after step {checkpoint[0]:,}" if checkpoint else "")
    )
    if figures["cut_rows"] or figures["dropped_rows"]:
        job.reporter.say(
            f"--max-length {job.options.max_length}: {figures['cut_rows']:,} rows lose their end and "
            f"{figures['dropped_rows']:,} are left out, since their prompt alone is as long as that"
        )


def _planned_steps(trainer: Any) -> int:  # noqa: ANN401 - the library's
    """Return the optimiser steps of the whole training."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    per_epoch: int = -(
        -len(trainer.train_dataset) // (args.per_device_train_batch_size * args.gradient_accumulation_steps)
    )
    epochs: float = args.num_train_epochs
    return max(1, math.ceil(per_epoch * epochs))


def _data_figures(trainer: Any, job: Job) -> dict[str, Any]:  # noqa: ANN401 - the library's
    """Return the rows used, those cut to the allowed length, and those left out because the prompt alone has it."""
    train = trainer.train_dataset
    with split_path(job.place.training, TRAIN).open("rb") as file:
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
    """Return (trained, all)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _silence_libraries() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Precision:
    """The device, whether it computes in bfloat16, and the type in which the weights are held."""

    device: str
    autocast: bool
    weights: torch.dtype

    def __str__(self) -> str:
        held = str(self.weights).removeprefix("torch.")
        return f"{self.device}, {'bfloat16' if self.autocast else held} (weights in {held})"


def choose_precision(dtype: Dtype, *, lora: bool) -> Precision:
    """Return bfloat16 where the device multiplies in it: most GPUs, and CPUs with AVX-512 BF16 or AMX (docs/tune.md).

    Trained weights are held in float32, because small steps vanish in bfloat16. Frozen ones are held in bfloat16.

    :raises InputError: when the device does not support ``dtype``.
    """
    gpu = torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_multiplies_bf16()
    if dtype == "bfloat16" and gpu and not fast:
        raise InputError("--dtype bfloat16: this GPU cannot; leave it out or choose float32")
    use_bf16 = fast if dtype == "auto" else dtype == "bfloat16"
    return Precision("cuda" if gpu else "cpu", use_bf16, torch.bfloat16 if use_bf16 and lora else torch.float32)


def _cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has bfloat16 instructions. Others emulate it, slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load_tokenizer(base: BaseModel, *, for_chat: bool) -> Any:  # noqa: ANN401 - the library's
    """Return the model's tokenizer, with a padding token.

    :raises InputError: when it cannot be read, or lacks an end-of-text token or a chat template that is needed.
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


def load_model(base: BaseModel, precision: Precision) -> Any:  # noqa: ANN401 - the library's
    """Return the model with its weights on the CPU. The trainer moves it.

    :raises InputError: when it cannot be read as a causal language model.
    """
    with _reading(base, "model"):
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=precision.weights, use_safetensors=True)
    model.config.use_cache = False
    return model


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


def _write_model(model: Any, base: BaseModel, folder: Path) -> None:  # noqa: ANN401 - the library's
    """Write the weights, adapters merged, in the base model's precision. All other files are the base model's own."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload(safe_merge=True)
    model.to(_stored_dtype(base)).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):  # perhaps of another version's form
        (folder / name).unlink(missing_ok=True)
    base.copy_small_files(folder)


def _stored_dtype(base: BaseModel) -> torch.dtype:
    config = base.config()
    name = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
