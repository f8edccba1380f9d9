r"""Read answers that are JSON or a Markdown table instead of the text that was asked for.

Both become records: the name of each field, in lower case, and the span of its value. A span holds a value as it is
written, so a JSON string with escapes (``\n``, ``\"``) is left out. Nothing raises, and everything takes time linear in
the answer. One of more than 200,000 characters is not read.
"""

from __future__ import annotations

import json
import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from fastgen.text import NOWHERE, lines, trim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.types import Span


NUMBER_NAMES: Final = frozenset({"#", "no", "no.", "nr", "nr.", "number", "id", "example", "\u2116"})
"""Names of values that only count the records."""
Record = dict[str, "Span"]
"""Values by name; the elements of a plain list are records with the one name ``""``."""

_LONGEST: Final = 200_000  # characters; longer answers of models repeat themselves
_JSON_FENCE: Final = re.compile(r"```(?:json)?[ \t\r]*\n(?=\s*+[\[{])", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r'"(?P<string>(?:[^"\\]++|\\.)*+)"|(?P<mark>[\[\]{}:])|(?P<plain>[^\s"\[\]{}:,]++)', re.DOTALL
)
_ROW: Final = re.compile(r"[ \t]*+\|")
_RULE_ROW: Final = re.compile(r"[ \t]*+\|(?:[ \t]*+:?-++:?[ \t]*+\|)++[ \t\r]*+$")
_CELL: Final = re.compile(r"(?:[^|\\]++|\\.)*+", re.DOTALL)


def read_records(text: str, answer: Span) -> list[Record]:
    """Return the records of an answer that is JSON (also in a code fence) or has a Markdown table. Else nothing."""
    start, end = trim(text, *answer)
    if end - start > _LONGEST:
        return []
    if text.startswith(("[", "{"), start, end):
        return _json_records(text, (start, end))
    if fence := _JSON_FENCE.search(text, start, end):
        closed = text.find("```", fence.end(), end)
        return _json_records(text, (fence.end(), closed)) if closed >= 0 else []
    return list(_table_records(text, (start, end)))


def _json_records(text: str, region: Span) -> list[Record]:
    try:
        json.loads(text[slice(*region)])
    except (ValueError, RecursionError):
        return []
    records: list[Record] = []
    containers: list[Record | None] = []  # those that are open; None for a list
    name = ""
    tokens = list(_TOKEN.finditer(text, *region))
    for token, following in zip_longest(tokens, tokens[1:]):
        if token["mark"] == "{":
            record: Record = {}
            records.append(record)
            containers.append(record)
        elif token["mark"] == "[":
            containers.append(None)
        elif token["mark"] in ("]", "}"):
            containers.pop()
        elif token["mark"]:  # a colon
            continue
        elif following is not None and following["mark"] == ":":
            name = token["string"].strip().lower().replace("_", " ")
        elif "\\" not in token[0]:
            value = trim(text, *token.span("string" if token["plain"] is None else "plain"))
            value = NOWHERE if token["plain"] == "null" else value
            within = containers[-1] if containers else None
            if within is None:
                records.append({"": value})
            else:
                within[name] = value
    return records


def _table_records(text: str, region: Span) -> Iterator[Record]:
    """Yield the rows of all tables: a row of names, a row of dashes, rows of values."""
    names: list[str] = []
    previous: list[Span] = []
    for line in lines(text, *region):
        if not _ROW.match(text, *line):
            names, previous = [], []
        elif _RULE_ROW.match(text, *line):
            names = [text[slice(*cell)].strip("* \t").lower() for cell in previous]
        else:
            previous = list(_cells(text, line))
            if names:
                yield dict(zip(names, previous, strict=False))


def _cells(text: str, line: Span) -> Iterator[Span]:
    """Yield the cells of a row. What is cut before its closing bar is no cell."""
    at = text.index("|", *line) + 1
    while (cell := _CELL.match(text, at, line[1])) and cell.end() < line[1]:
        yield trim(text, *cell.span())
        at = cell.end() + 1
