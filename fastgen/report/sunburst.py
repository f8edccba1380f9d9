"""The picture of the verb-noun pairs: an inner ring of root verbs, an outer one of their direct objects, by share.

The layout of figure 3 of Wang et al., ACL 2023. A verb's slice is as wide as its shown pairs, the rings are turned so
that the most frequent verb begins at the top, and a label is drawn only where it fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Final

from fastgen.report.markup import Html, element, joined
from fastgen.report.verbs import VerbFigures

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
    for number, (verb, count) in enumerate(shown):
        end = start + count / whole
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
