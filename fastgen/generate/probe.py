"""A few requests of each step before a new run begins, so that nothing runs for hours into a void.

`ask` sends the run's own prompts with its own sampling to its own servers and reads the answers with its own parsers.
Each of a few creating requests begins a walk: the first instruction that it brings, or else a seed, passes the steps
one after another. Walks go on past a step that brings nothing, so that every step is seen. Nothing is logged or kept,
and no state of the run changes.

`probe` decides what follows. It tries without reasoning where reasoning leaves no room for answers, asks for one sample
where a server ignores ``n``, warns of answers that are of no use, and refuses to begin where a step brings nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

from fastgen.engine.health import Step as StepOfHealth
from fastgen.engine.health import StepHealth
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler
from fastgen.errors import InputError
from fastgen.generate.health import raw_answer, steps_of_run
from fastgen.generate.options import Options
from fastgen.generate.runtime import limits_of, rates_of
from fastgen.generate.serving import Serving
from fastgen.methods.base import (
    CREATION,
    Commit,
    Created,
    Draw,
    Kept,
    Method,
    Outcome,
    Rejection,
    Subject,
)
from fastgen.methods.plan import Plan
from fastgen.methods.state import REFUSALS, RunState
from fastgen.methods.structured import as_text
from fastgen.store.ledger import answer_kind
from fastgen.text import AnswerKind, bounded, printable
from fastgen.types import Answer, Completion, Failure, Request

WALKS: Final = 3
"""Creating requests, and subjects that pass the steps."""
MOST_SAMPLES: Final = 2  # of each creating request: enough to see whether a server knows `n`
LONGEST_S: Final = 120.0
"""After this time what has been answered decides."""
LEAST_INSTRUCTIONS: Final = 200
"""Shorter runs are not probed unless asked."""
_NOTHING: Final = Completion("", None)
_SOME_TASK: Final = "Name three rivers of Europe and say through which countries they flow."
_SOME_MESSAGE: Final = "Which of them is the longest?"


def is_probed(options: Options) -> bool:
    """Whether a new run is probed: what ``--probe`` says."""
    job = options.job
    if job.probe != "auto":
        return job.probe == "on"
    if job.dry_run or options.method.structured not in ("auto", "off"):
        return True
    return job.num_instructions >= LEAST_INSTRUCTIONS and options.method.preset != "paper"


@dataclass(slots=True)
class Finding:
    """What the answers of one step are like."""

    health: StepHealth
    kinds: dict[AnswerKind, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    lost: int = 0
    """Choices that the server did not send."""

    @property
    def step(self) -> StepOfHealth:
        """The step's name and remedies."""
        return self.health.step

    @property
    def answers(self) -> int:
        """Answers that came."""
        return sum(self.kinds.values())

    @property
    def useless(self) -> int:
        """Answers in which nothing was found, and requests that the server refused."""
        good = self.kinds.get(AnswerKind.READ, 0) + self.kinds.get(AnswerKind.REJECTED, 0)
        return self.answers - good + sum(one.kind in REFUSALS for one in self.failures)

    @property
    def is_void(self) -> bool:
        """Whether the step brought nothing but useless answers and refusals."""
        return self.useless > 0 and self.useless == self.answers + sum(one.kind in REFUSALS for one in self.failures)

    @property
    def is_refused(self) -> bool:
        """Whether the server refused requests and answered none."""
        return not self.answers and any(one.kind in REFUSALS for one in self.failures)

    def is_better_than(self, other: Finding) -> bool:
        """Whether a smaller share of the answers is of no use."""
        return not self.is_refused and self.useless * other.answers < other.useless * self.answers

    @property
    def is_cut_by_reasoning(self) -> bool:
        """Whether at least half of the answers seem to have ended before the reasoning did."""
        without = self.kinds.get(AnswerKind.THINKING, 0) + self.kinds.get(AnswerKind.EMPTY, 0)
        return without > 0 and 2 * without >= self.answers

    def see(self, commit: Commit) -> None:
        """Count one answer or failure."""
        if isinstance(commit.outcome, Failure):
            self.failures.append(commit.outcome)
        elif (kind := answer_kind(commit)) is not None:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            self.health.see(kind, raw_answer(commit.completion, kind))

    def problem(self) -> str:
        """One line that shows an answer and names the remedy. Empty where there is nothing to say."""
        if not self.failures and not self.answers:
            return f"{self.step.name}: no answer within {LONGEST_S:.0f} s; the run's own requests may take longer"
        if self.failures and not self.answers:
            last = self.failures[-1]
            said = f"{self.step.name}: none of {len(self.failures)} requests was answered ({last.kind}: {last.detail})"
            return f"{said}. Remedy: {self.step.remedy_of_refusal(last.kind)}" if last.kind in REFUSALS else said
        return self.health.finding() or ""

    def row(self) -> str:
        """A line of the table that ``--dry-run`` shows."""
        found = [f"{self.kinds[kind]} {kind}" for kind in AnswerKind if kind in self.kinds]
        found += [f"{len(self.failures)} failed"] if self.failures else []
        found += [f"{self.lost} not sent"] if self.lost else []
        return f"  {self.step.name:<16} {', '.join(found) or 'no answer in time'}"


class _Walks:
    """The scheduler's source: what is to be asked next, and what became of the answers."""

    def __init__(self, method: Method, state: RunState, findings: dict[str, Finding]) -> None:
        self.findings = findings
        self._method, self._state = method, state
        self._ready = deque(self._creations())
        self._numbers = iter(range(WALKS, 1 << 30))
        self._walking: dict[int, tuple[Subject, int]] = {}  # with the place of the step that was asked, by walk
        self._answers: dict[int, list[tuple[Completion, Outcome]]] = {}  # of the creating requests

    def next(self) -> Request | None:
        """See `fastgen.engine.requests.Source`."""
        return self._ready.popleft() if self._ready else None

    def give_back(self, request: Request) -> None:
        """Does nothing: a probe that is broken off asks no more."""

    def shrink(self, request: Request) -> Request | None:
        """A creating prompt with half of its demonstrations."""
        return self._method.with_fewer_demonstrations(request, self._state)

    def take(self, answers: Sequence[Answer]) -> None:
        """Read answers and queue what follows from them."""
        for answer in answers:
            request, result = answer.request, answer.result
            if isinstance(result, Completion):
                self.findings[request.step].lost += result.is_lost
                result = bounded(result, request.sampling.max_tokens)
                result = as_text(result) if request.extra else result
            if request.step == CREATION:
                self._take_creation(request, answer.choice, result)
            else:
                self._take_step(request, result)

    def _creations(self) -> Iterator[Request]:
        creation, state = self._method.creation, self._state
        for number in range(WALKS):

            def draw_demonstrations(count: int, machine: int, number: int = number) -> tuple[int, ...]:
                return state.demonstrations.draw(number, count=count, machine=machine, made=0)

            def this_one(number: int = number) -> int:
                return number

            ask = creation.ask(Draw(number, self._method.seed, state, draw_demonstrations, this_one))
            if ask is not None:
                yield self._method.request_to_create(number, ask, min(creation.samples, MOST_SAMPLES))

    def _take_creation(self, request: Request, choice: int, result: Completion | Failure) -> None:
        outcome: Outcome = result if isinstance(result, Failure) else self._created(request, result)
        completion = _NOTHING if isinstance(result, Failure) else result
        if not completion.is_lost:
            self._see(request, choice, completion, outcome)
        read = self._answers.setdefault(request.number, [])
        read.append((completion, outcome))
        if isinstance(outcome, Failure) or len(read) == request.n:
            self._ask(request.number, self._subject(request, self._answers.pop(request.number)), 0)

    def _created(self, request: Request, completion: Completion) -> Created:
        kept: list[Kept] = []
        rejected: list[Rejection] = []
        for item in self._method.creation.read(completion, request):
            rule = item.rule or self._method.check(item.text)
            if rule is None:
                kept.append(Kept(item.span, len(kept), None, (), item.input))
            else:
                rejected.append(Rejection(item.span, rule))
        return Created(tuple(kept), tuple(rejected))

    def _subject(self, request: Request, read: Sequence[tuple[Completion, Outcome]]) -> Subject:
        """The first instruction of the answers, or else a seed, as the first step sees it."""
        method, walk = self._method, request.number
        text, given = method.seeds[walk % len(method.seeds)].instruction if method.seeds else _SOME_TASK, ""
        made = ((done, one) for done, outcome in read if isinstance(outcome, Created) for one in outcome.kept)
        if (first := next(made, None)) is not None:
            completion, kept = first
            text = method.item_text(completion.text, kept.span)
            given = "" if kept.input is None else completion.text[slice(*kept.input)]
        sources = request.demonstrations if method.creation.has_sources else ()
        source_text = ""
        if sources:
            source_text = method.documents[sources[0]] if method.documents else self._state.text(sources[0])
        return Subject(walk, text, given, sources=sources, source_text=source_text, drawn=request.drawn or {})

    def _ask(self, walk: int, subject: Subject, place: int) -> None:
        if place == len(self._method.steps):
            return
        step = self._method.steps[place]
        self._walking[walk] = (subject, place)
        self._ready.append(self._method.request_to_ask(next(self._numbers), step, [subject]))

    def _take_step(self, request: Request, result: Completion | Failure) -> None:
        (walk,) = request.subjects
        subject, place = self._walking.pop(walk)
        completion = _NOTHING if isinstance(result, Failure) else result
        outcome: Outcome = result if isinstance(result, Failure) else self._method.steps[place].read(result, subject)
        if not completion.is_lost:
            self._see(request, 0, completion, outcome)
        self._ask(walk, _advanced(subject, completion.text, outcome), place + 1)

    def _see(self, request: Request, choice: int, completion: Completion, outcome: Outcome) -> None:
        finding = self.findings[request.step]
        if request.is_chat != (finding.step.api == "chat"):  # magpie's creation completes a text under --api chat
            others = "another --model, or check the text of --pre-query"
            api = "chat" if request.is_chat else "completions"
            finding.health.step = replace(finding.step, api=api, has_one_api=True, others=others)
        subject = request.subjects[0] if request.subjects else None
        finding.see(
            Commit(request.number, choice, request.step, subject, request.demonstrations, completion, outcome, 0.0)
        )


def _advanced(subject: Subject, raw: str, outcome: Outcome) -> Subject:
    """The subject as the next step sees it, which may need what this one did not bring."""
    following = subject.after(outcome, raw)
    if following is None and subject.turns and not subject.message:
        return replace(subject, message=_SOME_MESSAGE)
    return following or subject


async def ask(plan: Plan, serving: Serving, limits: Limits, options: Options) -> dict[str, Finding]:
    """Probe every step of the plan's method. The answer is by step, in order.

    :raises StoppedError: no server answers for the outage timeout.
    :raises InputError: the user must fix something before any request can succeed.
    """
    steps = _steps(plan, serving, options).items()
    walks = _Walks(plan.method, plan.state, {name: Finding(StepHealth(step)) for name, step in steps})
    scheduler = Scheduler(walks, serving.backend, limits, jitter=random.Random(), rates=rates_of(options.speed))
    try:
        async with asyncio.timeout(LONGEST_S), aclosing(scheduler.answers()) as batches:
            async for answers in batches:
                walks.take(answers)
    except TimeoutError:
        pass
    return walks.findings


async def probe(plan: Plan, serving: Serving, options: Options, say: Callable[[str], None]) -> Options:
    """Probe a new run, and return its options with what the probe changed. The plan and the servers follow them.

    :raises InputError: all answers of a step are of no use, or the servers refuse its requests.
    :raises StoppedError: no server answers.
    """
    limits = limits_of(options.speed, serving)
    findings = await ask(plan, serving, limits, options)
    if any(one.is_cut_by_reasoning for one in findings.values()) and serving.can_stop_thinking(options):
        quiet = replace(options, server=replace(options.server, thinking="off"))
        serving.think(quiet)
        again = await ask(plan, serving, limits, quiet)
        if _useless(again) < _useless(findings):
            say("the model reasons until no tokens are left for its answers, and answers without: --thinking off")
            options, findings = quiet, again
        else:
            serving.think(options)
            for finding in findings.values():
                finding.health.step = replace(finding.step, is_thinking_off=True)  # which is no remedy
    if findings[CREATION].lost and plan.method.creation.samples > 1:
        say("the server sends one answer, however many are asked for: --samples-per-prompt 1")
        options = replace(options, method=replace(options.method, samples_per_prompt=1))
        plan.sample_once()
    options, findings = await _choose_form(plan, serving, limits, options, findings, say)
    _report(findings, options, say)
    return options


async def _choose_form(
    plan: Plan,
    serving: Serving,
    limits: Limits,
    options: Options,
    findings: dict[str, Finding],
    say: Callable[[str], None],
) -> tuple[Options, dict[str, Finding]]:
    """Ask a step for JSON where its answers are unreadable as text, and for text where its server refuses JSON."""
    method = plan.method
    before = method.structured
    if options.method.structured == "auto":
        tried = {name for name in method.forms if findings[name].kinds.get(AnswerKind.UNREADABLE)}
    else:
        tried = {name for name in before if findings[name].is_refused}
    if not tried:
        return options, findings
    plan.ask_for_json(before ^ tried)
    again = await ask(plan, serving, limits, options)
    changed = {name for name in tried if again[name].is_better_than(findings[name])}
    steps = before ^ changed
    plan.ask_for_json(steps)
    if not changed:
        return options, findings
    named = ",".join(name for name in findings if name in steps) or "off"
    shown = ", ".join(name for name in findings if name in changed)
    if before:
        say(f"the server refuses JSON by a schema, so {shown} is asked for text: --structured {named}")
    else:
        say(f"the answers of {shown} can be read better as JSON than as text: --structured {named}")
    options = replace(options, method=replace(options.method, structured=named))
    return options, findings | {name: again[name] for name in changed}


def _steps(plan: Plan, serving: Serving, options: Options) -> dict[str, StepOfHealth]:
    steps = steps_of_run(
        plan.method,
        max_fruitless=options.speed.max_fruitless,
        api=options.server.api,
        is_thinking_off=serving.is_thinking_off(options),
    )
    return {name: replace(step, anew="") for name, step in steps.items()}


def _useless(findings: Mapping[str, Finding]) -> int:
    return sum(one.useless for one in findings.values())


def _report(findings: Mapping[str, Finding], options: Options, say: Callable[[str], None]) -> None:
    """:raises InputError: a step brings nothing."""
    if options.job.dry_run:
        say("a few answers of each step:")
        for finding in findings.values():
            say(finding.row())
    void = [finding for finding in findings.values() if finding.is_void]
    if void:
        raise InputError(f"--probe: {printable(void[0].problem())}; --probe off begins all the same")
    for finding in findings.values():
        if problem := finding.problem():
            say(f"warning: {printable(problem)}")
    if not _useless(findings) and all(one.answers for one in findings.values()):
        say(f"probe: the answers of {', '.join(findings)} can be read")
