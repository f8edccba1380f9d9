"""What a judge's answer means: strict reading of its JSON, and the verdict of several votes.

Guarantees: only an answer that is, as a whole, one JSON object with exactly the fields asked for, each once and of its
type, and with the code of its question counts as a vote; everything else is a `Fault` and is never guessed at. The code
is drawn at random after the judged text was written, so a copy of JSON out of that text is a fault too. Pure.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from statistics import median
from typing import Any, Final

from fastgen.export.entries import entries
from fastgen.export.options import ChoiceOptions
from fastgen.generate.batch import Prompt, Question, Reply
from fastgen.judge.options import MAX_INSTANCES, AnswerId
from fastgen.servers.endpoint import Api
from fastgen.store.reader import OpenRun
from fastgen.text import whole_object, without_template_marks
from fastgen.types import Instance, Message, Sampling

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


_PLACE: Final = re.compile(r"\{(code|instruction|input|output)\}")
_LETTERS: Final = 26


@dataclass(frozen=True, slots=True)
class Wording:
    """The shipped template; ``fingerprint`` is its version and a hash of its text."""

    system: str
    user: str
    answer: str
    fingerprint: str


@cache
def wording() -> Wording:
    """The template of ``prompt.toml``."""
    source = files("fastgen.judge").joinpath("prompt.toml").read_text(encoding="utf-8")
    table = tomllib.loads(source)
    words = {name: table[name] for name in ("system", "user", "answer")}
    shown = hashlib.sha256("\0".join(words.values()).encode()).hexdigest()[:12]
    return Wording(**words, fingerprint=f"{table['version']}-{shown}")


def code_of(salt: str, number: int, index: int) -> str:
    """Six letters that belong to one instance; without the salt nobody can tell them beforehand."""
    digest = hashlib.blake2b(f"{number}/{index}".encode(), key=salt.encode(), digest_size=8).digest()
    value = int.from_bytes(digest)
    return "".join(chr(ord("a") + value // _LETTERS**place % _LETTERS) for place in range(CODE_LENGTH))


def build_prompt(api: Api, instruction: str, instance: Instance, code: str) -> Prompt:
    """The question about one instance: messages for ``chat``, one text for ``completions``."""
    texts = {"instruction": instruction, "input": instance.input, "output": instance.output}
    words = wording()
    user = _fill(words.user, {name: _harmless(text, code) for name, text in texts.items()} | {"code": code})
    if api == "chat":
        return (Message("system", words.system), Message("user", user))
    return f"{words.system}\n\n{user}{words.answer}"


def _fill(template: str, values: Mapping[str, str]) -> str:
    """All places at once, so that what looks like a place in a text stays what it is."""
    return _PLACE.sub(lambda place: values[place[1]], template)


def _harmless(text: str, code: str) -> str:
    """The text without the code (which chance may put there) and with chat templates' marks broken by a space."""
    text = re.sub(re.escape(code), f"{code[:1]} {code[1:]}", text, flags=re.IGNORECASE)
    return without_template_marks(text).strip("\n")


_FRESH_TEMPERATURE = 0.7  # of a second attempt, which would be the same again at 0


@dataclass(frozen=True, slots=True)
class Examination:
    """What is asked of every instance: by which API, how sampled, how often; ``salt`` keys the codes."""

    api: Api
    sampling: Sampling
    votes: int
    salt: str

    def ask(self, run: OpenRun, choice: ChoiceOptions, answered: set[int], unread: set[int]) -> Iterator[Question]:
        """What has no readable answer yet, instance by instance.

        ``answered`` are the numbers with an answer, and ``unread`` those of them that deserve a second attempt.
        """
        for entry in entries(run, choice, None):
            if entry.settled is None:
                continue
            for one in entry.instances[:MAX_INSTANCES]:
                slots = list(self._open_slots(entry.settled.number, one.index, answered, unread))
                if slots:
                    code = code_of(self.salt, entry.settled.number, one.index)
                    prompt = build_prompt(self.api, entry.instruction, one.instance, code)
                    yield from (Question(slot.pack(), prompt, self._sampling(slot)) for slot in slots)

    def _open_slots(self, number: int, index: int, answered: set[int], unread: set[int]) -> Iterator[AnswerId]:
        for vote in range(self.votes):
            slot = AnswerId(number, index, vote, 0)
            packed = slot.pack()
            if packed in unread:
                yield slot._replace(attempt=1)
            elif packed not in answered:
                yield slot

    def _sampling(self, slot: AnswerId) -> Sampling:
        if not slot.attempt:
            return self.sampling
        return replace(self.sampling, temperature=max(self.sampling.temperature, _FRESH_TEMPERATURE))

    def again(self, question: Question, reply: Reply) -> Question | None:
        """The second attempt, where the first one gave an answer that cannot be read."""
        slot = AnswerId.unpack(question.number)
        if slot.attempt or reply.failure is not None or not is_unreadable(reply, self.salt):
            return None
        second = slot._replace(attempt=1)
        return Question(second.pack(), question.prompt, self._sampling(second))


def is_unreadable(reply: Reply, salt: str) -> bool:
    """Whether an answer is no vote."""
    slot = AnswerId.unpack(reply.number)
    return isinstance(read_vote(reply.text, code_of(salt, slot.number, slot.instance), reply.finish_reason), Fault)


def unread_numbers(replies: Iterable[Reply], salt: str) -> set[int]:
    """The first attempts that could not be read and have no second one yet."""
    found: set[int] = set()
    for reply in replies:
        if reply.failure is not None:
            continue
        slot = AnswerId.unpack(reply.number)
        if slot.attempt:
            found.discard(slot._replace(attempt=0).pack())
        elif is_unreadable(reply, salt):
            found.add(reply.number)
    return found
