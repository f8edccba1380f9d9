"""The live page as HTML: an empty frame, and the pieces that are put into it as the run goes.

Pieces are made by the report's own sections, so all text in them is escaped; the page's script puts them where their
name says. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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


def pieces(live: LiveFigures, sample: Sample | None, threshold: float) -> Mapping[str, str]:
    """What stands in each place now."""
    shown = {
        "now": section("overview", "Now", _tiles(sample)),
        "newest": section("newest-texts", "Newest", _newest(live)),
    }
    if live.figures.ledger.commits:
        shown |= {
            "time": section("time", "How it goes", time_charts(live.figures.timeline), lead="Of this session."),
            "novelty": sections.novelty_section(live.figures, threshold),
            "lengths": sections.length_section(live.figures),
            "rejections": sections.rejection_section(live.figures),
        }
    return shown


def _tiles(sample: Sample | None) -> Html:
    if sample is None:
        return element("p", "Waiting for the server's first answers.", class_="notice")
    acceptance = "-" if sample.acceptance is None else f"{sample.acceptance:.1%}"
    target = max(1, sample.target)
    shown = (
        ("Complete", f"{sample.complete:,}", f"{sample.complete / target:.1%} of {sample.target:,}"),
        ("Kept", f"{sample.kept:,}", f"{sample.pending:,} on their way"),
        ("Acceptance", acceptance, "of what was written in the last seconds"),
        ("Speed", f"{short(sample.generated_tokens_per_s)}", "generated tokens/s"),
        ("Kept a minute", short(60 * sample.kept_per_s), f"{short(sample.generated_tokens)} tokens generated"),
        ("In flight", short(round(sample.in_flight, 1)), f"of {sample.concurrency:.0f} allowed"),
        ("Novelty", f"{sample.novelty:.2f}", "kept per 1,000 tokens of their stage"),
        ("Limited by", sample.limit.value, sample.limit_reason),
    )
    tiles = [
        element("div", element("dt", name), element("dd", value), element("dd", note, class_="note"))
        for name, value, note in shown
    ]
    return element("dl", *tiles, class_="tiles in-fours")


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
