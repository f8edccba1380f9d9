"""The commands, one function each; the signatures and docstrings are the flags and the help texts.

A command's own modules are imported when it runs, so that ``fastgen --help`` stays fast. What commands take from the
environment (the cache folder and keys) is read here and nowhere else.
"""

from __future__ import annotations

import os
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from fastgen.errors import INTERRUPTED, InputError, how_to_install
from fastgen.evaluate.options import BenchmarkOptions, JudgeModelOptions, ModelOptions
from fastgen.export.options import CardOptions, ChoiceOptions, Format
from fastgen.generate.options import JOB, MAX_PORT, AskSpeed, Options, RefilterOptions
from fastgen.judge.options import JudgeOptions, ScopeOptions
from fastgen.methods.self_instruct.prompts import PromptLanguage
from fastgen.report.options import ReportOptions
from fastgen.similarity.options import SimilarityOptions
from fastgen.telemetry.display import put, tell
from fastgen.text import as_json
from fastgen.tune.options import DataOptions, MachineOptions, TrainingOptions

if TYPE_CHECKING:
    from fastgen.generate.run import Place
    from fastgen.telemetry.progress import Reporter
    from fastgen.tune.folder import BaseModel

InJob = Parameter(group=JOB)
OutputPath = Annotated[Path, Parameter(allow_leading_hyphen=True)]


# -- runs --------------------------------------------------------------------------------------------------------------


def generate(
    *,
    run_dir: Annotated[Path, InJob],
    config: Annotated[Path | None, InJob] = None,  # noqa: ARG001 - read by fastgen.cli.app
    options: Options = Options(),  # noqa: B008 - frozen
) -> int:
    """Generate instructions with instances into a run folder. The same command resumes a stopped run.

    Parameters
    ----------
    run_dir
        Folder of the run; created if it does not exist. On resume it supplies every option that is not given.
    config
        TOML file with options of the same names as the flags (num_instructions = 1000, [instruction] temperature =
        0.9).
    """
    from fastgen.generate import session

    return session.run(place_of(run_dir, options), options)


def place_of(run_dir: Path, options: Options) -> Place:
    """Where a run happens, with the keys that its options name.

    :raises InputError: the options ask for no instructions, or a key cannot be read.
    """
    from fastgen.generate.run import Place, require_target
    from fastgen.generate.serving import Keys

    require_target(options)
    server = options.server
    by_role = {
        name: api_key(role.api_key_env, role.api_key_file, role.flag("api-key"))
        for name, role in server.roles().items()
    }
    return Place(run_dir, cache_dir(), Keys(api_key(server.api_key_env, server.api_key_file), by_role))


def methods(*, json: bool = False) -> int:
    """List the methods that 'fastgen generate --method' knows: steps, roles, options and sources.

    Parameters
    ----------
    json
        Print one JSON object a line instead.
    """
    from fastgen.methods.catalogue import METHODS, outline

    for entry in METHODS.values():
        found = outline(entry)
        put(as_json(found) if json else render_method(found))
    if not json:
        put("Your own: --method FILE.py, with a function build(setup); see docs/methods.md.")
    return 0


def render_method(found: dict[str, Any]) -> str:
    """What `fastgen.methods.catalogue.outline` says of a method, as text."""
    lines = [f"{found['name']}: {found['summary']}", f"  source   {found['source']}"]
    for step in found["steps"]:
        figures = ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in step["sampling"].items())
        lines.append(f"  step     {step['name']} (role {step['role']}): {figures}")
    lines += [f"  option   {flag}, default {value}" for flag, value in found["options"].items()]
    lines += [f"  needs    {need}" for need in found["needs"]]
    return "\n".join(lines) + "\n"


def status(*, run_dir: Path, json: bool = False) -> int:
    """Show a run's counts, yield and rejections. Works while the run is in progress.

    Parameters
    ----------
    run_dir
        Folder of the run.
    json
        Print one JSON object instead.
    """
    from fastgen.report.status import render
    from fastgen.report.status import status as read

    figures = read(run_dir)
    put(as_json(figures, indent=2) if json else render(figures))
    return 0


def runs(folder: Path, /, *, json: bool = False) -> int:
    """List the runs in a folder and below it: state, instructions against the target, method, model, age.

    Parameters
    ----------
    folder
        Folder to look through. Logs are not read, so the counts of a run in progress are some seconds old.
    json
        Print one JSON object a line instead.
    """
    from fastgen.report.runs import render, runs_below

    found = list(runs_below(folder))
    if not json:
        put(render(found, folder))
        return 0
    now_s = time.time()
    for one in found:
        put(as_json(one.as_dict(now_s)))
    return 0


def refilter(
    *,
    run_dir: Path,
    output: Path,
    options: RefilterOptions = RefilterOptions(),  # noqa: B008 - frozen
    json: bool = False,
) -> int:
    """Rebuild a run under other rules from its kept completions, without any server, into a new run folder.

    Parameters
    ----------
    run_dir
        Folder of the run; it is not changed.
    output
        New folder for the rebuilt run. 'fastgen generate --run-dir' resumes it.
    json
        Also print the figures, as one JSON object.
    """
    from fastgen.generate.refilter import refilter as rebuild
    from fastgen.store.run_folder import RunFolder

    try:
        before, after = RunFolder(run_dir).ledger(), rebuild(run_dir, output, options, tell)
    except KeyboardInterrupt:
        tell(f"interrupted; {output} is not a run yet, run the same command again to start over")
        return INTERRUPTED
    if json:
        figures = {
            name: {"kept": one.kept, "complete": one.complete} for name, one in (("before", before), ("after", after))
        }
        put(as_json({"output": str(output), **figures}, indent=2))
    tell(
        f"{output}: kept {after.kept} instructions (before: {before.kept}), {after.complete} of them complete "
        f"(before: {before.complete})"
    )
    return 0


def audit(*, run_dir: Path, rate: float | None = None, seed: int = 0, json: bool = False) -> int:
    """Check a run's similarity decisions against the full scan: what its index missed, with a confidence bound.

    Parameters
    ----------
    run_dir
        Folder of the run.
    rate
        Share of the decisions to check (above 0, at most 1). Default: all of them where that takes about half a minute
        (some 100,000 instructions), else as many as that allows, and at least 3,000.
    seed
        Seed of the random choice of decisions.
    json
        Print one JSON object instead.
    """
    from fastgen.generate.audit import audit as check_decisions

    if rate is not None and not 0 < rate <= 1:
        raise InputError(f"--rate: {rate} is not above 0 and at most 1")
    found = check_decisions(run_dir, rate=rate, seed=seed)
    more = {"misses": found.misses, "miss_rate_bound": found.miss_rate_bound}
    put(as_json(asdict(found) | more, indent=2) if json else str(found))
    return 0


# -- data sets ---------------------------------------------------------------------------------------------------------


def export(
    *,
    run_dir: Path,
    output: OutputPath,
    format: Format = "raw",  # noqa: A002 - the flag's name
    choice: ChoiceOptions = ChoiceOptions(),  # noqa: B008 - frozen
    card: CardOptions = CardOptions(),  # noqa: B008 - frozen
    json: bool = False,
) -> int:
    """Write a run's instructions for people, trainers and the hub. Works while the run is in progress.

    Parameters
    ----------
    run_dir
        Folder of the run.
    output
        File to write (- is standard output), or the folder, with --split, --card or --push-to-hub.
    format
        raw: one instruction with its instances and provenance a line; instances: one flat instruction, input, output
        a line; rejected: what the filters rejected, with rule, neighbour and ROUGE-L; alpaca: the flat ones as one
        JSON array; messages: chats; sharegpt: chats as one JSON array of from and value; prompt-completion: the paper's
        templates, shuffled; parquet: flat, with provenance; csv: the flat ones as a table.
    json
        Also print the figures, as one JSON object.
    """
    from fastgen.export.export import export as write
    from fastgen.judge.judgements import instance_scores

    if json and str(output) == "-":
        raise InputError("--json: standard output has the rows already; name a file with --output")
    scores = None if format == "rejected" else instance_scores(run_dir)
    done = write(run_dir, format, output, choice, card, scores=scores)
    by_split = f" ({', '.join(f'{split} {count}' for split, count in done.rows.items())})" if len(done.rows) > 1 else ""
    notes = [] if done.total else ["warning: the run has none yet"]
    notes += [done.unfinished] if done.unfinished else []
    if done.first_turns:
        notes.append(
            f"{done.first_turns} of them are the first turn of a conversation; --format messages has all turns"
        )
    if json:
        put(as_json({"output": str(output), "format": format, **asdict(done)}, indent=2))
    if done.formulas and not choice.for_spreadsheets:
        notes.append(f"{done.formulas} cells begin like a formula; --for-spreadsheets guards them")
    tell(f"{sum(done.rows.values())} rows{by_split} written to {output}{_in_brackets(notes)}")
    if done.url is not None:
        tell(f"uploaded to {done.url}")
    return 0


def _in_brackets(notes: list[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def dedup(
    source: Path,
    /,
    *,
    output: Path,
    rejected: Path,
    field: str = "instruction",
    against: tuple[Path, ...] = (),
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
    similarity: SimilarityOptions = SimilarityOptions(),
) -> int:
    """Filter any JSON-lines or Parquet data set by ROUGE-L: whole rows, in order. Resumes when it was killed.

    Parameters
    ----------
    source
        Data set to filter: JSON lines (also .gz, .zst) or Parquet.
    output
        File for the rows that are kept, unchanged.
    rejected
        File for the others, each with its neighbour and ROUGE-L.
    field
        Key (column) whose text is compared. A path of keys and places leads into a row: messages.0.content.
    against
        Data sets that rows are compared with but that are not written; may be given several times.
    overwrite
        Replace existing output files.
    quiet
        Print only errors and the last line.
    json
        Also print the counts, as one JSON object.
    """
    from fastgen.dedup.job import dedup as run_dedup

    with _reporter(quiet) as reporter:
        counts = run_dedup(
            source, output, rejected, similarity, reporter, field=field, against=against, overwrite=overwrite
        )
    if json:
        put(as_json(asdict(counts), indent=2))
    tell(f"{counts.kept} of {counts.rows} rows kept in {output}, {counts.rejected} rejected")
    return 0


def check(
    file: Path,
    /,
    *,
    preset: Literal["default", "paper"] = "default",
    prompts: Path | None = None,
    json: bool = False,
) -> int:
    """Validate a seed file: schema with line and field, duplicates, near-duplicates, what the filters would reject.

    Parameters
    ----------
    file
        Seed tasks as JSON lines.
    preset
        Preset of the run that the seeds are for. Its rules count the words and say what the filters would reject.
    prompts
        Folder of the run's own prompts, which should be in the language of the seeds.
    json
        Print one JSON object instead.
    """
    from fastgen.methods.self_instruct.seeds import check_seed_tasks

    found = check_seed_tasks(file, preset, prompts)
    put(as_json(asdict(found) | {"path": str(file)}, indent=2) if json else str(found))
    return 0


def prompts_init(
    directory: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    language: PromptLanguage = "en",
    overwrite: bool = False,
) -> int:
    """Write the prompt templates and demonstrations of self-instruct into a folder, to edit and give as --prompts.

    Parameters
    ----------
    directory
        New or empty folder.
    language
        Language of the files. For any other language, translate the English ones: their first lines say how.
    overwrite
        Write into a folder that has files, and replace those of the same names.
    """
    from fastgen.methods.self_instruct.prompts import starting_files
    from fastgen.store.output import write_folder

    found = starting_files(language)
    write_folder("DIR", directory, found, overwrite=overwrite)
    tell(f"{directory}: {', '.join(found)} written; edit them, then: fastgen generate --prompts {directory} ...")
    return 0


# -- pages -------------------------------------------------------------------------------------------------------------


def report(
    *,
    run_dir: Path | None = None,
    output: OutputPath | None = None,
    compare: tuple[Path, Path] | None = None,
    json: bool = False,
    options: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
) -> int:
    """Write a run as one HTML page: charts, samples with a search, figures next to the original study's.

    Parameters
    ----------
    run_dir
        Folder of the run, which may be in progress.
    output
        HTML file to write (- is standard output). The page works without a network.
    compare
        Instead of one run, two of them side by side: --compare A B.
    json
        Of a comparison: print the figures as one JSON object instead of a page.
    """
    from fastgen.report.build import report as write

    if compare is not None:
        return _compare_runs(compare, run_dir, output, options, json=json)
    if json:
        raise InputError("--json: is for --compare; 'fastgen status --json' has the figures of one run")
    if run_dir is None:
        raise InputError("--run-dir: name the folder of the run, or two with --compare A B")
    if output is None:
        raise InputError("--output: name the HTML file to write")
    done = write(run_dir, output, options)
    notes = [done.unfinished] if done.unfinished else []
    if done.parsed is None:
        notes.append(f"verbs not counted: {how_to_install('report')}")
    tell(f"{output}: report of {done.complete} instructions{_in_brackets(notes)}")
    return 0


def _compare_runs(
    runs: tuple[Path, Path], run_dir: Path | None, output: Path | None, options: ReportOptions, *, json: bool
) -> int:
    from fastgen.report.compare import Comparison, check_options, write_comparison

    if run_dir is not None:
        raise InputError("--run-dir: --compare names the runs; leave it out")
    if json == (output is not None):
        raise InputError("--output: with --compare, give either a file for the page or --json")
    if output is None:
        check_options(options)
        put(as_json(Comparison(*runs, options).as_dict(), indent=2))
        return 0
    write_comparison(*runs, output, options)
    tell(f"{output}: {runs[0]} and {runs[1]} side by side")
    return 0


def dashboard(*, run_dir: Path, port: int = 8642) -> int:
    """Show a run, in progress or ended, as a live page on this machine until Ctrl-C.

    Parameters
    ----------
    run_dir
        Folder of the run; it is only read.
    port
        Port of the page (0: any free port).
    """
    from fastgen.report.live import serve_alone

    if not 0 <= port <= MAX_PORT:
        raise InputError(f"--port: {port} is not within 0 to {MAX_PORT}")
    serve_alone(run_dir, port, tell)
    return INTERRUPTED


# -- models as judges, under test, and in training ---------------------------------------------------------------------


def judge(
    *,
    run_dir: Path,
    scope: ScopeOptions = ScopeOptions(),  # noqa: B008 - frozen
    judge: JudgeOptions = JudgeOptions(),  # noqa: B008 - frozen
    speed: AskSpeed = AskSpeed(),  # noqa: B008 - frozen
    summary: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Let a model rate every instance of a run: a valid task? input fits? output right? and a score of 1 to 5.

    The same command resumes where it stopped, and rates what the run has added since then.

    Parameters
    ----------
    run_dir
        Folder of the run, which may be in progress.
    summary
        Ask nothing; only print the figures of what was judged so far (of --name, or of all judges).
    json
        Print the figures as one JSON object.
    quiet
        Print only errors and the figures.
    """
    from fastgen.judge.summary import render, summarise

    name = scope.name
    if not summary:
        from fastgen.judge.session import judge_run

        key = api_key(judge.api_key_env, judge.api_key_file)
        with _reporter(quiet) as reporter:
            name = judge_run(run_dir, scope, judge, speed, reporter, cache_dir=cache_dir(), api_key=key)
        if name is None:
            again = f"fastgen judge --run-dir {run_dir}"
            tell(f"interrupted; every answer so far is kept, resume with: {again} ...")
            return INTERRUPTED
    figures = summarise(run_dir, name)
    put(as_json(figures, indent=2) if json else render(figures))
    return 0


def evaluate(
    *,
    output: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    benchmark: BenchmarkOptions = BenchmarkOptions(),  # noqa: B008 - frozen
    ask: ModelOptions = ModelOptions(),  # noqa: B008 - frozen
    speed: AskSpeed = AskSpeed(),  # noqa: B008 - frozen
    judge: JudgeModelOptions = JudgeModelOptions(),  # noqa: B008 - frozen
    predictions: Path | None = None,
    compare: tuple[Path, Path] | None = None,
    training_data: Path | None = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Evaluate a model on held-out tasks, zero-shot. The same command resumes where it stopped.

    Parameters
    ----------
    output
        Folder for the results: predictions.jsonl, scores.json, scores.md, and the log of answers.
    predictions
        Score these answers instead of asking a model: JSON lines with id and prediction.
    compare
        Compare two folders of results, instance by instance: --compare A B.
    training_data
        Run folder or exported file. Also state its overlap with the benchmark (leakage).
    quiet
        Print only errors and the result.
    json
        Print the result as one JSON object instead: that of scores.json, or of a comparison's file.
    """
    from fastgen.evaluate.results import SCORES
    from fastgen.evaluate.run import evaluate_model, evaluate_predictions

    result: str | None
    if compare is not None:
        result = _compare(compare, output, judge, speed, ask.server_timeout, quiet=quiet, json=json)
    elif output is None:
        raise InputError("--output: name a folder for the results")
    elif predictions is not None:
        result = str(evaluate_predictions(benchmark, predictions, output, training_data))
    else:
        key = api_key(ask.api_key_env, ask.api_key_file)
        with _reporter(quiet) as reporter:
            result = evaluate_model(
                benchmark, ask, speed, output, training_data, reporter, cache_dir=cache_dir(), api_key=key
            )
    if result is None:
        tell("interrupted; every answer so far is kept, and the same command resumes")
        return INTERRUPTED
    if json and compare is None and output is not None:
        result = _read_json(output / SCORES)
    put(result)
    return 0


def _compare(
    folders: tuple[Path, Path],
    output: Path | None,
    judge: JudgeModelOptions,
    speed: AskSpeed,
    server_timeout: float,
    *,
    quiet: bool,
    json: bool,
) -> str | None:
    """The comparison as text or JSON, or ``None`` when the user stopped the judge's session."""
    from fastgen.evaluate.results import compare, read_results, write_comparison
    from fastgen.evaluate.user_comparison import GRADES_FILE, compare_user_oriented
    from fastgen.store.output import check_output

    if output is not None:
        check_output("--output", output)
    a, b = map(read_results, folders)
    if a.about["benchmark"] == b.about["benchmark"] == "user-oriented":
        if json and not judge.judge_base_url:
            raise InputError("--json: without --judge-base-url there are no figures, only files; leave it out")
        key = api_key(judge.judge_api_key_env, judge.judge_api_key_file, "--judge-api-key")
        if output is None:
            raise InputError("--output: name a folder for the answers side by side")
        with _reporter(quiet) as reporter:
            said = compare_user_oriented(
                *(a, b, output, judge, speed, reporter),
                server_timeout=server_timeout,
                cache_dir=cache_dir(),
                api_key=key,
            )
        return _read_json(output / GRADES_FILE) if json and said is not None else said
    if judge.judge_base_url:
        raise InputError("--judge-base-url: only answers to user-oriented tasks are graded")
    found = compare(a, b)
    if output is not None:
        write_comparison(output, found)
    return as_json(asdict(found), indent=2) if json else str(found)


def _read_json(path: Path) -> str:
    """A file that fastgen has just written, as JSON that may be shown."""
    import orjson

    return as_json(orjson.loads(path.read_bytes()), indent=2)


def tune(
    *,
    base_model: str,
    output: OutputPath,
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - frozen
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Tune a model on a run's instances (loss on the outputs only). The same command resumes a stopped tuning.

    Parameters
    ----------
    base_model
        Model to start from: a folder, a name on the Hugging Face hub, or smollm2-135m-instruct, which comes with the
        embedded CPU server.
    output
        Folder for the tuned model, which vLLM serves; holds the checkpoints until the tuning is finished.
    quiet
        Print only errors and the last line.
    json
        Also print the figures, as one JSON object.
    """
    from fastgen.tune.tune import check_libraries
    from fastgen.tune.tune import tune as run_tuning

    check_libraries()
    with _reporter(quiet) as reporter, warnings.catch_warnings(), _stop_signals() as stop:
        warnings.simplefilter("ignore")  # of the libraries, about each other
        base = _base(base_model, reporter.say)
        done = run_tuning(base, output, data, training, machine, reporter=reporter, stopping=lambda: stop[0])
    state = "is there already" if done.was_there else f"written, {done.figures['steps']} steps"
    held_out = ""
    if "eval_loss_after" in done.figures:
        before, after = done.figures["eval_loss_before"], done.figures["eval_loss_after"]
        held_out = f"; loss on held-out instructions {before:.3f} -> {after:.3f}"
    if json:
        put(as_json({"output": str(output), "was_there": done.was_there, **done.figures}, indent=2))
    tell(f"{output}: model {state}{held_out}; serve it with: vllm serve {output}")
    return 0


def _base(name: str, report: Callable[[str], None]) -> BaseModel:
    """The base model as a folder. Sets the libraries' environment, which they read when they are imported."""
    import asyncio

    from fastgen.servers.embedded import EMBEDDED_MODEL, ensure_embedded
    from fastgen.tune.folder import BaseModel, hub_base, local_base

    _set_environment(os.environ)
    found = local_base(name)
    if found is None and name == EMBEDDED_MODEL:
        found = BaseModel(asyncio.run(ensure_embedded(cache_dir(), report=report)).model_dir, name)
    if found is None:
        return hub_base(name)
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on this disk, so no request may be made
    return found


def _set_environment(environment: MutableMapping[str, str]) -> None:
    """Switch telemetry off, spin waits off, and all GPUs but one.

    With several visible GPUs the trainer would split batches among threads. Spinning threads cost seconds a step where
    other processes use the cores too.
    """
    environment.setdefault("GOMP_SPINCOUNT", "0")
    environment["HF_HUB_DISABLE_TELEMETRY"] = environment["DO_NOT_TRACK"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


@contextmanager
def _stop_signals() -> Iterator[list[bool]]:
    """``[True]`` after Ctrl-C or SIGTERM. A second Ctrl-C interrupts at once instead of at the end of the step."""
    stop = [False]

    def ask(*_: object) -> None:
        stop[0] = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- this machine ------------------------------------------------------------------------------------------------------


def doctor(
    *,
    base_url: str | None = None,
    model: str | None = None,
    api_key_env: str | None = None,
    api_key_file: Path | None = None,
    run_dir: Path = Path(),
    probe_seconds: float = 5.0,
    json: bool = False,
) -> int:
    """Check what a run needs: this machine, its disk, what is installed, and a server. Nothing is changed.

    Each line is ok, a warning or a problem, with a remedy where one is needed. The exit code is 2 if there is a
    problem.

    Parameters
    ----------
    base_url
        Also check this server: its model, API, chat template and metrics, and how fast it answers.
    model
        The model's name at the server. Default: its only one.
    api_key_env
        Name of the environment variable that holds the server's key.
    api_key_file
        File that holds the server's key on its first line.
    run_dir
        Where a run would be, for the free space.
    probe_seconds
        Seconds in which the server is asked for short completions, 16 at a time (0: none, at most 600).
    json
        Print one JSON object instead.
    """
    from fastgen.doctor import as_data, check_probe, examine, render, summary
    from fastgen.servers.endpoint import Endpoint

    check_probe(probe_seconds)
    if base_url is None:
        for flag, value in (("--model", model), ("--api-key-env", api_key_env), ("--api-key-file", api_key_file)):
            if value is not None:
                raise InputError(f"{flag}: is about a server; name that with --base-url, or leave it out")
    key = api_key(api_key_env, api_key_file)
    server = None if base_url is None else Endpoint(base_url, model or "", api_key=key)
    found = []
    for finding in examine(run_dir, cache_dir(), server, probe_s=probe_seconds):
        found.append(finding)
        if not json:
            put(render(finding))
    put(as_json(as_data(found), indent=2) if json else f"\n{summary(found)}")
    return InputError.exit_code if any(finding.state == "problem" for finding in found) else 0


def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None, output: OutputPath | None = None) -> int:
    """Set up the completion of commands, options and values in your shell.

    Parameters
    ----------
    shell
        The shell. Default: the one that this command is typed in.
    output
        Write the script to this file instead, and change no file of the shell.
    """
    from cyclopts.completion.detect import ShellDetectionError

    from fastgen.cli.app import app

    try:
        path = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except ShellDetectionError:
        raise InputError("--install-completion: the shell is not known; name it with --shell") from None
    except OSError as error:
        raise InputError(
            f"--install-completion: {error.filename} cannot be written ({error.strerror}); name a file with --output"
        ) from None
    put(
        f"{path} has the completion" + ("; open a new shell to use it" if output is None else "; load it in your shell")
    )
    return 0


# -- the embedded server -----------------------------------------------------------------------------------------------


def embedded_status(*, json: bool = False) -> int:
    """Show whether the embedded server is set up, where, its versions and its size.

    Parameters
    ----------
    json
        Print one JSON object instead.
    """
    from fastgen.servers.embedded import embedded_status as read

    found = read(cache_dir())
    if json:
        put(as_json(asdict(found) | {"path": str(found.path)}, indent=2))
        return 0
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    state = f"set up ({versions})" if found.ready else "not set up; 'fastgen generate' without --base-url does that"
    put(f"{found.path}: {state}, {found.size_bytes / 1e9:.2f} GB")
    return 0


def embedded_remove() -> int:
    """Remove the embedded server's environment and model from the cache folder."""
    from fastgen.servers.embedded import remove_embedded

    put(f"{remove_embedded(cache_dir()) / 1e9:.2f} GB freed")
    return 0


# -- what commands share -----------------------------------------------------------------------------------------------


@contextmanager
def _reporter(quiet: bool) -> Iterator[Reporter]:
    from fastgen.telemetry.progress import choose_reporter

    reporter = choose_reporter(quiet=quiet, log_json=False)
    try:
        yield reporter
    finally:
        reporter.close()


def cache_dir() -> Path:
    """Folder for servers and models that fastgen sets up: FASTGEN_CACHE_DIR, or in the user's cache folder."""
    if given := os.environ.get("FASTGEN_CACHE_DIR"):
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fastgen")


_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
_UNSENDABLE = "the key holds characters that no HTTP header can carry; copy it again, as one line of ASCII"


def api_key(name: str | None, path: Path | None, flag: str = "--api-key") -> str | None:
    """The key that ``FLAG-env NAME`` or ``FLAG-file PATH`` leads to, or ``None`` if neither is given.

    :raises InputError: both are given, or there is no key.
    """
    if name is not None and path is not None:
        raise InputError(f"{flag}-file: {flag}-env names a key already; give one of the two")
    if name is not None:
        return _key_from_environment(name, f"{flag}-env")
    return None if path is None else _key_from_file(path, f"{flag}-file")


def _key_from_environment(name: str, flag: str) -> str:
    shown = f" {name}" if _USUAL_NAME.fullmatch(name) else ""  # anything else may be the key itself
    if not (key := os.environ.get(name, "").strip()):
        raise InputError(
            f"{flag}{shown}: that environment variable is not set or empty; give the name of one, not the key itself"
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{flag}{shown}: {_UNSENDABLE}")
    return key


def _key_from_file(path: Path, flag: str) -> str:
    try:
        key = path.read_text(encoding="ascii").partition("\n")[0].strip()
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{flag} {path}: its first line is no key (only ASCII letters, digits and signs)") from None
    if not key:
        raise InputError(f"{flag} {path}: its first line is empty")
    if not key.isprintable():
        raise InputError(f"{flag} {path}: {_UNSENDABLE}")
    return key
