"""The command that evaluates models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastgen.asking.options import AskSpeed
from fastgen.commands.environment import api_key, cache_dir
from fastgen.display import put, tell
from fastgen.errors import INTERRUPTED, InputError
from fastgen.evaluation.options import AskOptions, BenchmarkOptions, JudgeModelOptions

if TYPE_CHECKING:
    from fastgen.evaluation.results import Results
    from fastgen.evaluation.user_comparison import Judge
    from fastgen.progress import Reporter


def evaluate(
    *,
    output: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    benchmark: BenchmarkOptions = BenchmarkOptions(),  # noqa: B008 - frozen
    ask: AskOptions = AskOptions(),  # noqa: B008 - frozen
    speed: AskSpeed = AskSpeed(),  # noqa: B008 - frozen
    judge: JudgeModelOptions = JudgeModelOptions(),  # noqa: B008 - frozen
    predictions: Path | None = None,
    compare: tuple[Path, Path] | None = None,
    training_data: Path | None = None,
    quiet: bool = False,
) -> int:
    """Evaluate a model on held-out tasks, zero-shot; the same command goes on with what was stopped.

    Parameters
    ----------
    output
        Folder for the results: predictions.jsonl, scores.json, scores.md, and the log of answers.
    predictions
        Score these answers instead of asking a model: JSON lines with id and prediction.
    compare
        Compare two folders of results, instance by instance: --compare A B.
    training_data
        Run folder or exported file: state its overlap with the benchmark (leakage) too.
    quiet
        Say nothing but errors and the result.
    """
    from fastgen.progress import choose_reporter

    reporter = choose_reporter(quiet=quiet, log_json=False)
    try:
        if compare is not None:
            return _compare(compare, output, judge, speed, ask.server_timeout, reporter)
        return _evaluate(output, benchmark, ask, speed, predictions, training_data, reporter)
    finally:
        reporter.close()


def _evaluate(
    output: Path | None,
    benchmark: BenchmarkOptions,
    ask: AskOptions,
    speed: AskSpeed,
    predictions: Path | None,
    training_data: Path | None,
    reporter: Reporter,
) -> int:
    from fastgen.evaluation.run import Place, evaluate_model, evaluate_predictions

    if output is None:
        raise InputError("--output: name a folder for the results")
    if predictions is not None:
        put(str(evaluate_predictions(benchmark, predictions, output, training_data)))
        return 0
    place = Place(output, cache_dir(), api_key(ask.api_key_env, ask.api_key_file))
    table = evaluate_model(benchmark, ask, speed, place, training_data, reporter)
    reporter.close()
    return _say(table)


def _compare(
    folders: tuple[Path, Path],
    output: Path | None,
    judge: JudgeModelOptions,
    speed: AskSpeed,
    server_timeout: float,
    reporter: Reporter,
) -> int:
    from fastgen.evaluation.comparison import compare, write_comparison
    from fastgen.evaluation.results import read_results
    from fastgen.outputs import check_output

    if output is not None:
        check_output("--output", output)
    a, b = map(read_results, folders)
    if a.about["benchmark"] == b.about["benchmark"] == "user-oriented":
        return _compare_user_oriented(a, b, output, _grader(judge, speed, server_timeout), reporter)
    if judge.judge_base_url:
        raise InputError("--judge-base-url: only answers to user-oriented tasks are graded")
    found = compare(a, b)
    if output is not None:
        write_comparison(output, found)
    put(str(found))
    return 0


def _grader(judge: JudgeModelOptions, speed: AskSpeed, server_timeout: float) -> Judge | None:
    from fastgen.evaluation.user_comparison import Judge

    key = api_key(judge.judge_api_key_env, judge.judge_api_key_file, "--judge-api-key")
    return Judge(judge, speed, server_timeout, key, cache_dir()) if judge.judge_base_url else None


def _compare_user_oriented(
    a: Results, b: Results, output: Path | None, grader: Judge | None, reporter: Reporter
) -> int:
    from fastgen.evaluation.user_comparison import compare_user_oriented

    if output is None:
        raise InputError("--output: name a folder for the answers side by side")
    said = compare_user_oriented(a, b, output, grader, reporter)
    reporter.close()
    return _say(said)


def _say(said: str | None) -> int:
    if said is None:
        tell("interrupted; every answer so far is kept, and the same command goes on")
        return INTERRUPTED
    put(said)
    return 0
