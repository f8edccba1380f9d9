"""The figures of a run as the page shows them: the report's, and the newest texts. A fold over the run's commits.

Guarantees: memory does not grow with the run (see `fastgen.report.figures`); after the last commit the figures are
those of ``fastgen report``. Knows nothing of files.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from fastgen.errors import InputError
from fastgen.methods.base import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome
from fastgen.methods.self_instruct.rules import Rules
from fastgen.report import sections
from fastgen.report.charts import Html, element, joined, short
from fastgen.report.figures import RunFigures
from fastgen.report.options import SampleSizes
from fastgen.report.page import Document, render
from fastgen.report.sections import section, time_charts
from fastgen.store.ledger import Ledger
from fastgen.store.log import Position, TornTail, segment_files
from fastgen.store.reader import (
    OpenRun,
    RejectedInstruction,
    Settled,
    open_run,
    rejected_instructions,
    settled_instructions,
)
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.figures import Sample
from fastgen.types import Failure, Instance, SeedTask

NEWEST: Final = 12


@dataclass(frozen=True, slots=True)
class NewInstruction:
    """A complete instruction with its first instance."""

    text: str
    is_classification: bool
    first: Instance


class LiveFigures:
    """What the commits up to now have made of a run with these seeds and rules."""

    def __init__(self, seeds: Sequence[SeedTask], rules: Rules) -> None:
        self.figures = RunFigures(seeds, SampleSizes(kept=0, rejected=0, measured=0), seed=0)
        self.newest_kept: deque[NewInstruction] = deque(maxlen=NEWEST)
        self.newest_rejected: deque[RejectedInstruction] = deque(maxlen=NEWEST)
        self._rules = rules
        self._pending: dict[int, list[Commit]] = {}  # what was committed about an instruction on its way

    def take(self, commit: Commit) -> None:
        """Count the next commit."""
        self.figures.add_commit(commit)
        if isinstance(commit.outcome, InstructionOutcome):
            for rejected in rejected_instructions((commit,), self._rules):
                self.figures.add_rejected(rejected)
                self.newest_rejected.append(rejected)
        for settled in self._settled_by(commit):
            self.figures.add_settled(settled)
            if settled.instances:
                new = NewInstruction(settled.instruction, settled.is_classification, settled.instances[0])
                self.newest_kept.append(new)

    def _settled_by(self, commit: Commit) -> Iterator[Settled]:
        """The instruction that the commit settles, if it settles one."""
        match commit.outcome:
            case InstructionOutcome(kept, _):
                for one in kept:
                    self._pending[one.number] = [commit._replace(outcome=InstructionOutcome((one,), ()))]
            case ClassificationOutcome():
                if commit.subject in self._pending:
                    self._pending[commit.subject].append(commit)
            case InstanceOutcome() | Failure():
                settles = isinstance(commit.outcome, InstanceOutcome) or commit.outcome.settles
                if settles and commit.subject in self._pending:
                    yield from settled_instructions([*self._pending.pop(commit.subject), commit], self._rules)


SLICE_COMMITS: Final = 500
"""Some 10 ms of work."""


class Follower:
    """A reader of the run in ``run_dir``; call `read_more` again and again."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.live: LiveFigures | None = None
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
        self._run: OpenRun | None = None
        self._items: Iterator[tuple[Commit, Position] | TornTail] | None = None
        self._position: Position | None = None
        self._looked_at: tuple[int, int] | None = None
        self._began_anew = False

    @property
    def ledger(self) -> Ledger:
        """The counts of what was read."""
        return self.live.figures.ledger if self.live is not None else Ledger()

    @property
    def share_read(self) -> float | None:
        """Of the log, about (0..1); ``None`` where nothing tells."""
        return min(1.0, self.ledger.commits / self.counted) if self.counted else None

    def read_more(self) -> bool:
        """Read one slice; whether there may be more to read at once."""
        try:
            self.is_behind = self._begin() and self._read_slice()
        except InputError as error:
            self.is_behind = self._restart_or_report(error)
        return self.is_behind

    def _begin(self) -> bool:
        """Whether there is something to read."""
        if self._run is None:
            if not RunFolder(self.run_dir).exists():
                return False
            self._run = open_run(self.run_dir)
            self.live = LiveFigures(self._run.seeds, self._run.rules)
            self.threshold, self.trouble = self._run.meaning["threshold"], None
        if self._items is None:
            looked_at, self._looked_at = self._looked_at, _end_of(self._run.folder.log_path)
            if looked_at == self._looked_at:
                return False
            self.counted = self._run.folder.ledger_snapshot()[0].commits
            self.target = self._run.folder.header().options["num_instructions"]
            self._items = self._run.folder.commits(self._position)
        return True

    def _read_slice(self) -> bool:
        assert self._items is not None  # noqa: S101 - `_begin` came before
        assert self.live is not None  # noqa: S101
        passed = 0
        for item in islice(self._items, SLICE_COMMITS):
            passed += 1
            if not isinstance(item, TornTail):
                commit, self._position = item
                self.live.take(commit)
        if passed == SLICE_COMMITS:
            return True
        self._items, self._began_anew, self.trouble = None, False, None
        return False

    def _restart_or_report(self, error: InputError) -> bool:
        """What was read may have been taken back since: once, all is read anew. Met again, it is damage."""
        self._items = self._looked_at = None
        if self._position is None or self._began_anew:
            self.trouble = str(error)
            return False
        self._began_anew = True
        self._run = self._position = None
        return True


def _end_of(log: Path) -> tuple[int, int] | None:
    """Number and size in bytes of the last segment, to see cheaply whether anything was written; ``None``: no log."""
    with contextlib.suppress(IndexError, OSError):
        number, path = segment_files(log)[-1]
        return number, path.stat().st_size
    return None


_LETTERS: Final = 300
PIECES: Final = ("now", "newest", "time", "novelty", "lengths", "rejections")
STATE: Final = "state"
_WORKING_TIME: Final = "Of the whole run; pauses of more than a minute between two answers are left out."
_MENU: Final = (
    ("overview", "Now"),
    ("newest-texts", "Newest"),
    ("time", "Over time"),
    ("novelty", "Novelty"),
    ("lengths", "Lengths"),
    ("rejections", "Rejected"),
)
SCRIPTS: Final = ("page.js", "live.js")


def frame(name: str) -> str:
    """The page before anything is known."""
    places = [element("div", id=f"piece-{piece}", data_piece=piece) for piece in PIECES]
    state = joined(
        element("span", "", class_="live", id="light"), element("span", "connecting", id="state", role="status")
    )
    document = Document(f"Run {name}", state, _MENU, joined(places))
    return render(document, scripts=SCRIPTS, connect=True)


def pieces(run: Follower, sample: Sample | None, *, is_running: bool) -> Mapping[str, str]:
    """What stands in each place now, and under `STATE` a line of text. ``is_running``: ``sample`` is of this moment."""
    shown = {
        STATE: _state(run, is_running=is_running),
        "now": section(
            "overview", "Now", *_notices(run), _tiles(run, sample), _measured(sample, is_running=is_running)
        ),
    }
    if run.live is None:
        return shown
    shown["newest"] = section("newest-texts", "Newest", _newest(run.live))
    if run.ledger.commits:
        figures = run.live.figures
        shown |= {
            "time": section("time", "How it goes", time_charts(figures.timeline), lead=_WORKING_TIME),
            "novelty": sections.novelty_section(figures, run.threshold),
            "lengths": sections.length_section(figures),
            "rejections": sections.rejection_section(figures),
        }
    return shown


def _state(run: Follower, *, is_running: bool) -> str:
    if run.live is None:
        return "waiting for the run to begin"
    if run.is_behind:
        return "reading the run's log"
    if is_running:
        return "the run goes on"
    return "the run is complete" if run.ledger.complete >= run.target else "following the run's log"


def _notices(run: Follower) -> list[Html]:
    told = []
    if run.trouble is not None:
        told.append(f"The log cannot be read further; the figures are those up to there. {run.trouble}")
    if run.is_behind:
        share = "" if run.share_read is None else f", about {run.share_read:.0%} of it"
        told.append(
            f"So far {run.ledger.commits:,} answers of the log were read{share}; counts and charts are of these."
        )
    return [element("p", text, class_="notice") for text in told]


def _tiles(run: Follower, sample: Sample | None) -> Html:
    ledger = run.ledger
    written = ledger.kept + ledger.rejected.total()
    shown = (
        ("Complete", f"{ledger.complete:,}", f"{ledger.complete / max(1, run.target):.1%} of {run.target:,}"),
        ("Kept", f"{ledger.kept:,}", f"{ledger.pending:,} on their way"),
        ("Acceptance", f"{ledger.acceptance:.1%}" if written else "-", f"of {written:,} instructions written"),
        *_measurements(sample, short(ledger.generated_tokens)),
    )
    tiles = [
        element("div", element("dt", name), element("dd", value), element("dd", note, class_="note"))
        for name, value, note in shown
    ]
    return element("dl", *tiles, class_="tiles in-fours")


def _measurements(sample: Sample | None, generated: str) -> Iterator[tuple[str, str, str]]:
    """What the log does not tell: title, value, note."""
    if sample is None:
        for name in ("Speed", "Complete a minute", "In flight", "Novelty", "Limited by"):
            yield name, "-", "not measured yet"
        return
    yield "Speed", short(sample.recent.generated_tokens_per_s), "generated tokens/s"
    yield "Complete a minute", short(sample.recent.complete_per_min), f"{generated} tokens generated"
    allowed = "of" if round(sample.in_flight) <= round(sample.concurrency) else "the limit fell to"
    yield "In flight", short(round(sample.in_flight, 1)), f"{allowed} {sample.concurrency:.0f}"
    yield "Novelty", f"{sample.novelty:.2f}", "kept per 1,000 tokens of their stage"
    yield "Limited by", sample.limit.value, sample.limit_reason


def _measured(sample: Sample | None, *, is_running: bool) -> Html | None:
    if sample is None or is_running:
        return None
    when = dt.datetime.fromtimestamp(sample.time_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return element("p", f"Speed, in flight, novelty and limit are what was measured last, at {when}.", class_="note")


def _newest(live: LiveFigures) -> Html:
    kept = [_kept(one) for one in reversed(live.newest_kept)]
    rejected = [_rejected(one) for one in reversed(live.newest_rejected)]
    return element("div", _stream("Complete", kept), _stream("Rejected", rejected), class_="grid-2")


def _stream(title: str, items: list[Html]) -> Html:
    listed = element("ul", *items, class_="examples") if items else element("p", "None yet.", class_="note")
    box = element("div", listed, class_="stream", tabindex="0", role="region", aria_label=f"Newest: {title}")
    return element("div", element("h3", title), box, class_="chart")


def _kept(one: NewInstruction) -> Html:
    kind = "classification" if one.is_classification else None
    note = joined(f"{kind}; " if kind else "", "output: ", _cut(one.first.output))
    return element("li", element("q", _cut(one.text)), element("p", note, class_="note"))


def _rejected(one: RejectedInstruction) -> Html:
    score = "" if one.neighbour is None else f", ROUGE-L {one.neighbour[1]:.2f}"
    return element("li", element("q", _cut(one.instruction)), element("p", f"{one.rule}{score}", class_="note"))


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else text[:_LETTERS] + " …"
