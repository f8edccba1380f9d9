"""The live page as HTML: an empty frame, and the pieces that are put into it as the run goes.

Pieces are made by the report's own sections, so all text in them is escaped; the page's script puts them where their
name says. Counts and charts are of the same commits, those of the log that were read. Knows nothing of servers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Final

from fastgen.dashboard.follow import Follower
from fastgen.dashboard.live import LiveFigures, NewInstruction
from fastgen.metrics import Sample
from fastgen.report import sections
from fastgen.report.charts import short
from fastgen.report.markup import Html, element, joined
from fastgen.report.over_time import time_charts
from fastgen.report.page import Document, render
from fastgen.report.sections import section
from fastgen.settled import RejectedInstruction

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


def pieces(run: Follower, sample: Sample | None, *, goes_on: bool) -> Mapping[str, str]:
    """What stands in each place now, and under `STATE` a line of text. ``goes_on``: ``sample`` is of this moment."""
    shown = {
        STATE: _state(run, goes_on=goes_on),
        "now": section("overview", "Now", *_notices(run), _tiles(run, sample), _measured(sample, goes_on=goes_on)),
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


def _state(run: Follower, *, goes_on: bool) -> str:
    if run.live is None:
        return "waiting for the run to begin"
    if run.is_behind:
        return "reading the run's log"
    if goes_on:
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


def _measured(sample: Sample | None, *, goes_on: bool) -> Html | None:
    if sample is None or goes_on:
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
