"""Charts of how a run went over its working time: growth, throughput, acceptance, yield."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from fastgen.report.charts import Axis, Line, Table, chart, lines
from fastgen.report.markup import Html, element
from fastgen.report.timeline import Timeline

_DRAWN_BINS: Final = 120
_SMOOTH_BINS: Final = 5  # of them; less is mostly the rhythm of answers
_SMOOTH_WRITTEN: Final = 50  # instructions: a share of fewer says little


def time_charts(timeline: Timeline) -> Html:
    """Acceptance, yield, growth and throughput over working time."""
    drawn = timeline.joined(_DRAWN_BINS)
    unit_s, unit = _unit(drawn.working_s)
    x = Axis(f"working time ({unit})")
    ends = [min((i + 1) * drawn.width_s, max(drawn.working_s, drawn.width_s)) / unit_s for i in range(len(drawn.bins))]
    places = range(len(drawn.bins))
    by_time = [drawn.trailing(place, 0, _SMOOTH_BINS) for place in places]
    by_written = [drawn.trailing(place, _SMOOTH_WRITTEN, _SMOOTH_BINS)[0] for place in places]
    tokens = [(end, one.generated_tokens / s) for end, (one, s) in zip(ends, by_time, strict=True)]
    acceptance = [(end, one.acceptance) for end, one in zip(ends, by_written, strict=True)]
    worth = [(end, one.kept_per_1000_tokens) for end, one in zip(ends, by_written, strict=True)]
    kept, complete = accumulate(b.kept for b in drawn.bins), accumulate(b.complete for b in drawn.bins)
    growth = (
        Line("kept", "series-1", list(zip(ends, kept, strict=True))),
        Line("complete", "series-2", list(zip(ends, complete, strict=True))),
    )
    charts = (
        _over_time(
            "Instructions kept and complete",
            growth,
            x,
            Axis("instructions"),
            "How many there are after each stretch of working time.",
        ),
        _over_time(
            "Throughput",
            (Line("generated tokens/s", "series-1", tokens),),
            x,
            Axis("tokens/s"),
            f"Generated tokens a second, of all stages, as they were committed; mean of {_SMOOTH_BINS} stretches.",
        ),
        _over_time(
            "Acceptance",
            (Line("kept share", "series-1", acceptance),),
            x,
            Axis("kept share", percent=True),
            f"Kept share of the last {_SMOOTH_WRITTEN} or more instructions that the model wrote.",
            1.0,
        ),
        _over_time(
            "Yield",
            (Line("kept per 1,000 tokens", "series-1", worth),),
            x,
            Axis("kept per 1,000"),
            f"Kept per 1,000 generated tokens of all stages, over the last {_SMOOTH_WRITTEN} or more written.",
        ),
    )
    return element("div", *charts, class_="grid-2")


def _over_time(
    title: str, series: Sequence[Line], x: Axis, y: Axis, description: str, highest: float | None = None
) -> Html:
    points = [value for one in series for _, value in one.points if value is not None]
    if not points:
        return element(
            "figure", element("figcaption", element("h3", title), element("p", "Nothing yet.")), class_="chart"
        )
    label = f"Line chart: {title} over the run's working time, at last {y.text(round(points[-1], 4))}"
    rows = [
        (f"{row[0][0]:.2f}", *("-" if value is None else y.text(round(value, 4)) for _, value in row))
        for row in zip(*(one.points for one in series), strict=True)
    ]
    legend = [(one.colour, one.name) for one in series] if len(series) > 1 else []
    drawing = lines(label, series, x, y, highest)
    return chart(title, description, drawing, Table((x.label, *(one.name for one in series)), rows), legend)


def _unit(working_s: float) -> tuple[float, str]:
    if working_s < 180:  # noqa: PLR2004 - three minutes
        return 1.0, "s"
    return (60.0, "min") if working_s < 3 * 3600 else (3600.0, "h")
