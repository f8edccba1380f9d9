"""Two models' answers side by side, blind: for people who rate them without knowing whose they are.

Which answer comes first is drawn for each task and the tasks are shuffled, both keyed by a seed; ``key.json`` tells who
is who and stays with whoever tallies. Written as JSON lines and as CSV with empty columns to fill in. Texts are
hostile: nothing is HTML, and a CSV cell that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path

import orjson

from fastgen.evaluation.comparison import pair
from fastgen.evaluation.results import Prediction, Results, write_file
from fastgen.outputs import json_line

SHEET, TABLE, KEY = "side_by_side.jsonl", "side_by_side.csv", "key.json"
_COLUMNS = ("number", "instruction", "input", "response_1", "response_2", "rating_1", "rating_2")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_side_by_side(a: Results, b: Results, folder: Path, *, seed: int = 0) -> int:
    """Write the three files; how many tasks they hold.

    :raises InputError: the two have not the same instances. :raises DiskError: the folder cannot be written.
    """
    pairs = pair(a, b)
    draw = random.Random(seed)
    draw.shuffle(pairs)
    swapped = [draw.random() < 0.5 for _ in pairs]  # noqa: PLR2004 - a coin
    rows = [_row(number, *one, swap=swap) for number, (one, swap) in enumerate(zip(pairs, swapped, strict=True), 1)]
    write_file(folder / SHEET, b"".join(map(json_line, rows)))
    write_file(folder / TABLE, _csv(rows).encode("utf-8-sig"))  # the mark tells spreadsheets that it is UTF-8
    key = {
        "a": a.model,
        "b": b.model,
        "tasks": [
            {"number": number, "id": one.id, "response_1": "b" if swap else "a", "response_2": "a" if swap else "b"}
            for number, ((one, _), swap) in enumerate(zip(pairs, swapped, strict=True), 1)
        ],
    }
    write_file(folder / KEY, orjson.dumps(key, option=orjson.OPT_INDENT_2))
    return len(rows)


def _row(number: int, a: Prediction, b: Prediction, *, swap: bool) -> dict[str, object]:
    first, second = (b, a) if swap else (a, b)
    return {
        "number": number,
        "instruction": a.definition,
        "input": a.input,
        "response_1": first.text,
        "response_2": second.text,
    }


def _csv(rows: Sequence[dict[str, object]]) -> str:
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, _COLUMNS, restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return sheet.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
