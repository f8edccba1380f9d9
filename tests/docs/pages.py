"""The pages that users read, taken apart: the shell commands in them, and their prose."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
USER_PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
"""Without ``docs/development/``, which is for developers."""
ALL_PAGES = (*USER_PAGES, *sorted((DOCS / "development").glob("*.md")), ROOT / "CONTRIBUTING.md")
_FENCE = re.compile(r"^([ ]*)(`{3,}|~{3,})([^\n]*)\n(.*?)^[ ]*\2[ ]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DIRECTIVE = re.compile(r"^:::.*\n(?:[ ]{4}.*\n)*", re.MULTILINE)
_TAG = re.compile(r"</?[a-z][^>\n]*>")
_LIST_ITEM = re.compile(r"([-*+]|\d+\.)\s+")
_NO_PROSE = ("#", "!!!", "???", "---", "===")
_FEWEST_WORDS_OF_A_CELL = 6
SHELL_LANGUAGES = {"", "sh", "bash", "shell", "console"}


@dataclass(frozen=True, slots=True)
class Command:
    """One shell command of a page. ``line`` counts from 1."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> tuple[str, ...]:
        """What a shell would pass on, without a comment and the ellipsis of a shortened command."""
        words = shlex.split(self.text, comments=True)
        return tuple(word for word in words if word not in {"…", "...", "&"})


def name_of(page: Path) -> str:
    """``docs/filter.md``."""
    return page.relative_to(ROOT).as_posix()


def shell_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The line of each block of shell commands, and its text. Blocks of other languages are left out."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if match[3].strip() in SHELL_LANGUAGES:
            yield text.count("\n", 0, match.start()) + 2, match[4]


def commands(page: Path) -> Iterator[Command]:
    """Each command of the page's shell blocks. ``&&`` separates commands, a backslash joins lines."""
    for first, block in shell_blocks(page):
        joined = block.replace("\\\n", "  ")
        for offset, line in enumerate(joined.splitlines()):
            for part in line.split(" && "):
                if part.strip() and not part.strip().startswith("#"):
                    yield Command(name_of(page), first + offset, part.strip())


def prose(text: str) -> str:
    """The sentences of a page, one paragraph a line, without headings, code blocks and markup.

    The cells of tables count where they have six words or more. Code within a sentence counts by its letters, so that
    ``--base-url`` is the two words that a reader speaks.
    """
    for markup in (_FENCE, _COMMENT, _DIRECTIVE, _TAG):
        text = markup.sub(" ", text)
    return "\n".join(filter(None, map(_plain, _paragraphs(text))))


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in (*map(str.strip, text.splitlines()), ""):
        item = _LIST_ITEM.match(line)
        if lines and (not line or item or line.startswith(("|", *_NO_PROSE))):
            yield " ".join(lines)
            lines = []
        if line.startswith("|"):
            cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            yield from (cell for cell in cells if len(cell.split()) >= _FEWEST_WORDS_OF_A_CELL)
        elif line and not line.startswith(_NO_PROSE):
            lines.append(line[item.end() :] if item else line)


def _plain(paragraph: str) -> str:
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", paragraph)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(`+)(.+?)\1", lambda code: re.sub(r"[^A-Za-z0-9]+", " ", code[2]).strip(), text)
    text = re.sub(r"https?://\S+", "link", text).replace("*", "").strip()
    if not re.search(r"[A-Za-z]", text):
        return ""
    text = re.sub(r"[:;,]$", ".", text)
    return text if text[-1] in ".!?" else f"{text}."
