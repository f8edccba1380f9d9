"""The section on what judge models said: shares of yes beside the original study's, and the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgen.judging.summary import ASKED
from fastgen.report.charts import Axis, Table, chart, histogram, table_of
from fastgen.report.markup import Html, element
from fastgen.report.sections import section


def judged_section(figures: Mapping[str, Any]) -> Html:
    """All judges of a run, one after the other; ``figures`` are those of `fastgen.judging.summary.summarise`."""
    return section(
        "judged",
        "What judge models say",
        *(_judge(one) for one in figures["judges"]),
        lead="The original study's three questions, there answered by its authors for 200 instances. A model's word.",
    )


def _judge(one: Mapping[str, Any]) -> Html:
    rows = [
        (ASKED[name], _share(asked["share"]), _interval(asked), f"{asked['paper']:.0%}")
        for name, asked in one["questions"].items()
    ]
    table = Table(("Question", "Yes here", "95% interval", "Original"), rows)
    told = f"{one['judged']:,} of {one['instances']:,} instances judged by {one['model']}."
    answers = element(
        "div",
        element("h3", f"Judge {one['name']}"),
        element("p", told, class_="note"),
        table_of(table, f"Answers of judge {one['name']}"),
        class_="chart",
    )
    return element("div", answers, _scores(one), class_="grid-2")


def _scores(one: Mapping[str, Any]) -> Html | None:
    if one["mean_score"] is None:
        return None
    counts: dict[str, int] = {f"{half / 2:g}": 0 for half in range(2, 11)} | one["scores"]
    bars = [(f"score {score}: {count:,}", count) for score, count in counts.items()]
    mean = f"Mean {one['mean_score']:.2f} of 5."
    label = f"Histogram of the scores of judge {one['name']}. {mean}"
    drawing = histogram(label, bars, Axis("score (median of the votes)"), Axis("instances"), tuple(counts))
    names = [(score, f"{count:,}") for score, count in counts.items()]
    return chart(
        "Scores from 1 to 5", f"{mean} Bars in steps of a half.", drawing, Table(("Score", "Instances"), names)
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _interval(asked: Mapping[str, Any]) -> str:
    return "-" if asked["low"] is None else f"{asked['low']:.1%} to {asked['high']:.1%}"
