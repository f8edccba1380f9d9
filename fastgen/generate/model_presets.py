"""How the authors of well-known models recommend to sample them, and how each is told to reason or not.

A preset is chosen by the model's name (`preset_of`) or by its own (`PRESETS`, for ``--model-preset``). It is
for answers that people read: steps that judge, or that ask for new instructions, are sampled as their method says.

Sources, read in November 2026, are with each preset. Where the authors state no length, the number of tokens is
fastgen's: enough for a long answer, with room for reasoning where the model reasons.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Literal

from fastgen.servers.describe import names_a_base_model

Thinking = Literal["on", "off", "auto"]


class ThinkingSwitch(StrEnum):
    """How a request tells a model whether to reason."""

    NONE = "none"  # the model always reasons, or never
    TEMPLATE = "chat_template_kwargs.enable_thinking"
    EFFORT = "reasoning_effort"  # how much, never none


@dataclass(frozen=True, slots=True)
class ModelSampling:
    """Recommended sampling. ``top_k`` 0 and ``min_p`` 0 mean no such limit.

    ``max_tokens`` is the most that an answer should be allowed, reasoning included.
    """

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelPreset:
    """What is recommended for one family of models, with the page that says so.

    ``plain`` is the sampling without reasoning, ``reasoning`` that with. Either is ``None`` where the model cannot do
    that; both are for base models, which are sampled as the method says. ``thinking`` is what ``--thinking auto``
    means: data of millions of rows is made without reasoning where a model can do without.
    """

    name: str
    source: str
    plain: ModelSampling | None
    reasoning: ModelSampling | None = None
    switch: ThinkingSwitch = ThinkingSwitch.NONE
    thinking: Literal["on", "off"] = "off"

    def sampling(self, thinking: Thinking) -> ModelSampling | None:
        """Return the recommended sampling, of the mode that the model has where it has only one."""
        if self.is_thinking(thinking):
            return self.reasoning or self.plain
        return self.plain or self.reasoning

    def is_thinking(self, thinking: Thinking) -> bool:
        """Whether the model is to reason under this choice."""
        return (self.thinking if thinking == "auto" else thinking) == "on"

    def reasoning_tokens(self, thinking: Thinking) -> int:
        """Tokens to allow for reasoning, beside those of a short answer. 0 where the model does none."""
        if self.reasoning is None:
            return 0
        if self.is_thinking(thinking) or self.plain is None:
            return _ROOM_TOKENS
        return _LOW_EFFORT_TOKENS if self.switch is ThinkingSwitch.EFFORT else 0


_TOKENS: Final = 2_048
_REASONING_TOKENS: Final = 32_768
_ROOM_TOKENS: Final = 8_192
_LOW_EFFORT_TOKENS: Final = 1_024

PRESETS: Final = {
    preset.name: preset
    for preset in (
        # The same on the cards of the other sizes: both modes, an output length of 32,768 tokens for most questions,
        # and no greedy decoding while it reasons.
        ModelPreset(
            "qwen3",
            "https://huggingface.co/Qwen/Qwen3-8B#best-practices",
            ModelSampling(0.7, 0.8, _TOKENS, top_k=20),
            ModelSampling(0.6, 0.95, _REASONING_TOKENS, top_k=20),
            ThinkingSwitch.TEMPLATE,
        ),
        # The same for 3, 3.2 and 3.3.
        ModelPreset(
            "llama3",
            "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/generation_config.json",
            ModelSampling(0.6, 0.9, _TOKENS),
        ),
        # Temperature and top_p of 1. It always reasons, on one of three levels:
        # https://huggingface.co/openai/gpt-oss-20b#reasoning-levels
        ModelPreset(
            "gpt-oss",
            "https://github.com/openai/gpt-oss#recommended-sampling-parameters",
            ModelSampling(1.0, 1.0, 2 * _TOKENS),
            ModelSampling(1.0, 1.0, _REASONING_TOKENS),
            ThinkingSwitch.EFFORT,
        ),
        # One sampling for both modes, reasoning by default, `enable_thinking` as the switch, 32,768 new tokens in its
        # example.
        ModelPreset(
            "smollm3",
            "https://huggingface.co/HuggingFaceTB/SmolLM3-3B",
            ModelSampling(0.6, 0.95, _TOKENS),
            ModelSampling(0.6, 0.95, _REASONING_TOKENS),
            ThinkingSwitch.TEMPLATE,
        ),
        # top_k and top_p, and the temperature of 1 that is transformers' default.
        ModelPreset(
            "gemma3",
            "https://huggingface.co/google/gemma-3-4b-it/blob/main/generation_config.json",
            ModelSampling(1.0, 0.95, _TOKENS, top_k=64),
        ),
        # Base models have no recommended sampling: the method's applies.
        ModelPreset("base", "arXiv:2212.10560, table 4", None),
    )
}
"""The presets of ``--model-preset``, by name."""

_FAMILIES: Final = (
    (re.compile(r"qwen-?_?3(?![0-9])"), "qwen3"),
    (re.compile(r"llama-?_?3(?![0-9])"), "llama3"),
    (re.compile(r"gpt-?_?oss"), "gpt-oss"),
    (re.compile(r"smollm-?_?3"), "smollm3"),
    (re.compile(r"gemma-?_?3(?!n?[0-9])"), "gemma3"),
)
_OTHER_MODELS: Final = re.compile(r"deepseek-?r1|distill|embed|rerank|guard|reward")
"""Models that are named after the one they were made from, and sampled in another way or not at all."""
_CACHED: Final = re.compile(r"(?:^|/)models--([^/]+)/snapshots/")  # a folder of Hugging Face's cache
_PLAIN_LLAMA: Final = re.compile(r"(?:meta-)?llama-3(?:\.\d)?-\d+b")  # Meta's base models have no word for it


def preset_of(model_name: str) -> ModelPreset | None:
    """Return the preset of a model by its name, its path or its repository. ``None`` for other models.

    Qwen3 models that are named after one mode have that mode only: ``Instruct`` and ``Coder`` do not reason,
    ``Thinking`` always does.
    """
    cached = _CACHED.search(model_name)
    name = (cached[1] if cached else model_name.rstrip("/").rpartition("/")[2]).lower()
    if _OTHER_MODELS.search(name):
        return None
    if names_a_base_model(name) or _PLAIN_LLAMA.fullmatch(name.rpartition("--")[2]):
        return PRESETS["base"]
    found = next((PRESETS[family] for pattern, family in _FAMILIES if pattern.search(name)), None)
    if found is PRESETS["qwen3"] and ("instruct" in name or "coder" in name):
        return replace(found, reasoning=None, switch=ThinkingSwitch.NONE)
    if found is PRESETS["qwen3"] and "thinking" in name:
        return replace(found, plain=None, switch=ThinkingSwitch.NONE, thinking="on")
    return found


def thinking_is_off(preset: ModelPreset | None, thinking: Thinking) -> bool:
    """Return whether requests ask a model not to reason, or as little as it can."""
    if thinking != "auto" or preset is None or preset.switch is ThinkingSwitch.NONE:
        return thinking == "off"
    return not preset.is_thinking(thinking)


def thinking_fields(preset: ModelPreset | None, thinking: Thinking) -> dict[str, Any]:
    """Return the fields of a chat request that turn reasoning on or off.

    Without a preset, ``on`` and ``off`` are sent as ``enable_thinking``, which templates that do not know it ignore,
    and ``auto`` sends nothing. A model that only has levels of reasoning gets a low one for ``off``.
    """
    if preset is None:
        return {} if thinking == "auto" else {"chat_template_kwargs": {"enable_thinking": thinking == "on"}}
    is_on = preset.is_thinking(thinking)
    if preset.switch is ThinkingSwitch.TEMPLATE:
        return {"chat_template_kwargs": {"enable_thinking": is_on}}
    if preset.switch is ThinkingSwitch.EFFORT:
        return {"reasoning_effort": "medium" if is_on else "low"}
    return {}
