"""Loads the model and its tokenizer, decides what is computed in, merges adapters, and writes the weights.

Weights are written in the base model's own precision. Guarantees: every defect of a model is an `InputError` of one
line. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastgen.errors import InputError
from fastgen.tuning.base import BaseModel
from fastgen.tuning.options import Dtype, TrainingOptions

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
