"""``--compare`` of two models on the user-oriented tasks: sheets for people, and the grades of a judge model.

The judge's answers are logged in the folder ``grades`` of the output, so grading goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastgen.asking.asker import Question, read_meaning
from fastgen.asking.options import AskSpeed
from fastgen.backends.endpoint import Api
from fastgen.errors import InputError
from fastgen.evaluation.comparison import pair
from fastgen.evaluation.options import JudgeModelOptions
from fastgen.evaluation.rating import (
    RATING_FORM,
    RESPONSE_FORMAT,
    SAMPLING,
    GradeComparison,
    Graded,
    rating_prompt,
    read_grade,
)
from fastgen.evaluation.results import Prediction, Results, write_file
from fastgen.evaluation.session import Ask, ask_all, replies_by_number
from fastgen.evaluation.side_by_side import write_side_by_side
from fastgen.health import Step
from fastgen.options import Options, ServerOptions
from fastgen.progress import Reporter

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
