"""Charts as inline SVG: histograms, lines over time, shares, a strip of states, a sunburst of verbs and objects.

Each `Chart` comes with its figures as a table. Colours are class names, so that the style sheet decides for light and
dark. There are no ``style`` attributes, which the page's content security policy forbids. Coordinates are in units of a
view box that is `WIDTH` wide. Text sizes are the style sheet's, which enlarges them on a narrow screen.

The sunburst has the layout of figure 3 of Wang et al., ACL 2023: an inner ring of root verbs, an outer ring of their
direct objects. A verb's slice is as wide as its shown pairs, the most frequent verb begins at the top, and a label is
drawn only where it fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cos, floor, log10, pi, sin
from typing import Final

from markupsafe import Markup, escape

from fastgen.report.diversity import VerbFigures
from fastgen.text import printable

WIDTH: Final = 480
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_SHARE_HEIGHT: Final = 54
_STRIP_HEIGHT: Final = 28


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing (``None``: there is nothing to draw), its figures as a table, and a legend of (class, name)."""

    title: str
    description: str
    drawing: Markup | None = None
    header: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis is called (with its unit) and how its values are written."""

    label: str
    percent: bool = False

    def text(self, value: float) -> str:
        """A tick's label."""
        return f"{100 * value:g}%" if self.percent else short(value)


@dataclass(frozen=True, slots=True)
class Line:
    """A series: its name, the class that colours it (``series-1`` ...), and points (x, y). ``None`` is a gap."""

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]


def short(value: float) -> str:
    """A number with up to three significant digits and a suffix: 12.3k, 4.5M."""
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if sign == 'k' else limit):.3g}{sign}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - 3 digits


def ticks(highest: float, most: int = 5) -> list[float]:
    """Round values from 0 to at least ``highest``: steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / most
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [i * step for i in range(int(-(-highest // step)) + 1)]


def svg(template: str, /, **values: str | float) -> Markup:
    """The template with the values in its fields: text is made printable and escaped, numbers get two decimals."""
    return Markup(template.format(**{name: _shown(value) for name, value in values.items()}))  # noqa: S704 - escaped


def _shown(value: str | float) -> str:
    if isinstance(value, Markup):
        return value
    return escape(printable(value, lines=True)) if isinstance(value, str) else f"{round(value, 2):g}"


def histogram(
    title: str,
    description: str,
    label: str,
    bins: Sequence[tuple[str, int, str]],
    x: Axis,
    y: Axis,
    *,
    column: str,
    edges: Sequence[str],
    mark: float | None = None,
) -> Chart:
    """Bars side by side: (name, count, what the tip says) each.

    :param label: what a screen reader says. :param column: header of the names in the table.
    :param edges: labels spread evenly along the axis, or below each bar where there are as many of them as bars.
    :param mark: a place on the axis, 0..1, for a dashed line.
    """
    top = ticks(max((count for _, count, _ in bins), default=0))
    width = _PLOT_WIDTH / max(1, len(bins))
    bars = [_bar(LEFT + i * width, width, count / top[-1], tip) for i, (_, count, tip) in enumerate(bins)]
    is_each = len(edges) == len(bins)
    places = [(i + 0.5) * width if is_each else _PLOT_WIDTH * i / max(1, len(edges) - 1) for i in range(len(edges))]
    labels = [_text(text, LEFT + at, HEIGHT - BOTTOM + 16) for at, text in zip(places, edges, strict=True)]
    if mark is not None:
        at = LEFT + _PLOT_WIDTH * mark
        line = '<line x1="{at}" x2="{at}" y1="{top}" y2="{bottom}" class="mark"/>'
        bars.append(svg(line, at=at, top=TOP, bottom=TOP + _PLOT_HEIGHT))
    rows = [(name, f"{count:,}") for name, count, _ in bins]
    drawing = _plot(label, [_grid(top, y), *bars, *labels, _axis_names(x, y)])
    return Chart(title, description, drawing, (column, y.label.capitalize()), rows)


def lines(
    title: str,
    description: str,
    label: str,
    series: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    highest: float | None = None,
) -> Chart:
    """Lines over a common axis that begins at 0. ``highest`` fixes the top of the other one."""
    points = [point for one in series for point in one.points]
    far = max((at for at, _ in points), default=0.0) or 1.0
    top = ticks(highest if highest is not None else max((value for _, value in points if value is not None), default=0))
    along = [value for value in ticks(far) if value <= far * 1.0001]
    labels = [_text(x.text(value), LEFT + _PLOT_WIDTH * value / far, HEIGHT - BOTTOM + 16) for value in along]
    drawn = [_line(one, far, top[-1]) for one in series]
    drawing = _plot(label, [_grid(top, y), *drawn, *labels, _axis_names(x, y)])
    rows = [
        (f"{row[0][0]:.2f}", *("-" if value is None else y.text(round(value, 4)) for _, value in row))
        for row in zip(*(one.points for one in series), strict=True)
    ]
    legend = [(one.colour, one.name) for one in series] if len(series) > 1 else []
    return Chart(title, description, drawing, (x.label, *(one.name for one in series)), rows, legend)


def share_bar(name: str, share: float | None, interval: tuple[float, float] | None, mark: float, tip: str) -> Markup:
    """A bar for a share (0..1, ``None``: none) with its interval as a line, and another share as an upright mark.

    It belongs in `share_plot`, which puts several below each other.
    """
    middle = 33
    bar = '<rect x="0" y="{y}" height="16" rx="3" width="{width}" class="{kind}"/>'
    parts = [
        _text(name, 0, 17, "start", "name"),
        _text("-" if share is None else f"{share:.1%}", WIDTH, 17, "end", "name"),
        svg(bar, y=middle - 8, width=WIDTH, kind="track"),
        svg(bar, y=middle - 8, width=WIDTH * (share or 0.0), kind="fill series-1"),
    ]
    marks = [("beside-it", WIDTH * mark, WIDTH * mark, middle - 12, middle + 12)]
    if interval is not None:
        low, high = interval
        marks.insert(0, ("interval", WIDTH * low, WIDTH * high, middle, middle))
    for kind, x1, x2, y1, y2 in marks:
        for halo in (" halo", ""):  # below the line, so that it is seen on a bar of any colour
            line = '<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}" class="{kind}"/>'
            parts.append(svg(line, x1=x1, x2=x2, y1=y1, y2=y2, kind=kind + halo))
    reach = '<rect x="0" y="0" width="{width}" height="{height}" class="reach" data-tip="{tip}"/>'
    return Markup().join([*parts, svg(reach, width=WIDTH, height=_SHARE_HEIGHT, tip=tip)])


def share_plot(label: str, bars: Iterable[Markup]) -> Markup:
    """The bars below each other."""
    moved = [
        svg('<g transform="translate(0 {y})">{bar}</g>', y=i * _SHARE_HEIGHT, bar=bar) for i, bar in enumerate(bars)
    ]
    return _plot(label, moved, height=_SHARE_HEIGHT * len(moved))


def strip(label: str, parts: Sequence[tuple[str, float, str]]) -> Markup:
    """States one after the other: (class, length, what the tip says)."""
    whole = sum(length for _, length, _ in parts) or 1.0
    drawn, at = [], 0.0
    for colour, length, tip in parts:
        width = WIDTH * length / whole
        piece = '<rect x="{x}" y="0" width="{width}" height="{height}" class="fill {colour}" data-tip="{tip}"/>'
        drawn.append(svg(piece, x=at, width=width, height=_STRIP_HEIGHT, colour=colour, tip=tip))
        at += width
    return svg(
        '<svg class="strip" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        "{parts}</svg>",
        width=WIDTH,
        height=_STRIP_HEIGHT,
        label=label,
        parts=Markup().join(drawn),
    )


def _plot(label: str, parts: Iterable[Markup], height: int = HEIGHT) -> Markup:
    whole = '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" class="plot">{parts}</svg>'
    return svg(whole, width=WIDTH, height=height, label=label, parts=Markup().join(parts))


def _grid(top: Sequence[float], y: Axis) -> Markup:
    parts = []
    for value in top:
        at = TOP + _PLOT_HEIGHT * (1 - value / top[-1])
        line = '<line x1="{left}" x2="{right}" y1="{at}" y2="{at}" class="grid"/>'
        parts += [svg(line, left=LEFT, right=WIDTH - RIGHT, at=at), _text(y.text(value), LEFT - 6, at + 4, "end")]
    return Markup().join(parts)


def _axis_names(x: Axis, y: Axis) -> Markup:
    upright = (
        '<text x="0" y="0" text-anchor="middle" class="axis upright" transform="translate(12 {middle}) rotate(-90)">'
        "{name}</text>"
    )
    return _text(x.label, LEFT + _PLOT_WIDTH / 2, HEIGHT - 4, "middle", "axis") + svg(
        upright, middle=TOP + _PLOT_HEIGHT / 2, name=y.label
    )


def _bar(x: float, width: float, share: float, tip: str) -> Markup:
    height = _PLOT_HEIGHT * share
    gap = min(1.5, width / 6)
    return svg(
        '<rect x="{x}" y="{y}" rx="1.5" width="{width}" height="{height}" class="fill series-1"/>',
        x=x + gap,
        y=TOP + _PLOT_HEIGHT - height,
        width=max(width - 2 * gap, 0.3),
        height=height,
    ) + svg(
        '<rect x="{x}" y="{y}" width="{width}" height="{height}" class="reach" data-tip="{tip}"/>',
        x=x,
        y=TOP,
        width=width,
        height=_PLOT_HEIGHT,
        tip=tip,
    )


def _line(one: Line, far: float, top: float) -> Markup:
    runs: list[list[str]] = [[]]
    for at, value in one.points:
        if value is None:
            runs.append([])
            continue
        runs[-1].append(f"{LEFT + _PLOT_WIDTH * at / far:.2f},{TOP + _PLOT_HEIGHT * (1 - min(1.0, value / top)):.2f}")
    drawn = '<polyline points="{points}" class="line {colour}"/>'
    return Markup().join(
        svg(drawn, points=" ".join(run if len(run) > 1 else run * 2), colour=one.colour) for run in runs if run
    )


def _text(text: str, x: float, y: float, anchor: str = "middle", kind: str = "tick") -> Markup:
    whole = '<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{text}</text>'
    return svg(whole, text=text, x=x, y=y, anchor=anchor, kind=kind)


SIZE: Final = 640
_VERBS: Final = (78.0, 190.0)  # inner and outer radius of the ring
_NOUNS: Final = (191.5, 314.0)
_LETTER: Final = 6.6  # mean width of a letter at the labels' size
_LINE: Final = 11.5  # least room that a radial label needs along the arc
_COLOURS: Final = 10


def sunburst(figures: VerbFigures) -> Markup:
    """The drawing. Empty where nothing parsed."""
    whole = sum(times for _, _, nouns in figures.verbs for _, times in nouns)
    if not whole:
        return Markup()
    parts: list[Markup] = []
    start = 0.0
    for number, (verb, count, nouns) in enumerate(figures.verbs):
        colour = f"hue-{number % _COLOURS}"
        end = start + sum(times for _, times in nouns) / whole
        tip = f"{verb}: {count:,} of {figures.parsed:,} instructions ({count / figures.parsed:.1%})"
        parts.append(_slice((start, end), _VERBS, colour, verb, tip, "verb"))
        at = start
        for noun, times in nouns:
            to = at + times / whole
            tip = f"{verb} {noun}: {times:,} ({times / figures.parsed:.1%})"
            parts.append(_slice((at, to), _NOUNS, f"{colour} pale", noun, tip, "noun"))
            at = to
        start = end
    return svg(
        '<svg viewBox="0 0 {size} {size}" role="img" aria-label="Sunburst of the {count} most frequent root verbs and '
        'their direct objects; the list has its figures" class="sunburst">{parts}'
        '<text x="{middle}" y="{above}" text-anchor="middle" class="centre">{share}</text>'
        '<text x="{middle}" y="{below}" text-anchor="middle" class="centre-note">of all parsed</text></svg>',
        size=SIZE,
        count=len(figures.verbs),
        parts=Markup().join(parts),
        middle=SIZE / 2,
        above=SIZE / 2 + 2,
        below=SIZE / 2 + 24,
        share=f"{figures.share_shown:.0%}",
    )


def _slice(
    turns: tuple[float, float], ring: tuple[float, float], colour: str, text: str, tip: str, kind: str
) -> Markup:
    """A segment of a ring with its label. ``turns`` (0..1) are clockwise from the top."""
    (start, end), (inner, outer) = turns, ring
    last = min(end, start + 0.99999)  # an arc cannot end where it begins
    large = int(last - start > 0.5)  # noqa: PLR2004 - half a turn
    a, b = _at(start, outer), _at(last, outer)
    c, d = _at(last, inner), _at(start, inner)
    path = f"M{a}A{outer:g} {outer:g} 0 {large} 1 {b}L{c}A{inner:g} {inner:g} 0 {large} 0 {d}Z"
    return svg(
        '<g><path d="{path}" class="slice {colour}" data-tip="{tip}"/>{label}</g>',
        path=path,
        colour=colour,
        tip=tip,
        label=_label(turns, ring, text, kind),
    )


def _label(turns: tuple[float, float], ring: tuple[float, float], text: str, kind: str) -> Markup:
    """Along the radius, never upside down. Cut where it is longer than the ring is wide, empty where too narrow."""
    (start, end), (inner, outer) = turns, ring
    radius = (inner + outer) / 2
    if 2 * pi * radius * (end - start) < _LINE:
        return Markup()
    room = int((outer - inner - 8) / _LETTER)
    degrees = 180 * (start + end)
    turn = degrees - 90 if degrees <= 180 else degrees + 90  # noqa: PLR2004 - the left half is turned round
    return svg(
        '<text text-anchor="middle" dominant-baseline="central" class="{kind}" '
        'transform="translate({place}) rotate({turn})">{text}</text>',
        kind=kind,
        place=_at((start + end) / 2, radius),
        turn=turn,
        text=text if len(text) <= room else text[: room - 1] + "…",
    )


def _at(turns: float, radius: float) -> str:
    angle = 2 * pi * turns
    return f"{SIZE / 2 + radius * sin(angle):.2f} {SIZE / 2 - radius * cos(angle):.2f}"
