"""Judges answers: parse, check the rules, compare with the pool, and make a commit of each choice.

`Admission.judge` reads the run's state and does not change it. The novelty filter only remembers its last decision.
It may run in a worker thread, but not while a commit is applied.

A request may have several choices: samples of one instruction prompt, or one classification prompt per subject. Each
choice is judged and committed separately. A choice that the server did not send is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastgen.methods.base import (
    Commit,
    Answered,
    Created,
    Kept,
    Outcome,
    Rejection,
)
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.instruction import ParsedItem
from fastgen.methods.self_instruct.rules import Method
from fastgen.methods.self_instruct.state import RunState, State
from fastgen.similarity.novelty import NoveltyFilter, Verdict
from fastgen.text import bounded
from fastgen.types import Answer, Completion, Failure, Neighbour, Span

SIMILAR = "similar"  # the rule's name in the ledger
CONTAMINATED = "contaminated"  # too similar to a forbidden text; the neighbour is that text's index in their list
NEAREST_RECORDED = 1  # neighbours of a kept instruction in the log, unless --record-top-k asks for more
MAX_SUBJECT_FAILURES = 3  # permanent failures after which an instruction is finished without instances
_NO_COMPLETION = Completion("", None)


@dataclass(frozen=True, slots=True)
class _Item:
    """A parsed instruction, with the rule that rejects it before the similarity check, if any."""

    span: Span
    text: str
    rule: str | None
    neighbour: Neighbour | None = None


class Admission:
    """Judges by the method's rules, the novelty filter and the forbidden texts."""

    def __init__(
        self,
        method: Method,
        state: RunState,
        novelty: NoveltyFilter,
        *,
        clock: Callable[[], float],
        forbidden: NoveltyFilter | None = None,
    ) -> None:
        self._rules = method.rules
        self._state = state
        self._novelty = novelty
        self._clock = clock
        self._forbidden = forbidden
        self._recorded = max(NEAREST_RECORDED, novelty.record_top_k)

    def judge(self, answers: Sequence[Answer]) -> list[Commit]:
        """One commit per choice, in order, up to the commit that reaches the target.

        Decisions are sequential: an instruction that is kept counts for those after it, also within the batch.
        """
        now = self._clock()
        answers = [one for answer in answers for one in _by_choice(answer)]
        parsed = [self._parse_instructions(answer) for answer in answers]
        verdicts = iter(self._novelty.decide([item.text for items in parsed for item in items if item.rule is None]))
        commits, number, complete = [], len(self._state.pool), self._state.complete
        for answer, items in zip(answers, parsed, strict=True):
            outcome = self._outcome(answer, items, verdicts, number)
            if isinstance(outcome, Created):
                number += len(outcome.kept)
            complete += isinstance(outcome, Answered) and bool(outcome.instances)
            commits.append(_commit(answer, outcome, now))
            if complete >= self._state.target:
                break
        return commits

    def _parse_instructions(self, answer: Answer) -> list[_Item]:
        """The items of an instruction completion, each with the rule that rejects it, if any."""
        if answer.request.step != "instruction" or isinstance(answer.result, Failure):
            return []
        rules = self._rules
        items = instruction.parse(answer.result, rules, first_number=answer.request.first_number)
        checked = (i if i.rule else replace(i, rule=check_instruction(i.text, rules)) for i in items)
        return [self._check_contamination(item) for item in checked]

    def _check_contamination(self, item: ParsedItem) -> _Item:
        if item.rule is not None or self._forbidden is None:
            return _Item(item.span, item.text, item.rule)
        verdict = self._forbidden.look_up([item.text])[0]
        if verdict.novel or verdict.neighbour is None:
            return _Item(item.span, item.text, None)
        return _Item(item.span, item.text, CONTAMINATED, (verdict.neighbour, verdict.score))

    def _outcome(self, answer: Answer, items: list[_Item], verdicts: Iterator[Verdict], number: int) -> Outcome:
        if isinstance(answer.result, Failure):
            return self._failure(answer.subject, answer.result)
        match answer.request.step:
            case "instruction":
                return _admit(items, verdicts, number, self._recorded)
            case "classification":
                return classification.parse(answer.result, self._rules)
            case "instance":
                return self._instances(answer.subject, answer.result)
            case "question":
                raise ValueError("a run asks no questions")

    def _failure(self, subject: int | None, failure: Failure) -> Failure:
        gives_up = subject is not None and self._state.failures.get(subject, 0) + 1 >= MAX_SUBJECT_FAILURES
        return replace(failure, settles=gives_up)

    def _instances(self, subject: int | None, completion: Completion) -> Answered:
        if subject is None:
            raise ValueError("an answer of the instance stage without a subject")
        is_classification = self._state.pool.state(subject) is State.CLASSIFICATION
        parsed = instance.parse(completion, is_classification, self._rules, self._state.pool.text(subject))
        return Answered(tuple((i.input, i.output) for i in parsed.instances), parsed.rules)


def _by_choice(answer: Answer) -> list[Answer]:
    """One answer per choice. A failed request fails for all its choices. A lost choice fails alone."""
    result = answer.result
    if isinstance(result, Failure):
        return [replace(answer, choice=choice) for choice in range(answer.request.sequences)]
    if result.is_lost:
        return [replace(answer, result=Failure("lost_choice", _how_lost(answer, result)))]
    within = bounded(result, answer.request.sampling.max_tokens)
    return [answer if within is result else replace(answer, result=within)]


def _how_lost(answer: Answer, completion: Completion) -> str:
    which = f"choice {answer.choice} of {answer.request.sequences}"
    if completion.finish_reason == "missing":
        return f"{which} was not sent; if that continues, use --samples-per-prompt 1 in a new run"
    return f"{which} was cut off by the server (finish reason {completion.finish_reason})"


def _commit(answer: Answer, outcome: Outcome, now: float) -> Commit:
    request = answer.request
    completion = _NO_COMPLETION if isinstance(answer.result, Failure) else answer.result
    return Commit(
        request.number,
        answer.choice,
        request.step,
        answer.subject,
        request.demonstrations,
        completion,
        outcome,
        now,
        request.shown,
    )


def _admit(items: Sequence[_Item], verdicts: Iterator[Verdict], number: int, recorded: int) -> Created:
    """The outcome of one instruction completion. ``verdicts`` has one for each item that no rule rejected."""
    kept: list[Kept] = []
    rejected: list[Rejection] = []
    for item in items:
        if item.rule is not None:
            rejected.append(Rejection(item.span, item.rule, item.neighbour))
            continue
        verdict = next(verdicts)
        if verdict.novel:
            checked = verdict.nearest_checked[:recorded]
            kept.append(Kept(item.span, number + len(kept), verdict.nearest_seed, checked))
        else:
            neighbour = None if verdict.neighbour is None else (verdict.neighbour, verdict.score)
            rejected.append(Rejection(item.span, SIMILAR, neighbour))
    return Created(tuple(kept), tuple(rejected))
