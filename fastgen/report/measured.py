"""The section on what limited a run: of its ``metrics.jsonl``, bounded by joining neighbouring windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fastgen.metrics import Limit, Sample
from fastgen.progress import duration
from fastgen.report.charts import Axis, Line, Table, chart, lines, strip
from fastgen.report.markup import Html, element, joined

_MOST: Final = 480
_COLOURS: Final = {limit: f"limit-{number}" for number, limit in enumerate(Limit, 1)}


@dataclass(slots=True)
class MeasuredSeries:
    """Windows in order, at most twice `_MOST` of them: (seconds by limit, slots in flight times seconds, limit ...)."""

    windows: list[_Window] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Take in the next sample."""
        self.windows.append(
            _Window(
                sample.window_s,
                {sample.limit: sample.window_s},
                sample.in_flight * sample.window_s,
                sample.concurrency * sample.window_s,
            )
        )
        if len(self.windows) >= 2 * _MOST:
            self.windows = [_join(self.windows[i : i + 2]) for i in range(0, len(self.windows), 2)]


@dataclass(slots=True)
class _Window:
    seconds: float
    limits: dict[Limit, float]
    in_flight: float
    concurrency: float

    @property
    def limit(self) -> Limit:
        """The one that was binding for longest."""
        return max(self.limits, key=lambda limit: self.limits[limit])


def _join(windows: list[_Window]) -> _Window:
    limits: dict[Limit, float] = {}
    for one in windows:
        for limit, seconds in one.limits.items():
            limits[limit] = limits.get(limit, 0.0) + seconds
    return _Window(
        sum(w.seconds for w in windows), limits, sum(w.in_flight for w in windows), sum(w.concurrency for w in windows)
    )


def collect(samples: Iterable[Sample]) -> MeasuredSeries:
    """Everything that a run folder has."""
    series = MeasuredSeries()
    for sample in samples:
        if sample.window_s > 0:
            series.add(sample)
    return series


def limit_charts(series: MeasuredSeries) -> Html | None:
    """What limited the run over its time, and how full the servers were kept; ``None``: nothing was measured."""
    if not series.windows:
        return None
    return element("div", _limits(series), _in_flight(series), class_="grid-2")


def _limits(series: MeasuredSeries) -> Html:
    whole: dict[Limit, float] = {}
    for window in series.windows:
        for limit, seconds in window.limits.items():
            whole[limit] = whole.get(limit, 0.0) + seconds
    total = sum(whole.values())
    ordered = sorted(whole.items(), key=lambda item: -item[1])
    rows = [(limit.value, f"{seconds / total:.1%}", duration(seconds)) for limit, seconds in ordered]
    parts = [(_COLOURS[w.limit], w.seconds, f"{w.limit.value}, {duration(w.seconds)}") for w in series.windows]
    listed = ", ".join(f"{name} {share}" for name, share, _ in rows)
    drawing = strip(f"What limited the run, from its beginning to its end: {listed}", parts)
    legend = [(_COLOURS[limit], limit.value) for limit, _ in ordered]
    return chart(
        "What limited the run",
        f"Of the measured time: {listed}.",
        drawing,
        Table(("Limit", "Share", "Time"), rows),
        legend,
    )


def _in_flight(series: MeasuredSeries) -> Html:
    at, used, allowed, rows = 0.0, [], [], []
    for window in series.windows:
        at += window.seconds
        used.append((at / 60, window.in_flight / window.seconds))
        allowed.append((at / 60, window.concurrency / window.seconds))
        rows.append((f"{at / 60:.2f}", f"{used[-1][1]:.1f}", f"{allowed[-1][1]:.1f}"))
    both = (Line("in flight", "series-1", used), Line("limit", "series-2", allowed))
    drawing = lines(
        "Line chart: completions in flight and their limit over the measured time",
        both,
        Axis("measured time (min)"),
        Axis("completions"),
    )
    table = Table(("Measured time (min)", "In flight", "Limit"), rows)
    return chart(
        "Completions in flight",
        "How many the servers had at once, and how many were allowed.",
        drawing,
        table,
        [(one.colour, one.name) for one in both],
    )


def empty_note() -> Html:
    """What stands in its place."""
    return joined(
        element("p", "What limited the run was not measured (the run folder has no metrics.jsonl).", class_="note")
    )
