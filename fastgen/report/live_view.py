"""The live page of a run: a reader that follows the run's log, and the pieces of HTML that show what it has read.

Guarantees of the reader: a slice is small, so the caller can do something else between two slices. A folder that is not
there yet, an unfinished last line, a segment that is closed and compressed meanwhile, and commits that were taken back
(a full disk, a power cut, another run in the same place) are no errors. Damage is one line in `Follower.trouble`,
and the figures up to there stay. Memory does not grow with the run. After the last commit the figures are those
of ``fastgen report``. The reader holds no lock and writes nothing.

The pieces are the report's own sections. The page's script puts each into the place that has its name.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from markupsafe import Markup

from fastgen.errors import InputError
from fastgen.methods.base import Commit, Created
from fastgen.report import sections
from fastgen.report.charts import short
from fastgen.report.figures import RunFigures
from fastgen.report.options import ReportOptions
from fastgen.report.page import policy, render, render_page
from fastgen.report.sections import cut
from fastgen.store.ledger import Ledger
from fastgen.store.log import Position, TornTail, segment_files
from fastgen.store.reader import FinishedInstruction, OpenRun, RejectedInstruction, finished_instructions, open_run
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.figures import Rates, Sample
from fastgen.telemetry.progress import duration, time_left
from fastgen.text import AnswerKind, printable
from fastgen.types import Failure

SLICE_COMMITS: Final = 500
"""Some 10 ms of work."""
STATE: Final = "state"
TITLE: Final = "title"
PIECES: Final = ("now", "newest", "time", "novelty", "lengths", "rejections")
_MENU: Final = {
    "overview": "Now",
    "newest-texts": "Newest",
    "time": "Over time",
    "novelty": "Novelty",
    "lengths": "Lengths",
    "rejections": "Rejected",
}
_SCRIPTS: Final = ("page.js", "live.js")
_NO_SAMPLES: Final = ReportOptions(sample=0, rejected_sample=0, parse_sample=0)
_LETTERS: Final = 300
_WORKING_TIME: Final = "Of the whole run; pauses of more than a minute between two answers are left out."


class Follower:
    """A reader of the run in ``run_dir``. Call `read_more` again and again."""

    def __init__(self, run_dir: Path, *, slice_commits: int = SLICE_COMMITS) -> None:
        self.run_dir = run_dir
        self.figures: RunFigures | None = None
        """``None`` until there is a run."""
        self.trouble: str | None = None
        self.is_behind = False
        """The last slice was not the log's end."""
        self.counted = 0
        """Commits that the run had when it last saved its counts: some seconds ago."""
        self.threshold = 0.0
        """ROUGE-L above which the run rejects an instruction."""
        self.target = 0
        """Instructions asked for; it may change when the run is resumed."""
        self.model = ""
        """What the run's model is called; empty until there is a run."""
        self._slice_commits = slice_commits
        self._run: OpenRun | None = None
        self._items: Iterator[tuple[Commit, Position] | TornTail] | None = None
        self._position: Position | None = None
        self._log_end: tuple[int, int] | None = None
        self._restarted = False
        self._pending: dict[int, list[Commit]] = {}  # what was committed about an instruction on its way

    @property
    def ledger(self) -> Ledger:
        """The counts of what was read."""
        return self.figures.ledger if self.figures is not None else Ledger()

    @property
    def share_read(self) -> float | None:
        """Approximate share of the log that was read, 0..1, or ``None`` where it is not known."""
        return min(1.0, self.ledger.commits / self.counted) if self.counted else None

    def read_more(self) -> bool:
        """Read one slice and return whether there may be more to read at once."""
        try:
            self.is_behind = self._open() and self._read_slice()
        except InputError as error:
            self.is_behind = self._restart_or_report(error)
        return self.is_behind

    def _open(self) -> bool:
        """Whether there is something to read."""
        if self._run is None:
            if not RunFolder(self.run_dir).exists():
                return False
            self._run = open_run(self.run_dir)
            self.figures = RunFigures(self._run, _NO_SAMPLES)
            self._pending = {}
            self.model = self._run.configuration["model"]
            self.threshold, self.trouble = self._run.configuration["threshold"], None
        if self._items is None:
            before, self._log_end = self._log_end, _end_of(self._run.folder.log_path)
            if before == self._log_end:
                return False
            self.counted = self._run.folder.saved_counts().ledger.commits
            self.target = self._run.folder.header().options["num_instructions"]
            self._items = self._run.folder.commits(self._position)
        return True

    def _read_slice(self) -> bool:
        assert self._items is not None  # noqa: S101 - `_open` came before
        passed = 0
        for item in islice(self._items, self._slice_commits):
            passed += 1
            if not isinstance(item, TornTail):
                commit, self._position = item
                self._count(commit)
        if passed == self._slice_commits:
            return True
        self._items, self._restarted, self.trouble = None, False, None
        return False

    def _count(self, commit: Commit) -> None:
        assert self._run is not None  # noqa: S101 - `_open` came before
        assert self.figures is not None  # noqa: S101
        self.figures.add_commit(commit)
        if isinstance(commit.outcome, Created):
            for one in commit.outcome.kept:
                self._pending[one.number] = [commit._replace(outcome=Created((one,), ()))]
        elif commit.subject is not None and (commits := self._pending.get(commit.subject)) is not None:
            if commit.ended or not isinstance(commit.outcome, Failure):
                commits.append(commit)
            if commit.ended:
                del self._pending[commit.subject]
                for finished in finished_instructions(commits, self._run):
                    self.figures.add_finished(finished)

    def _restart_or_report(self, error: InputError) -> bool:
        """What was read may have been taken back since, so everything is read again, once. After that it is damage."""
        self._items = self._log_end = None
        if self._position is None or self._restarted:
            self.trouble = str(error)
            return False
        self._restarted = True
        self._run = self._position = None
        return True


def _end_of(log: Path) -> tuple[int, int] | None:
    """Number and size in bytes of the last segment, to see cheaply whether anything was written. ``None``: no log."""
    with contextlib.suppress(IndexError, OSError):
        number, path = segment_files(log)[-1]
        return number, path.stat().st_size
    return None


def frame(name: str) -> str:
    """The page before anything is known."""
    places = [render("live_place", piece) for piece in PIECES]
    return render_page(f"Run {name}", render("live_state"), _MENU, places, scripts=_SCRIPTS, connect=True)


def frame_policy() -> str:
    """The content security policy of the `frame`."""
    return policy(_SCRIPTS, connect=True)


def pieces(run: Follower, sample: Sample | None, *, is_running: bool) -> Mapping[str, str]:
    """What each place shows now. ``is_running``: ``sample`` is of this moment.

    `STATE` and `TITLE`, the title of the browser's tab, are lines of text. The others are HTML.
    """
    shown = {
        STATE: _state(run, is_running=is_running),
        TITLE: _title(run),
        "now": _now(run, sample, is_running=is_running),
    }
    if (figures := run.figures) is None:
        return shown
    shown["newest"] = render(
        "newest",
        {
            "Complete": [_complete(one) for one in reversed(figures.newest_kept)],
            "Rejected": [_rejected(one) for one in reversed(figures.newest_rejected)],
        },
    )
    if run.ledger.commits:
        shown |= {
            "time": sections.time_section("How it goes", _WORKING_TIME, figures.timeline),
            "novelty": sections.novelty_section(figures, run.threshold),
            "lengths": sections.length_section(figures),
            "rejections": sections.rejection_section(figures),
        }
    return shown


def _state(run: Follower, *, is_running: bool) -> str:
    if run.figures is None:
        return "waiting for the run to begin"
    if run.is_behind:
        return "reading the run's log"
    method = "" if run.figures.is_self_instruct else f"method {run.figures.method}: "
    if is_running:
        return f"{method}the run is in progress"
    return method + ("the run is complete" if run.ledger.complete >= run.target else "following the run's log")


def _title(run: Follower) -> str:
    name = f"Run {printable(run.run_dir.resolve().name)}"
    if run.figures is None:
        return name
    return f"{math.floor(100 * min(1.0, run.ledger.complete / max(1, run.target)))}% - {name}"


def _now(run: Follower, sample: Sample | None, *, is_running: bool) -> Markup:
    ledger = run.ledger
    notices = []
    if run.trouble is not None:
        notices.append(f"The log cannot be read further; the figures are those up to there. {run.trouble}")
    if run.is_behind:
        part = "" if run.share_read is None else f", about {run.share_read:.0%} of it"
        notices.append(f"So far {ledger.commits:,} answers of the log were read{part}; counts and charts are of these.")
    written = ledger.kept + ledger.rejected.total()
    is_done = run.figures is not None and ledger.complete >= run.target
    tiles = [
        ("Complete", f"{ledger.complete:,}", f"{ledger.complete / max(1, run.target):.1%} of {run.target:,}"),
        *_times(sample, is_done=is_done),
        ("Kept", f"{ledger.kept:,}", f"{ledger.pending:,} on their way"),
        ("Acceptance", f"{ledger.acceptance:.1%}" if written else "-", f"of {written:,} instructions written"),
        _empty_answers(ledger),
        _errors(ledger, sample),
        *_measurements(sample, short(ledger.generated_tokens)),
    ]
    note = ""
    if sample is not None and not is_running:
        when = dt.datetime.fromtimestamp(sample.time_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        note = f"Times, errors, speed, in flight, novelty and limit are what was measured last, at {when}."
    return render("now", notices, tiles, note, f"Model: {run.model}" if run.model else "")


def _times(sample: Sample | None, *, is_done: bool) -> Iterator[tuple[str, str, str]]:
    """The tiles about time. A dash where nothing was measured."""
    recent = Rates() if sample is None else sample.recent
    left = time_left(recent.eta_s, recent.eta_low_s, recent.eta_high_s)
    if is_done:
        yield "Time left", "done", "the target is reached"
    else:
        yield "Time left", left, "to the target, at the rate of the last minute"
    elapsed = "-" if sample is None else duration(sample.session_s)
    yield "Elapsed", elapsed, "since this session's servers answered"
    rate = "-" if sample is None or (recent.eta_s is None and not is_done) else short(recent.complete_per_min)
    yield "Complete a minute", rate, "over the last minute" if sample is not None else "not measured yet"


def _empty_answers(ledger: Ledger) -> tuple[str, str, str]:
    answers = ledger.answers.total()
    empty = sum(count for name, count in ledger.answers.items() if name.endswith(f".{AnswerKind.EMPTY}"))
    share = f"{empty / answers:.1%} of {answers:,} answers" if answers else "no answers yet"
    return "Empty answers", f"{empty:,}", f"{share}; {ledger.empty:,} instructions ended without one"


def _errors(ledger: Ledger, sample: Sample | None) -> tuple[str, str, str]:
    """Share of the attempts in the last window that failed, as of the newest sample."""
    given_up = f"{ledger.failures.total():,} requests given up"
    attempts = 0
    if sample is not None:
        attempts = sample.faults_in_window + sum(stage.requests for stage in sample.stages.values())
    if sample is None or not attempts:
        return "Error rate", "-", f"no attempt in the last seconds; {given_up}"
    return "Error rate", f"{sample.faults_in_window / attempts:.1%}", f"of {attempts:,} attempts lately; {given_up}"


def _measurements(sample: Sample | None, generated: str) -> Iterator[tuple[str, str, str]]:
    """What the log does not hold: title, value, note."""
    if sample is None:
        for name in ("Speed", "In flight", "Novelty", "Limited by"):
            yield name, "-", "not measured yet"
        return
    yield "Speed", short(sample.recent.generated_tokens_per_s), f"tokens/s; {generated} generated"
    allowed = "of" if round(sample.in_flight) <= round(sample.concurrency) else "the limit fell to"
    yield "In flight", short(round(sample.in_flight)), f"{allowed} {sample.concurrency:.0f}"
    yield "Novelty", f"{sample.novelty:.2f}", "kept per 1,000 tokens of their stage"
    yield "Limited by", sample.limit.value, sample.limit_reason


def _complete(one: FinishedInstruction) -> tuple[str, str]:
    kind = "classification; " if one.is_classification else ""
    turns = f"{len(one.turns)} turns; " if one.turns else ""
    return cut(one.instruction, _LETTERS), f"{kind}{turns}output: {cut(one.instances[0].output, _LETTERS)}"


def _rejected(one: RejectedInstruction) -> tuple[str, str]:
    score = "" if one.neighbour is None else f", ROUGE-L {one.neighbour[1]:.2f}"
    return cut(one.instruction, _LETTERS), f"{one.rule}{score}"
