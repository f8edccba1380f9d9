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
    """The kinds of request: the method's three stages, and what is asked about a finished run."""

    INSTRUCTION = "instruction"
    CLASSIFICATION = "classification"
    INSTANCE = "instance"
    QUESTION = "question"


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

    ``prompt`` is text for ``/v1/completions``, several texts for it (one per subject, in one body), or messages for
    ``/v1/chat/completions``. ``number`` is unique in a run and keys every random draw of the request. ``subjects`` are
    the machine instruction numbers that a downstream stage works on. ``demonstrations`` are pool indexes, in prompt
    order; ``shown`` is how many the prompt has, where ``demonstrations`` no longer lists all of them. Every prompt is
    completed ``n`` times; choice ``c`` belongs to prompt ``c // n``, as in OpenAI's API.
    """

    number: int
    stage: Stage
    prompt: str | tuple[str, ...] | tuple[Message, ...]
    sampling: Sampling
    subjects: tuple[int, ...] = ()
    demonstrations: tuple[int, ...] = ()
    n: int = 1
    shown: int | None = None

    @property
    def first_number(self) -> int:
        """The number in the prompt's list of the first item that the model writes."""
        return (len(self.demonstrations) if self.shown is None else self.shown) + 1

    @property
    def prompts(self) -> int:
        """How many prompts the request carries."""
        return len(self.subjects) or 1

    @property
    def sequences(self) -> int:
        """How many sequences a server decodes for it at once; also the number of its choices."""
        return self.n * self.prompts


MOST_TOKENS = (1 << 31) - 1
"""Of one answer. No model writes more, and the sum over every line of a log stays below 64 bits."""


def token_count(value: object) -> int:
    """A token count that a server or a log line states: 0 where it is none, below 0 or above `MOST_TOKENS`."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice of one response.

    ``finish_reason`` is the server's word (``"stop"``, ``"length"``, ...) or ``None`` where it gave none. Token
    counts are the server's usage, the prompts' counted on the first choice only; 0 where the server states none.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether the choice never came, or broke off, while others of the same response are good."""
        return self.finish_reason in LOST_REASONS


LOST_REASONS = frozenset({"abort", "error", "missing"})
"""vLLM and SGLang end a sequence with the first two when they stop or fail; ``missing`` is said here, of a choice that
was asked for and not sent."""


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
    """One choice of a request's completion, or why the request failed for good: then it stands for all its choices."""

    request: Request
    choice: int
    result: Completion | Failure

    @property
    def subject(self) -> int | None:
        """The machine instruction number that this choice is about; ``None`` at the instruction stage."""
        subjects = self.request.subjects
        return subjects[self.choice // self.request.n] if subjects else None
