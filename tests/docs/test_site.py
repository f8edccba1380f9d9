"""The site builds without a warning, so that no link, anchor or page of the documentation is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.command_help import chromium
from tests.docs.pages import ROOT

WIDTHS = {"phone": 390, "desk": 1280}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, f"{built.stdout}\n{built.stderr}"
    return folder


def test_links_that_leave_the_folder_of_the_docs_lead_to_pages(site: Path) -> None:
    filter_page = (site / "filter.html").read_text(encoding="utf-8")
    assert 'href="repository/benchmarks/index.html#the-similarity-filter"' in filter_page
    benchmarks = (site / "repository" / "benchmarks" / "index.html").read_text(encoding="utf-8")
    assert 'id="the-similarity-filter"' in benchmarks
    assert 'href="../../reliability.html"' in benchmarks
    assert (site / "repository" / "benchmarks" / "plots" / "sweep.png").stat().st_size > 0
    example = (site / "repository" / "examples" / "own_method.py.html").read_text(encoding="utf-8")
    assert "build" in example


def test_the_reference_of_types_is_made_from_the_docstrings(site: Path) -> None:
    page = (site / "method-types.html").read_text(encoding="utf-8")
    assert 'id="fastgen.methods.base.Setup"' in page
    assert 'id="fastgen.methods.base.Step"' in page
    runs = (site / "python-reference.html").read_text(encoding="utf-8")
    assert 'id="fastgen.api.open_run"' in runs
    assert 'id="fastgen.errors.InputError"' in runs


def test_no_page_loads_anything_from_another_site(site: Path) -> None:
    loading = re.compile(
        r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*href="(?:https?:)?//'
    )
    loads = {page.name: found[0] for page in site.rglob("*.html") if (found := loading.search(page.read_text("utf-8")))}
    assert not loads


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the tests of this file."""
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """The site, served on the loopback."""
    handler = partial(_QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, name="the site")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_pages_fit_a_phone_and_a_desk_in_both_colours(url: str, browser: Any, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in ("index.html", "flags.html", "methods.html", "method-types.html", "repository/index.html"):
        page.goto(f"{url}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        shown = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert shown == {"light": "default", "dark": "slate"}[scheme], name
    assert not errors
    context.close()


@pytest.mark.browser
def test_the_search_finds_a_flag(url: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{url}/index.html")
    page.get_by_placeholder("Search").fill("outage-timeout")
    page.locator(".md-search-result__item").first.wait_for()
    page.close()
