"""HTML that cannot be broken out of: text becomes HTML only by being escaped.

`element` escapes every child and attribute value that is not `Html` already, and `Html` is only made here. So whatever
a model wrote stays text, wherever it is put.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from math import cos, floor, log10, pi, sin
from typing import Any, Final

from fastgen.report.diversity import VerbFigures
from fastgen.text import printable

_VOID = frozenset({"meta", "br", "hr", "input", "col", "path", "rect", "line", "circle", "polyline"})


class Html(str):
    """Markup that is known to be well-formed; other ``str`` are text."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: str | float | bool | None) -> Html:  # noqa: ANN401 - nested children
    """An element; ``None`` children and attributes are left out, ``True`` is an attribute without a value.

    Attribute names lose a trailing underscore, and other underscores become hyphens (``class_``, ``aria_label``).
    """
    shown = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID and not children:
        return Html(f"<{tag}{shown}/>")
    return Html(f"<{tag}{shown}>{''.join(_texts(children))}</{tag}>")


def joined(*children: Any) -> Html:  # noqa: ANN401 - nested children
    """Several things one after the other."""
    return Html("".join(_texts(children)))


def trusted(markup: str) -> Html:
    """Markup of our own asset files, as it is. Never for anything that a run holds."""
    return Html(markup)


def data_block(name: str, value: Any) -> Html:  # noqa: ANN401 - any JSON value
    """A JSON value for scripts to read, as a block that browsers do not run.

    Every ``<``, ``>`` and ``&`` is written as an escape, so no text in it can end the block or begin a comment.
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.removesuffix("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{_clean(value if isinstance(value, str) else f"{value:g}")}"'


def _texts(children: Any) -> Iterable[str]:  # noqa: ANN401 - nested children
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            yield child
        elif isinstance(child, str):
            yield _clean(child)
        elif isinstance(child, int | float):
            yield f"{child:g}"
        else:
            yield from _texts(child)


def _clean(text: str) -> str:
    return escape(printable(text, lines=True), quote=True)


WIDTH: Final = 480
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_SHARE_HEIGHT: Final = 54
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a chart for those who do not see it: a header and rows of cells."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Line:
    """A series: its name, the class that colours it (``series-1`` ...), and points (x, y); ``None`` is a gap."""

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Share:
    """A share (0..1) with its interval, ``None`` where there is none, and another one to set it beside."""

    name: str
    share: float | None
    low: float | None
    high: float | None
    mark: float
    told: str


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis is called (with its unit) and how its values are written."""

    label: str
    percent: bool = False

    def text(self, value: float) -> str:
        """A tick's label."""
        return f"{100 * value:g}%" if self.percent else short(value)


def short(value: float) -> str:
    """A number in few characters: 12.3k, 4.5M; up to three digits of it count."""
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


def chart(title: str, description: str, drawing: Html, table: Table, legend: Iterable[tuple[str, str]] = ()) -> Html:
    """A figure: heading, drawing with its description, legend of (class, name), and the figures as a table."""
    number = next(_numbers)
    keys = [element("li", element("span", class_=f"key {colour}"), name) for colour, name in legend]
    return element(
        "figure",
        element("figcaption", element("h3", title), element("p", description)),
        drawing,
        element("ul", *keys, class_="legend") if keys else None,
        element("details", element("summary", "Figures as a table"), table_of(table, title)),
        class_="chart",
        id=f"chart-{number}",
    )


def table_of(table: Table, caption: str) -> Html:
    """The table, in a box that scrolls by itself where the screen is narrow."""
    head = element("tr", *(element("th", name, scope="col") for name in table.header))
    rows = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in table.rows
    ]
    body = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", head),
        element("tbody", *rows),
    )
    return element("div", body, class_="scroll", tabindex="0", role="region", aria_label=caption)


def histogram(
    label: str, bars: Sequence[tuple[str, int]], x: Axis, y: Axis, edges: Sequence[str], mark: float | None = None
) -> Html:
    """Bars side by side: (what is told of it, count) each.

    ``edges``: labels spread evenly along the axis, or below each bar where there are as many of them as bars.
    ``mark``: a place on the axis, 0..1, for a dashed line.
    """
    top = ticks(max((height for _, height in bars), default=0))
    width = _PLOT_WIDTH / max(1, len(bars))
    drawn = [_bar(LEFT + i * width, width, height / top[-1], told) for i, (told, height) in enumerate(bars)]
    is_each = len(edges) == len(bars)
    places = [(i + 0.5) * width if is_each else _PLOT_WIDTH * i / max(1, len(edges) - 1) for i in range(len(edges))]
    labels = [_text(text, LEFT + x_, HEIGHT - BOTTOM + 16, "middle") for x_, text in zip(places, edges, strict=True)]
    at = LEFT + _PLOT_WIDTH * mark if mark is not None else None
    line = element("line", x1=at, x2=at, y1=TOP, y2=TOP + _PLOT_HEIGHT, class_="mark") if at is not None else None
    return _svg(label, _grid(top, y), *drawn, line, *labels, _axis_names(x, y))


def lines(label: str, series: Sequence[Line], x: Axis, y: Axis, highest: float | None = None) -> Html:
    """Lines over a common axis that begins at 0; ``highest`` fixes the top of the other one."""
    points = [point for one in series for point in one.points]
    far = max((at for at, _ in points), default=0.0) or 1.0
    top = ticks(highest if highest is not None else max((value for _, value in points if value is not None), default=0))
    along = [value for value in ticks(far) if value <= far * 1.0001]
    labels = [_text(x.text(v), LEFT + _PLOT_WIDTH * v / far, HEIGHT - BOTTOM + 16, "middle") for v in along]
    drawn = [_line(one, far, top[-1]) for one in series]
    return _svg(label, _grid(top, y), *drawn, *labels, _axis_names(x, y))


def shares(label: str, rows: Sequence[Share]) -> Html:
    """Bars lying below each other, with the interval as a line on the bar and the other share as an upright mark."""
    drawn = [_share(one, i * _SHARE_HEIGHT) for i, one in enumerate(rows)]
    return _svg(label, *drawn, height=_SHARE_HEIGHT * len(rows))


def _share(one: Share, top: float) -> Html:
    middle = top + 33
    box = {"x": 0, "y": middle - 8, "height": 16, "rx": 3}
    at = WIDTH * one.mark
    interval = None
    if one.low is not None and one.high is not None:
        interval = _haloed("interval", x1=WIDTH * one.low, x2=WIDTH * one.high, y1=middle, y2=middle)
    return joined(
        _text(one.name, 0, top + 17, "start", "name"),
        _text("-" if one.share is None else f"{one.share:.1%}", WIDTH, top + 17, "end", "name"),
        element("rect", **box, width=WIDTH, class_="track"),
        element("rect", **box, width=round(WIDTH * (one.share or 0.0), 2), class_="fill series-1"),
        interval,
        _haloed("beside-it", x1=at, x2=at, y1=middle - 12, y2=middle + 12),
        element("rect", x=0, y=top, width=WIDTH, height=_SHARE_HEIGHT, class_="reach", data_tip=one.told),
    )


def _haloed(name: str, **ends: float) -> Html:
    """A line that is seen on a bar of any colour."""
    return joined(element("line", **ends, class_=f"{name} halo"), element("line", **ends, class_=name))


def bar(share: float, colour: str = "series-1") -> Html:
    """A single bar for a table's cell or a list; ``share`` 0..1 of its width. Decoration: the number stands beside."""
    inner = element("rect", width=round(100 * min(1.0, share), 2), height=8, class_=f"fill {colour}")
    return element(
        "svg",
        inner,
        class_="bar",
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )


def strip(label: str, parts: Sequence[tuple[str, float, str]]) -> Html:
    """States one after the other: (class, length, what is told of it)."""
    whole = sum(length for _, length, _ in parts) or 1.0
    drawn, at = [], 0.0
    for colour, length, told in parts:
        width = WIDTH * length / whole
        drawn.append(
            element(
                "rect", x=round(at, 2), y=0, width=round(width, 2), height=28, class_=f"fill {colour}", data_tip=told
            )
        )
        at += width
    return element(
        "svg",
        *drawn,
        class_="strip",
        viewBox=f"0 0 {WIDTH} 28",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def _svg(label: str, *children: object, height: int = HEIGHT) -> Html:
    return element("svg", *children, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, class_="plot")


def _grid(top: Sequence[float], y: Axis) -> Html:
    parts: list[Html] = []
    for value in top:
        at = TOP + _PLOT_HEIGHT * (1 - value / top[-1])
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=round(at, 2), y2=round(at, 2), class_="grid"))
        parts.append(_text(y.text(value), LEFT - 6, at + 4, "end"))
    return joined(parts)


def _axis_names(x: Axis, y: Axis) -> Html:
    return joined(
        _text(x.label, LEFT + _PLOT_WIDTH / 2, HEIGHT - 4, "middle", "axis"),
        element(
            "text",
            y.label,
            x=0,
            y=0,
            text_anchor="middle",
            class_="axis upright",
            transform=f"translate(12 {TOP + _PLOT_HEIGHT / 2:g}) rotate(-90)",
        ),
    )


def _bar(x: float, width: float, share: float, told: str) -> Html:
    height = _PLOT_HEIGHT * share
    gap = min(1.5, width / 6)
    shown = element(
        "rect",
        x=round(x + gap, 2),
        y=round(TOP + _PLOT_HEIGHT - height, 2),
        rx=1.5,
        width=round(max(width - 2 * gap, 0.3), 2),
        height=round(height, 2),
        class_="fill series-1",
    )
    reach = element(
        "rect", x=round(x, 2), y=TOP, width=round(width, 2), height=_PLOT_HEIGHT, class_="reach", data_tip=told
    )
    return joined(shown, reach)


def _line(one: Line, far: float, top: float) -> Html:
    runs: list[list[str]] = [[]]
    for at, value in one.points:
        if value is None:
            runs.append([])
            continue
        runs[-1].append(f"{LEFT + _PLOT_WIDTH * at / far:.2f},{TOP + _PLOT_HEIGHT * (1 - min(1.0, value / top)):.2f}")
    drawn = [
        element("polyline", points=" ".join(run if len(run) > 1 else run * 2), class_=f"line {one.colour}")
        for run in runs
        if run
    ]
    return joined(drawn)


def _text(text: str, x: float, y: float, anchor: str, class_: str | None = None) -> Html:
    return element("text", text, x=round(x, 2), y=round(y, 2), text_anchor=anchor, class_=class_)


SIZE: Final = 640
_HOLE, _MIDDLE, _RIM = 78.0, 190.0, 314.0
_LETTER: Final = 6.6  # mean width of a letter at the labels' size
_LINE: Final = 11.5  # least room that a radial label needs along the arc
_COLOURS: Final = 10


@dataclass(frozen=True, slots=True)
class _Slice:
    start: float  # turns, 0..1, clockwise from the top
    end: float
    inner: float
    outer: float

    @property
    def middle(self) -> float:
        """Where a label goes, in turns."""
        return (self.start + self.end) / 2


def sunburst(figures: VerbFigures) -> Html:
    """The drawing; empty where nothing parsed."""
    shown = [(verb, sum(count for _, count in verb.nouns)) for verb in figures.verbs]
    whole = sum(count for _, count in shown)
    if not whole:
        return Html("")
    parts: list[Html] = []
    start = 0.0
    for number, (verb, of_verb) in enumerate(shown):
        end = start + of_verb / whole
        told = f"{verb.lemma}: {verb.count:,} of {figures.parsed:,} instructions ({verb.count / figures.parsed:.1%})"
        parts.append(_piece(_Slice(start, end, _HOLE, _MIDDLE), f"hue-{number % _COLOURS}", verb.lemma, told, "verb"))
        at = start
        for noun, times in verb.nouns:
            to = at + times / whole
            told = f"{verb.lemma} {noun}: {times:,} ({times / figures.parsed:.1%})"
            parts.append(
                _piece(_Slice(at, to, _MIDDLE + 1.5, _RIM), f"hue-{number % _COLOURS} pale", noun, told, "noun")
            )
            at = to
        start = end
    label = f"Sunburst of the {len(shown)} most frequent root verbs and their direct objects; the list has its figures"
    return element(
        "svg", *parts, _centre(figures), viewBox=f"0 0 {SIZE} {SIZE}", role="img", aria_label=label, class_="sunburst"
    )


def _centre(figures: VerbFigures) -> Html:
    middle = SIZE / 2
    return joined(
        element("text", f"{figures.share_shown:.0%}", x=middle, y=middle + 2, text_anchor="middle", class_="centre"),
        element("text", "of all parsed", x=middle, y=middle + 24, text_anchor="middle", class_="centre-note"),
    )


def _piece(piece: _Slice, colour: str, text: str, told: str, kind: str) -> Html:
    return element(
        "g", element("path", d=_outline(piece), class_=f"slice {colour}", data_tip=told), _label(piece, text, kind)
    )


def _outline(piece: _Slice) -> str:
    """A ring's segment; a whole ring is drawn as two arcs a side, since an arc cannot end where it begins."""
    end = min(piece.end, piece.start + 0.99999)
    large = int(end - piece.start > 0.5)  # noqa: PLR2004 - half a turn
    a, b = _at(piece.start, piece.outer), _at(end, piece.outer)
    c, d = _at(end, piece.inner), _at(piece.start, piece.inner)
    return f"M{a}A{piece.outer:g} {piece.outer:g} 0 {large} 1 {b}L{c}A{piece.inner:g} {piece.inner:g} 0 {large} 0 {d}Z"


def _at(turns: float, radius: float) -> str:
    angle = 2 * pi * turns
    return f"{SIZE / 2 + radius * sin(angle):.2f} {SIZE / 2 - radius * cos(angle):.2f}"


def _label(piece: _Slice, text: str, kind: str) -> Html | None:
    """Along the radius, never upside down; cut where it is longer than the ring is wide, left out where too narrow."""
    radius = (piece.inner + piece.outer) / 2
    if 2 * pi * radius * (piece.end - piece.start) < _LINE:
        return None
    room = int((piece.outer - piece.inner - 8) / _LETTER)
    shown = text if len(text) <= room else text[: room - 1] + "…"
    degrees = 360 * piece.middle
    turn = degrees - 90 if degrees <= 180 else degrees + 90  # noqa: PLR2004 - the left half is turned round
    place = _at(piece.middle, radius)
    return element(
        "text",
        shown,
        text_anchor="middle",
        dominant_baseline="central",
        class_=kind,
        transform=f"translate({place}) rotate({turn:.2f})",
    )


def pairs(figures: VerbFigures) -> Iterator[tuple[str, int, str]]:
    """(verb, count, its nouns with their counts) for the list beside the picture."""
    for verb in figures.verbs:
        yield verb.lemma, verb.count, ", ".join(f"{noun} {count:,}" for noun, count in verb.nouns)
