"""The sampling that a model's authors recommend, written into the options of a new run.

It applies to the steps of chat requests whose answers people read (`fastgen.methods.base.Step.is_answer`). A figure
that the user has set stays. Other steps keep the method's figures, and get room for reasoning where the model reasons.
The figures become a part of the run's options, so that a resume repeats them whatever a later version recommends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import flag_name
from fastgen.generate.inputs import Inputs, method_of
from fastgen.generate.options import Options, parse_step_sampling
from fastgen.generate.serving import chosen_preset
from fastgen.methods.base import CREATION, Method
from fastgen.methods.catalogue import SELF_INSTRUCT
from fastgen.servers.describe import context_tokens
from fastgen.text import printable
from fastgen.types import Sampling

if TYPE_CHECKING:
    from fastgen.generate.model_presets import ModelPreset, Thinking
    from fastgen.servers.router import Router

_PROMPT_TOKENS: Final = 4_096
"""What is left of the model's context for a prompt, or half of it where that is less."""
_FIGURES: Final = ("temperature", "top_p", "top_k", "min_p", "max_tokens")


async def with_recommended_sampling(
    options: Options, inputs: Inputs, router: Router, say: Callable[[str], None]
) -> Options:
    """The options of a new run with the figures for its models. ``say`` gets a line for each model that has a preset.

    Models without a preset, completions and ``--preset paper`` change nothing, and nothing is asked of their servers.
    """
    if options.server.api != "chat":
        return options
    method = method_of(options, inputs)
    roles = _chat_steps(method, creates_by_chat=not inputs.entry.needs_template)
    contexts: dict[str, int | None] = {}
    said: dict[str, str] = {}
    changes: dict[str, dict[str, float]] = {}
    samplings = options.sampling.by_step() if inputs.entry.name == SELF_INSTRUCT else method.sampling()
    for name, sampling in samplings.items():
        step = "instance" if name.startswith("instance_") else name
        if step not in roles:
            continue
        role, is_answer = roles[step]
        backend = router.member(role)
        model, thinking = backend.endpoint.model, options.server.thinking
        preset = chosen_preset(options, model)
        if preset is None or preset.sampling(thinking) is None:
            continue
        if model not in contexts:
            contexts[model] = await context_tokens(backend)
        figures = _figures(preset, thinking, sampling, contexts[model], is_answer=is_answer)
        given = _given(options, name, role)
        changes[name] = {one: value for one, value in figures.items() if one not in given}
        if is_answer:
            said.setdefault(model, _sentence(model, preset, changes[name]))
    for sentence in said.values():
        say(sentence)
    return _with_figures(options, inputs.entry.name, samplings, changes)


def _chat_steps(method: Method, *, creates_by_chat: bool) -> dict[str, tuple[str, bool]]:
    """Role, and whether its answers are read by people, of each step that sends chat requests."""
    steps = {CREATION: (method.creation.role, False)}
    steps |= {step.name: (step.role or step.name, step.is_answer) for step in method.steps}
    return {name: step for name, step in steps.items() if creates_by_chat or step[0] != method.creation.role}


def _figures(
    preset: ModelPreset, thinking: Thinking, own: Sampling, context: int | None, *, is_answer: bool
) -> dict[str, float]:
    """What the step's figures become."""
    most = own.max_tokens + preset.reasoning_tokens(thinking)
    recommended = preset.sampling(thinking)
    if recommended is not None and is_answer:
        most = recommended.max_tokens
    if context is not None:
        most = min(most, max(context - _PROMPT_TOKENS, context // 2))
    if not is_answer:
        most = max(most, own.max_tokens)
    if recommended is None or not is_answer:
        return {"max_tokens": most}
    return {name: getattr(recommended, name) for name in _FIGURES} | {"max_tokens": most}


def _given(options: Options, step: str, role: str) -> set[str]:
    """The figures of a step that the user has set, for the step or for its role."""
    chosen = parse_step_sampling(options.method.step_sampling)
    own = {name.partition(".")[2] for name in options.sampling.sampling_given if name.startswith(f"{step}.")}
    return {*own, *chosen.get(step, ()), *chosen.get(role, ())}


def _with_figures(
    options: Options, method: str, samplings: Mapping[str, Sampling], changes: Mapping[str, Mapping[str, float]]
) -> Options:
    if method == SELF_INSTRUCT:
        changed: dict[str, Any] = {}
        for name, figures in changes.items():
            values: dict[str, Any] = dict(figures)
            changed[name] = replace(samplings[name], **values)
        return replace(options, sampling=replace(options.sampling, **changed))
    more = tuple(
        f"{step}.{figure.replace('_', '-')}={value}"
        for step, figures in changes.items()
        for figure, value in figures.items()
        if getattr(samplings[step], figure) != value
    )
    return replace(options, method=replace(options.method, step_sampling=options.method.step_sampling + more))


def _sentence(model: str, preset: ModelPreset, figures: Mapping[str, float]) -> str:
    listed = ", ".join(f"{flag_name(name).removeprefix('--')} {value:g}" for name, value in figures.items() if value)
    return (
        f"{printable(model)} answers as --model-preset {preset.name} says: {listed or 'figures that you have set'} "
        f"({preset.source})"
    )
