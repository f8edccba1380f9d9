"""The language of users' pages: short sentences and common words.

``python -m tests.docs.test_language PAGE...`` prints the figures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, USER_PAGES, name_of, prose

HIGHEST_GRADE = 9.0
"""Flesch-Kincaid: the years of school that a reader needs."""
LONGEST_MEAN_SENTENCE = 17.0
MOST_LINES_OF_THE_FIRST_PAGE = 150


@dataclass(frozen=True, slots=True)
class Language:
    """Figures of a page's prose. ``sentence`` is the mean number of words in a sentence."""

    grade: float
    sentence: float


def language(text: str) -> Language:
    """Measure a text of one paragraph a line."""
    textstat = pytest.importorskip("textstat")
    sentences = textstat.sentence_count(text)
    return Language(textstat.flesch_kincaid_grade(text), textstat.lexicon_count(text) / sentences)


@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_users_pages_are_easy_to_read(page: Path) -> None:
    found = language(prose(page.read_text(encoding="utf-8")))
    assert found.grade <= HIGHEST_GRADE
    assert found.sentence <= LONGEST_MEAN_SENTENCE


def test_the_first_page_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES_OF_THE_FIRST_PAGE


def test_a_hard_text_is_noticed() -> None:
    hard = (
        "Notwithstanding considerable heterogeneity regarding infrastructural prerequisites, "
        "administrators occasionally underestimate organisational interdependencies."
    )
    assert language(hard).grade > HIGHEST_GRADE


def test_code_headings_and_links_are_no_prose_but_cells_are() -> None:
    table = "| a | b |\n|---|---|\n| one two three four five six | short |\n"
    page = f"# Title\n\nRun `--base-url` at [the server](x.md).\n\n```\nfastgen x\n```\n\n::: x\n    y: z\n\n{table}"
    assert prose(page) == "Run base url at the server.\none two three four five six."


if __name__ == "__main__":
    for name in sys.argv[1:]:
        measured = language(prose(Path(name).read_text(encoding="utf-8")))
        print(f"{name}: grade {measured.grade:.1f}, {measured.sentence:.1f} words a sentence")  # noqa: T201 - the output
