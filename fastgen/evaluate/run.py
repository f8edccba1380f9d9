"""One evaluation's questions, asked: of the server that was named, or of one that fastgen starts.

Brings `fastgen.generate.serving` and `fastgen.generate.batch` together for questions that are known beforehand. Where
all of
them are answered, no server is needed or started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastgen.engine.health import Step
from fastgen.errors import InputError
from fastgen.evaluate import scoring
from fastgen.evaluate.leakage import Leakage, leakage
from fastgen.evaluate.options import AskOptions, BenchmarkOptions
from fastgen.evaluate.prompting import PROMPT_FORM, Shortener, build_prompt, clean_up, sampling
from fastgen.evaluate.results import PREDICTIONS, SCORES, TABLE, Prediction, Results, predict, write_results
from fastgen.evaluate.tasks import (
    Case,
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


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask of whom: ``folder`` gets the answers, ``meaning`` says what they answer (the model is added).

    ``is_unreadable`` marks answers that count for nothing, ``step`` says what helps where all of them do.
    """

    folder: Path
    questions: Sequence[Question]
    meaning: Mapping[str, Any]
    options: Options
    cache_dir: Path
    api_key: str | None
    is_unreadable: Callable[[Reply], bool]
    step: Step
    shorten: Shorten = lambda _: None

    def job(self, model: str) -> Job:
        """The same for a model that is known by now."""
        return Job(
            folder=self.folder,
            meaning={**self.meaning, "model": model},
            questions=self._unanswered,
            expected=len(self.questions),
            is_unreadable=self.is_unreadable,
            step=self.step,
            shorten=self.shorten,
        )

    def _unanswered(self, answered: set[int]) -> Iterator[Question]:
        return (question for question in self.questions if question.number not in answered)


def ask_all(asked: Ask, reporter: Reporter) -> bool:
    """Ask what is not answered yet; true when every question was asked, false when the user stopped it before.

    :raises InputError: the folder has answers to other questions or of another model, or the server refuses.
    :raises StoppedError: nothing answers, or no answer can be read.
    """
    model = _known_model(asked)
    if model is not None and is_answered(job := asked.job(model)):
        require_readable(job)
        reporter.say(
            f"{asked.folder}: all {len(asked.questions)} questions are answered already; nothing is left to ask"
        )
        return True
    return run_until_stopped(lambda stopper: _session(asked, model, reporter, stopper), reporter) or False


def replies_by_number(folder: Path) -> dict[int, Reply]:
    """The last reply to each question; an answer is never replaced by a failure.

    :raises InputError: there are none, or the log is damaged.
    """
    found: dict[int, Reply] = {}
    for reply in read_replies(folder):
        if reply.failure is None or reply.number not in found:
            found[reply.number] = reply
    return found


def _known_model(asked: Ask) -> str | None:
    """Whose answers the folder holds; ``None`` where it holds none.

    :raises InputError: those of another model than the one that was named.
    """
    saved, model = read_meaning(asked.folder), asked.options.server.model
    if saved is None:
        return None
    if model is not None and saved.get("model") != model:
        raise InputError(
            f"{asked.folder}: holds answers of the model {saved.get('model')!r}, not of {model!r}; name another folder"
        )
    return saved.get("model")


async def _session(asked: Ask, model: str | None, reporter: Reporter, stopper: Stopper) -> bool:
    options = asked.options
    if model is not None and not options.server.base_url:  # a server of our own: go on with the same model
        options = replace(options, server=replace(options.server, model=model))
    where = RunFolder(asked.folder), asked.cache_dir
    async with serve(options, *where, Keys(asked.api_key), model_names(options, {}), reporter.say) as serving:
        job = asked.job(serving.models["model"])
        await ask(job, serving, options.speed, reporter, stopper)
    if stopper.stopped:
        return False
    require_readable(job)
    return True


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are: the folder for the results, the cache for servers, the server's key."""

    output: Path
    cache_dir: Path
    api_key: str | None = None


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
    known = {task.name: task for task in tasks}
    if missing := [name for name in options.task if name not in known]:
        raise InputError(f"--task {missing[0]}: is not among the {len(known)} tasks of {options.data}")
    return [task for task in tasks if task.name in options.task]


def evaluate_model(
    benchmark: BenchmarkOptions,
    ask: AskOptions,
    speed: AskSpeed,
    place: Place,
    training_data: Path | None,
    reporter: Reporter,
) -> str | None:
    """Ask the model, write the results, and return their table; ``None``: the user stopped it, and it can go on.

    :raises InputError: bad data or options, or a folder with answers of another model or to other questions.
    :raises StoppedError: the server is gone; the same call goes on.
    """
    _check_output(place.output, benchmark.data, training_data)
    scoring.require_scorer()
    tasks = load_benchmark(benchmark)
    asked = list(cases(tasks))
    overlap = leakage(training_data, tasks) if training_data is not None else None
    settings = _settings(benchmark, tasks, ask)
    done = ask_all(
        Ask(
            folder=place.output,
            questions=list(_questions(asked, benchmark, ask)),
            meaning=settings,
            options=ask.options(speed),
            cache_dir=place.cache_dir,
            api_key=place.api_key,
            is_unreadable=lambda reply: _is_unreadable(reply, benchmark),
            step=Step("evaluate", api=ask.api, anew=" (with another --output)"),
            shorten=Shortener(asked, ask.api),
        ),
        reporter,
    )
    if not done:
        return None
    predictions = _predictions(asked, place.output, benchmark)
    model = (read_meaning(place.output) or {}).get("model", "")
    return _write(place.output, {"model": model, **settings}, predictions, overlap)


def evaluate_predictions(
    benchmark: BenchmarkOptions, predictions: Path, output: Path, training_data: Path | None
) -> str:
    """Score answers that somebody else got: JSON lines of ``id`` and ``prediction``, as they are; the table.

    :raises InputError: unusable data or predictions.
    """
    _check_output(output, benchmark.data, training_data, predictions)
    scoring.require_scorer()
    tasks = load_benchmark(benchmark)
    overlap = leakage(training_data, tasks) if training_data is not None else None
    if read_meaning(output) is not None:
        raise InputError(f"--output {output}: holds a model's answers; name another folder for given predictions")
    asked = list(cases(tasks))
    given = _read_predictions(predictions, {case.instance.id for case in asked})
    scored = [_given(case, given.get(case.instance.id)) for case in asked]
    about = {"model": f"predictions of {predictions}", "benchmark": benchmark.benchmark, "data": fingerprint(tasks)}
    return _write(output, about, scored, overlap)


def _check_output(output: Path, *inputs: Path | None) -> None:
    """:raises InputError: a result would be written over an input, or into the folder of a run."""
    files = [path for path in inputs if path is not None and path.is_file()]
    for name in (PREDICTIONS, SCORES, TABLE):
        check_output("--output", output / name, files)


def _settings(benchmark: BenchmarkOptions, tasks: Sequence[EvaluationTask], ask: AskOptions) -> dict[str, Any]:
    """What the answers mean, beside the model."""
    return {
        "benchmark": benchmark.benchmark,
        "data": fingerprint(tasks),
        "prompt": PROMPT_FORM,
        "api": ask.api,
        "max_tokens": benchmark.max_tokens,
        "extra_body": ask.options(AskSpeed()).server.extra_fields(),
    }


def _questions(asked: Sequence[Case], benchmark: BenchmarkOptions, ask: AskOptions) -> Iterator[Question]:
    how = sampling(ask.api, benchmark.max_tokens)
    return (Question(case.number, build_prompt(case, ask.api), how) for case in asked)


def _is_unreadable(reply: Reply, benchmark: BenchmarkOptions) -> bool:
    """Whether nothing of an answer counts, or all of it is reasoning; its score is what it is."""
    is_empty = not clean_up(reply.text, benchmark.benchmark).strip()
    return is_empty or unread_kind(reply.text, reply.finish_reason) is Kind.THINKING


def _predictions(asked: Sequence[Case], folder: Path, benchmark: BenchmarkOptions) -> list[Prediction]:
    replies = replies_by_number(folder)
    scored = []
    for case in asked:
        reply = replies[case.number]
        text = clean_up(reply.text, benchmark.benchmark)
        scored.append(predict(case, text, reply.text, failure=reply.failure, shortened=reply.shortened))
    return scored


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


def _given(case: Case, text: str | None) -> Prediction:
    return predict(case, text or "", text or "", failure="missing" if text is None else None)


def _write(output: Path, about: Mapping[str, Any], predictions: Sequence[Prediction], overlap: Leakage | None) -> str:
    results = Results(about, predictions)
    more = {} if overlap is None else {"leakage": overlap.as_dict()}
    table = write_results(output, results, more, list(_notes(predictions)))
    return table if overlap is None else f"{table}\n\n{overlap}"


def _notes(predictions: Sequence[Prediction]) -> Iterator[str]:
    failures = [p.failure for p in predictions if p.failure is not None]
    if failures:
        yield f"{len(failures)} instances have no answer and count as empty (first reason: {failures[0]})."
    if shortened := sum(p.shortened for p in predictions):
        yield f"{shortened} inputs were too long for the model; their end was cut."
