"""Commands on a run: make it, look at it, rebuild it, audit it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastgen.commands.environment import api_key, cache_dir
from fastgen.display import put, tell
from fastgen.errors import INTERRUPTED, InputError
from fastgen.options import JOB, STAGES_WITH_SERVERS, Options, RefilterOptions, ServerOptions
from fastgen.untrusted import as_json

if TYPE_CHECKING:
    from fastgen.serving import Keys

InJob = Parameter(group=JOB)


def generate(
    *,
    run_dir: Annotated[Path, InJob],
    config: Annotated[Path | None, InJob] = None,  # noqa: ARG001 - read by fastgen.option_sources
    options: Options = Options(),  # noqa: B008 - frozen
) -> int:
    """Generate instructions with instances into a run folder; the same command goes on with a stopped run.

    Parameters
    ----------
    run_dir
        Folder of the run; made if it is not there. On resume it supplies every option that is not given.
    config
        TOML file with options of the same names as the flags (num_instructions = 1000, [instruction] temperature =
        0.9).
    """
    from fastgen.generation import session
    from fastgen.generation.pipeline import Place, require_target

    require_target(options)
    return session.run(Place(run_dir, cache_dir(), _keys(options.server)), options)


def status(*, run_dir: Path, json: bool = False) -> int:
    """Show a run's counts, yield and rejection ledger; works while the run goes on.

    Parameters
    ----------
    run_dir
        Folder of the run.
    json
        Print one JSON object instead.
    """
    from fastgen.status import render
    from fastgen.status import status as read

    figures = read(run_dir)
    put(as_json(figures, indent=2) if json else render(figures))
    return 0


def refilter(
    *,
    run_dir: Path,
    output: Path,
    options: RefilterOptions = RefilterOptions(),  # noqa: B008 - frozen
) -> int:
    """Rebuild a run under other rules from its kept completions, without any server, into a new run folder.

    Parameters
    ----------
    run_dir
        Folder of the run; it stays as it is.
    output
        New folder for the rebuilt run; 'fastgen generate --run-dir' on it goes on from there.
    """
    from fastgen.refilter import refilter as rebuild
    from fastgen.storage.store import RunFolder

    try:
        before, after = RunFolder(run_dir).ledger(), rebuild(run_dir, output, options, tell)
    except KeyboardInterrupt:
        tell(f"interrupted; {output} is not a run yet, run the same command again to start over")
        return INTERRUPTED
    tell(
        f"{output}: kept {after.kept} instructions (before: {before.kept}), {after.complete} of them complete "
        f"(before: {before.complete})"
    )
    return 0


def _keys(server: ServerOptions) -> Keys:
    from fastgen.serving import Keys

    own = {stage: server.of_stage(stage) for stage in STAGES_WITH_SERVERS}
    by_stage = {s: api_key(one.api_key_env, one.api_key_file, f"--{s}-api-key") for s, one in own.items()}
    return Keys(api_key(server.api_key_env, server.api_key_file), by_stage)


def audit(*, run_dir: Path, rate: float | None = None, seed: int = 0) -> int:
    """Check a run's similarity decisions against the full scan: what its index missed, with a confidence bound.

    Parameters
    ----------
    run_dir
        Folder of the run.
    rate
        Share of the decisions to check (above 0, at most 1). Without it: all of them where that takes about half a
        minute (some 100,000 instructions), else as many as that allows, and at least 3,000.
    seed
        Draws the decisions.
    """
    from fastgen.audit import audit as check_decisions

    if rate is not None and not 0 < rate <= 1:
        raise InputError(f"--rate: {rate} is not above 0 and at most 1")
    put(str(check_decisions(run_dir, rate=rate, seed=seed)))
    return 0
