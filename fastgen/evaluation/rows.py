"""JSON lines and JSON arrays as numbered objects: every defect is one line that names file and line. No more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import orjson

from fastgen.errors import InputError

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number, object) of each row: the line's number of JSON lines, the place in one JSON array, both from 1.

    JSON lines are read one at a time, an array as a whole. Blank lines are passed over.

    :raises InputError: unreadable, or not JSON objects.
    """
    try:
        with path.open("rb") as file:
            yield from _rows(path, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file of JSON lines") from None


def text_of(row: Row, field: str, where: str) -> str:
    """The row's text under ``field``.

    :raises InputError: there is none.
    """
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is missing or no text; add it")
    return value


def _rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith(b"["):
        values = _parse(b"".join((first[1], *(line for _, line in lines))), str(path))
        yield from ((number, _object(value, f"{path}: row {number}")) for number, value in enumerate(values, start=1))
        return
    for number, line in chain((first,), lines):
        yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _parse(text: bytes, where: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: broken JSON ({error.msg}); mend or remove it") from None


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed")
    return value
