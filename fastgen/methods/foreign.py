"""Methods that fastgen does not ship: code of a user's file or of an installed package.

`load` runs the file and its ``build(setup)``, and wraps what that returns: an exception or a value of another kind
becomes a `MethodError` that names the file, the step and the line. `rehearse` tries the method as at the start of a
run. Both find code that loops, in the main thread only. Reading a finished run never runs such code.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import FrameType, ModuleType
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
    trimmed,
)
from fastgen.methods.structured import Form
from fastgen.text import printable
from fastgen.types import Completion, Message, Request, Sampling

BUILD_S = 60.0
"""Seconds that loading the file and ``build`` may take."""
REHEARSAL_S = 10.0
"""Seconds that all calls of a rehearsal may take together."""
_REHEARSED: Final = ("", "A task.", "1. A task.\n2. Another.", '{"score": 3}', "Score: 3", "\x00" * 50, "na " * 5000)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_T = TypeVar("_T")


class MethodError(InputError):
    """A user's method raised, looped, or gave something else than it should."""


class _TimeoutError(BaseException):
    """Not an `Exception`, so that no handler in the user's code takes it for one of its own."""


def load(path: Path, name: str, setup: Setup) -> Method:
    """The method of a file, wrapped.

    :raises InputError: it cannot be loaded or built, or declares what no run can carry out.
    """
    guard = _Guard(path)
    with _alarm(BUILD_S):
        build = getattr(_run_file(guard, name), "build", None)
        if not callable(build):
            raise InputError(f"--method {path}: has no function build(setup); see docs/methods.md")
        method = guard.call("build", Method, build, setup)
    _check_declaration(method, setup, f"--method {path}")
    return guard.wrapped(
        replace(method, name=name, item_text=trimmed, seed=setup.seed, seeds=setup.seeds, structured=frozenset())
    )


def rehearse(method: Method) -> None:
    """Try a user's method as at the start of a run, so that its mistakes show before any server is asked.

    Each step reads several answers. The first of them that leads a subject on decides what the next step gets. Only the
    main thread finds a loop: the whole may take `REHEARSAL_S`.

    :raises InputError: it raises, loops, or returns something else than it should.
    """
    with _alarm(REHEARSAL_S):
        pool = _FirstPool(method)
        asked, *_ = [method.creation.ask(Draw(number, method.seed, pool, pool.demonstrations)) for number in range(3)]
        sources, drawn = ((), None) if asked is None else (asked.demonstrations, asked.drawn)
        request = Request(0, CREATION, "", method.creation.sampling, (), sources, drawn=drawn)
        for text in _REHEARSED:
            method.creation.read(Completion(text, "stop"), request)
            method.check(text or "A task.")
        source_text = "" if not sources else method.documents[sources[0]] if method.documents else pool.text(sources[0])
        given = sources if method.creation.has_sources else ()
        subject: Subject | None = Subject(
            0, "A task.", "its input", sources=given, source_text=source_text if given else "", drawn=drawn or {}
        )
        for step in method.steps:
            if subject is None:
                break
            step.ask(subject)
            if callable(step.form):
                step.form(subject)
            for text in _REHEARSED:
                step.read(Completion(text, "length"), subject)
            outcomes = [(step.read(Completion(text, "stop"), subject), text) for text in _REHEARSED]
            subjects = (subject.after(outcome, text) for outcome, text in outcomes)
            subject = next((one for one in subjects if one is not None), None)


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
    """Break off what runs longer, by an exception in the main thread. In other threads it does nothing."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _TimeoutError(f"it does not come to an end within {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run_file(guard: _Guard, name: str) -> ModuleType:
    module_name = f"fastgen_method_{name}"
    spec = spec_from_loader(module_name, SourceFileLoader(module_name, str(guard.path)))
    assert spec is not None, "a loader is given"  # noqa: S101
    module = module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look it up
    guard.call("the file", type(None), lambda: spec.loader.exec_module(module) if spec.loader else None)
    return module


def _check_declaration(method: Method, setup: Setup, where: str) -> None:
    """:raises InputError: a part is of another kind, the names of steps cannot be used, or it has lists of its own."""
    if not isinstance(method.steps, tuple):
        raise InputError(f"{where}: build() gives {_shown(method.steps)} as steps; write a tuple, such as (step,)")
    parts: list[tuple[Any, type]] = [(method.creation, Creation), *((step, Step) for step in method.steps)]
    for one, kind in parts:
        if type(one) is not kind:
            raise InputError(f"{where}: build() declares {_shown(one)} where a {kind.__name__} belongs")
    for sampling in (method.creation.sampling, *(step.sampling for step in method.steps)):
        if type(sampling) is not Sampling:
            raise InputError(f"{where}: build() declares {_shown(sampling)} where a Sampling belongs")
    for form in (method.creation.form, *(step.form for step in method.steps)):
        if form is not None and not isinstance(form, Form) and not callable(form):
            raise InputError(f"{where}: build() declares {_shown(form)} where a Form belongs")
    for name in ("seeds", "documents"):
        own = getattr(method, name)
        if own and [*own] != [*getattr(setup, name)]:
            flag = "--seed-tasks" if name == "seeds" else "--documents"
            raise InputError(f"{where}: build() gives its own {name}; take setup.{name}, and name a file with {flag}")
    _check_names([str(step.name) for step in method.steps], where)


def _check_names(names: Sequence[str], where: str) -> None:
    if not names:
        raise InputError(f"{where}: build() declares no step after the creation; add at least one")
    for name in names:
        if not _NAME.fullmatch(name) or name == CREATION:
            raise InputError(f"{where}: a step is called {name!r}; use lower-case letters, digits and underscores")
    if len({*names}) < len(names):
        raise InputError(f"{where}: two steps have the same name; give each its own")


@dataclass(frozen=True, slots=True)
class _Guard:
    """Turns the mistakes of a user's method into errors that name the file, the step and the line."""

    path: Path

    def wrapped(self, method: Method) -> Method:
        """Return the method with each of its functions called through `call`."""
        creation = method.creation
        shrink = creation.shrink
        guarded = replace(
            creation,
            ask=lambda draw: self.call(
                CREATION, (Ask, type(None)), creation.ask, draw, check=partial(_check_creating, method.documents, draw)
            ),
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

    def _shrink(self, shrink: Callable[..., Any], pool: Pool, shown: Any, drawn: Any) -> Any:  # noqa: ANN401
        return self.call(CREATION, (str, tuple), shrink, pool, shown, drawn)

    def _items(self, read: Callable[..., Any], completion: Completion, request: Request) -> list[Item]:
        def checked() -> list[Item]:
            items = []
            for item in read(completion, request):
                if not isinstance(item, Item):
                    raise TypeError(f"read() gave {_shown(item)}, not an Item")
                _check_spans([item.span, item.input or item.span], completion.text)
                _check_rules([] if item.rule is None else [item.rule])
                items.append(item._replace(text=trimmed(completion.text, item.span)))
            return items

        items: list[Item] = self.call(CREATION, list, checked)
        return items

    def _step(self, step: Step) -> Step:
        def read(completion: Completion, subject: Subject) -> StepOutcome:
            kinds = (Labelled, Answered, Continued, Rejected)
            check = partial(_check_outcome, completion.text)
            outcome: StepOutcome = self.call(step.name, kinds, step.read, completion, subject, check=check)
            return outcome

        form = step.form
        check = _check_text_ask if step.is_batched else _check_ask
        return replace(
            step,
            read=read,
            ask=lambda subject: self.call(step.name, Ask, step.ask, subject, check=check),
            form=form if form is None or isinstance(form, Form) else partial(self.call, step.name, Form, form),
        )

    def call(
        self,
        step: str,
        kind: type[_T] | tuple[type, ...],
        function: Callable[..., Any],
        *arguments: Any,  # noqa: ANN401
        check: Callable[[Any], None] | None = None,
    ) -> Any:  # noqa: ANN401
        """:raises MethodError: the function raised, or gave something of another kind.

        :raises InputError: as the function raised it, for an option's value.
        """
        place = str(self.path)
        try:
            result = function(*arguments)
            if not isinstance(result, kind):
                kinds = kind if isinstance(kind, tuple) else (kind,)
                names = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
                line = getattr(getattr(function, "__code__", None), "co_firstlineno", None)
                if line is not None and function.__code__.co_filename == place:
                    place = f"{place}:{line}"
                raise TypeError(f"gave {_shown(result)}, not {names}")  # noqa: TRY301 - one place makes the message
            if check is not None:
                check(result)
        except InputError:
            raise
        except (Exception, SystemExit, _TimeoutError) as error:  # noqa: BLE001 - whatever a user's code raises
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if self._is_own_file(frame)]
            if isinstance(error, SyntaxError) and error.lineno:
                lines.append(error.lineno)
            place = f"{self.path}:{lines[-1]}" if lines else place
            kind_of = type(error).__name__.strip("_")
            said = printable(str(error)).strip()[:200]
            raise MethodError(f"--method {place}: {step}: {kind_of}: {said}; fix the method") from None
        return result

    def _is_own_file(self, frame: traceback.FrameSummary) -> bool:
        return frame.filename == str(self.path)


def _check_ask(ask: Ask | None) -> None:
    if ask is None:
        return
    prompt = ask.prompt
    is_messages = isinstance(prompt, tuple) and bool(prompt) and all(isinstance(one, Message) for one in prompt)
    if not isinstance(prompt, str) and not is_messages:
        raise TypeError(f"the prompt is {_shown(prompt)}, neither a text nor a tuple of Message")
    if ask.sampling is not None and not isinstance(ask.sampling, Sampling):
        raise TypeError(f"the sampling is {_shown(ask.sampling)}, not a Sampling")
    for name, value in (ask.drawn or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"drawn holds {_shown(value)}, not a text")


def _check_text_ask(ask: Ask) -> None:
    _check_ask(ask)
    if not isinstance(ask.prompt, str):
        raise TypeError("the prompt holds messages; a step with is_batched needs a text")


def _check_creating(documents: Sequence[str], draw: Draw, ask: Ask | None) -> None:
    _check_ask(ask)
    sources = () if ask is None else ask.demonstrations
    last = len(documents) if documents else draw.pool.seeds + draw.pool.kept
    if documents and ask is not None and not sources:
        raise ValueError("demonstrations are empty; state the number of the document that the prompt is about")
    if not isinstance(sources, tuple) or not all(type(one) is int and 0 <= one < last for one in sources):
        raise ValueError(f"demonstrations are {_shown(sources)}, not a tuple of numbers below {last}")


def _check_outcome(text: str, outcome: StepOutcome) -> None:
    match outcome:
        case Continued(span):
            _check_span(span, text)
        case Answered(instances, rules):
            _check_spans([span for pair in instances for span in pair], text)
            _check_rules(rules)
        case Rejected(rule, value):
            _check_rules([rule])
            _check_label(value, (type(None), bool, int, str))
        case Labelled(value, unread):
            _check_label(value, (bool, int, str))
            _check_rules([] if unread is None else [unread])


def _check_rules(rules: Sequence[Any]) -> None:
    for rule in rules:
        if not isinstance(rule, str) or not rule:
            raise TypeError(f"the rule is {_shown(rule)}, not a short text")


def _check_label(value: Any, kinds: tuple[type, ...]) -> None:  # noqa: ANN401
    if type(value) not in kinds or (type(value) is int and abs(value) >= 1 << 53):
        raise TypeError(f"the label is {_shown(value)}, neither a whole number nor a text, True or False")


def _check_spans(spans: Sequence[Any], text: str) -> None:
    for span in spans:
        _check_span(span, text)


def _check_span(span: Any, text: str) -> None:  # noqa: ANN401
    start, end = span
    if type(start) is not int or type(end) is not int:
        raise TypeError(f"the span is {_shown(span)}, not two whole numbers")
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"the span {span} lies outside the completion of {len(text)} characters")


def _shown(value: object) -> str:
    return printable(f"{type(value).__name__} {value!r}")[:80]
