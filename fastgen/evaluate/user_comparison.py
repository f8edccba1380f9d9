"""``--compare`` of two models on the user-oriented tasks: blind sheets for people, and the grades of a judge model.

For people the answers are side by side. Which one comes first is drawn for each task, and the tasks are shuffled, both
from a seed. ``key.json`` says whose is whose and stays with the person who tallies. Answers are hostile text: a CSV
cell that a spreadsheet would read as a formula begins with an apostrophe.

The judge grades each answer A to D (Wang et al., ACL 2023, section 5.4). The graded text is between lines with a mark
that is derived from it and that it does not contain, so it cannot close its frame. Marks of chat templates in it
are broken. A grade is the judge's whole answer: one JSON object with one of the four letters. Anything else counts as
unreadable and is never guessed at. Its answers are logged in ``grades/`` of the output, so an interrupted grading
resumes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.engine.health import Step
from fastgen.errors import InputError
from fastgen.evaluate.options import JudgeModelOptions
from fastgen.evaluate.results import Prediction, Results, markdown, pair, write_file, write_json
from fastgen.evaluate.run import ask_all
from fastgen.evaluate.scoring import Interval, interval, interval_of_difference
from fastgen.generate.batch import Prompt, Question
from fastgen.generate.options import AskSpeed, ServerOptions
from fastgen.servers.endpoint import Api
from fastgen.store.output import json_line
from fastgen.telemetry.progress import Reporter
from fastgen.text import parse_json_object, without_template_marks
from fastgen.types import Message, Sampling

SHEET, TABLE, KEY, GRADES_FILE = "side_by_side.jsonl", "side_by_side.csv", "key.json", "grades.json"
_COLUMNS: Final = ("number", "instruction", "input", "response_1", "response_2", "rating_1", "rating_2")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_SEED: Final = 0

GRADES: Final = ("A", "B", "C", "D")
RATING_FORM: Final = "grade-abcd/2"
"""Changes with the prompt and with how its answers are read."""
SAMPLING: Final = Sampling(temperature=0.0, top_p=1.0, max_tokens=24)
SCHEMA: Final = {
    "type": "object",
    "properties": {"grade": {"type": "string", "enum": list(GRADES)}},
    "required": ["grade"],
    "additionalProperties": False,
}
RESPONSE_FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": SCHEMA}}
"""Asks servers that support it for such an object only; answers are checked in any case."""
_MOST_CHARACTERS: Final = 6000
_FLAG: Final = re.compile(r"--(?=(?:base-url|model|api|api-key-env|api-key-file|thinking|extra-body)\b)")

Pairs = Sequence[tuple[Prediction, Prediction]]


def compare_user_oriented(
    a: Results,
    b: Results,
    output: Path,
    judge: JudgeModelOptions,
    speed: AskSpeed,
    reporter: Reporter,
    *,
    server_timeout: float,
    cache_dir: Path,
    api_key: str | None,
) -> str | None:
    """Write the sheets, ask the judge if there is one, and describe the result.

    Returns ``None`` if the user stopped it.

    ``server_timeout``: seconds to wait until the judge's server answers.

    :raises InputError: not the same instances, or the judge's server refuses. :raises StoppedError: it is gone.
    """
    pairs = pair(a, b)
    _write_side_by_side(a.model, b.model, pairs, output)
    said = (
        f"{len(pairs)} tasks side by side, blind, in {output} (side_by_side.csv and .jsonl; key.json says whose is "
        f"whose)"
    )
    if not judge.judge_base_url:
        return said
    if missing := [one.id for one, _ in pairs if not one.references]:
        raise InputError(f"{missing[0]}: has no reference answer; run the same 'fastgen evaluate' again")
    api = judge.judge_api
    answers = [one for both in pairs for one in both]
    with _flags_of_the_judge():
        own = ServerOptions(extra_body=judge.judge_extra_body).extra_fields()
    body = orjson.dumps({"response_format": RESPONSE_FORMAT} | own).decode()
    options = judge.as_ask_options(body, server_timeout).options(speed)
    with _flags_of_the_judge():
        graded = ask_all(
            [Question(i, rating_prompt(one, one.references[0], api), SAMPLING) for i, one in enumerate(answers)],
            {"form": RATING_FORM, "api": api, "answers": _digest(answers)},
            output / "grades",
            options,
            reporter,
            cache_dir=cache_dir,
            api_key=api_key,
            is_unreadable=lambda reply: read_grade(reply.text) is None,
            step=Step(
                "grading",
                api=api,
                api_flag="--judge-api",
                tokens_flag="max_tokens in --judge-extra-body",
                thinking_flag="--judge-thinking",
                is_thinking_off=judge.judge_thinking == "off",
                others="another --judge-model",
                anew=" (with another --output)",
            ),
        )
    if graded is None:
        return None
    name, replies = graded
    grades = [read_grade(reply.text) for reply in replies]
    figures = _figures(name, (a.model, b.model), (grades[0::2], grades[1::2]))
    table = _render(figures)
    write_json(output / GRADES_FILE, figures)
    write_file(output / "grades.md", f"{table}\n".encode())
    return f"{said}\n\n{table}"


@contextmanager
def _flags_of_the_judge() -> Iterator[None]:
    """Input errors name the judge's flags: ``--model`` becomes ``--judge-model``."""
    try:
        yield
    except InputError as error:
        raise type(error)(_FLAG.sub("--judge-", str(error))) from None


def _digest(answers: Sequence[Prediction]) -> str:
    digest = hashlib.sha256()
    for one in answers:
        digest.update("\0".join((one.id, one.definition, one.input, one.text, *one.references, "")).encode())
    return digest.hexdigest()


def _write_side_by_side(model_a: str, model_b: str, pairs: Pairs, folder: Path) -> None:
    """Write the two sheets and the key.

    :raises DiskError: the folder cannot be written.
    """
    draw = random.Random(_SEED)
    shuffled = list(pairs)
    draw.shuffle(shuffled)
    rows, tasks = [], []
    for number, (a, b) in enumerate(shuffled, 1):
        sides = {"a": a.text, "b": b.text}
        first, second = ("b", "a") if draw.random() < 0.5 else ("a", "b")  # noqa: PLR2004 - a coin
        shown = {"number": number, "instruction": a.definition, "input": a.input}
        rows.append(shown | {"response_1": sides[first], "response_2": sides[second]})
        tasks.append({"number": number, "id": a.id, "response_1": first, "response_2": second})
    write_file(folder / SHEET, b"".join(map(json_line, rows)))
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, _COLUMNS, restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_file(folder / TABLE, sheet.getvalue().encode("utf-8-sig"))  # the mark tells spreadsheets that it is UTF-8
    write_json(folder / KEY, {"a": model_a, "b": model_b, "tasks": tasks})


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def rating_prompt(prediction: Prediction, reference: str, api: Api) -> Prompt:
    """The judge's prompt for one answer. Texts of more than 6,000 characters lose their end."""
    texts = {
        "instruction": prediction.definition,
        "input": prediction.input or "(none)",
        "reference": reference,
        "response": prediction.text or "(empty)",
    }
    cut = {name: without_template_marks(text[:_MOST_CHARACTERS]) for name, text in texts.items()}
    prompt = _template().format(mark=_mark(cut.values()), **cut)
    return (Message("user", prompt),) if api == "chat" else prompt + "\n"


@cache
def _template() -> str:
    return (files("fastgen.evaluate") / "rating_prompt.txt").read_text(encoding="utf-8")


def _mark(texts: Iterable[str]) -> str:
    """A line that none of the texts contains, the same for the same texts."""
    joined = "\0".join(texts)
    mark = joined
    while mark in joined:
        mark = f"=={hashlib.sha256(mark.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}=="
    return mark


def read_grade(text: str) -> str | None:
    """The grade in a judge's answer. ``None`` unless the whole answer is one object with nothing but a grade."""
    answer = parse_json_object(text)
    if answer is None or answer.keys() != {"grade"}:
        return None
    grade = answer["grade"]
    return grade if isinstance(grade, str) and grade in GRADES else None


Grades = Sequence[str | None]
"""Task by task; ``None`` is an unreadable answer of the judge."""


def _figures(judge: str, models: Sequence[str], grades: tuple[Grades, Grades]) -> dict[str, Any]:
    """The content of grades.json. Differences are B minus A, in percentage points."""
    return {
        "judge": judge,
        "form": RATING_FORM,
        "models": [
            {
                "model": model,
                "grades": {**{grade: each.count(grade) for grade in GRADES}, "unreadable": each.count(None)},
                "each": each,
            }
            for model, each in zip(models, grades, strict=True)
        ],
        "difference_A": _difference(*grades, good="A"),
        "difference_A_or_B": _difference(*grades, good="AB"),
    }


def _difference(a: Grades, b: Grades, *, good: str) -> Interval:
    """Of the share of tasks with one of the grades in ``good``, over tasks where both grades are readable."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        return Interval(0.0, 0.0, 0.0)
    of_a, of_b = ([float(grade in good) for grade in grades] for grades in zip(*pairs, strict=True))
    return interval_of_difference([of_a], [of_b])


def _render(figures: Mapping[str, Any]) -> str:
    rows = []
    for name, one in zip("AB", figures["models"], strict=True):
        readable = [grade for grade in one["each"] if grade is not None]
        shares = [str(interval([[float(g in good) for g in readable]])) if readable else "-" for good in ("A", "AB")]
        rows.append((f"{name}: {one['model']}", *map(str, one["grades"].values()), *shares))
    lines = [f"Graded by {figures['judge']} ({len(figures['models'][0]['each'])} tasks)", ""]
    lines += markdown(("model", *GRADES, "unreadable", "share of A", "A or B"), rows)
    for field, shown in (("difference_A", "A"), ("difference_A_or_B", "A or B")):
        lines += ["", f"Share graded {shown}, B - A: {figures[field].signed()} points"]
    return "\n".join(lines)
