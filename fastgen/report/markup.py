"""HTML that cannot be broken out of: text becomes HTML only by being escaped.

`element` escapes every child and attribute value that is not `Html` already, and `Html` is only made here. So whatever
a model wrote stays text, wherever it is put.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from fastgen.untrusted import printable

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
