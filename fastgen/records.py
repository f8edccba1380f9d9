"""The values that travel between the parts: frozen, slotted, and free of any behaviour that needs I/O.

Numbering: the *pool* is the list of texts that a new instruction is compared with. Seed tasks come first
(pool index 0 .. S-1, in file order), kept machine instructions follow in the order of admission, so machine
instruction number ``i`` has pool index ``S + i``. Demonstrations and neighbours are given as pool indexes.

Spans: whatever a parser takes out of a completion is ``text[start:end]`` of the raw completion (characters), so a log
line stores two numbers instead of a second copy of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Span = tuple[int, int]
Neighbour = tuple[int, float]
"""(pool index, ROUGE-L F1 in 0..1)."""


class Stage(StrEnum):
    """The three kinds of request."""

    INSTRUCTION = "instruction"
    CLASSIFICATION = "classification"
    INSTANCE = "instance"


@dataclass(frozen=True, slots=True)
class Instance:
    """One input/output pair; ``input`` may be empty, ``output`` may not."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class SeedTask:
    """A human-written task with at least one worked instance."""

    id: str
    name: str
    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one stage samples. ``max_tokens`` is always sent; ``stop`` has at most 4 strings (OpenAI's limit)."""

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


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request's worth of work.

    ``prompt`` is text for ``/v1/completions`` or messages for ``/v1/chat/completions``. ``number`` is unique in a run
    and keys every random draw of the request. ``subject`` is the machine instruction number that a downstream stage
    works on. ``demonstrations`` are pool indexes, in prompt order.
    """

    number: int
    stage: Stage
    prompt: str | tuple[Message, ...]
    sampling: Sampling
    subject: int | None = None
    demonstrations: tuple[int, ...] = ()
    n: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice of one response.

    ``finish_reason`` is the server's word (``"stop"``, ``"length"``, ...) or ``None`` where it gave none. Token
    counts are the server's usage, the prompt's counted on choice 0 only; 0 where the server states none.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A request failed for good.

    ``kind`` is a short stable word (``"http_400"``, ``"prompt_too_long"``, ...), ``detail`` one line for people.
    ``settles`` tells that the plan gives the request's subject up.
    """

    kind: str
    detail: str
    settles: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a request's completion, or why the request failed for good."""

    request: Request
    choice: int
    result: Completion | Failure
