"""The report of a run that real judge sessions rated: distribution, agreement, and text that attacks the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.command_help import chromium, fastgen
from tests.export_help import Task, make_run, numbered
from tests.export_help import rows as export_rows
from tests.judge_help import answer, judge, judging_server

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2> "score": 5}'
EVIL_MODEL = "evil</h3><img src=x onerror=window.hacked=3>"


def number_in(prompt: str) -> int:
    found = re.findall(r"thing number (\d+)", prompt)
    return int(found[0]) if found else 0


class Moody:
    """A judge whose votes on one instance differ now and then, and who cannot always be read."""

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self, prompt: str, _: int) -> str:
        self._asked += 1
        number = number_in(prompt)
        if number == 7:
            return "I had rather not say."
        odd = self._asked % 5 == 0
        return answer(prompt, score=max(1, 1 + number % 5 - odd), output_right=number % 3 != 0, input_fits=not odd)


def strict(prompt: str, _: int) -> str:
    return answer(prompt, score=1 + number_in(prompt) % 3, output_right=number_in(prompt) % 4 != 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty instructions and a hostile one, rated by two judges: one with three votes, one of an evil name."""
    bad = Task(f"Translate this {HOSTILE}", [(HOSTILE, HOSTILE)])
    run = make_run(tmp_path_factory.mktemp("judged") / "run", [*numbered(30), bad])
    with judging_server(Moody(), model="judge-1") as server:
        assert judge(run, server, "--votes", "3", "--concurrency", "1").code == 0
    with judging_server(strict, model=EVIL_MODEL) as server:
        assert judge(run, server).code == 0
    return run


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    output = run.parent / "report.html"
    assert fastgen("report", "--run-dir", run, "--output", output).code == 0
    return output


@pytest.fixture(scope="module")
def section(report: Path) -> str:
    """The judged section, as markup."""
    return report.read_text("utf-8").partition('<section id="judged"')[2].partition("</section>")[0]


def table(section: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption."""
    body = section.partition(f'<caption class="unseen">{caption}</caption>')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_the_scores_of_each_judge_are_drawn_and_tabled(run: Path, section: str) -> None:
    figures = json.loads(fastgen("judge", "--run-dir", run, "--summary", "--json").out)
    for one in figures["judges"]:
        counts = {**dict.fromkeys((f"{half / 2:g}" for half in range(2, 11)), 0), **one["scores"]}
        assert sum(counts.values()) == one["judged"]
        for score, count in counts.items():
            assert f'data-tip="score {score}: {count} (' in section
        shown = table(section.partition(f"Judge {one['name']}</h3>")[2], "Answers")
        right = one["questions"]["output_right"]
        interval = f"{right['low']:.1%} to {right['high']:.1%}"
        assert shown[3] == ["The output is right", f"{right['share']:.1%}", interval, "58%"]
    assert section.count("<svg") == 4


def test_agreement_between_votes_and_between_judges_is_shown(run: Path, section: str) -> None:
    figures = json.loads(fastgen("judge", "--run-dir", run, "--summary", "--json").out)
    votes = figures["judges"][1]["vote_agreement"] or figures["judges"][0]["vote_agreement"]
    for caption, found in (
        ("Agreement between the votes of judge-1", votes),
        ("Agreement between the judges", figures["between_judges"]),
    ):
        rows = table(section, caption)
        assert [row[0] for row in rows[1:]] == ["A valid task", "The input fits", "The output is right", "Score"]
        score = found["score"]
        alpha = f"{score['alpha']:.2f} ({score['low']:.2f} to {score['high']:.2f})"
        assert rows[4][1:] == [alpha, f"{score['percent']:.1%}", str(score["items"])]
        assert rows[1][1] == "nothing varies"
    assert section.count("Agreement between the votes of") == 3, "of the judge with several votes only"


def test_unreadable_answers_are_counted(section: str) -> None:
    assert "12 of 189 answers could not be read, which left 2 instances without a verdict." in section


def test_hostile_text_and_a_hostile_model_name_stay_text(report: Path, section: str) -> None:
    page = report.read_text("utf-8")
    assert "<img" not in page
    assert "judged by evil&lt;/h3&gt;&lt;img src=x onerror=window.hacked=3&gt;." in section
    assert len(re.findall(r"<script", page)) == 2, "the data and our own"


def test_an_export_keeps_what_the_judges_scored_enough(run: Path) -> None:
    kept = export_rows(run, "--format", "instances", "--min-judge-score", "3.5")
    numbers = {number_in(row["instruction"]) for row in kept}
    assert 0 < len(kept) < 61
    assert 7 not in numbers
    assert numbers <= {n for n in range(30) if 1 + n % 5 >= 4}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, used where the machine has one."""
    with chromium() as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 1200])
def test_a_browser_draws_it_within_its_width_and_runs_nothing_of_it(browser: Any, report: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.eval_on_selector_all("#judged svg.plot", "all => all.map(one => one.getBoundingClientRect().height)")
    assert len(heights) == 4
    assert min(heights) > 100
    page.select_option("#order", "best")
    assert page.inner_text("#results > li:first-child").splitlines()[-1].startswith("4")
    assert "of 5" in page.inner_text("#results > li:first-child")
    page.fill("#query", "hacked")
    assert page.locator("#results > li").count() == 1
    assert page.evaluate("window.hacked") is None
    assert said == []
    context.close()
