"""The section on what judge models said: shares of yes beside the original study's, the scores, and who agrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgen.judging.summary import ASKED
from fastgen.report.charts import Axis, Share, Table, chart, histogram, shares, table_of
from fastgen.report.markup import Html, element
from fastgen.report.sections import section


def judged_section(figures: Mapping[str, Any]) -> Html:
    """All judges of a run, one after the other; ``figures`` are those of `fastgen.judging.summary.summarise`."""
    agreements = [(f"Agreement between the votes of {one['name']}", one["vote_agreement"]) for one in figures["judges"]]
    agreements.append(("Agreement between the judges", figures["between_judges"]))
    cards = [_agreement(found, title) for title, found in agreements if found is not None]
    return section(
        "judged",
        "What judge models say",
        *(_judge(one) for one in figures["judges"]),
        element("div", element("div", *cards, class_="grid-2"), class_="judge") if cards else None,
        lead="The original study's three questions, there answered by its authors for 200 instances. A model's word.",
    )


def _judge(one: Mapping[str, Any]) -> Html:
    told = f"{one['judged']:,} of {one['instances']:,} instances judged by {one['model']}."
    return element(
        "div",
        element("h3", f"Judge {one['name']}"),
        element("p", told, _unreadable(one), class_="note"),
        element("div", _questions(one), _scores(one), class_="grid-2"),
        class_="judge",
    )


def _questions(one: Mapping[str, Any]) -> Html:
    asked = [(ASKED[name].capitalize(), found) for name, found in one["questions"].items()]
    bars = [
        Share(
            *(name, found["share"], found["low"], found["high"], found["paper"]),
            f"{name}: {_share(found['share'])} yes ({_interval(found)}), original {found['paper']:.0%}",
        )
        for name, found in asked
    ]
    rows = [(name, _share(found["share"]), _interval(found), f"{found['paper']:.0%}") for name, found in asked]
    told = (
        "Share of yes, with the line as its 95% interval. The upright mark is what people said of the original's data."
    )
    drawing = shares(f"Shares of yes of judge {one['name']}: {'; '.join(bar.told for bar in bars)}", bars)
    return chart("Answers", told, drawing, Table(("Question", "Yes here", "95% interval", "Original"), rows))


def _unreadable(one: Mapping[str, Any]) -> str:
    unreadable, failed = sum(one["unreadable"].values()), sum(one["failed_requests"].values())
    counts = f" {unreadable:,} of {one['answers']:,} answers could not be read" if unreadable else ""
    counts += f"{';' if counts else ''} {failed:,} requests failed" if failed else ""
    if not counts:
        return ""
    left = f", which left {one['unjudged']:,} instances without a verdict" if one["unjudged"] else ""
    return f"{counts}{left}."


def _agreement(found: Mapping[str, Any], title: str) -> Html:
    rows = [
        (
            ASKED.get(name, name).capitalize(),
            _alpha(one),
            "-" if one["percent"] is None else f"{one['percent']:.1%}",
            f"{one['items']:,}",
        )
        for name, one in found.items()
    ]
    note = "Krippendorff's alpha with its 95% interval: 1 is perfect agreement, 0 what chance gives."
    return element(
        "div",
        element("h3", title),
        element("p", note, class_="note"),
        table_of(Table(("Question", "Alpha", "Equal pairs", "Instances"), rows), title),
        class_="chart",
    )


def _alpha(one: Mapping[str, Any]) -> str:
    if one["alpha"] is None:
        return "nothing varies"
    interval = "" if one["low"] is None else f" ({one['low']:.2f} to {one['high']:.2f})"
    return f"{one['alpha']:.2f}{interval}"


def _scores(one: Mapping[str, Any]) -> Html | None:
    if one["mean_score"] is None:
        return None
    counts: dict[str, int] = {f"{half / 2:g}": 0 for half in range(2, 11)} | one["scores"]
    bars = [(f"score {score}: {count:,} ({count / one['judged']:.1%})", count) for score, count in counts.items()]
    mean = f"Mean {one['mean_score']:.2f} of 5."
    label = f"Histogram of the scores of judge {one['name']}. {mean}"
    drawing = histogram(label, bars, Axis("score (median of the votes)"), Axis("instances"), tuple(counts))
    rows = [(score, f"{count:,}") for score, count in counts.items()]
    return chart("Scores from 1 to 5", f"{mean} Bars in steps of a half.", drawing, Table(("Score", "Instances"), rows))


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _interval(asked: Mapping[str, Any]) -> str:
    return "-" if asked["low"] is None else f"{asked['low']:.1%} to {asked['high']:.1%}"
