"""The questions that a judge is asked about instances, and how its answers are read.

Guarantees: a question has the same number and code in every session. The code is derived from a secret salt that is
drawn after the judged text was written, and it is in none of the three texts. So a text cannot close its frame, and an
answer that is copied from a text has no valid code. Placeholders of the template and marks of chat templates have no
effect within a text. Only an answer that is, as a whole, one JSON object with exactly the expected fields, types and
code counts as a vote. Everything else is a `Fault`. Nothing is guessed. The wording is in ``prompt.toml``.

Texts are read from the run's log when they are needed, so memory does not grow with the run.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from statistics import median
from typing import Any, Final, NamedTuple, Self

from fastgen.export.entries import entries
from fastgen.export.options import ChoiceOptions
from fastgen.generate.batch import Prompt, Question, Reply
from fastgen.judge.options import MAX_VOTES
from fastgen.servers.endpoint import Api
from fastgen.store.reader import OpenRun
from fastgen.text import parse_json_object, without_template_marks
from fastgen.types import Instance, Message, Sampling

MAX_INSTANCES: Final = 10_000
SCORES: Final = (1, 2, 3, 4, 5)
QUESTIONS: Final = ("valid_task", "input_fits", "output_right")
CODE_LENGTH: Final = 6
_FIELDS: Final = frozenset({"code", *QUESTIONS, "score"})
_LETTERS: Final = 26
_ATTEMPTS: Final = 10
_SECOND_TEMPERATURE: Final = 0.7  # the least of a second attempt, whose answer would be the same again at 0
_PLACEHOLDER: Final = re.compile(r"\{(code|instruction|input|output)\}")

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
"""The answer as a JSON Schema, for servers that can enforce one."""


class AnswerId(NamedTuple):
    """What an answer is about. Packed into one number it is readable in decimal.

    ``12_0003_02_1``: machine instruction 12, its instance 3, vote 2, second attempt (all count from 0).
    """

    number: int
    """Machine instruction number."""
    instance: int
    """Instance of the instruction (0 to 9,999)."""
    vote: int
    """0 to 99."""
    attempt: int
    """0, or 1 after an unreadable answer."""

    def pack(self) -> int:
        """One number, below 2**63 for up to 9e11 instructions."""
        return (instance_key(self.number, self.instance) * MAX_VOTES + self.vote) * _ATTEMPTS + self.attempt

    @classmethod
    def unpack(cls, packed: int) -> Self:
        """The inverse of `pack`."""
        key, rest = divmod(packed, MAX_VOTES * _ATTEMPTS)
        return cls(*divmod(key, MAX_INSTANCES), *divmod(rest, _ATTEMPTS))


def instance_key(number: int, instance: int) -> int:
    """One number for an instance. Sorts by instruction, then by instance."""
    return number * MAX_INSTANCES + instance


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """The same question about every instance, ``votes`` times. ``salt`` is the key of the codes."""

    api: Api
    sampling: Sampling
    votes: int
    salt: str

    def open_questions(
        self, run: OpenRun, choice: ChoiceOptions, answered: set[int], unreadable: set[int]
    ) -> Iterator[Question]:
        """Questions without a readable answer, instance by instance.

        ``answered`` are the numbers with an answer, ``unreadable`` those of them that get a second attempt.
        """
        for entry in entries(run, choice, None):
            if entry.finished is None:
                continue
            number = entry.finished.number
            for one in entry.instances[:MAX_INSTANCES]:
                if wanted := list(self._open_answers(number, one.index, answered, unreadable)):
                    code = code_of(self.salt, number, one.index)
                    prompt = build_prompt(self.api, entry.instruction, one.instance, code)
                    yield from (self._question(answer, prompt) for answer in wanted)

    def _open_answers(self, number: int, index: int, answered: set[int], unreadable: set[int]) -> Iterator[AnswerId]:
        for vote in range(self.votes):
            first = AnswerId(number, index, vote, 0)
            packed = first.pack()
            if packed in unreadable:
                yield first._replace(attempt=1)
            elif packed not in answered:
                yield first

    def _question(self, answer: AnswerId, prompt: Prompt) -> Question:
        sampling = self.sampling
        if answer.attempt:
            sampling = replace(sampling, temperature=max(sampling.temperature, _SECOND_TEMPERATURE))
        return Question(answer.pack(), prompt, sampling)

    def second_attempt(self, question: Question, reply: Reply) -> Question | None:
        """The same question once more if the first answer to it is unreadable."""
        answer = AnswerId.unpack(question.number)
        if answer.attempt or reply.failure is not None or not self.is_unreadable(reply):
            return None
        return self._question(answer._replace(attempt=1), question.prompt)

    def is_unreadable(self, reply: Reply) -> bool:
        """Whether an answer is no vote."""
        return isinstance(vote_of(reply, self.salt), Fault)

    def unreadable(self, replies: Iterable[Reply]) -> set[int]:
        """Numbers of the unreadable first answers that have no second one yet."""
        found: set[int] = set()
        for reply in replies:
            if reply.failure is not None:
                continue
            answer = AnswerId.unpack(reply.number)
            if answer.attempt:
                found.discard(answer._replace(attempt=0).pack())
            elif self.is_unreadable(reply):
                found.add(reply.number)
        return found


@dataclass(frozen=True, slots=True)
class Template:
    """The texts of ``prompt.toml``. ``fingerprint`` is their version and a hash."""

    system: str
    user: str
    answer: str
    fingerprint: str


@cache
def template() -> Template:
    """The template that is part of the package."""
    table = tomllib.loads(files("fastgen.judge").joinpath("prompt.toml").read_text(encoding="utf-8"))
    texts = {name: table[name] for name in ("system", "user", "answer")}
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:12]
    return Template(**texts, fingerprint=f"{table['version']}-{digest}")


def code_of(salt: str, number: int, index: int) -> str:
    """Six letters that belong to one instance and cannot be predicted without the salt."""
    digest = hashlib.blake2b(f"{number}/{index}".encode(), key=salt.encode(), digest_size=8).digest()
    value = int.from_bytes(digest)
    return "".join(chr(ord("a") + value // _LETTERS**place % _LETTERS) for place in range(CODE_LENGTH))


def build_prompt(api: Api, instruction: str, instance: Instance, code: str) -> Prompt:
    """The question about one instance: messages for ``chat``, one text for ``completions``."""
    texts = {"instruction": instruction, "input": instance.input, "output": instance.output}
    values = {"code": code} | {name: _harmless(text, code) for name, text in texts.items()}
    # All placeholders at once, so that what looks like a placeholder in a text is left alone.
    user = _PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], template().user)
    if api == "chat":
        return (Message("system", template().system), Message("user", user))
    return f"{template().system}\n\n{user}{template().answer}"


def _harmless(text: str, code: str) -> str:
    """The text with the code (which it may contain by chance) and the marks of chat templates broken by a space."""
    text = re.sub(re.escape(code), f"{code[:1]} {code[1:]}", text, flags=re.IGNORECASE)
    return without_template_marks(text).strip("\n")


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


def vote_of(reply: Reply, salt: str) -> Vote | Fault:
    """The vote in a reply that is no failure."""
    answer = AnswerId.unpack(reply.number)
    return read_vote(reply.text, code_of(salt, answer.number, answer.instance), reply.finish_reason)


def read_vote(answer: str, code: str, finish_reason: str | None = "stop") -> Vote | Fault:
    """The vote in an answer to the question with this code, or why it is none. Never raises."""
    found = parse_json_object(answer)
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``votes`` (1 or more) say together: the majority of each question, and the median score."""

    valid_task: bool
    input_fits: bool
    output_right: bool
    score: float
    votes: int

    @property
    def all_right(self) -> bool:
        """Whether all three questions are answered with yes."""
        return self.valid_task and self.input_fits and self.output_right


def verdict_of(votes: Sequence[Vote]) -> Verdict:
    """The verdict of at least one vote. A tie is a no."""
    valid, fits, right = (2 * sum(getattr(vote, name) for vote in votes) > len(votes) for name in QUESTIONS)
    return Verdict(valid, fits, right, float(median(vote.score for vote in votes)), len(votes))
