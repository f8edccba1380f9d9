"""The methods that exist, by name, and methods from a user's file or an installed package.

A method from elsewhere is code that fastgen runs: ``--method FILE.py`` or an entry point of the group
``fastgen.methods``, with a function ``build(setup) -> Method`` (see ``docs/methods.md``). What it returns is wrapped:
an exception or a value of another kind becomes an `InputError` that names the file, the step and the line. `rehearse`
finds one that loops. Reading a finished run never runs such code.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import FrameType, MappingProxyType, ModuleType, UnionType
from typing import Any, Final, TypeVar

from fastgen.errors import InputError
from fastgen.methods.base import (
    CREATION,
    Answered,
    Ask,
    Continued,
    Creation,
    Draw,
    Item,
    Labelled,
    Method,
    Pool,
    Rejected,
    Setup,
    Step,
    StepOutcome,
    Subject,
    Turn,
    trimmed,
)
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS, Rules
from fastgen.text import printable
from fastgen.types import Completion, Message, Request, Sampling, Span

SELF_INSTRUCT: Final = "self-instruct"
ENTRY_POINTS: Final = "fastgen.methods"
REHEARSAL_S: Final = 10.0
"""Seconds that one call of a user's method may take when it is tried before a run."""
BUILD_S: Final = 60.0
"""Seconds that a user's file may take to be loaded and to build its method."""
_REHEARSED: Final = ("A task.", "1. A task.\n2. Another.", '{"score": 3}', "Score: 3", "\x00" * 50, "na " * 5000, "")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A method that a run can use.

    ``options`` are its own options with their defaults. ``rules`` are defaults of the filter's rules that differ from
    those of Self-Instruct, whose instructions are short. ``fingerprint`` is the SHA-256 of a user's file, in
    hexadecimal, and empty for fastgen's own methods.
    """

    name: str
    summary: str
    source: str
    module: str = ""
    uses_seeds: bool = False
    needs_template: bool = False
    needs_documents: bool = False
    prefers_chat: bool = True
    options: Mapping[str, object] = field(default_factory=dict)
    rules: Mapping[str, object] = field(default_factory=dict)
    fingerprint: str = ""
    path: Path | None = None

    @property
    def needs(self) -> list[str]:
        """What a run must have for it, for people."""
        said = {
            "seed tasks (--seed-tasks, default: those that ship with fastgen)": self.uses_seeds,
            "a chat template, which the server tells through /tokenize, or --pre-query TEXT": self.needs_template,
            "documents (--documents FILE)": self.needs_documents,
            "an instruct model": self.prefers_chat,
        }
        return [need for need, is_needed in said.items() if is_needed]

    @property
    def is_own(self) -> bool:
        """Whether it is one of fastgen's own."""
        return not self.fingerprint

    def own(self, options: Mapping[str, object]) -> dict[str, object]:
        """Those options that the method has. A user's method gets all."""
        return {name: value for name, value in options.items() if not self.is_own or name in self.options}

    def build(self, setup: Setup) -> Method:
        """The method for a run.

        :raises InputError: a user's method cannot be built.
        """
        if self.is_own:
            method: Method = importlib.import_module(self.module).build(setup)
            return method
        guard = _Guard(self, setup.api)
        with _alarm(BUILD_S):
            build = getattr(_load(self), "build", None)
            if not callable(build):
                raise InputError(f"--method {self.path}: has no function build(setup); see docs/methods.md")
            method = guard.call("build", Method, build, setup)
        _check_declaration(method, f"--method {self.path}")
        return guard.wrapped(replace(method, name=self.name, item_text=trimmed))


RULES_FOR_LONG_TEXTS: Final[Mapping[str, float]] = {"max_words": 1000, "max_characters": 8000}
"""Defaults of the filter's rules for methods whose instructions may hold code or a text to work on."""
METHODS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Entry(
                SELF_INSTRUCT,
                "instructions from examples, classification, instances; works with a base model",
                "Wang et al., ACL 2023, arXiv 2212.10560",
                uses_seeds=True,
                prefers_chat=False,
            ),
            Entry(
                "self-instruct-chat",
                "instructions with their inputs from examples, then answers as ordinary chat turns",
                "after Wang et al., ACL 2023, arXiv 2212.10560",
                "fastgen.methods.self_instruct_chat",
                uses_seeds=True,
                options={"num_prompt_instructions": 8, "num_machine_instructions": 2},
                rules=RULES_FOR_LONG_TEXTS,
            ),
            Entry(
                "magpie",
                "a chat model writes the users' messages itself, then answers them; no seeds, conversations of turns",
                "Xu et al., 2024, arXiv 2406.08464",
                "fastgen.methods.magpie",
                needs_template=True,
                options={"turns": 1},
                rules=RULES_FOR_LONG_TEXTS,
            ),
            Entry(
                "evol",
                "rewrites tasks harder or broader, round after round, and answers them",
                "Xu et al., ICLR 2024, arXiv 2304.12244",
                "fastgen.methods.evol",
                uses_seeds=True,
                options={"rounds": 4},
                rules={**RULES_FOR_LONG_TEXTS, "threshold": 0.9},  # a rewriting shares most words with its parent
            ),
            Entry(
                "backtranslate",
                "writes the instruction that a document answers, and keeps the pairs with a good score",
                "Li et al., ICLR 2024, arXiv 2308.06259",
                "fastgen.methods.backtranslate",
                needs_documents=True,
                options={"min_score": 4, "max_document": 2048, "passes": 1},
                rules=RULES_FOR_LONG_TEXTS,
            ),
        )
    }
)
"""fastgen's own methods, by name."""


def find_method(name: str) -> Entry:
    """The method of a name, of an installed package's entry point, or in a file whose name ends in ``.py``.

    :raises InputError: there is none.
    """
    if name in METHODS:
        return METHODS[name]
    if name.endswith(".py"):
        path = Path(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"--method {name}: cannot be read ({error.strerror}); check the path") from None
        digest = hashlib.sha256(content).hexdigest()
        return Entry(path.stem, "a method of yours", str(path), uses_seeds=True, fingerprint=digest, path=path)
    found = [one for one in entry_points(group=ENTRY_POINTS) if one.name == name]
    if found:
        origin = importlib.util.find_spec(found[0].module)
        if origin is not None and origin.origin is not None:
            path = Path(origin.origin)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            return Entry(name, "from an installed package", found[0].value, "", True, fingerprint=digest, path=path)
    others = sorted({*METHODS, *(one.name for one in entry_points(group=ENTRY_POINTS))})
    raise InputError(f"--method {name}: there is none; there are {', '.join(others)}, or name a file that ends in .py")


def outline(entry: Entry) -> dict[str, Any]:
    """One of fastgen's own methods as JSON values: steps with roles and main sampling figures, options, needs."""
    if entry.name == SELF_INSTRUCT:
        prompts = load_prompts("completions")
        method = self_instruct(PRESETS["default"], (), prompts, SAMPLING_PRESETS["default"])
    else:
        method = entry.build(Setup(options=entry.options, documents=("A text.",)))
    roles = {CREATION: method.creation.role} | {step.name: step.role or step.name for step in method.steps}
    shown = ("temperature", "top_p", "max_tokens")
    return {
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "steps": [
            {"name": name, "role": roles[name], "sampling": {one: getattr(sampling, one) for one in shown}}
            for name, sampling in method.sampling().items()
        ],
        "options": {f"--{name.replace('_', '-')}": value for name, value in entry.options.items()},
        "needs": entry.needs,
    }


def item_text_of(method: str, rules: Rules) -> Callable[[str, Span], str]:
    """How instructions are taken out of raw completions, for a method by its name."""
    return partial(item_text, rules=rules) if method == SELF_INSTRUCT else trimmed


def rehearse(method: Method) -> None:
    """Try a user's method as at the start of a run, so that its mistakes show before any server is asked.

    Each step reads several answers. The first of them that leads a subject on decides what the next step gets. Only the
    main thread finds a loop: the whole may take `REHEARSAL_S`.

    :raises InputError: it raises, loops, or returns something else than it should.
    """
    with _alarm(REHEARSAL_S):
        pool = _FirstPool(method)
        asked = method.creation.ask(Draw(0, method.seed, pool, pool.demonstrations))
        sources, drawn = ((), None) if asked is None else (asked.demonstrations, asked.drawn)
        request = Request(0, CREATION, "", method.creation.sampling, (), sources, drawn=drawn)
        for text in _REHEARSED:
            method.creation.read(Completion(text, "stop"), request)
        source_text = "" if not sources else method.documents[sources[0]] if method.documents else pool.text(sources[0])
        given = sources if method.creation.has_sources else ()
        subject: Subject | None = Subject(
            0, "A task.", "its input", sources=given, source_text=source_text if given else "", drawn=drawn or {}
        )
        for step in method.steps:
            if subject is None:
                break
            step.ask(subject)
            outcomes = [(step.read(Completion(text, "length"), subject), text) for text in _REHEARSED]
            led_on = (_led_on(subject, outcome, text) for outcome, text in outcomes)
            subject = next((one for one in led_on if one is not None), None)


def _led_on(subject: Subject, outcome: StepOutcome, text: str) -> Subject | None:
    """The subject as the next step gets it, or ``None`` if it ends here."""
    match outcome:
        case Labelled(value):
            return replace(subject, label=value)
        case Continued((start, end)):
            return replace(subject, message=text[start:end])
        case Answered([(_, (start, end)), *_]):
            turn = Turn(subject.message or subject.task, text[start:end])
            return replace(subject, turns=(*subject.turns, turn), message="")
        case _:
            return None


class _FirstPool:
    """The pool at the start of a run, for the rehearsal."""

    kept = 0

    def __init__(self, method: Method) -> None:
        self._seeds = method.seeds
        self.seeds = len(method.seeds)

    def text(self, index: int) -> str:
        return self._seeds[index].instruction

    def depth(self, _index: int) -> int:
        return 0

    def demonstrations(self, count: int, _machine: int) -> tuple[int, ...]:
        return tuple(range(min(count, self.seeds)))


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Break off what runs longer, by an exception. Without effect in other threads than the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it does not come to an end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _load(entry: Entry) -> ModuleType:
    assert entry.path is not None, "a method from elsewhere has a file"  # noqa: S101 - as it is built
    name = f"fastgen_method_{entry.name}"
    spec = spec_from_loader(name, SourceFileLoader(name, str(entry.path)))
    assert spec is not None, "a loader is given"  # noqa: S101
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up
    _Guard(entry, "").call("the file", type(None), lambda: spec.loader.exec_module(module) if spec.loader else None)
    return module


def _check_declaration(method: Method, where: str) -> None:
    """:raises InputError: the creation or the steps are none, or their names cannot be used."""
    declared: list[tuple[object, type]] = [(method.creation, Creation), *((one, Step) for one in _listed(method.steps))]
    for one, kind in declared:
        if not isinstance(one, kind):
            raise InputError(f"{where}: build() declares {_shown(one)} where a {kind.__name__} belongs")
    samplings: list[object] = [method.creation.sampling, *(step.sampling for step in method.steps)]
    for sampling in samplings:
        if not isinstance(sampling, Sampling):
            raise InputError(f"{where}: build() declares {_shown(sampling)} where a Sampling belongs")
    names = [str(step.name) for step in method.steps]
    if not names:
        raise InputError(f"{where}: build() declares no step after the creation; add at least one")
    for name in names:
        if not _NAME.fullmatch(name) or name == CREATION:
            raise InputError(f"{where}: a step is called {name!r}; use lower-case letters, digits and underscores")
    if len({*names}) < len(names):
        raise InputError(f"{where}: two steps have the same name; give each its own")


def _listed(steps: Any) -> Sequence[object]:  # noqa: ANN401
    return steps if isinstance(steps, list | tuple) else (steps,)


@dataclass(frozen=True, slots=True)
class _Guard:
    """Turns the mistakes of a user's method into errors that name the file, the step and the line."""

    entry: Entry
    api: str

    def wrapped(self, method: Method) -> Method:
        creation = method.creation
        shrink = creation.shrink
        guarded = replace(
            creation,
            ask=partial(self._create, creation.ask, len(method.documents)),
            read=lambda completion, request: self._items(creation.read, completion, request),
            shrink=None if shrink is None else partial(self._shrink, shrink),
        )
        check = method.check
        return replace(
            method,
            creation=guarded,
            steps=tuple(map(self._step, method.steps)),
            check=lambda text: self.call(CREATION, (str, type(None)), check, text),
        )

    def _create(self, ask: Callable[[Draw], Any], documents: int, draw: Draw) -> Ask | None:
        check = partial(_check_ask, api=self.api, sources=documents or draw.pool.seeds + draw.pool.kept)
        asked: Ask | None = self.call(CREATION, (Ask, type(None)), ask, draw, check=check)
        return asked

    def _shrink(self, shrink: Callable[..., Any], pool: Pool, shown: Any, drawn: Any) -> Any:  # noqa: ANN401
        return self.call(CREATION, (str, tuple), shrink, pool, shown, drawn)

    def _items(self, read: Callable[..., Any], completion: Completion, request: Request) -> list[Item]:
        def checked() -> list[Item]:
            items = []
            for item in read(completion, request):
                if not isinstance(item, Item):
                    raise TypeError(f"read() gave {_shown(item)}, not an Item")
                _check_spans([item.span, item.input or item.span], completion.text)
                items.append(item._replace(text=trimmed(completion.text, item.span)))
            return items

        items: list[Item] = self.call(CREATION, list, checked)
        return items

    def _step(self, step: Step) -> Step:
        def read(completion: Completion, subject: Subject) -> StepOutcome:
            kinds = (Labelled, Answered, Continued, Rejected)
            check = partial(_check_outcome, text=completion.text)
            outcome: StepOutcome = self.call(step.name, kinds, step.read, completion, subject, check=check)
            return outcome

        check = partial(_check_ask, api=self.api, is_batched=step.is_batched)
        return replace(step, read=read, ask=lambda subject: self.call(step.name, Ask, step.ask, subject, check=check))

    def call(
        self,
        step: str,
        kind: type[_T] | tuple[type, ...],
        function: Callable[..., Any],
        *arguments: Any,  # noqa: ANN401
        check: Callable[[Any], None] | None = None,
    ) -> Any:  # noqa: ANN401
        """:raises InputError: the function raised, or gave something of another kind."""
        try:
            result = function(*arguments)
            if check is not None:
                check(result)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's code raises
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if self._is_own_file(frame)]
            place = f"{self.entry.path}:{lines[-1]}" if lines else str(self.entry.path)
            said = printable(str(error))[:200]
            raise InputError(f"--method {place}: {step}: {type(error).__name__}: {said}; fix the method") from None
        if not isinstance(result, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
            raise InputError(f"--method {self.entry.path}: {step}: gave {_shown(result)}, not {names}; fix the method")
        return result

    def _is_own_file(self, frame: traceback.FrameSummary) -> bool:
        return frame.filename == str(self.entry.path)


def _check_ask(ask: Ask | None, *, api: str, is_batched: bool = False, sources: int = 0) -> None:
    if not isinstance(ask, Ask):
        return
    prompt = ask.prompt
    is_messages = isinstance(prompt, tuple) and bool(prompt) and all(isinstance(one, Message) for one in prompt)
    if not isinstance(prompt, str) and not is_messages:
        raise TypeError(f"the prompt is {_shown(prompt)}, neither a text nor a tuple of Message")
    if is_messages != (api == "chat"):
        raise TypeError(f"the prompt is {'messages' if is_messages else 'a text'}, which --api {api} does not take")
    if is_batched and is_messages:
        raise TypeError("a batched step asks with messages; only prompts that are texts can be batched")
    if not all(type(one) is int and 0 <= one < sources for one in ask.demonstrations):
        raise ValueError(f"demonstrations are {_shown(ask.demonstrations)}, not indexes below {sources}")
    if ask.sampling is not None and not isinstance(ask.sampling, Sampling):
        raise TypeError(f"the sampling is {_shown(ask.sampling)}, not a Sampling")
    for name, value in (ask.drawn or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"drawn holds {_shown(value)}, not a text")


def _check_outcome(outcome: StepOutcome, text: str) -> None:
    match outcome:
        case Labelled(value, unread):
            _check_kind("the label", value, bool | int | str)
            _check_kind("unread", unread, str | None)
        case Answered(instances, rejected):
            for input_span, output_span in instances:
                _check_spans((input_span, output_span), text)
            for rule in rejected:
                _check_kind("a rule", rule, str)
        case Continued(span):
            _check_spans((span,), text)
        case Rejected(rule, value):
            _check_kind("the rule", rule, str)
            _check_kind("the label", value, bool | int | str | None)


def _check_kind(name: str, value: object, kind: UnionType | type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {_shown(value)}")


def _check_spans(spans: Iterable[Any], text: str) -> None:
    for span in spans:
        start, end = span
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(text):
            raise ValueError(f"the span {_shown(span)} lies outside the completion of {len(text)} characters")


def _shown(value: object) -> str:
    return printable(f"{type(value).__name__} {value!r}")[:80]
