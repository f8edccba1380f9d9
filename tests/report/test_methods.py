"""What status, report and live page say of runs of every method."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from fastgen.report.build import report
from fastgen.report.figures import MOST_VALUES, OTHER_VALUES, _count
from fastgen.report.live_view import STATE, Follower, pieces
from fastgen.report.status import render, status
from fastgen.telemetry.figures import Sample
from tests.export_help import make_run, numbered
from tests.method_runs import CHAT, OTHER_METHODS, make_method_run

OF_SELF_INSTRUCT = ("lassification task", "seed prompts", "with an empty input", " instances: ", "Beside the original")


def page(run: Path, output: Path) -> str:
    report(run, output)
    return output.read_text(encoding="utf-8")


def visible(text: str) -> str:
    """A page without scripts, styles and tags."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_status_names_the_method_and_has_no_line_of_another(tmp_path: Path, name: str) -> None:
    figures = status(make_method_run(tmp_path / "run", name))
    assert figures["method"] == name
    text = render(figures)
    assert f"made with          some-model, method {name}, preset default" in text
    has_seeds = name in {"self-instruct-chat", "evol"}
    for foreign in OF_SELF_INSTRUCT:
        assert (foreign in text) == (foreign == "seed prompts" and has_seeds), foreign


def test_status_of_self_instruct_has_its_lines(tmp_path: Path) -> None:
    text = render(status(make_run(tmp_path / "run", numbered(4))))
    assert "made with          some-model, preset default" in text
    assert "classification     2 of them are classification tasks" in text
    assert "instances          8, 4 with an empty input" in text
    assert "seed prompts       100.0%" in text
    assert "0 instances: none" in text


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("magpie", ("answers            4, 2.00 for each instruction that has one", "1 by later steps: takes_leave 1")),
        ("evol", ("answers            2\n", "1 by later steps: no_information_gain 1", "compare          read 2, ")),
        ("backtranslate", ("1 by later steps: low_score 1", "score            read 2, rejected 1")),
    ],
)
def test_status_says_what_the_steps_did(tmp_path: Path, name: str, lines: tuple[str, ...]) -> None:
    text = render(status(make_method_run(tmp_path / "run", name)))
    for line in lines:
        assert line in text, line


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_a_report_names_the_method_and_has_no_section_of_another(tmp_path: Path, name: str) -> None:
    text = page(make_method_run(tmp_path / "run", name), tmp_path / "r.html")
    seen = visible(text)
    assert f"written by some-model , method {name}; page of" in seen
    assert "What the steps did" in seen
    for foreign in (*OF_SELF_INSTRUCT, "Classification", "not classification", "list style", "max instances"):
        assert foreign not in seen, foreign
    assert ("ROUGE-L to the nearest seed task" in seen) == (name in {"self-instruct-chat", "evol"})
    assert ('"c":' in text) is False


def test_a_report_of_self_instruct_has_its_sections(tmp_path: Path) -> None:
    seen = visible(page(make_run(tmp_path / "run", numbered(4)), tmp_path / "r.html"))
    assert "What the steps did" not in seen
    for own in ("preset default; page of", "Beside the original study", "Classification", "not classification"):
        assert own in seen, own


def test_a_report_counts_turns_operations_and_scores(tmp_path: Path) -> None:
    chats = page(make_method_run(tmp_path / "magpie", "magpie"), tmp_path / "1.html")
    assert "Turns 2.00 each on average, 3 at most" in visible(chats)
    assert "Kept by topic" in chats
    assert json.dumps(CHAT[2].assistant) in chats
    evolved = visible(page(make_method_run(tmp_path / "evol", "evol"), tmp_path / "2.html"))
    assert "Kept by operation" in evolved
    assert "deepen 2 concretise 1" in evolved
    scored = visible(page(make_method_run(tmp_path / "back", "backtranslate"), tmp_path / "3.html"))
    assert "Labels of the step score" in scored
    assert "Document length" in scored


def test_different_values_are_counted_up_to_a_bound() -> None:
    counters: dict[str, Counter[str]] = {}
    for number in range(3 * MOST_VALUES):
        _count(counters, {"topic": f"topic {number}"})
    counts = counters["topic"]
    assert len(counts) == MOST_VALUES + 1
    assert counts[OTHER_VALUES] == 2 * MOST_VALUES


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_the_live_page_names_the_method(tmp_path: Path, name: str) -> None:
    follower = Follower(make_method_run(tmp_path / "run", name))
    while follower.read_more():
        pass
    shown = pieces(follower, None, is_running=False)
    assert shown[STATE] == f"method {name}: the run is complete"
    assert "lassification" not in "".join(shown.values())


def test_metrics_name_the_method_where_it_is_not_self_instruct() -> None:
    assert "method" not in Sample().as_dict()
    sample = Sample(method="evol")
    assert Sample.from_dict(json.loads(sample.as_line())).method == "evol"
