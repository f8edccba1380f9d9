"""What is known of the method of a finished run: source, steps with sampling and models, and the settings it used.

It is read from the run's configuration. Code of a user's method is not run for it, so its steps are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from fastgen.errors import InputError
from fastgen.generate.options import SamplingOptions, with_sampling
from fastgen.methods.base import CREATION, Setup
from fastgen.methods.catalogue import METHODS, SELF_INSTRUCT, Entry
from fastgen.methods.chat_template import ChatTemplate
from fastgen.methods.self_instruct.rules import Rules
from fastgen.store.reader import OpenRun
from fastgen.types import Sampling

_MODEL: Final = "_model"
_CHECKED: Final = frozenset(
    {
        *("min_words", "max_words", "max_characters", "word_count", "banned_words", "reject_media_requests"),
        *("banned_starts", "punctuation_start", "reject_non_ascii_start"),
    }
)
"""The rules that every method's instructions are checked with. The others are about the lists of Self-Instruct."""
_LISTS: Final = ("decontaminate", "documents", "topics", "personas", "method_file", "method_option")


@dataclass(frozen=True, slots=True)
class StepFacts:
    """A step of one of fastgen's own methods: how it sampled, and the model that it asked."""

    name: str
    sampling: Sampling
    model: str


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """A run's method. ``entry`` is ``None`` for a user's own, whose ``steps`` are not known."""

    name: str
    entry: Entry | None
    steps: tuple[StepFacts, ...]

    @property
    def has_parents(self) -> bool:
        """Whether what a prompt showed are the parents of the new instruction."""
        return self.entry is not None and self.entry.has_parents


def method_facts(run: OpenRun) -> MethodFacts:
    """The method of a run."""
    entry = METHODS.get(run.method)
    if entry is None or run.configuration.get("method_file"):
        return MethodFacts(run.method, None, ())
    if entry.name == SELF_INSTRUCT:
        return MethodFacts(entry.name, entry, ())
    configuration = run.configuration
    template = configuration.get("chat_template")
    setup = Setup(
        api=configuration["api"],
        seed=configuration["seed"],
        seeds=run.seeds,
        options=entry.own(given_options(configuration)),
        documents=run.documents,
        template=None if template is None else ChatTemplate.from_json(template),
    )
    try:
        method = with_sampling(entry.build(setup), configuration.get("step_sampling", ()))
    except InputError:  # of a version that had other options
        return MethodFacts(entry.name, entry, ())
    roles = {CREATION: method.creation.role} | {step.name: step.role or step.name for step in method.steps}
    models = role_models(configuration)
    steps = tuple(
        StepFacts(name, sampling, models.get(roles[name], str(configuration["model"])))
        for name, sampling in method.sampling().items()
    )
    return MethodFacts(entry.name, entry, steps)


def given_options(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what ``--method-option`` gave, by the names of the options."""
    return {**configuration} | dict(one.split("=", 1) for one in configuration.get("method_option", ()))


def role_models(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The models of those roles that have another one than the run, by role."""
    return {name.removesuffix(_MODEL): str(configuration[name]) for name in configuration if name.endswith(_MODEL)}


def used_settings(run: OpenRun) -> dict[str, Any]:
    """The run's configuration without what its method has no use for. All of it for Self-Instruct."""
    configuration = run.configuration
    if run.is_self_instruct:
        return dict(configuration)
    entry = None if configuration.get("method_file") else METHODS.get(run.method)
    sampled = tuple(f"{field.name}." for field in fields(SamplingOptions))
    of_self_instruct = {field.name for field in fields(Rules)} - _CHECKED | {"prompts", "classification_only"}
    others: set[str] = set()
    if entry is not None:
        others = {option for one in METHODS.values() for option in one.options} - {*entry.options}
        others |= {"num_prompt_instructions", "num_machine_instructions"} - {*entry.options}
        others |= set() if entry.needs_template else {"pre_query"}
    return {
        name: value
        for name, value in configuration.items()
        if not name.startswith(sampled)
        and name not in of_self_instruct | others
        and not (name in _LISTS and not value)
        and not (name == "seed_tasks" and not run.seeds)
    }
