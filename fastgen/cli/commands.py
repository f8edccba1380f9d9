"""The commands, one function each; the signatures and docstrings are the flags and the help texts.

A command's own modules are imported when it runs, so that ``fastgen --help`` stays fast. What commands take from the
environment (the cache folder and keys) is read here and nowhere else.
"""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from fastgen.errors import INTERRUPTED, InputError
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
    from fastgen.generate.run import Place, require_target
    from fastgen.generate.serving import Keys

    require_target(options)
    server = options.server
    by_role = {
        name: api_key(role.api_key_env, role.api_key_file, role.flag("api-key"))
        for name, role in server.roles().items()
    }
    keys = Keys(api_key(server.api_key_env, server.api_key_file), by_role)
    return session.run(Place(run_dir, cache_dir(), keys), options)


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
        Folder of the run; it is not changed.
    output
        New folder for the rebuilt run. 'fastgen generate --run-dir' resumes it.
    """
    from fastgen.generate.refilter import refilter as rebuild
    from fastgen.store.run_folder import RunFolder

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


def audit(*, run_dir: Path, rate: float | None = None, seed: int = 0) -> int:
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
    """
    from fastgen.generate.audit import audit as check_decisions

    if rate is not None and not 0 < rate <= 1:
        raise InputError(f"--rate: {rate} is not above 0 and at most 1")
    put(str(check_decisions(run_dir, rate=rate, seed=seed)))
    return 0


# -- data sets ---------------------------------------------------------------------------------------------------------


def export(
    *,
    run_dir: Path,
    output: OutputPath,
    format: Format = "raw",  # noqa: A002 - the flag's name
    choice: ChoiceOptions = ChoiceOptions(),  # noqa: B008 - frozen
    card: CardOptions = CardOptions(),  # noqa: B008 - frozen
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
        JSON array; messages: chats; prompt-completion: the paper's templates, shuffled; parquet: flat, with provenance.
    """
    from fastgen.export.export import export as write
    from fastgen.judge.judgements import instance_scores

    scores = None if format == "rejected" else instance_scores(run_dir)
    done = write(run_dir, format, output, choice, card, scores=scores)
    by_split = f" ({', '.join(f'{split} {count}' for split, count in done.rows.items())})" if len(done.rows) > 1 else ""
    notes = [] if done.total else ["warning: the run has none yet"]
    notes += [done.unfinished] if done.unfinished else []
    if done.first_turns:
        notes.append(
            f"{done.first_turns} of them are the first turn of a conversation; --format messages has all turns"
        )
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
        Top-level key (column) whose text is compared.
    against
        Data sets that rows are compared with but that are not written; may be given several times.
    overwrite
        Replace existing output files.
    quiet
        Print only errors and the last line.
    """
    from fastgen.dedup.job import dedup as run_dedup

    with _reporter(quiet) as reporter:
        counts = run_dedup(
            source, output, rejected, similarity, reporter, field=field, against=against, overwrite=overwrite
        )
    tell(f"{counts.kept} of {counts.rows} rows kept in {output}, {counts.rejected} rejected")
    return 0


def check(file: Path, /, *, preset: Literal["default", "paper"] = "default", prompts: Path | None = None) -> int:
    """Validate a seed file: schema with line and field, duplicates, near-duplicates, what the filters would reject.

    Parameters
    ----------
    file
        Seed tasks as JSON lines.
    preset
        Preset of the run that the seeds are for. Its rules count the words and say what the filters would reject.
    prompts
        Folder of the run's own prompts, which should be in the language of the seeds.
    """
    from fastgen.methods.self_instruct.seeds import check_seed_tasks

    put(str(check_seed_tasks(file, preset, prompts)))
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
    run_dir: Path,
    output: OutputPath,
    options: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
) -> int:
    """Write a run as one HTML page: charts, samples with a search, figures next to the original study's.

    Parameters
    ----------
    run_dir
        Folder of the run, which may be in progress.
    output
        HTML file to write (- is standard output). The page works without a network.
    """
    from fastgen.report.build import report as write

    done = write(run_dir, output, options)
    notes = [done.unfinished] if done.unfinished else []
    if done.parsed is None:
        notes.append("verbs not counted: pip install 'fastgen[report]'")
    tell(f"{output}: report of {done.complete} instructions{_in_brackets(notes)}")
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
    """
    from fastgen.evaluate.run import evaluate_model, evaluate_predictions

    result: str | None
    if compare is not None:
        result = _compare(compare, output, judge, speed, ask.server_timeout, quiet=quiet)
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
) -> str | None:
    """The comparison as text, or ``None`` when the user stopped the judge's session."""
    from fastgen.evaluate.results import compare, read_results, write_comparison
    from fastgen.evaluate.user_comparison import compare_user_oriented
    from fastgen.store.output import check_output

    if output is not None:
        check_output("--output", output)
    a, b = map(read_results, folders)
    if a.about["benchmark"] == b.about["benchmark"] == "user-oriented":
        key = api_key(judge.judge_api_key_env, judge.judge_api_key_file, "--judge-api-key")
        if output is None:
            raise InputError("--output: name a folder for the answers side by side")
        with _reporter(quiet) as reporter:
            return compare_user_oriented(
                *(a, b, output, judge, speed, reporter),
                server_timeout=server_timeout,
                cache_dir=cache_dir(),
                api_key=key,
            )
    if judge.judge_base_url:
        raise InputError("--judge-base-url: only answers to user-oriented tasks are graded")
    found = compare(a, b)
    if output is not None:
        write_comparison(output, found)
    return str(found)


def tune(
    *,
    base_model: str,
    output: OutputPath,
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - frozen
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    quiet: bool = False,
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


# -- the embedded server -----------------------------------------------------------------------------------------------


def embedded_status() -> int:
    """Show whether the embedded server is set up, where, its versions and its size."""
    from fastgen.servers.embedded import embedded_status as read

    found = read(cache_dir())
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
