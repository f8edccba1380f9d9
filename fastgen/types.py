"""The values that the rooms pass to each other: frozen, slotted, without I/O.

Numbering: the *pool* is the list of texts that a new instruction is compared with. Seed tasks come first
(pool index 0 .. S-1, in file order). Kept machine instructions follow in the order of admission, so machine
instruction number ``i`` has pool index ``S + i``. Demonstrations and neighbours are given as pool indexes.

Spans: what a parser takes out of a completion is ``text[start:end]`` of the raw completion (characters), so a log line
stores two numbers instead of a second copy of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]
Neighbour = tuple[int, float]
"""(pool index, ROUGE-L F1 in 0..1)."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One input/output pair. ``input`` may be empty, ``output`` may not."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class SeedTask:
    """A task that a run begins with, and at least one worked instance of it."""

    id: str
    name: str
    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one step samples. Every request sends ``max_tokens``."""

    temperature: float
    """Softmax temperature (0 or more); 0 is greedy."""
    top_p: float
    """Probability mass that is sampled from (above 0, at most 1)."""
    max_tokens: int
    """Most tokens of one completion."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that occurred (-2..2)."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence (-2..2)."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion (at most 4)."""
    top_k: int = 0
    """Most tokens that are sampled from (0: no such limit). An extension of OpenAI's API, as is ``min_p``."""
    min_p: float = 0.0
    """Least probability of a token, as a share of the likeliest one's (0..1; 0: no such limit)."""


@dataclass(frozen=True, slots=True)
class Request:
    """The work of one HTTP request.

    - ``number`` is unique in a run and keys every random draw of the request.
    - ``step`` is the name of the method's step, or of another kind of question. ``role`` names the servers that are
      asked, where these are not named as the step.
    - ``prompt`` is a text or several texts (one per subject, in one body) for ``/v1/completions``, or messages for
      ``/v1/chat/completions``. Every prompt is completed ``n`` times. Choice ``c`` belongs to prompt ``c // n``, as in
      OpenAI's API.
    - ``subjects`` are the machine instruction numbers that a later step works on.
    - ``demonstrations`` are pool indexes in prompt order. ``shown`` is how many the prompt has where
      ``demonstrations`` does not list all of them. ``drawn`` is what else was drawn for the prompt, by name.
    - ``extra`` are more fields of the body, such as ``response_format``. The user's own (``--extra-body``) win.
    """

    number: int
    step: str
    prompt: str | tuple[str, ...] | tuple[Message, ...]
    sampling: Sampling
    subjects: tuple[int, ...] = ()
    demonstrations: tuple[int, ...] = ()
    n: int = 1
    shown: int | None = None
    role: str = ""
    drawn: Mapping[str, str] | None = None
    extra: Mapping[str, Any] | None = None

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is messages, which only ``/v1/chat/completions`` takes."""
        prompt = self.prompt
        return type(prompt) is tuple and bool(prompt) and isinstance(prompt[0], Message)

    @property
    def server_role(self) -> str:
        """The role whose servers are asked."""
        return self.role or self.step

    @property
    def first_number(self) -> int:
        """The number of the first item that the model writes in the prompt's list."""
        return (len(self.demonstrations) if self.shown is None else self.shown) + 1

    @property
    def prompts(self) -> int:
        """How many prompts the request carries."""
        return len(self.subjects) or 1

    @property
    def sequences(self) -> int:
        """How many sequences a server decodes at once for the request. Also the number of its choices."""
        return self.n * self.prompts


MOST_TOKENS = (1 << 31) - 1
"""Most tokens of one answer. The sum over every line of a log stays below 64 bits."""


def token_count(value: object) -> int:
    """A token count as a server or a log line states it. 0 for anything but a whole number of 0 to `MOST_TOKENS`."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


LOST_REASONS = frozenset({"abort", "error", "missing"})
"""Finish reasons of a choice that did not arrive whole. vLLM and SGLang give the first two when they stop or fail;
fastgen gives ``missing`` to a choice that was asked for and not sent."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice of one response.

    ``finish_reason`` is the server's (``"stop"``, ``"length"``, ...), ``None`` where it gave none. Token counts are the
    server's usage, 0 where it states none. The prompts' are counted on the first choice only. ``reasoning`` is what the
    model thought before its answer, where the server sent that apart from the text.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether this choice is missing or broke off, while others of the same response are good."""
        return self.finish_reason in LOST_REASONS


@dataclass(frozen=True, slots=True)
class Failure:
    """A request failed permanently.

    ``kind`` is a short stable word (``"http_400"``, ``"prompt_too_long"``, ...), ``detail`` one line for people.
    ``settles`` says that the plan gives up the request's subject.
    """

    kind: str
    detail: str
    settles: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a request's completion, or the failure of the request, which applies to all its choices."""

    request: Request
    choice: int
    result: Completion | Failure

    @property
    def subject(self) -> int | None:
        """The machine instruction number that this choice is about. ``None`` where new instructions are asked for."""
        subjects = self.request.subjects
        return subjects[self.choice // self.request.n] if subjects else None
