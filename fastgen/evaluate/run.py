"""``fastgen evaluate``: load the benchmark, ask the model, score the answers, compare with the training text.

There is one fixed zero-shot prompt: the task's definition, then the input. Its form is one of the templates of
`fastgen.export.rows` (Self-Instruct's own evaluation uses it), so a tuned model has seen it and a base model can
complete it. A chat model gets the user's turn as ``fastgen export --format messages`` writes it. docs/evaluate.md
describes the prompt and which part of a model's text is its answer.

The folder of results also holds the log of answers, so the same call resumes after any interruption. The model is
behind a server that was named or one that fastgen starts. Where all questions are answered, no server is needed or
started.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fastgen.engine.health import Step
from fastgen.errors import InputError
from fastgen.evaluate import scoring
from fastgen.evaluate.leakage import Leakage, leakage
from fastgen.evaluate.options import BenchmarkName, BenchmarkOptions, ModelOptions
from fastgen.evaluate.results import PREDICTIONS, SCORES, TABLE, Prediction, Results, score_answer, write_results
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
from fastgen.export.rows import WITH_INPUT, WITHOUT_INPUT, user_turn
from fastgen.generate.batch import (
    Job,
    Prompt,
    Question,
    Reply,
    Shorten,
    ask,
    is_answered,
    read_configuration,
    read_replies,
    require_readable,
    run_until_stopped,
)
from fastgen.generate.options import AskSpeed, Options, model_names
from fastgen.generate.runtime import Stopper
from fastgen.generate.serving import Keys, serve
from fastgen.servers.endpoint import Api
from fastgen.store.output import check_output
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import Reporter
from fastgen.text import AnswerKind, unread_kind
from fastgen.types import Message, Sampling

PROMPT_FORM: Final = "definition-input-output/1"
"""Changes with the prompt and with the clean-up; answers of two forms are not mixed."""
STOPS: Final = ("\nInput:", "\nTask:")
"""Sent to completion servers: where a base model begins the next example."""

_NEXT_EXAMPLE: Final = re.compile(r"\n\s*(?:Input|Output|Task)\s*:")
_LABEL: Final = re.compile(r"\s*Output\s*:")
_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\n")
_KEPT_EACH_TIME: Final = 0.75
_SHORTENINGS: Final = 16  # leaves 1 % of the input


def evaluate_model(
    benchmark: BenchmarkOptions,
    model: ModelOptions,
    speed: AskSpeed,
    output: Path,
    training_data: Path | None,
    reporter: Reporter,
    *,
    cache_dir: Path,
    api_key: str | None,
) -> str | None:
    """Ask the model, write the results and return their table, or ``None`` if the user stopped it.

    :raises InputError: bad data or options, or a folder with answers of another model or to other questions.
    :raises StoppedError: the server is gone; the same call resumes.
    """
    tasks, overlap = _load(benchmark, output, training_data)
    asked = list(cases(tasks))
    stops = STOPS if model.api == "completions" else ()
    greedy = Sampling(temperature=0.0, top_p=1.0, max_tokens=benchmark.max_tokens, stop=stops)
    settings = {
        "benchmark": benchmark.benchmark,
        "data": fingerprint(tasks),
        "prompt": PROMPT_FORM,
        "api": model.api,
        "max_tokens": benchmark.max_tokens,
        "extra_body": model.options(AskSpeed()).server.extra_fields(),
        **({} if model.thinking == "auto" else {"thinking": model.thinking}),
    }

    def is_unreadable(reply: Reply) -> bool:
        is_empty = not clean_up(reply.text, benchmark.benchmark)
        return is_empty or unread_kind(reply.text, reply.finish_reason, reply.reasoning) is AnswerKind.THINKING

    answered = ask_all(
        [Question(case.number, build_prompt(case, model.api), greedy) for case in asked],
        settings,
        output,
        model.options(speed),
        reporter,
        cache_dir=cache_dir,
        api_key=api_key,
        is_unreadable=is_unreadable,
        step=Step("evaluate", api=model.api, is_thinking_off=model.thinking == "off", anew=" (with another --output)"),
        shorten=shortener(asked, model.api),
    )
    if answered is None:
        return None
    name, replies = answered
    predictions = [
        score_answer(
            case,
            clean_up(reply.text, benchmark.benchmark),
            reply.text,
            failure=reply.failure,
            shortened=reply.shortened,
        )
        for case, reply in zip(asked, replies, strict=True)
    ]
    return _write(output, {"model": name, **settings}, predictions, overlap)


def build_prompt(case: Case, api: Api, kept: float = 1.0) -> Prompt:
    """The prompt of one instance. ``kept`` is the share (0..1) of its input's characters to keep, from the start.

    The benchmark's own baselines also cut the end of the input and never the definition.
    """
    definition, text = case.task.definition, case.instance.input.strip()
    text = text[: round(kept * len(text))].rstrip()
    if api == "chat":
        return (Message("user", user_turn(definition, text)),)
    return (WITH_INPUT[1] if text else WITHOUT_INPUT[2]).format(instruction=definition, input=text)


def shortener(cases: Sequence[Case], api: Api) -> Shorten:
    """A function that gives a shorter prompt of a case each time, and ``None`` when there is no input left to cut."""
    times: Counter[int] = Counter()

    def shorten(number: int) -> Prompt | None:
        times[number] += 1
        if times[number] > _SHORTENINGS or not cases[number].instance.input.strip():
            return None
        return build_prompt(cases[number], api, _KEPT_EACH_TIME ** times[number])

    return shorten


def clean_up(text: str, benchmark: BenchmarkName) -> str:
    """The answer in a model's text.

    A leading ``Output:`` is dropped, and the text ends where a line begins another ``Input:``, ``Output:`` or
    ``Task:``. For SuperNI, whose answers are short, only the first paragraph counts (up to the first blank line).
    """
    body = text.strip()
    if label := _LABEL.match(body):
        body = body[label.end() :].lstrip()
    if following := _NEXT_EXAMPLE.search("\n" + body):
        body = body[: max(0, following.start() - 1)]
    body = body.strip()
    return _BLANK_LINE.split(body, maxsplit=1)[0].rstrip() if benchmark == "superni" else body


def evaluate_predictions(
    benchmark: BenchmarkOptions, predictions: Path, output: Path, training_data: Path | None
) -> str:
    """Score given answers, as they are: JSON lines of ``id`` and ``prediction``. Returns the table.

    :raises InputError: unusable data or predictions.
    """
    tasks, overlap = _load(benchmark, output, training_data, predictions)
    if read_configuration(output) is not None:
        raise InputError(f"--output {output}: holds a model's answers; name another folder for given predictions")
    asked = list(cases(tasks))
    given = _read_predictions(predictions, {case.instance.id for case in asked})
    texts = [given.get(case.instance.id) for case in asked]
    scored = [
        score_answer(case, text or "", text or "", failure="missing" if text is None else None)
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
            raise InputError(
                f"{where}: no instance has the id {name!r}; give the --data and --per-task of the predictions"
            )
        if name in given:
            raise InputError(f"{where}: a second prediction for {name!r}; keep one")
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
    configuration: Mapping[str, Any],
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

    ``None`` if the user stopped it. ``folder`` gets the answers, and ``configuration`` says what they answer (the model
    is added). ``is_unreadable`` marks answers that count for nothing, and ``step`` says what helps if all answers do.

    :raises InputError: the folder has answers to other questions or of another model, or the server refuses.
    :raises StoppedError: nothing answers, or no answer can be read.
    """

    def job(model: str) -> Job:
        return Job(
            folder=folder,
            configuration={**configuration, "model": model},
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
    """The model whose answers the folder holds, or ``None`` if it holds none.

    :raises InputError: it is not the model that was named.
    """
    saved = read_configuration(folder)
    if saved is None:
        return None
    if named is not None and saved.get("model") != named:
        raise InputError(
            f"{folder}: holds answers of the model {saved.get('model')!r}, not of {named!r}; name another folder"
        )
    return saved.get("model")
