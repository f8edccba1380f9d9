"""What a method is, what a step makes of an answer, and the commit that records it.

A `Method` is a declaration: how new instructions are asked for (`Creation`), and what is then asked about each of them
(`Step`, in order). It is pure. `fastgen.methods.plan` carries it out, and everything else (log, resume, figures,
exports) handles commits of any method.

**A subject's way.** A creation proposes instructions. Those that pass the rules and the similarity filter join the pool
and become subjects. Each subject passes the steps one after another. It is *complete* when it has passed the last one.
It ends early when a step rejects it or brings nothing. It is *empty* then, or complete where that step is optional (a
conversation that ends sooner).

A `Commit` is one judged choice of one completion (or one failed request) and becomes one log line. It carries the raw
completion and, as spans of it, everything that was decided about it. Replaying commits therefore rebuilds a run's state
without applying the rules again, and the rules can be applied again later from the raw text. A replay makes millions of
these values, so most are named tuples, which cost a third of a frozen dataclass. `fastgen.store.records` has the JSON
form.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, Protocol

from fastgen.errors import InputError, flag_name
from fastgen.methods.chat_template import ChatTemplate
from fastgen.methods.demonstrations import Policy
from fastgen.methods.structured import Form, with_form
from fastgen.text import quoted
from fastgen.types import Completion, Failure, Message, Neighbour, Request, Sampling, SeedTask, Span

CREATION: Final = "instruction"
"""The name of every method's first step, in the log, in figures and in flags."""
Prompt = str | tuple[Message, ...]
"""A text for ``/v1/completions`` or messages for ``/v1/chat/completions``."""
Drawn = Mapping[str, str]
"""What a request drew by name, such as a topic or an operation. Recorded in the log and in the provenance."""


# -- outcomes ----------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """A kept instruction: the span of its text, its machine number, and its nearest neighbours.

    ``nearest_checked`` are the most similar texts among those that the similarity filter compared it with. ``input`` is
    the span of an input that the same completion gave it.
    """

    span: Span
    number: int
    nearest_seed: Neighbour | None
    nearest_checked: tuple[Neighbour, ...]
    input: Span | None = None


class Rejection(NamedTuple):
    """A rejected instruction. ``neighbour`` is set where the rule compares it with other texts."""

    span: Span
    rule: str
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """The instructions of a completion."""

    kept: tuple[Kept, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """The subject has a label: whether it is a classification task, a score, a verdict.

    ``unread`` says why an answer is none of the expected ones, where the step gives the subject a default label.
    """

    value: bool | int | str
    unread: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The subject has answers, as (input span, output span), and the rules that rejected others.

    An input span of (0, 0) means the input that the subject was created with, if any. Without an answer the subject
    ends here.
    """

    instances: tuple[tuple[Span, Span], ...]
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Continued:
    """The user's next message of the subject's conversation. The next step answers it."""

    span: Span


@dataclass(frozen=True, slots=True)
class Rejected:
    """The subject ends here: a rule rejects it, perhaps after the step gave it a label."""

    rule: str
    value: bool | int | str | None = None


StepOutcome = Labelled | Answered | Continued | Rejected
"""What `Step.read` may return."""
Outcome = Created | StepOutcome | Failure
"""What a commit may record."""

Ended = Literal["complete", "empty", ""]
"""How a subject ends with a commit. Empty while it does not."""


def ends_by(outcome: Outcome) -> Ended:
    """How a subject ends after its last step. Commits of earlier steps and of conversations may differ."""
    match outcome:
        case Answered(instances):
            return "complete" if instances else "empty"
        case Rejected():
            return "empty"
        case Failure(_, _, settles):
            return "empty" if settles else ""
        case _:
            return ""


class Commit(NamedTuple):
    """One judged choice of one completion, or one failed request.

    ``step`` is the name of the creation or step. ``subject`` is the machine instruction number that a step after the
    creation worked on. ``shown`` is how many demonstrations the prompt had where ``demonstrations`` does not list all
    of them. ``end`` is how the subject ended with this commit, ``None`` where the outcome alone says it.
    """

    request: int
    choice: int
    step: str
    subject: int | None
    demonstrations: tuple[int, ...]
    completion: Completion
    outcome: Outcome
    time_s: float
    shown: int | None = None
    drawn: Drawn | None = None
    end: Ended | None = None

    @property
    def ended(self) -> Ended:
        """How the subject ended with this commit."""
        return ends_by(self.outcome) if self.end is None else self.end

    @property
    def demonstrations_shown(self) -> int:
        """How many demonstrations the prompt had."""
        return len(self.demonstrations) if self.shown is None else self.shown


def trimmed(raw: str, span: Span) -> str:
    """The text at a span, without whitespace at its ends."""
    return raw[span[0] : span[1]].strip()


# -- declarations ------------------------------------------------------------------------------------------------------


class Pool(Protocol):
    """The texts that a creation may draw from: the method's seeds, then the kept instructions (see `fastgen.types`)."""

    @property
    def seeds(self) -> int:
        """How many seeds there are. Their indexes come first."""

    @property
    def kept(self) -> int:
        """How many instructions were kept so far."""

    def text(self, index: int) -> str:
        """The instruction at a pool index."""

    def depth(self, index: int) -> int:
        """How many creations lead to it from a seed: 0 for a seed, 1 for what was made from one (at most 255)."""


class Draw:
    """The random choices of one creating request, keyed by the run's seed and the request's number.

    ``demonstrations(count, machine)`` draws pool indexes by the run's policy (``--demonstrations``): ``machine`` of the
    kept instructions (fewer while there are not as many), seeds for the rest. ``unused()`` is the lowest number that no
    creating request of the run has had as its source, for methods that use each document once.
    """

    def __init__(
        self,
        number: int,
        run_seed: int,
        pool: Pool,
        demonstrations: Callable[[int, int], tuple[int, ...]],
        unused: Callable[[], int] = lambda: 0,
    ) -> None:
        self.number = number
        self.pool = pool
        self.demonstrations = demonstrations
        self.unused = unused
        self._run_seed = run_seed

    def random(self, name: str) -> random.Random:
        """A generator for one kind of choice. Choices of different names do not depend on each other."""
        return random.Random(f"{self._run_seed}/{self.number}/{name}")


class Turn(NamedTuple):
    """One question of the user and the model's answer, with what the model thought before it, where that is known."""

    user: str
    assistant: str
    reasoning: str = ""


def task_with_input(instruction: str, given: str) -> str:
    """Return an instruction with its input below it, if it has one."""
    return f"{instruction}\n\n{given}" if given else instruction


@dataclass(frozen=True, slots=True)
class Subject:
    """A kept instruction on its way through the steps.

    ``sources`` are the pool indexes (or document numbers) that it was made from, ``source_text`` is the text of the
    first of them, ``drawn`` what its creation drew. ``label`` is that of the last labelling step, ``turns`` are the
    conversation's finished turns, and ``message`` is the user's next message where a step has continued the
    conversation.
    """

    number: int
    text: str
    input: str = ""
    label: bool | int | str | None = None
    turns: tuple[Turn, ...] = ()
    message: str = ""
    sources: tuple[int, ...] = ()
    source_text: str = ""
    drawn: Drawn = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The instruction with its input below it."""
        return task_with_input(self.text, self.input)

    @property
    def question(self) -> str:
        """What the user says in the turn to answer."""
        return self.message or self.task

    def after(self, outcome: Outcome, raw: str) -> Subject | None:
        """The subject as the next step gets it, or ``None`` if it goes no further. ``raw`` is the text of the spans."""
        match outcome:
            case Labelled(value):
                return replace(self, label=value)
            case Continued(span):
                return replace(self, message=raw[slice(*span)])
            case Answered([(_, span), *_]):
                return replace(self, turns=(*self.turns, Turn(self.question, raw[slice(*span)])), message="")
            case _:
                return None


class Ask(NamedTuple):
    """A request to make.

    ``sampling`` replaces the step's. A creation states in ``demonstrations`` the pool indexes that the prompt shows (or
    the number of its document), and in ``drawn`` what else it drew.
    """

    prompt: Prompt
    demonstrations: tuple[int, ...] = ()
    drawn: Drawn | None = None
    sampling: Sampling | None = None


class Item(NamedTuple):
    """An instruction that a creation proposes.

    ``span`` is where the completion has it, and ``text`` is what ``Method.item_text`` makes of that. ``rule`` rejects
    it before it is compared with other texts. ``input`` is the span of its input.
    """

    span: Span
    text: str
    rule: str | None = None
    input: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """The first step, `CREATION`: asks for new instructions.

    ``read`` may use ``demonstrations``, ``drawn`` and ``first_number`` of the request. In a refilter its prompt is
    empty. ``shrink`` gives the prompt again with fewer demonstrations, where it is too long for the model.
    """

    sampling: Sampling
    ask: Callable[[Draw], Ask | None]
    """What to ask, or ``None`` if nothing is left to ask for (such as after the last document)."""
    read: Callable[[Completion, Request], Sequence[Item]]
    shrink: Callable[[Pool, Sequence[int], Drawn], Prompt] | None = None
    samples: int = 1
    """Completions of each prompt. Fewer are asked for near the target."""
    shows_pool: bool = False
    """Prompts show kept instructions, so that no more requests are sent at once than the pool can feed."""
    has_sources: bool = False
    """``Ask.demonstrations`` are what the new instruction is made from: its parents, or its document. Subjects get them
    as ``sources``."""
    expected: float = 1.0
    """Instructions that a completion is expected to bring, until that is known."""
    role: str = CREATION
    """The servers that are asked (``--role``)."""
    tokens_flag: str = ""
    """The flag that sets its most tokens, for messages. Default: the one for any step of any method."""
    form: Form | None = None
    """How a chat model may answer as JSON. ``read`` must read that too, with `read_records`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is asked about each subject, and what the answer means.

    ``read`` must not raise. It returns `Labelled`, `Answered`, `Continued` or `Rejected`.
    """

    name: str
    """Lower-case letters, digits and underscores; not `CREATION`."""
    sampling: Sampling
    ask: Callable[[Subject], Ask]
    read: Callable[[Completion, Subject], StepOutcome]
    is_batched: bool = False
    """Several subjects may share a request. For short answers to completion prompts only."""
    is_answer: bool = False
    """Its answer is what users of the data want to read, so that a chat model samples it as its authors recommend
    (``--model-preset``). Steps that judge keep their own figures."""
    is_optional: bool = False
    """A subject that has an answer is complete without this step. If it brings nothing, the subject ends there."""
    role: str = ""
    """The servers that are asked (``--role``). Default: the step's name."""
    tokens_flag: str = ""
    form: Form | Callable[[Subject], Form] | None = None
    """As that of the creation, for all subjects or each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way of making data: one creation and at least one step. See the module's docstring.

    ``check`` gives the rule that rejects an instruction's text, if any. ``item_text(raw, span)`` is the text of the
    instruction at a span of a raw completion, also when a finished run is read. ``documents`` are texts that are
    outputs themselves: a completed subject without an answer has the document of its first source as its output.
    """

    name: str
    creation: Creation
    steps: tuple[Step, ...]
    seeds: Sequence[SeedTask] = ()
    check: Callable[[str], str | None] = lambda _: None
    item_text: Callable[[str, Span], str] = trimmed
    documents: Sequence[str] = ()
    seed: int = 0
    """Keys every request's random draws, together with its number."""
    demonstrations: Policy = "uniform"
    shown_seeds: Sequence[int] | None = None
    """Indexes of the seeds that prompts may show. Default: all."""
    structured: frozenset[str] = frozenset()
    """The steps that ask for JSON: some of `forms`. The others ask for text."""

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of all steps, the creation first."""
        return (CREATION, *(step.name for step in self.steps))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of all steps, each once."""
        return tuple(dict.fromkeys((self.creation.role, *(step.role or step.name for step in self.steps))))

    @property
    def forms(self) -> frozenset[str]:
        """The names of the steps that can ask for JSON."""
        steps = (step.name for step in self.steps if step.form is not None)
        return frozenset((*steps, *([] if self.creation.form is None else [CREATION])))

    def request_to_create(self, number: int, ask: Ask, n: int) -> Request:
        """A creating request for ``n`` completions."""
        creation = self.creation
        request = Request(
            number=number,
            step=CREATION,
            prompt=ask.prompt,
            sampling=ask.sampling or creation.sampling,
            demonstrations=ask.demonstrations,
            n=n,
            role=creation.role,
            drawn=ask.drawn or None,
        )
        return self._in_form(request)

    def request_to_ask(self, number: int, step: Step, subjects: Sequence[Subject]) -> Request:
        """A request of a step about a subject, or about several if the step is batched.

        :raises ValueError: several prompts hold messages, and a request has room for one such prompt.
        """
        asks = [step.ask(subject) for subject in subjects]
        prompt = asks[0].prompt if len(asks) == 1 else tuple(map(_text_of, asks))
        sampling = asks[0].sampling or step.sampling
        numbers = tuple(subject.number for subject in subjects)
        return self._in_form(Request(number, step.name, prompt, sampling, numbers, role=step.role), subjects[0])

    def with_fewer_demonstrations(self, request: Request, pool: Pool) -> Request | None:
        """A creating request with half of its demonstrations, or ``None`` if it cannot be shorter."""
        fewer, shorter = request.demonstrations[: len(request.demonstrations) // 2], self.creation.shrink
        if request.step != CREATION or not fewer or shorter is None:
            return None
        prompt = shorter(pool, fewer, request.drawn or {})
        return self._in_form(replace(request, prompt=prompt, demonstrations=fewer))

    def _in_form(self, request: Request, subject: Subject | None = None) -> Request:
        """The request as it is sent: asking for JSON if its step does."""
        if request.step not in self.structured:
            return request
        if subject is None:
            return with_form(request, self.creation.form)
        form = next(step.form for step in self.steps if step.name == request.step)
        return with_form(request, form if form is None or isinstance(form, Form) else form(subject))

    def sampling(self) -> dict[str, Sampling]:
        """How each step samples, by name."""
        return {CREATION: self.creation.sampling} | {step.name: step.sampling for step in self.steps}


def _text_of(ask: Ask) -> str:
    if not isinstance(ask.prompt, str):
        raise ValueError("several chat prompts in one request")  # noqa: TRY004 - a mistake in the method
    return ask.prompt


# -- what a method is built from ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Context:
    """Topics and personas (``--topics``, ``--personas``), one of each per creating request."""

    topics: Sequence[str] = ()
    personas: Sequence[str] = ()

    def draw(self, draw: Draw) -> dict[str, str]:
        """The request's ``topic`` and ``persona``, where there are any. Belongs into `Ask.drawn`."""
        named = {"topic": self.topics, "persona": self.personas}
        return {name: draw.random(name).choice(texts) for name, texts in named.items() if texts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run gives to the function that builds its method: ``build(setup) -> Method``.

    The same setup must give the same method, because a resume and a refilter build it again. ``options`` are the values
    of the method's own options (``--turns``, ``--method-option NAME=VALUE``). ``template`` is the chat template of the
    model that the creation asks: as the server told it, for methods that need one, or as ``--pre-query`` gives it. A
    refilter has none, asks nothing and only reads.
    """

    api: Literal["completions", "chat"] = "completions"
    seed: int = 0
    seeds: Sequence[SeedTask] = ()
    check: Callable[[str], str | None] = lambda _: None
    """The rule of the run's filter that rejects an instruction (``--min-words`` and the like), if any. A text of
    several lines is judged as one."""
    options: Mapping[str, object] = field(default_factory=dict)
    context: Context = field(default_factory=Context)
    documents: Sequence[str] = ()
    template: ChatTemplate | None = None
    samples: int = 1
    """``--samples-per-prompt``."""

    def number(self, option: str, default: int, *, least: int = 0, most: int | None = None) -> int:
        """An option as a whole number of ``least`` to ``most``.

        :raises InputError: it is none.
        """
        value = str(self.options.get(option, default))
        number = int(value[:9]) if value.isascii() and value.isdecimal() else least - 1
        if number < least or (most is not None and number > most):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            flag = flag_name(option) if type(self.options.get(option)) is int else f"--method-option {option}"
            raise InputError(f"{flag}: {quoted(value, 40)} is not a whole number of {wanted}")
        return number
