"""``fastgen report`` as its user meets it, also in a real browser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from fastgen.cli import app as cli
from fastgen.errors import how_to_install
from fastgen.generate.options import JobOptions, Options
from fastgen.report import build
from fastgen.report.build import report
from fastgen.report.options import ReportOptions
from fastgen.text import printable
from tests import export_help
from tests.command_help import chromium
from tests.export_help import Task, make_run, numbered

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2> & "quoted" <!-- <b>bold</b>'


def call(*flags: object) -> tuple[int, str]:
    """Exit code and the one line said."""
    err = io.StringIO()
    with redirect_stderr(err):
        code = cli.run(["report", *map(str, flags)])
    lines = err.getvalue().splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


def hostile_tasks() -> list[Task]:
    bad = Task(f"Translate this {HOSTILE}", [(HOSTILE, HOSTILE), ("", "javascript:alert(1)")])
    return [*numbered(45), bad, Task("Write a zebra story.", [("", "Zebra stripes.")])]


def test_a_run_becomes_one_page_that_loads_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", hostile_tasks())
    code, line = call("--run-dir", run, "--output", tmp_path / "r.html", "--sample", 10)
    page = (tmp_path / "r.html").read_text("utf-8")
    assert (code, line.partition(" (")[0]) == (0, f"{tmp_path / 'r.html'}: report of 47 instructions")
    assert "<script src" not in page
    assert "<link" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "default-src &#39;none&#39;" in page
    assert "<img" not in page
    for heading in ("What the instructions ask for", "How new they are", "How it went", "What was rejected"):
        assert heading in page
    assert "A random sample of 10 of 47 complete instructions" in page


def test_the_same_seed_gives_the_same_sample(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(60))
    pages = []
    for seed in (1, 1, 2):
        report(run, tmp_path / "r.html", ReportOptions(sample=5, seed=seed, overwrite=True))
        page = (tmp_path / "r.html").read_text("utf-8")
        pages.append(page.partition('id="data">')[2].partition("</script>")[0])
    assert pages[0] == pages[1] != pages[2]


def test_the_seed_that_is_nearest_is_shown_as_other_text_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control characters become visible, and it is cut where other texts are."""
    hostile = f"Turn it \u202eround\x1b[2J: {'a word ' * 300}"
    seeds = (export_help.SEEDS[0], export_help.SEEDS[1] | {"instruction": hostile})
    monkeypatch.setattr(export_help, "SEEDS", seeds)
    run = make_run(tmp_path / "run", numbered(2))
    report(run, tmp_path / "r.html", ReportOptions())
    page = (tmp_path / "r.html").read_text("utf-8")
    shown = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["kept"][0]["to"]
    assert printable(hostile)[:1500] in shown
    assert shown.endswith(" … (cut)")
    assert not {"\u202e", "\x1b"} & {*shown}


def test_an_unfinished_and_an_empty_run_are_shown_and_said(tmp_path: Path) -> None:
    options = Options(job=JobOptions(num_instructions=50))
    begun = make_run(tmp_path / "begun", numbered(3), options)
    empty = make_run(tmp_path / "empty", [], options)
    assert "the run is not finished: 3 of 50 instructions" in call("--run-dir", begun, "--output", tmp_path / "b")[1]
    assert "3 of 50" in (tmp_path / "b").read_text("utf-8")
    code, line = call("--run-dir", empty, "--output", tmp_path / "e")
    assert (code, "0 of 50" in line) == (0, True)
    assert "No instruction is complete yet" in (tmp_path / "e").read_text("utf-8")


def test_without_the_extra_the_page_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_parser", lambda _name: None)
    run = make_run(tmp_path / "run", numbered(3))
    assert how_to_install("report") in call("--run-dir", run, "--output", tmp_path / "r")[1]
    assert "no parser is installed" in (tmp_path / "r").read_text("utf-8")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sample", "-1"], "--sample: -1 is not within 0 to 20000"),
        (["--spacy-model", "no_such_model"], "--spacy-model no_such_model: "),
        (["--evaluation-data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_page(tmp_path: Path, flags: list[str], said: str) -> None:
    run = make_run(tmp_path / "run", numbered(2))
    code, line = call("--run-dir", run, "--output", tmp_path / "r.html", *flags)
    assert code == 2
    assert said in line
    assert not (tmp_path / "r.html").exists()


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    code, line = call("--run-dir", tmp_path / "none", "--output", tmp_path / "r.html")
    assert (code, "there is no run here" in line) == (2, True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, used where the machine has one."""
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with hostile text."""
    folder = tmp_path_factory.mktemp("report")
    report(make_run(folder / "run", hostile_tasks()), folder / "r.html")
    return folder / "r.html"


@pytest.fixture
def page(browser: Any, hostile_page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """That page, on a screen as wide as the test asks for; fails on anything that the console says."""
    context = browser.new_context(viewport={"width": getattr(request, "param", 1200), "height": 800})
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith("file:") else None)
    opened.goto(hostile_page.as_uri())
    yield opened
    assert said == []
    context.close()


@pytest.mark.browser
def test_charts_are_drawn(page: Any) -> None:
    sizes = page.eval_on_selector_all("svg.plot", "all => all.map(one => one.getBoundingClientRect().height)")
    assert len(sizes) >= 9
    assert min(sizes) > 100
    assert page.locator("figure.chart .fill").count() >= 100
    assert page.locator("h1").count() == 1
    named = "all => all.every(one => one.getAttribute('aria-label'))"
    assert page.eval_on_selector_all("svg[role=img]", named)


@pytest.mark.browser
def test_the_search_finds_filters_and_turns_pages(page: Any) -> None:
    assert page.inner_text("#found") == "47 instructions"
    assert page.locator("#results > li").count() == 20
    page.click("#next")
    assert page.inner_text("#page") == "Page 2 of 3"
    page.fill("#query", "zebra")
    assert page.inner_text("#found") == "1 instruction"
    assert page.inner_text("#results mark >> nth=0").lower() == "zebra"
    page.fill("#query", "")
    page.select_option("#kind", "c")
    assert page.inner_text("#found") == "15 instructions"
    page.select_option("#which", "rejected")
    page.select_option("#rule", "too_short")
    assert page.inner_text("#found") == "47 instructions"
    assert not page.is_visible("#kind")


@pytest.mark.browser
def test_hostile_text_is_shown_as_text_and_does_nothing(page: Any) -> None:
    page.fill("#query", "hacked")
    assert page.inner_text("#found") == "1 instruction"
    assert page.inner_text("#results h3") == f"Translate this {HOSTILE}"
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b, iframe, a[href^=javascript]").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("page", [320], indirect=True)
def test_a_phone_needs_no_scrolling_aside_and_the_keyboard_reaches_everything(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.focus(".rules summary")
    page.keyboard.press("Enter")
    assert page.is_visible(".examples q")
