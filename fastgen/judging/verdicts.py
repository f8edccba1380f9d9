"""What a judge's answer means: strict reading of its JSON, and the verdict of several votes.

Guarantees: only an answer that is, as a whole, one JSON object with exactly the fields asked for, each once and of its
type, and with the code of its question counts as a vote; everything else is a `Fault` and is never guessed at. The code
is drawn at random after the judged text was written, so a copy of JSON out of that text is a fault too. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any, Final

from fastgen.untrusted import whole_object

SCORES: Final = (1, 2, 3, 4, 5)
QUESTIONS: Final = ("valid_task", "input_fits", "output_right")
CODE_LENGTH: Final = 6
_FIELDS: Final = frozenset({"code", *QUESTIONS, "score"})

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
    """The vote in an answer to the question with this code, or why it is none; never raises."""
    found = whole_object(answer)
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


def verdict_of(votes: Sequence[Vote]) -> Verdict:
    """The majority of at least one vote; a tie is a no."""
    yes = [2 * sum(getattr(vote, question) for vote in votes) > len(votes) for question in QUESTIONS]
    valid, fits, right = yes
    return Verdict(valid, fits, right, float(median(vote.score for vote in votes)), len(votes))
