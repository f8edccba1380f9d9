"""A judge model's grades, A to D, of the answers to user-oriented tasks (Wang et al., ACL 2023, section 5.4).

The graded text is hostile. It stands between lines with a mark that is derived from it and that it does not contain, so
it cannot close its frame, and chat templates' marks in it are broken; and a grade is only what the judge's whole answer
is: one JSON object with one of the four letters. Anything else counts as unreadable and is never guessed at. Pure.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from fastgen.asking.asker import Prompt
from fastgen.backends.endpoint import Api
from fastgen.evaluation.results import Prediction, markdown, plain_interval
from fastgen.evaluation.scoring import Interval, interval, interval_of_difference
from fastgen.records import Message, Sampling
from fastgen.untrusted import whole_object, without_template_marks

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
    return (files("fastgen.evaluation") / "rating_prompt.txt").read_text(encoding="utf-8")


def _named(counts: Counter[str | None]) -> dict[str, int]:
    return {**{grade: counts[grade] for grade in GRADES}, "unreadable": counts[None]}


def _cells(graded: Graded) -> Sequence[str]:
    counts = graded.counts
    readable = [grade for grade in graded.grades if grade is not None]
    shares = [
        str(interval([[float(grade in good) for grade in readable]])) if readable else "-" for good in ("A", "AB")
    ]
    return (*(str(counts[grade]) for grade in GRADES), str(counts[None]), *shares)
