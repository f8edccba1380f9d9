"""What options amount to: a preset's values, what a run folder remembers, and what a resume must not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgen.backends.endpoint import redact_url
from fastgen.errors import InputError
from fastgen.options import Options, flag, plain
from fastgen.rules import CHAT_SAMPLING_PRESETS, PRESETS, SAMPLING_PRESETS


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
    values["base_url"] = [redact_url(url) for url in options.server.base_url]
    values["server_args"] = _without_secrets(options.server.server_args)
    return {name: value for name, value in values.items() if value is not None and name not in NOT_SAVED}


def _without_secrets(server_args: str) -> str:
    from fastgen.server.spec import parse_server_args, redact

    return redact(parse_server_args(server_args))


def meaning(options: Options, *, model: str, seeds: str, prompts: str, forbidden: str = "") -> dict[str, Any]:
    """What resume must not change, flat: option name to JSON value; of files, the fingerprints given."""
    values = plain(options.method) | plain(options.similarity) | plain(options.rules)
    values |= {"api": options.server.api, "extra_body": options.server.extra_body, "model": model}
    for stage, sampling in options.sampling.by_stage().items():
        values |= {f"{stage}.{name}": value for name, value in plain(sampling).items()}
    return values | {"seed_tasks": seeds, "prompts": prompts, "decontaminate": forbidden}


def check_same_meaning(saved: Mapping[str, Any], asked: Mapping[str, Any], place: Path) -> None:
    """:raises InputError: resuming would change what the run means; names the first differences."""
    changed = [name for name in sorted({*saved, *asked}) if saved.get(name) != asked.get(name)]
    if not changed:
        return
    shown = "; ".join(_difference(name, saved.get(name), asked.get(name)) for name in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""  # noqa: PLR2004 - as shown above
    raise InputError(f"--run-dir {place}: was made with {shown}{more}; leave that as it was, or name a new run folder")


def _difference(name: str, saved: object, asked: object) -> str:
    if name in {"seed_tasks", "prompts", "decontaminate"}:
        return f"other contents of {flag(name)}"
    return f"{flag(name)} {saved} (not {asked})"
