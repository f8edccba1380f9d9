"""The messages of ``docs/troubleshooting.md`` are those of the source, word for word."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Final

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE: Final = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES: Final = tuple(re.findall(r"^### (.*)\n\n((?:(?!^##).*\n?)*)", PAGE, re.MULTILINE))
"""Heading and text of each message."""
HOLE: Final = "\0"
"""What an f-string fills in."""


@cache
def _texts() -> str:
    """Every string of the source, one a line, with holes."""
    found: list[str] = []
    for path in sorted((ROOT / "fastgen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr(values=parts):
                    found.append("".join(_constant(part) for part in parts))
                case ast.Constant(value=str(text)):
                    found.append(text)
    return "\n".join(text.replace("\n", " ") for text in found)


def _constant(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else HOLE


def _message(heading: str) -> str:
    """The message of an entry is the code in its heading."""
    match = re.match("`([^`]+)`", heading)
    assert match is not None, heading
    return match[1]


def _is_in_the_source(message: str) -> bool:
    """Whether a string of the source has this message, with a hole or more for each ellipsis."""
    pieces = [re.escape(piece) for piece in message.split("…")]
    between = rf"[^\n]*{HOLE}[^\n]*"
    return re.search(between.join(pieces).removeprefix(between).removesuffix(between), _texts()) is not None


@pytest.mark.parametrize(("heading", "text"), ENTRIES, ids=[heading.strip("`")[:50] for heading, _ in ENTRIES])
def test_each_message_is_in_the_source(heading: str, text: str) -> None:
    assert text.strip(), "says nothing"
    assert _is_in_the_source(_message(heading))


def test_there_are_twenty_and_none_twice() -> None:
    messages = [_message(heading) for heading, _ in ENTRIES]
    assert len(messages) >= 20
    assert len(set(messages)) == len(messages)


def test_a_message_that_the_source_does_not_have_is_noticed() -> None:
    assert not _is_in_the_source("the server does not speak TLS; begin the URL with gopher://")
    assert not _is_in_the_source("did not start … (--server-timeout)")
