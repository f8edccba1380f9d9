"""What a judge's answer means: strict reading of its JSON, and the verdict of several votes.

Guarantees: only an answer that is, as a whole, one JSON object with exactly the fields asked for, each once and of its
type, and with the code of its question counts as a vote; everything else is a `Fault` and is never guessed at. The code
is drawn at random after the judged text was written, so a copy of JSON out of that text is a fault too. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any, Final

SCORES: Final = (1, 2, 3, 4, 5)
QUESTIONS: Final = ("valid_task", "input_fits", "output_right")
CODE_LENGTH: Final = 6
_FIELDS: Final = frozenset({"code", *QUESTIONS, "score"})
_LONGEST: Final = 100_000  # characters, thinking included
_THINKING: Final = re.compile(r"\A\s*<think>.*</think>", re.DOTALL)
_FENCE: Final = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL | re.IGNORECASE)

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": f"^[a-z]{{{CODE_LENGTH}}}$"},
        **{question: {"type": "boolean"} for question in QUESTIONS},
        "score": {"type": "integer", "enum": list(SCORES)},
    },
    "required": ["code", *QUESTIONS, "score"],
    "additionalProperties": False,
}
"""The answer as JSON Schema, for servers that can hold a model to one."""


class Fault(StrEnum):
    """Why an answer is no vote."""

    CUT_OFF = "cut off"
    NOT_JSON = "not JSON"
    WRONG_FIELDS = "wrong fields"
    WRONG_VALUES = "wrong values"
    WRONG_CODE = "wrong code"


@dataclass(frozen=True, slots=True)
class Vote:
    """One readable answer: the paper's three questions, and a score of 1 to 5."""

    valid_task: bool
    input_fits: bool
    output_right: bool
    score: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``votes`` (1 or more) say together: a question is a yes if more than half say so; the score's median."""

    valid_task: bool
    input_fits: bool
    output_right: bool
    score: float
    votes: int

    @property
    def all_right(self) -> bool:
        """Whether all three questions are a yes."""
        return self.valid_task and self.input_fits and self.output_right


def read_vote(answer: str, code: str, finish_reason: str | None = "stop") -> Vote | Fault:
    """The vote in an answer to the question with this code, or why it is none; never raises.

    A closed ``<think>`` block before the object and one code fence around it are the judge's manners and are taken off.
    """
    found = _object(answer)
    if found is None:
        return Fault.CUT_OFF if finish_reason == "length" else Fault.NOT_JSON
    if found.keys() != _FIELDS:
        return Fault.WRONG_FIELDS
    score, (valid, fits, right) = found["score"], (found[question] for question in QUESTIONS)
    if type(score) is not int or score not in SCORES or any(type(one) is not bool for one in (valid, fits, right)):
        return Fault.WRONG_VALUES
    if found["code"] != code:
        return Fault.WRONG_CODE
    return Vote(valid, fits, right, score)


def _object(answer: str) -> dict[str, Any] | None:
    if len(answer) > _LONGEST:
        return None
    text = _THINKING.sub("", answer, count=1).strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless it says something twice: who knows which is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def verdict_of(votes: Sequence[Vote]) -> Verdict:
    """The majority of at least one vote; a tie is a no."""
    yes = [2 * sum(getattr(vote, question) for vote in votes) > len(votes) for question in QUESTIONS]
    valid, fits, right = yes
    return Verdict(valid, fits, right, float(median(vote.score for vote in votes)), len(votes))
