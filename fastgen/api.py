"""The Python API of runs: make one, follow it, read it back, compare it.

`generate` and its kin are ``fastgen generate``: the same options under the same names, checked by the same code. A run
works in a thread of its own, with an event loop of its own, so that it can be called from any program, also where an
event loop is running already (a notebook, a web server). The caller's thread shows the progress, calls the caller's
function, and gets Ctrl-C. Every error is one of `fastgen.errors`.

A process that ends while a run is at work ends the run too. The same call resumes it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import difflib
import json
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self

from fastgen.cli import asked_of_generate
from fastgen.errors import InputError, flag_name, needs
from fastgen.export.export import Exported, RowsWhileWritten, export, rows_of
from fastgen.export.options import FORMATS, CardOptions, ChoiceOptions, Format
from fastgen.export.rows import Feature
from fastgen.generate.options import Options
from fastgen.judge.judgements import instance_scores
from fastgen.report.runs import RunState, runs_below, summary_of
from fastgen.report.status import status
from fastgen.store.reader import open_run as open_for_reading
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import Progress, QuietReporter, Reporter, Shown, choose_reporter
from fastgen.text import printable

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from fastgen.generate.run import Outcome, Place
    from fastgen.generate.runtime import Stopper

Row = dict[str, Any]
"""One row of an export format, as plain JSON values."""
OnProgress = Callable[[Progress], None]
"""Gets the figures of a run about once a second."""

_Event = Callable[[Reporter], None]
"""Something to show, as a call of the reporter that shows it."""
_EVERY_S: Final = 0.25
"""How often the rows of a run at work are looked for."""
_BATCH_ROWS: Final = 256
_EXIT_WITHIN_S: Final = 15.0
_ONLY_COMMAND: Final = ("quiet", "log_json", "log_file", "log_level", "dry_run", "price_in", "price_out")
"""Options about what the command prints."""
_NOT_OF_ROWS: Final = ("split", "overwrite", "for_spreadsheets")
"""Options of an export that are about files."""


# -- making runs -------------------------------------------------------------------------------------------------------


def generate(
    run_dir: str | Path,
    *,
    num_instructions: int | None = None,
    base_url: str | Sequence[str] | None = None,
    model: str | None = None,
    method: str | Path | None = None,
    progress: bool | OnProgress = True,
    **options: Any,
) -> Run:
    """Make the run in ``run_dir``, or resume it, and return it when it has ended.

    :param num_instructions: how many instructions to make, as ``--num-instructions``. On resume, what is not given is
        that of the run.
    :param base_url: one server or several; without any, fastgen starts one. :param model: its name there.
    :param method: a name of ``fastgen methods``, or a Python file.
    :param progress: whether to show a live line or bar, or a function that gets a `Progress` about once a second. It is
        called in this thread. If it raises, the run stops and the error is raised here.
    :param options: every other flag of ``fastgen generate`` as a keyword (``seed_tasks``, ``api_key_env``,
        ``concurrency``, ``from_dataset`` for ``--from``). Flags that may be given several times take a sequence.
        ``instruction={"temperature": 0.7}`` sets figures of a step, ``extra_body`` takes a mapping.
    :raises InputError: an unknown keyword, a value out of range, a bad file, or a resume that would change the run.
    :raises StoppedError: the run cannot continue now; the same call resumes it.
    :raises KeyboardInterrupt: Ctrl-C, after the requests in flight have finished. A second one ends them at once.
    """
    given = {"num_instructions": num_instructions, "base_url": base_url, "model": model, "method": method, **options}
    place, asked = _asked(run_dir, given)
    work = _InCallersThread(place, asked, _reporter_for(progress))
    with contextlib.closing(work):
        work.start()
        work.look(None)
    return work.result()


async def agenerate(
    run_dir: str | Path,
    *,
    num_instructions: int | None = None,
    base_url: str | Sequence[str] | None = None,
    model: str | None = None,
    method: str | Path | None = None,
    progress: bool | OnProgress = True,
    **options: Any,
) -> Run:
    """`generate` for a running event loop, which stays free. A function as ``progress`` is called in the loop.

    Cancelling the task drains the run: requests in flight finish first. Cancelling it again ends them at once.
    """
    given = {"num_instructions": num_instructions, "base_url": base_url, "model": model, "method": method, **options}
    place, asked = _asked(run_dir, given)
    async with _BesideALoop(place, asked, _reporter_for(progress)) as work:
        await work.look(None)
    return work.result()


def stream(
    run_dir: str | Path,
    *,
    format: Format = "parquet",
    num_instructions: int | None = None,
    base_url: str | Sequence[str] | None = None,
    model: str | None = None,
    method: str | Path | None = None,
    progress: bool | OnProgress = False,
    **options: Any,
) -> Generator[Row, None, None]:
    """Make or resume a run as `generate` does, and give its rows while it is at work, in the order of the run.

    Begins with the rows that a resumed run has already. ``format`` is that of `Run.rows`. The run begins with the first
    row that is asked for. Leaving the loop early closes the iterator, which drains the run as Ctrl-C does;
    `contextlib.closing` makes that certain where an error leaves the loop.

    :raises InputError, StoppedError, KeyboardInterrupt: as `generate`, after the rows that are there.
    """
    given = {"num_instructions": num_instructions, "base_url": base_url, "model": model, "method": method, **options}
    place, asked = _asked(run_dir, given)
    work = _InCallersThread(place, asked, _reporter_for(progress))
    _check_format(format)

    def rows() -> Generator[Row, None, None]:
        with contextlib.closing(work):
            work.start()
            written = _Written(work, format)
            has_ended = False
            while not has_ended:
                has_ended = work.look(_EVERY_S)
                yield from written.rows()
        work.result()

    return rows()


def astream(
    run_dir: str | Path,
    *,
    format: Format = "parquet",
    num_instructions: int | None = None,
    base_url: str | Sequence[str] | None = None,
    model: str | None = None,
    method: str | Path | None = None,
    progress: bool | OnProgress = False,
    **options: Any,
) -> AsyncGenerator[Row, None]:
    """`stream` for ``async for``. `contextlib.aclosing` closes it for certain where the loop is left early."""
    given = {"num_instructions": num_instructions, "base_url": base_url, "model": model, "method": method, **options}
    place, asked = _asked(run_dir, given)
    shown = _reporter_for(progress)
    _check_format(format)

    async def rows() -> AsyncGenerator[Row, None]:
        async with _BesideALoop(place, asked, shown) as work:
            written = _Written(work, format)
            has_ended = False
            while not has_ended:
                has_ended = await work.look(_EVERY_S)
                found = written.rows()
                while batch := await asyncio.to_thread(_first, found):
                    for row in batch:
                        yield row
        work.result()

    return rows()


# -- reading runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a run. Only ``complete`` instructions count for the ``target``.

    ``kept`` instructions passed the filters: ``complete`` with an answer, ``empty`` without, or still ``pending``.
    ``instances`` are what `Run.rows` gives (a conversation is one). ``rejected`` are by rule.
    """

    complete: int
    target: int
    kept: int
    empty: int
    pending: int
    instances: int
    rejected: Mapping[str, int]


class Run:
    """A run folder. Nothing is kept in memory: every property and method reads the folder as it is now.

    It may be a run that is at work, was stopped, or was made by an earlier version.

    :param path: the run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.ended_by: str | None = None
        """Of a run that `generate` has returned: why it ended before its target. ``None`` if it did not."""

    def __repr__(self) -> str:
        found = summary_of(self.path)
        return f"<Run {self.path}: {found.progress}, {found.state}>"

    @property
    def state(self) -> RunState:
        """``done``, ``running``, ``resumable`` (the target is not reached, `generate` resumes it) or ``damaged``."""
        return summary_of(self.path).state

    @property
    def method(self) -> str:
        """The name of the method."""
        return open_for_reading(self.path).method

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(RunFolder(self.path).header().configuration["model"])

    @property
    def configuration(self) -> dict[str, Any]:
        """What a resume must not change, by option name."""
        return dict(RunFolder(self.path).header().configuration)

    @property
    def counts(self) -> Counts:
        """The counts as of now.

        :raises InputError: the run is damaged.
        """
        run = open_for_reading(self.path)
        found, target = run.folder.ledger(), int(run.folder.header().options["num_instructions"])
        return Counts(
            found.complete,
            target,
            found.kept,
            found.empty,
            found.pending,
            run.instances(found),
            rejected=dict(found.rejected.most_common()),
        )

    @property
    def figures(self) -> dict[str, Any]:
        """What ``fastgen status --json`` prints."""
        return status(self.path)

    def rows(self, format: Format = "parquet", **choice: Any) -> Iterator[Row]:
        """The rows of an export, in the order of the run, as a stream.

        :param format: ``parquet``, the default, is one flat row an instance: ``id``, ``instruction``, ``input``,
            ``output`` and where it comes from. ``messages``, ``raw``, ``alpaca`` and the others are described in
            docs/export.md. ``prompt-completion`` is not shuffled here.
        :param choice: ``max_instructions``, ``min_judge_score``, ``include_seeds``, ``include_empty``,
            ``with_reasoning`` and ``seed``, as the flags of ``fastgen export``.
        :raises InputError: an unknown format or keyword, or a damaged run.
        """
        return self._table(format, choice)[1]

    def rejected(self) -> Iterator[Row]:
        """The instructions that the filters rejected: ``instruction``, ``rule``, ``neighbour``, ``request_id``."""
        return self._table("rejected", {})[1]

    def to_pandas(self, format: Format = "parquet", **choice: Any) -> pd.DataFrame:
        """The rows of `rows` as a data frame.

        :raises InputError: pandas is not installed (the extra ``data``).
        """
        with needs("pandas", "data", "to_pandas:"):
            import pandas as pd
        columns, rows = self._table(format, choice)
        return pd.DataFrame(list(rows), columns=list(columns))

    def to_dataset(self, format: Format = "messages", **choice: Any) -> datasets.Dataset:
        """The rows of `rows` as a `datasets.Dataset` in memory, chats by default, as trainers take them.

        :raises InputError: datasets is not installed (the extra ``data``).
        """
        with needs("datasets", "data", "to_dataset:"):
            import datasets
        columns, rows = self._table(format, choice)
        listed = list(rows)
        features = datasets.Features({name: _feature(kind, datasets.Value) for name, kind in columns.items()})
        return datasets.Dataset.from_dict({name: [row[name] for row in listed] for name in columns}, features=features)

    def export(
        self,
        output: str | Path,
        format: Format = "raw",
        **options: Any,
    ) -> Exported:
        """``fastgen export``: write the run to a file, or to a folder with ``split``, ``card`` or ``push_to_hub``.

        :param options: every other flag of ``fastgen export`` as a keyword.
        :raises InputError: options that do not fit, nothing to write, or a file that is there without
            ``overwrite``.
        :raises DiskError: the output cannot be written.
        """
        _check_format(format, ("rejected",))
        parts = {kind: {field.name for field in dataclasses.fields(kind)} for kind in (ChoiceOptions, CardOptions)}
        _check_names("export", options, [name for names in parts.values() for name in names])
        choice, card = (kind(**{n: v for n, v in options.items() if n in names}) for kind, names in parts.items())
        assert isinstance(choice, ChoiceOptions)  # noqa: S101 - for the type checker
        assert isinstance(card, CardOptions)  # noqa: S101
        scores = None if format == "rejected" else instance_scores(self.path)
        return export(self.path, format, Path(output), choice, card, scores=scores)

    def compare(self, other: Run | str | Path) -> dict[str, Any]:
        """What ``fastgen report --compare --json`` prints: the figures of this run and of another, side by side."""
        from fastgen.report.compare import compare

        return compare(self.path, other.path if isinstance(other, Run) else Path(other))

    def _table(self, form: Format, choice: Mapping[str, Any]) -> tuple[Mapping[str, Feature], Iterator[Row]]:
        _check_format(form, ("rejected",))
        known = [field.name for field in dataclasses.fields(ChoiceOptions) if field.name not in _NOT_OF_ROWS]
        _check_names("rows", choice, known)
        scores = None if form == "rejected" else instance_scores(self.path)
        return rows_of(open_for_reading(self.path), form, ChoiceOptions(**choice), scores)


def open_run(path: str | Path) -> Run:
    """The run in a folder, whatever its state.

    :raises InputError: there is no run, or a newer version or none of fastgen wrote it.
    """
    run = Run(path)
    RunFolder(run.path).header()
    return run


def list_runs(folder: str | Path) -> list[Run]:
    """The runs in a folder and below it, by path. Damaged ones are among them (`Run.state`).

    :raises InputError: there is no such folder.
    """
    return [Run(found.path) for found in runs_below(Path(folder).expanduser())]


# -- options -----------------------------------------------------------------------------------------------------------


def _asked(run_dir: str | Path, given: Mapping[str, Any]) -> tuple[Place, Options]:
    """What ``fastgen generate`` would do with these keywords. They become the arguments of the command line.

    :raises InputError: as the command, or an unknown keyword.
    """
    parts = [getattr(Options(), field.name) for field in dataclasses.fields(Options)]
    names = [field.name for part in parts for field in dataclasses.fields(part) if field.name != "sampling_given"]
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name in _ONLY_COMMAND:
            raise InputError(f"{name}: belongs to the command line; use progress=, and Python's logging")
    _check_names("generate", given, ["config", *(name for name in names if name not in _ONLY_COMMAND)])
    arguments = [f"--run-dir={Path(run_dir).expanduser()}"]
    for name, value in given.items():
        arguments += _arguments("--from" if name == "from_dataset" else flag_name(name), value)
    return asked_of_generate(arguments)


def _arguments(flag: str, value: Any) -> Iterator[str]:
    """A value as arguments of the command line."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, bool):
        yield flag if value else f"--no-{flag.removeprefix('--')}"
    elif isinstance(value, Mapping):
        if flag == "--extra-body":
            yield f"{flag}={json.dumps(value)}"
        elif flag in ("--role", "--step-sampling", "--method-option"):
            yield from (f"{flag}={name}={one}" for name, one in value.items())
        else:
            for name, one in value.items():
                yield from _arguments(f"{flag}.{str(name).replace('_', '-')}", one)
    elif isinstance(value, Sequence | AbstractSet) and not isinstance(value, str):
        for one in value:
            yield from _arguments(flag, one)
    else:
        yield f"{flag}={value.expanduser() if isinstance(value, Path) else value}"


def _check_names(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """:raises InputError: a keyword that is not known."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"'fastgen {what} --help' lists the options"
            raise InputError(f"{what}() has no keyword {name!r}; {hint}")


def _feature(kind: Feature, value: Callable[[str], Any]) -> Any:
    """A column's type as `datasets.Features` takes it."""
    if isinstance(kind, dict):
        return {name: _feature(part, value) for name, part in kind.items()}
    return [_feature(one, value) for one in kind] if isinstance(kind, list) else value(kind)


def _check_format(form: str, more: Sequence[str] = ()) -> None:
    """:raises InputError: there is no such format."""
    known = [name for name in FORMATS if name != "rejected" or name in more]
    if form not in known:
        raise InputError(f"format: {form!r} is not one of {', '.join(known)}")


# -- a run at work -----------------------------------------------------------------------------------------------------


class _Work:
    """A run in a thread of its own. ``reporter`` is called there. Use once: `start`, then `result` when it has ended.

    ``stop`` is Ctrl-C: the first call drains, the second cancels.
    """

    def __init__(self, place: Place, options: Options, reporter: Reporter) -> None:
        self.place = place
        self.ended: Future[Outcome | None] = Future()
        self._options = options
        self._reporter = reporter
        self._lock = threading.Lock()
        self._stops = 0
        self._stopper: Callable[[], object] | None = None
        # A daemon, so that a program may end without waiting for the target. `_end` ends the run then.
        self._thread = threading.Thread(target=self._carry_out, name="fastgen run", daemon=True)

    @property
    def is_begun(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin."""
        atexit.register(self._end)
        self._thread.start()

    def stop(self) -> None:
        """Ask the run to stop. May be called from any thread, also before it has begun and after it has ended."""
        with self._lock:
            self._stops += 1
            if self._stopper is not None:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    self._stopper()

    def result(self) -> Run:
        """The run, once it has ended.

        :raises FastgenError: that ended it.
        """
        outcome = self.ended.result()
        run = Run(self.place.run_dir)
        run.ended_by = "it was stopped" if outcome is None or outcome.interrupted else None
        if outcome is not None:
            run.ended_by = outcome.ended_by or outcome.used_up or run.ended_by
        return run

    def _carry_out(self) -> None:
        import uvloop

        from fastgen.generate.session import until_ended
        from fastgen.telemetry.monitor import MetricsHub

        try:
            work = until_ended(self.place, self._options, self._reporter, MetricsHub(), stopped=self._connect)
            outcome = uvloop.run(work)
        except BaseException as error:  # noqa: BLE001 - it is raised where the run is waited for
            self.ended.set_exception(error)
        else:
            self.ended.set_result(outcome)
        atexit.unregister(self._end)

    def _connect(self, stopper: Stopper) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            self._stopper = lambda: loop.call_soon_threadsafe(stopper)
            for _ in range(self._stops):
                self._stopper()

    def _end(self) -> None:
        """End the run with its process, without waiting for the requests in flight."""
        self.stop()
        self.stop()
        self._thread.join(_EXIT_WITHIN_S)


class _InCallersThread(_Work):
    """`_Work` whose progress is shown in the thread that waits for it."""

    def __init__(self, place: Place, options: Options, shown: Reporter) -> None:
        self._events: SimpleQueue[_Event | None] = SimpleQueue()
        self._display = self._shown = shown
        super().__init__(place, options, _Forwarding(self._events.put))
        self.ended.add_done_callback(lambda _: self._events.put(None))

    def look(self, within_s: float | None) -> bool:
        """Show what comes within some seconds (``None``: until the end), and return whether the run has ended.

        An error of the caller's function is raised, and the function is not called again.
        """
        try:
            while (event := self._events.get(timeout=within_s)) is not None:
                event(self._shown)
                within_s = None if within_s is None else 0.0
        except Empty:
            return False
        except Exception:
            self._shown = QuietReporter()
            raise
        return True

    def close(self) -> None:
        """Drain the run if it is at work, and put the display in order. Ctrl-C while it waits ends the run at once."""
        while self.is_begun and not self.ended.done():
            self.stop()
            with contextlib.suppress(KeyboardInterrupt):
                self.look(None)
        if self.is_begun:
            self._thread.join()
        self._display.close()


class _BesideALoop(_Work):
    """`_Work` whose progress is shown in the event loop that waits for it. At work while the block lasts."""

    def __init__(self, place: Place, options: Options, shown: Reporter) -> None:
        self._display = self._shown = shown
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._failed: Exception | None = None
        super().__init__(place, options, _Forwarding(lambda event: self._in_loop(self._show, event)))
        self.ended.add_done_callback(lambda _: self._in_loop(self._over.set))

    async def look(self, within_s: float | None) -> bool:
        """Wait for the end, some seconds at most, and return whether the run has ended.

        :raises Exception: of the caller's function, which is not called again.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), within_s)
        if self._failed is not None:
            raise self._failed
        return self._over.is_set()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Drain the run if it is at work, and put the display in order. A cancellation meanwhile ends the run."""
        cancelled: asyncio.CancelledError | None = None
        while not self._over.is_set():
            self.stop()
            try:
                await self._over.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        self._thread.join()  # which is at its end
        self._display.close()
        if cancelled is not None:
            raise cancelled

    def _in_loop(self, call: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)

    def _show(self, event: _Event) -> None:
        try:
            event(self._shown)
        except Exception as error:  # noqa: BLE001 - `look` raises it
            self._failed, self._shown = error, QuietReporter()
            self.stop()


class _Written:
    """The rows of a run at work, from its first one on."""

    def __init__(self, work: _Work, form: Format) -> None:
        self._path = work.place.run_dir
        self._form = form
        self._reader: RowsWhileWritten | None = None

    def rows(self) -> Iterator[Row]:
        """Those that are there now and were not given before."""
        if self._reader is None:
            if not (self._path / "run.json").exists():
                return
            self._reader = RowsWhileWritten(open_for_reading(self._path), self._form, ChoiceOptions())
        yield from self._reader.read()


def _first(rows: Iterator[Row]) -> list[Row]:
    """The next of them. None at their end."""
    return list(islice(rows, _BATCH_ROWS))


# -- showing progress --------------------------------------------------------------------------------------------------


class _Forwarding(QuietReporter):
    """Sends what it is given elsewhere, as a function of the reporter that shows it."""

    def __init__(self, send: Callable[[_Event], object]) -> None:
        self._send = send

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        self._send(lambda shown: shown.say(text))

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        self._send(lambda shown: shown.show(progress))


class _Calling(QuietReporter):
    """Gives the figures to a function."""

    def __init__(self, call: OnProgress) -> None:
        self._call = call

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        assert isinstance(progress, Progress)  # noqa: S101 - of a run
        self._call(progress)


class _NotebookReporter(QuietReporter):
    """Messages as lines, and the figures as one line that is replaced, with a bar where tqdm is installed."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._line: Any = None

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        sys.stdout.write(printable(text, lines=True) + "\n")

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        if self._bar is None and self._line is None:
            self._begin(progress.target)
        if self._bar is not None:
            self._bar.total, self._bar.n = progress.target, progress.complete
            self._bar.set_postfix_str(f"ETA {progress.eta}")
        else:
            self._line.update({"text/plain": printable(progress.line())}, raw=True)

    def close(self) -> None:
        """See `Reporter.close`."""
        if self._bar is not None:
            self._bar.close()

    def _begin(self, target: int) -> None:
        import warnings

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without ipywidgets it is a line of text, which will do
                from tqdm.auto import tqdm
            self._bar = tqdm(total=target, desc="complete", unit="", bar_format="{desc} {n}/{total} |{bar}| {postfix}")
        except ModuleNotFoundError:
            from IPython.display import display

            self._line = display({"text/plain": ""}, raw=True, display_id=True)


def _reporter_for(progress: bool | OnProgress) -> Reporter:
    if callable(progress):
        return _Calling(progress)
    if not progress:
        return QuietReporter()
    return _NotebookReporter() if _is_in_notebook() else choose_reporter(quiet=False, log_json=False)


def _is_in_notebook() -> bool:
    """Whether output goes to the page of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
