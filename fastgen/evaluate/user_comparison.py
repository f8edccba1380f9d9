"""A judge model's grades, A to D, of the answers to user-oriented tasks (Wang et al., ACL 2023, section 5.4).

The graded text is hostile. It stands between lines with a mark that is derived from it and that it does not contain, so
it cannot close its frame, and chat templates' marks in it are broken; and a grade is only what the judge's whole answer
is: one JSON object with one of the four letters. Anything else counts as unreadable and is never guessed at. Pure.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.engine.health import Step
from fastgen.errors import InputError
from fastgen.evaluate.options import JudgeModelOptions
from fastgen.evaluate.results import Prediction, Results, markdown, pair, plain_interval, write_file
from fastgen.evaluate.run import Ask, ask_all, replies_by_number
from fastgen.evaluate.scoring import Interval, interval, interval_of_difference
from fastgen.generate.batch import Prompt, Question, read_meaning
from fastgen.generate.options import AskSpeed, Options, ServerOptions
from fastgen.servers.endpoint import Api
from fastgen.store.output import json_line
from fastgen.telemetry.progress import Reporter
from fastgen.text import whole_object, without_template_marks
from fastgen.types import Message, Sampling

GRADES: Final = ("A", "B", "C", "D")
RATING_FORM: Final = "grade-abcd/2"
"""Changes whenever the prompt or its reading does."""
SAMPLING: Final = Sampling(temperature=0.0, top_p=1.0, max_tokens=24)
SCHEMA: Final = {
    "type": "object",
    "properties": {"grade": {"type": "string", "enum": list(GRADES)}},
    "required": ["grade"],
    "additionalProperties": False,
}
RESPONSE_FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": SCHEMA}}
"""Asks servers that can for nothing but such an object; what comes back is checked all the same."""
_MOST_CHARACTERS: Final = 6000


@dataclass(frozen=True, slots=True)
class Graded:
    """One model's grades, task by task; ``None`` is an answer of the judge that could not be read."""

    model: str
    grades: tuple[str | None, ...]

    @property
    def counts(self) -> Counter[str | None]:
        """How often each grade was given."""
        return Counter(self.grades)


@dataclass(frozen=True, slots=True)
class GradeComparison:
    """Two models' grades of the same tasks in the same order, by one judge."""

    judge: str
    a: Graded
    b: Graded

    def difference(self, good: str) -> Interval:
        """B minus A of the share (percentage points) of tasks with one of the grades in ``good``; over all readable."""
        pairs = [(x, y) for x, y in zip(self.a.grades, self.b.grades, strict=True) if x is not None and y is not None]
        if not pairs:
            return Interval(0.0, 0.0, 0.0)
        of_a, of_b = ([float(grade in good) for grade in grades] for grades in zip(*pairs, strict=True))
        return interval_of_difference([of_a], [of_b])

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "judge": self.judge,
            "form": RATING_FORM,
            "models": [
                {"model": g.model, "grades": _named(g.counts), "each": list(g.grades)} for g in (self.a, self.b)
            ],
            "difference_A": plain_interval(self.difference("A")),
            "difference_A_or_B": plain_interval(self.difference("AB")),
        }

    def __str__(self) -> str:
        rows = [(name, *_cells(g)) for name, g in (("A: " + self.a.model, self.a), ("B: " + self.b.model, self.b))]
        lines = [f"Graded by {self.judge} ({len(self.a.grades)} tasks)", ""]
        lines += markdown(("model", *GRADES, "unreadable", "share of A", "A or B"), rows)
        for good, shown in (("A", "A"), ("AB", "A or B")):
            d = self.difference(good)
            lines += ["", f"Share graded {shown}, B - A: {d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}] points"]
        return "\n".join(lines)


def rating_prompt(prediction: Prediction, reference: str, api: Api) -> Prompt:
    """The judge's prompt for one answer; over-long texts lose their end."""
    texts = {
        "instruction": prediction.definition,
        "input": prediction.input or "(none)",
        "reference": reference,
        "response": prediction.text or "(empty)",
    }
    cut = {name: without_template_marks(text[:_MOST_CHARACTERS]) for name, text in texts.items()}
    prompt = _template().format(mark=_mark(cut.values()), **cut)
    return (Message("user", prompt),) if api == "chat" else prompt + "\n"


def read_grade(text: str) -> str | None:
    """The grade in a judge's answer; ``None`` unless the whole answer is one object with nothing but a grade."""
    answer = whole_object(text)
    if answer is None or answer.keys() != {"grade"}:
        return None
    grade = answer["grade"]
    return grade if isinstance(grade, str) and grade in GRADES else None


def _mark(texts: Iterable[str]) -> str:
    """A line that none of the texts contains, the same for the same texts."""
    joined = "\0".join(texts)
    mark = joined
    while mark in joined:
        mark = f"=={hashlib.sha256(mark.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}=="
    return mark


@cache
def _template() -> str:
    return (files("fastgen.evaluate") / "rating_prompt.txt").read_text(encoding="utf-8")


def _named(counts: Counter[str | None]) -> dict[str, int]:
    return {**{grade: counts[grade] for grade in GRADES}, "unreadable": counts[None]}


def _cells(graded: Graded) -> Sequence[str]:
    counts = graded.counts
    readable = [grade for grade in graded.grades if grade is not None]
    shares = [
        str(interval([[float(grade in good) for grade in readable]])) if readable else "-" for good in ("A", "AB")
    ]
    return (*(str(counts[grade]) for grade in GRADES), str(counts[None]), *shares)


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


_SIDES = 2
_FLAG = re.compile(r"--(?=(?:base-url|model|api|api-key-env|api-key-file|extra-body)\b)")


@dataclass(frozen=True, slots=True)
class Judge:
    """Who grades, with what key and how fast; ``server_timeout``: seconds to wait until the server answers."""

    options: JudgeModelOptions
    speed: AskSpeed
    server_timeout: float
    api_key: str | None
    cache_dir: Path


def compare_user_oriented(a: Results, b: Results, output: Path, judge: Judge | None, reporter: Reporter) -> str | None:
    """Write the sheets, ask the judge, and say what there is now; ``None``: the user stopped it, and it can go on.

    :raises InputError: not the same instances, or the judge's server refuses. :raises StoppedError: it is gone.
    """
    count = write_side_by_side(a, b, output)
    said = f"{count} tasks side by side, blind, in {output} (side_by_side.csv and .jsonl; key.json says whose is whose)"
    if judge is None:
        return said
    graded = _grade(a, b, output, judge, reporter)
    if graded is None:
        return None
    write_file(output / "grades.json", orjson.dumps(graded.as_dict(), option=orjson.OPT_INDENT_2))
    write_file(output / "grades.md", f"{graded}\n".encode())
    return f"{said}\n\n{graded}"


def _grade(a: Results, b: Results, output: Path, judge: Judge, reporter: Reporter) -> GradeComparison | None:
    pairs = pair(a, b)
    if missing := [one.id for one, _ in pairs if not one.references]:
        raise InputError(f"{missing[0]}: has no reference answer; run 'fastgen evaluate' again into the folder")
    api = judge.options.judge_api
    folder = output / "grades"
    questions = [
        Question(_SIDES * place + side, rating_prompt(one, one.references[0], api), SAMPLING)
        for place, both in enumerate(pairs)
        for side, one in enumerate(both)
    ]
    ask = Ask(
        folder=folder,
        questions=questions,
        meaning=_meaning(pairs, api),
        options=_options(judge),
        cache_dir=judge.cache_dir,
        api_key=judge.api_key,
        is_unreadable=lambda reply: read_grade(reply.text) is None,
        step=Step(
            "grading",
            api=api,
            api_flag="--judge-api",
            tokens_flag="max_tokens in --judge-extra-body",
            body_flag="--judge-extra-body",
            others="another --judge-model",
            anew=" (with another --output)",
        ),
    )
    with _named_for_the_judge():
        if not ask_all(ask, reporter):
            return None
    replies = replies_by_number(folder)
    grades = [read_grade(replies[number].text) for number in range(len(questions))]
    name = str((read_meaning(folder) or {}).get("model", ""))
    return GradeComparison(name, Graded(a.model, tuple(grades[0::_SIDES])), Graded(b.model, tuple(grades[1::_SIDES])))


def _options(judge: Judge) -> Options:
    with _named_for_the_judge():
        own = ServerOptions(extra_body=judge.options.judge_extra_body).extra_fields()
    body = orjson.dumps({"response_format": RESPONSE_FORMAT} | own).decode()
    return judge.options.as_ask_options(body, judge.server_timeout).options(judge.speed)


@contextmanager
def _named_for_the_judge() -> Iterator[None]:
    """Input errors name the flag that the judge's user gave: ``--model`` is ``--judge-model``."""
    try:
        yield
    except InputError as error:
        raise type(error)(_FLAG.sub("--judge-", str(error))) from None


def _meaning(pairs: Sequence[tuple[Prediction, Prediction]], api: Api) -> dict[str, Any]:
    """What the grades are of, beside the judge."""
    digest = hashlib.sha256()
    for both in pairs:
        for one in both:
            digest.update("\0".join((one.id, one.definition, one.input, one.text, *one.references, "")).encode())
    return {"form": RATING_FORM, "api": api, "answers": digest.hexdigest()}
