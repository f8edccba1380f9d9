"""Where option values come from: flags, then ``--config``, then the run folder, then the preset, then the defaults.

Each source fills only what the ones before it left open. Plugs into cyclopts, which names the source in its errors.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyclopts

from fastgen.config import BEFORE_THEY_WERE_OPTIONS, preset_values
from fastgen.errors import InputError
from fastgen.method.rules import PRESETS, Rules
from fastgen.options import SimilarityOptions

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import ArgumentCollection


def _given(arguments: ArgumentCollection, name: str) -> str | None:
    """The value that a flag has so far, as text."""
    for argument in arguments:
        if name in argument.names and argument.tokens:
            return argument.tokens[0].value
    return None


def _fill_from(values: dict[str, Any], source: str, allow_unknown: bool = False) -> Callable[..., None]:
    return cyclopts.config.Dict(values, source=source, use_commands_as_keys=False, allow_unknown=allow_unknown)


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """After the flags: ``--config``, then the run folder, then the preset; each fills only what is still open."""
    if commands == ("refilter",):
        _fill_refilter(app, commands, arguments)
    if commands != ("generate",):
        return
    if (config := _given(arguments, "--config")) is not None:
        _fill_from(_read_toml(Path(config)), config)(app, commands, arguments)
    if (run_dir := _given(arguments, "--run-dir")) is not None:
        _fill_from(saved_options(Path(run_dir)), f"{run_dir}/run.json")(app, commands, arguments)
    preset, api = _given(arguments, "--preset") or "default", _given(arguments, "--api") or "completions"
    if preset in PRESETS:
        _fill_from(preset_values(preset, api), f"--preset {preset}")(app, commands, arguments)


def _fill_refilter(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """After the flags: a preset that was asked for, then the run's own rules."""
    values: dict[str, Any] = {}
    if (run_dir := _given(arguments, "--run-dir")) is not None:
        values |= saved_options(Path(run_dir))
    preset = _given(arguments, "--preset")
    if preset is not None and preset in PRESETS:
        values |= preset_values(preset, "completions")
    names = [field.name for part in (SimilarityOptions, Rules) for field in fields(part)]
    _fill_from({name: values[name] for name in names if name in values}, "the run's options")(app, commands, arguments)


def saved_options(run_dir: Path) -> dict[str, Any]:
    """What the run folder remembers, with what it means by options that did not exist then; nothing without a run."""
    from fastgen.storage.store import RunFolder

    folder = RunFolder(run_dir)
    return {**BEFORE_THEY_WERE_OPTIONS, **folder.header().options} if folder.exists() else {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"--config {path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--config {path}: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}
