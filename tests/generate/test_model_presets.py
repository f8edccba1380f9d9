"""Which preset a model's name chooses, and how its reasoning is turned on and off."""

from __future__ import annotations

from typing import Any

import pytest

from fastgen.generate.model_presets import PRESETS, ThinkingSwitch, preset_of, thinking_fields


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-8B", "qwen3"),
        ("/models/qwen3-0.6b-awq/", "qwen3"),
        ("/home/someone/.cache/huggingface/hub/models--Qwen--Qwen3-4B/snapshots/1cfa9a72/", "qwen3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("Meta-Llama-3-8B-Instruct", "llama3"),
        ("llama3.2:3b", "llama3"),
        ("openai/gpt-oss-20b", "gpt-oss"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3"),
        ("google/gemma-3-27b-it", "gemma3"),
        ("google/gemma-3n-E4B-it", "gemma3"),
        ("Qwen/Qwen3-8B-Base", "base"),
        ("google/gemma-3-4b-pt", "base"),
        ("HuggingFaceTB/SmolLM3-3B-Base", "base"),
        ("meta-llama/Llama-3.1-8B", "base"),
        ("/hub/models--meta-llama--Llama-3.1-8B/snapshots/d04e592b", "base"),
        ("EleutherAI/some-base", "base"),
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", None),
        ("Qwen/Qwen3-Embedding-0.6B", None),
        ("meta-llama/Llama-Guard-3-8B", None),
        ("google/gemma-31", None),
        ("database/model", None),
        ("", None),
    ],
)
def test_a_name_chooses_a_preset(model: str, name: str | None) -> None:
    preset = preset_of(model)
    assert (preset.name if preset else None) == name


@pytest.mark.parametrize(
    ("model", "thinking", "fields"),
    [
        ("Qwen3-8B", "on", {"chat_template_kwargs": {"enable_thinking": True}}),
        ("Qwen3-8B", "off", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("Qwen3-8B", "auto", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("SmolLM3-3B", "off", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("gpt-oss-20b", "on", {"reasoning_effort": "medium"}),
        ("gpt-oss-20b", "off", {"reasoning_effort": "low"}),
        ("Llama-3.1-8B-Instruct", "off", {}),
        ("gemma-3-4b-it", "on", {}),
        ("Qwen3-8B-Base", "off", {}),
        ("Qwen3-4B-Instruct-2507", "off", {}),
        ("Qwen3-4B-Thinking-2507", "off", {}),
        ("unknown", "auto", {}),
        ("unknown", "on", {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
)
def test_how_reasoning_is_switched(model: str, thinking: Any, fields: dict[str, Any]) -> None:
    assert thinking_fields(preset_of(model), thinking) == fields


def test_each_mode_has_its_sampling() -> None:
    qwen = PRESETS["qwen3"]
    off, on = qwen.sampling("off"), qwen.sampling("on")
    assert off is not None
    assert on is not None
    assert (off.temperature, off.top_p, off.top_k) == (0.7, 0.8, 20)
    assert (on.temperature, on.top_p) == (0.6, 0.95)
    assert on.max_tokens > off.max_tokens
    assert qwen.sampling("auto") == off


def test_a_model_of_one_mode_is_sampled_for_that_mode() -> None:
    plain, thinking = preset_of("Qwen3-30B-A3B-Instruct-2507"), preset_of("Qwen3-30B-A3B-Thinking-2507")
    assert plain is not None
    assert thinking is not None
    assert plain.sampling("on") == plain.plain
    assert thinking.sampling("off") == thinking.sampling("auto") == PRESETS["qwen3"].reasoning
    assert thinking.is_thinking("auto")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_sent(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert (preset.reasoning is not None) == (preset.switch is not ThinkingSwitch.NONE)
    for sampling in (preset.plain, preset.reasoning):
        if sampling is not None:
            assert 0 <= sampling.temperature <= 2
            assert 0 < sampling.top_p <= 1
            assert 256 <= sampling.max_tokens <= 1 << 16
