"""The document around the sections: one file with its style and script inside, and a policy that lets nothing else in.

The content security policy allows exactly this style and this script, by their SHA-256; no other script, no inline
handler, no picture, no connection (unless ``connect`` asks for its own origin) and no form target. So even a slip in
escaping could not run what a model wrote, and opening the page tells nobody.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fastgen.report.charts import Html, element, joined, trusted

_NO_THEME: Final = "auto"


@dataclass(frozen=True, slots=True)
class Document:
    """A page's title, a line below it, (name, title) of the sections for its menu, and its body."""

    title: str
    subtitle: Html
    menu: Sequence[tuple[str, str]]
    body: Html


def asset(name: str) -> str:
    """One of our own files of style or script."""
    return files("fastgen.report").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def policy(style: str, script: str, *, connect: bool = False) -> str:
    """The content security policy of a page with this style and this script."""
    own = "; connect-src 'self'" if connect else ""
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'{own}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def render(document: Document, *, scripts: Sequence[str] = ("page.js",), connect: bool = False) -> str:
    """The whole file, as text for UTF-8."""
    style, script = asset("page.css"), "\n".join(map(asset, scripts))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy(style, script, connect=connect)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", document.title),
        element("style", trusted(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#main", class_="skip"),
        _header(document),
        element("main", document.body, id="main"),
        element(
            "footer", element("p", "Made by fastgen. This page loads nothing and tells nobody that it was opened.")
        ),
        element("div", "", id="tip", role="presentation", hidden=True),
        element("script", trusted(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en", data_theme=_NO_THEME)


def _header(document: Document) -> Html:
    links = [element("li", element("a", title, href=f"#{name}")) for name, title in document.menu]
    return joined(
        element(
            "header",
            element("div", element("h1", document.title), element("p", document.subtitle), class_="titles"),
            element("button", "Dark", type="button", id="theme", aria_pressed="false", hidden=True),
            class_="top",
        ),
        element("nav", element("ul", *links), class_="menu", aria_label="Sections") if links else None,
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
