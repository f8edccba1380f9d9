"""``fastgen evaluate``: load the benchmark, ask the model, score the answers, compare with the training text.

The folder of results also holds the log of answers, so the same call resumes after any interruption. The model is
behind a server that was named or one that fastgen starts. Where all questions are answered, no server is needed or
started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastgen.engine.health import Step
from fastgen.errors import InputError
from fastgen.evaluate import scoring
from fastgen.evaluate.leakage import Leakage, leakage
from fastgen.evaluate.options import AskOptions, BenchmarkOptions
from fastgen.evaluate.prompting import PROMPT_FORM, build_prompt, clean_up, sampling, shortener
from fastgen.evaluate.results import PREDICTIONS, SCORES, TABLE, Prediction, Results, predict, write_results
from fastgen.evaluate.tasks import (
    EvaluationTask,
    cases,
    fingerprint,
    load_superni,
    load_user_oriented,
    read_rows,
    text_of,
)
from fastgen.generate.batch import (
    Job,
    Question,
    Reply,
    Shorten,
    ask,
    is_answered,
    read_meaning,
    read_replies,
    require_readable,
    run_until_stopped,
)
from fastgen.generate.options import AskSpeed, Options, model_names
from fastgen.generate.runtime import Stopper
from fastgen.generate.serving import Keys, serve
from fastgen.store.output import check_output
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import Reporter
from fastgen.text import Kind, unread_kind


def evaluate_model(
    benchmark: BenchmarkOptions,
    model: AskOptions,
    speed: AskSpeed,
    output: Path,
    training_data: Path | None,
    reporter: Reporter,
    *,
    cache_dir: Path,
    api_key: str | None,
) -> str | None:
    """Ask the model, write the results and return their table; ``None`` if the user stopped it.

    :raises InputError: bad data or options, or a folder with answers of another model or to other questions.
    :raises StoppedError: the server is gone; the same call resumes.
    """
    tasks, overlap = _load(benchmark, output, training_data)
    asked = list(cases(tasks))
    how = sampling(model.api, benchmark.max_tokens)
    settings = {
        "benchmark": benchmark.benchmark,
        "data": fingerprint(tasks),
        "prompt": PROMPT_FORM,
        "api": model.api,
        "max_tokens": benchmark.max_tokens,
        "extra_body": model.options(AskSpeed()).server.extra_fields(),
    }

    def is_unreadable(reply: Reply) -> bool:
        """Whether nothing of an answer counts, or all of it is reasoning."""
        is_empty = not clean_up(reply.text, benchmark.benchmark).strip()
        return is_empty or unread_kind(reply.text, reply.finish_reason) is Kind.THINKING

    answered = ask_all(
        [Question(case.number, build_prompt(case, model.api), how) for case in asked],
        settings,
        output,
        model.options(speed),
        reporter,
        cache_dir=cache_dir,
        api_key=api_key,
        is_unreadable=is_unreadable,
        step=Step("evaluate", api=model.api, anew=" (with another --output)"),
        shorten=shortener(asked, model.api),
    )
    if answered is None:
        return None
    name, replies = answered
    predictions = [
        predict(
            case,
            clean_up(reply.text, benchmark.benchmark),
            reply.text,
            failure=reply.failure,
            shortened=reply.shortened,
        )
        for case, reply in zip(asked, replies, strict=True)
    ]
    return _write(output, {"model": name, **settings}, predictions, overlap)


def evaluate_predictions(
    benchmark: BenchmarkOptions, predictions: Path, output: Path, training_data: Path | None
) -> str:
    """Score given answers, as they are: JSON lines of ``id`` and ``prediction``. Returns the table.

    :raises InputError: unusable data or predictions.
    """
    tasks, overlap = _load(benchmark, output, training_data, predictions)
    if read_meaning(output) is not None:
        raise InputError(f"--output {output}: holds a model's answers; name another folder for given predictions")
    asked = list(cases(tasks))
    given = _read_predictions(predictions, {case.instance.id for case in asked})
    texts = [given.get(case.instance.id) for case in asked]
    scored = [
        predict(case, text or "", text or "", failure="missing" if text is None else None)
        for case, text in zip(asked, texts, strict=True)
    ]
    about = {"model": f"predictions of {predictions}", "benchmark": benchmark.benchmark, "data": fingerprint(tasks)}
    return _write(output, about, scored, overlap)


def _load(
    benchmark: BenchmarkOptions, output: Path, training_data: Path | None, predictions: Path | None = None
) -> tuple[list[EvaluationTask], Leakage | None]:
    """The benchmark's tasks and their leakage.

    :raises InputError: bad data, or a result would replace an input or be written into the folder of a run.
    """
    files = [path for path in (benchmark.data, training_data, predictions) if path is not None and path.is_file()]
    for name in (PREDICTIONS, SCORES, TABLE):
        check_output("--output", output / name, files)
    scoring.require_scorer()
    tasks = load_benchmark(benchmark)
    return tasks, None if training_data is None else leakage(training_data, tasks)


def load_benchmark(options: BenchmarkOptions) -> list[EvaluationTask]:
    """The tasks that the options name (at least one, each with at least one instance).

    :raises InputError: no --data, unusable data, or a task that is not there.
    """
    if options.data is None:
        raise InputError("--data: name the benchmark's data, a folder (superni) or a file (user-oriented)")
    if options.benchmark == "superni":
        tasks = load_superni(options.data, per_task=options.per_task)
    else:
        tasks = load_user_oriented(options.data)
    if not options.task:
        return tasks
    known = {task.name for task in tasks}
    if missing := [name for name in options.task if name not in known]:
        raise InputError(f"--task {missing[0]}: is not among the {len(known)} tasks of {options.data}")
    return [task for task in tasks if task.name in options.task]


def _read_predictions(path: Path, known: set[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        name = text_of(row, "id", where)
        if name not in known:
            raise InputError(f"{where}: no instance has the id {name!r}; give --data and --per-task of the predictions")
        if name in given:
            raise InputError(f"{where}: a second prediction for {name!r}; leave one")
        given[name] = text_of(row, "prediction", where)
    if not given:
        raise InputError(f"{path}: has no prediction; write one JSON object with 'id' and 'prediction' on each line")
    return given


def _write(output: Path, about: Mapping[str, Any], predictions: Sequence[Prediction], overlap: Leakage | None) -> str:
    more = {} if overlap is None else {"leakage": overlap.as_dict()}
    table = write_results(output, Results(about, predictions), more, list(_notes(predictions)))
    return table if overlap is None else f"{table}\n\n{overlap}"


def _notes(predictions: Sequence[Prediction]) -> Iterator[str]:
    failures = [p.failure for p in predictions if p.failure is not None]
    if failures:
        yield f"{len(failures)} instances have no answer and count as empty (first reason: {failures[0]})."
    if shortened := sum(p.shortened for p in predictions):
        yield f"{shortened} inputs were too long for the model; their end was cut."


def ask_all(
    questions: Sequence[Question],
    meaning: Mapping[str, Any],
    folder: Path,
    options: Options,
    reporter: Reporter,
    *,
    cache_dir: Path,
    api_key: str | None,
    is_unreadable: Callable[[Reply], bool],
    step: Step,
    shorten: Shorten = lambda _: None,
) -> tuple[str, list[Reply]] | None:
    """Ask what is not answered yet. Returns the model and the last reply to each question, in order.

    ``None`` if the user stopped it. ``folder`` gets the answers, and ``meaning`` says what they answer (the model is
    added). ``is_unreadable`` marks answers that count for nothing, and ``step`` says what helps if all answers do.

    :raises InputError: the folder has answers to other questions or of another model, or the server refuses.
    :raises StoppedError: nothing answers, or no answer can be read.
    """

    def job(model: str) -> Job:
        return Job(
            folder=folder,
            meaning={**meaning, "model": model},
            questions=lambda answered: (question for question in questions if question.number not in answered),
            expected=len(questions),
            is_unreadable=is_unreadable,
            step=step,
            shorten=shorten,
        )

    async def session(stopper: Stopper) -> str | None:
        told = options
        if known is not None and not options.server.base_url:  # fastgen's own server has to serve the same model
            told = replace(options, server=replace(options.server, model=known))
        place, names = RunFolder(folder), model_names(told, {})
        async with serve(told, place, cache_dir, Keys(api_key), names, reporter.say) as serving:
            model = serving.models["model"]
            await ask(job(model), serving, told.speed, reporter, stopper)
        if stopper.stopped:
            return None
        require_readable(job(model))
        return model

    model = known = _known_model(folder, options.server.model)
    if known is not None and is_answered(job(known)):
        require_readable(job(known))
        reporter.say(f"{folder}: all {len(questions)} questions are answered already; nothing is left to ask")
    else:
        model = run_until_stopped(session, reporter)
    if model is None:
        return None
    replies: dict[int, Reply] = {}
    for reply in read_replies(folder):
        if reply.failure is None or reply.number not in replies:  # a failure never replaces an answer
            replies[reply.number] = reply
    return model, [replies[question.number] for question in questions]


def _known_model(folder: Path, named: str | None) -> str | None:
    """The model whose answers the folder holds; ``None`` if it holds none.

    :raises InputError: it is not the model that was named.
    """
    saved = read_meaning(folder)
    if saved is None:
        return None
    if named is not None and saved.get("model") != named:
        raise InputError(
            f"{folder}: holds answers of the model {saved.get('model')!r}, not of {named!r}; name another folder"
        )
    return saved.get("model")
