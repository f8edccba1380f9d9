"""What options amount to: a preset's values, what a run folder remembers, and what a resume must not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgen.backends.endpoint import redact_url
from fastgen.errors import InputError
from fastgen.method.rules import CHAT_SAMPLING_PRESETS, PRESETS, RULES_OF_EARLIER_RUNS, SAMPLING_PRESETS
from fastgen.options import STAGES_WITH_SERVERS, Options, flag, plain
from fastgen.secrets import secret_name_in
from fastgen.server.spec import has_flag, without_secrets


def preset_values(preset: str, api: str) -> dict[str, Any]:
    """What ``--preset`` stands for under ``--api``, by option name."""
    stages = (CHAT_SAMPLING_PRESETS if api == "chat" else SAMPLING_PRESETS)[preset]
    values = plain(PRESETS[preset]) | {name: plain(sampling) for name, sampling in stages.items()}
    if preset == "paper":
        values |= {"tokenizer": "rouge", "index": "exact"}
    return values


NOT_SAVED = frozenset(
    {
        "seed_tasks",
        "prompts",
        "decontaminate",
        "quiet",
        "log_json",
        "log_file",
        "log_level",
        "dry_run",
        "metrics_port",
        "metrics_host",
        "dashboard",
        "dashboard_port",
        "price_in",
        "price_out",
    }
)
"""Options that a run folder does not remember: it has the seeds and prompts themselves, and display is for once."""


def saved_values(options: Options) -> dict[str, Any]:
    """All options by name, as JSON values, for the run folder. Holds no secret: keys are only named."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        values |= plain(getattr(options, field.name))
    for name in ("base_url", *(f"{stage}_base_url" for stage in STAGES_WITH_SERVERS)):
        values[name] = [redact_url(url) for url in getattr(options.server, name)]
    values["server_args"] = without_secrets(options.server.server_args)
    return {name: value for name, value in values.items() if value is not None and name not in NOT_SAVED}


_GENERATION_CONFIG = "--generation-config"


def with_paper_server(options: Options, saved: Mapping[str, Any] | None) -> Options:
    """The options, with ``--generation-config vllm`` for the servers that fastgen starts under ``--preset paper``.

    Without it vLLM adds what the model's own generation_config.json says (top_k, repetition_penalty) to every request.
    The flag in ``--server-args`` wins. ``saved`` are the options of a run that has begun: it stays as it is.
    """
    server = options.server
    if options.method.preset != "paper" or server.base_url or has_flag(server.server_args, _GENERATION_CONFIG):
        return options
    if saved is not None and not has_flag(str(saved.get("server_args", "")), _GENERATION_CONFIG):
        return options
    arguments = f"{_GENERATION_CONFIG} vllm {server.server_args}".strip()
    return dataclasses.replace(options, server=dataclasses.replace(server, server_args=arguments))


def refuse_credentials(options: Options) -> None:
    """:raises InputError: ``--extra-body`` holds a credential, which the run folder would keep."""
    if (name := secret_name_in(options.server.extra_fields())) is not None:
        raise InputError(
            f"--extra-body: '{name}' looks like a credential, and the run folder keeps --extra-body; put the key into "
            "an environment variable and name that with --api-key-env"
        )


def model_names(options: Options, saved: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a run's models before any server is asked: as told, else as a run was made with.

    By option name: ``model``, ``instance_model``, ``classification_model``; ``saved`` is the run's meaning.
    """
    names = ("model", *(f"{stage}_model" for stage in STAGES_WITH_SERVERS))
    known = {name: getattr(options.server, name) or saved.get(name) for name in names}
    return {name: model for name, model in known.items() if model is not None}


def stage_models(models: Mapping[str, str]) -> dict[str, str]:
    """Those of `model_names` that are a stage's own and another than the main one: part of what a run means."""
    return {name: model for name, model in models.items() if name != "model" and model != models.get("model")}


def meaning(
    options: Options,
    *,
    model: str,
    seeds: str,
    prompts: str,
    forbidden: str = "",
    own_models: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What resume must not change, flat: option name to JSON value; of files, the fingerprints given.

    ``own_models`` are the `stage_models`; a run in which one model does everything has no keys for them.
    """
    values = plain(options.method) | plain(options.similarity) | plain(options.rules)
    del values["record_top_k"]  # what is recorded, not what is decided
    values |= {"api": options.server.api, "extra_body": options.server.extra_body, "model": model}
    for stage, sampling in options.sampling.by_stage().items():
        values |= {f"{stage}.{name}": value for name, value in plain(sampling).items()}
    values |= own_models or {}
    return values | {"seed_tasks": seeds, "prompts": prompts, "decontaminate": forbidden}


BEFORE_THEY_WERE_OPTIONS = {"demonstrations": "uniform", "samples_per_prompt": 1, **RULES_OF_EARLIER_RUNS}
"""What runs meant that were begun before these options existed; of other options missing there, the default."""


def check_same_meaning(saved: Mapping[str, Any], asked: Mapping[str, Any], place: Path) -> None:
    """:raises InputError: resuming would change what the run means; names the first differences."""
    saved = {**_defaults(), **BEFORE_THEY_WERE_OPTIONS, **saved}
    changed = [name for name in sorted({*saved, *asked}) if saved.get(name) != asked.get(name)]
    if not changed:
        return
    shown = "; ".join(_difference(name, saved.get(name), asked.get(name)) for name in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""  # noqa: PLR2004 - as shown above
    raise InputError(f"--run-dir {place}: was made with {shown}{more}; leave that as it was, or name a new run folder")


def _defaults() -> dict[str, Any]:
    """What an option means that a run does not know, since it came with a later version; files' contents have none."""
    known = meaning(Options(), model="", seeds="", prompts="")
    return {name: value for name, value in known.items() if name not in {"model", "seed_tasks", "prompts"}}


def _difference(name: str, saved: object, asked: object) -> str:
    if name in {"seed_tasks", "prompts", "decontaminate"}:
        return f"other contents of {flag(name)}"
    return f"{flag(name)} {saved} (not {asked})"
