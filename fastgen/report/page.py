"""Renders the templates in ``templates/``, and the page around the sections.

Guarantees: a page is one file with its style and script inside. Every value that a template prints is made printable
and escaped, so what a model wrote stays text wherever it is put. The content security policy allows exactly this style
and this script, by their SHA-256: no other script, no inline handler, no picture, no connection (unless ``connect``
asks for the page's own origin) and no form target. So even an error in escaping could not run what a model wrote.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastgen.text import printable


@cache
def environment() -> Environment:
    """The templates' environment: autoescape, printable text, and an error for a name that is not there."""
    made = Environment(
        loader=PackageLoader("fastgen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # ASCII, which `tojson` makes safe for a script
    return made


def _printable(value: object) -> object:
    return value if isinstance(value, Markup) else printable(str(value), lines=True)


def render(name: str, *arguments: object, **more: object) -> Markup:
    """A part of a page: the macro of ``sections.html`` with these arguments."""
    macro = getattr(environment().get_template("sections.html").module, name)
    return Markup(macro(*arguments, **more))  # noqa: S704 - macros escape their arguments


def render_page(
    title: str,
    subtitle: Markup,
    menu: Mapping[str, str],
    body: Sequence[Markup],
    *,
    scripts: Sequence[str] = ("page.js",),
    connect: bool = False,
) -> str:
    """The whole file, as text for UTF-8.

    :param subtitle: a line below the title. :param menu: titles of the sections for the menu, by section name.
    :param scripts: assets that are run. :param connect: whether scripts may connect to the page's own origin.
    """
    style, script = _page_assets(scripts)
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            menu=menu,
            body=body,
            policy=policy(scripts, connect=connect),
            style=Markup(style),  # noqa: S704 - our own assets
            script=Markup(script),  # noqa: S704
        )
    )


def policy(scripts: Sequence[str], *, connect: bool = False) -> str:
    """The content security policy of a page with these scripts."""
    style, script = map(_digest, _page_assets(scripts))
    own = "; connect-src 'self'" if connect else ""
    return f"default-src 'none'; style-src '{style}'; script-src '{script}'{own}; base-uri 'none'; form-action 'none'"


def _page_assets(scripts: Sequence[str]) -> tuple[str, str]:
    assets = files("fastgen.report") / "assets"
    style, *code = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", *scripts))
    return style, "\n".join(code)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
