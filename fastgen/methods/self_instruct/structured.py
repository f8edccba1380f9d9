r"""Read answers that are JSON or a Markdown table instead of the text that was asked for.

Both become records: name of the field, in lower case, to where its value is. Guarantees: never raises; takes time
linear in the answer (one of more than 200,000 characters is not read); a span holds a value as it is written. A JSON
string with escapes (``\n``, ``\"``) is therefore left out: its text is not a part of the completion. Knows nothing of
what the fields mean.
"""

from __future__ import annotations

import json
import re
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Final

from fastgen.text import NOWHERE, lines, trim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.types import Span


NUMBER_NAMES: Final = frozenset({"#", "no", "no.", "nr", "nr.", "number", "id", "example", "\u2116"})
"""Names of values that only count the records."""
Record = dict[str, "Span"]
"""Values by name; the elements of a plain list are records with the one name ``""``."""

_LONGEST: Final = 200_000  # characters; no answer of a model is that long, unless it repeats itself
_JSON_FENCE: Final = re.compile(r"```(?:json)?[ \t\r]*\n(?=\s*+[\[{])", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r'"(?P<string>(?:[^"\\]++|\\.)*+)"|(?P<mark>[\[\]{}:])|(?P<plain>[^\s"\[\]{}:,]++)', re.DOTALL
)
_ROW: Final = re.compile(r"[ \t]*+\|")
_RULE_ROW: Final = re.compile(r"[ \t]*+\|(?:[ \t]*+:?-++:?[ \t]*+\|)++[ \t\r]*+$")
_CELL: Final = re.compile(r"(?:[^|\\]++|\\.)*+", re.DOTALL)


def read_records(text: str, answer: Span) -> list[Record]:
    """Return the records of an answer that is JSON (also in a code fence) or has a Markdown table; else nothing."""
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
    open_records: list[Record | None] = []  # None for a list
    name = ""
    for token, following in pairwise(chain(_TOKEN.finditer(text, *region), [None])):
        if token is None:  # never: the last token is no first of a pair
            break
        if token["mark"]:
            _open_or_close(token["mark"], open_records, records)
        elif following is not None and following["mark"] == ":":
            name = token["string"].strip().lower().replace("_", " ")
        elif "\\" not in token[0]:
            value = trim(text, *token.span("string" if token["plain"] is None else "plain"))
            _put(NOWHERE if token["plain"] == "null" else value, name, open_records, records)
    return records


def _open_or_close(mark: str, open_records: list[Record | None], records: list[Record]) -> None:
    if mark == "{":
        record: Record = {}
        records.append(record)
        open_records.append(record)
    elif mark == "[":
        open_records.append(None)
    elif mark in "]}":
        open_records.pop()


def _put(value: Span, name: str, open_records: list[Record | None], records: list[Record]) -> None:
    record = open_records[-1] if open_records else None
    if record is None:
        records.append({"": value})
    else:
        record[name] = value


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
    """Yield the cells of a row; what is cut before its closing bar is no cell."""
    at = text.index("|", *line) + 1
    while (cell := _CELL.match(text, at, line[1])) and cell.end() < line[1]:
        yield trim(text, *cell.span())
        at = cell.end() + 1
