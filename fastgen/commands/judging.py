"""The command that judges a run."""

from __future__ import annotations

from pathlib import Path

from fastgen.asking.options import AskSpeed
from fastgen.commands.environment import api_key, cache_dir
from fastgen.display import put, tell
from fastgen.errors import INTERRUPTED
from fastgen.judging.options import JudgeOptions, WhatOptions
from fastgen.untrusted import as_json as json_text


def judge(
    *,
    run_dir: Path,
    what: WhatOptions = WhatOptions(),  # noqa: B008 - frozen
    judge: JudgeOptions = JudgeOptions(),  # noqa: B008 - frozen
    speed: AskSpeed = AskSpeed(),  # noqa: B008 - frozen
    summary: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Let a model rate every instance of a run: a valid task? input fits? output right? and a score of 1 to 5.

    The same command goes on with what was stopped, and with what the run has more since then.

    Parameters
    ----------
    run_dir
        Folder of the run; it may still go on.
    summary
        Ask nothing; only print the figures of what was judged so far (of --name, or of all judges).
    json
        Print the figures as one JSON object.
    quiet
        Say nothing but errors and the figures.
    """
    name = what.name
    if not summary:
        name = _judge(run_dir, what, judge, speed, quiet=quiet)
        if name is None:
            again = f"fastgen judge --run-dir {run_dir}"
            tell(f"interrupted; every answer so far is kept, go on with: {again} ...")
            return INTERRUPTED
    _print_summary(run_dir, name, as_json=json)
    return 0


def _print_summary(run_dir: Path, name: str | None, *, as_json: bool) -> None:
    from fastgen.judging.render import render
    from fastgen.judging.summary import summarise

    figures = summarise(run_dir, name)
    put(json_text(figures, indent=2) if as_json else render(figures))


def _judge(run_dir: Path, what: WhatOptions, judge: JudgeOptions, speed: AskSpeed, *, quiet: bool) -> str | None:
    """The name of the judgements; ``None`` when the user stopped it."""
    from fastgen.judging.session import Judging
    from fastgen.judging.session import judge as run_judge
    from fastgen.progress import choose_reporter

    asked = Judging(run_dir, cache_dir(), api_key(judge.api_key_env, judge.api_key_file), what, judge, speed)
    reporter = choose_reporter(quiet=quiet, log_json=False)
    try:
        return run_judge(asked, reporter)
    finally:
        reporter.close()
