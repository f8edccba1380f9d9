"""Judges answers: read them, check the rules, compare with the pool, and make a commit of each choice.

`Admission.judge` reads the run's state and does not change it. The novelty filter only remembers its last decision.
It may run in a worker thread, but not while a commit is applied.

A request may have several choices: samples of one creating prompt, or one prompt per subject. Each choice is judged and
committed separately. A choice that the server did not send is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastgen.methods.base import (
    CREATION,
    Answered,
    Commit,
    Created,
    Ended,
    Item,
    Kept,
    Method,
    Outcome,
    Rejected,
    Rejection,
    Step,
)
from fastgen.methods.state import MAX_SUBJECT_FAILURES, RunState
from fastgen.methods.structured import as_text
from fastgen.similarity.novelty import NoveltyFilter, Verdict
from fastgen.text import bounded
from fastgen.types import Answer, Completion, Failure, Neighbour

SIMILAR = "similar"  # the rule's name in the ledger
CONTAMINATED = "contaminated"  # too similar to a forbidden text; the neighbour is that text's index in their list
NEAREST_RECORDED = 1  # neighbours of a kept instruction in the log, unless --record-top-k asks for more
_NO_COMPLETION = Completion("", None)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A proposed instruction, with the rule that rejects it before the similarity check, if any."""

    item: Item
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
        self._method = method
        self._steps = {step.name: step for step in method.steps}
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
        proposed = [self._proposed(answer) for answer in answers]
        verdicts = iter(self._novelty.decide([one.item.text for all_ in proposed for one in all_ if one.rule is None]))
        commits, number, complete = [], len(self._state.pool), self._state.complete
        for answer, items in zip(answers, proposed, strict=True):
            outcome, ended = self._outcome(answer, items, verdicts, number)
            if isinstance(outcome, Created):
                number += len(outcome.kept)
            complete += ended == "complete"
            commits.append(_commit(answer, outcome, ended, now))
            if complete >= self._state.target:
                break
        return commits

    def _proposed(self, answer: Answer) -> list[_Checked]:
        """The instructions of a creating completion, each with the rule that rejects it, if any."""
        if answer.request.step != CREATION or isinstance(answer.result, Failure):
            return []
        return [self._check(item) for item in self._method.creation.read(answer.result, answer.request)]

    def _check(self, item: Item) -> _Checked:
        rule = item.rule or self._method.check(item.text)
        if rule is not None or self._forbidden is None:
            return _Checked(item, rule)
        verdict = self._forbidden.look_up([item.text])[0]
        if verdict.novel or verdict.neighbour is None:
            return _Checked(item, None)
        return _Checked(item, CONTAMINATED, (verdict.neighbour, verdict.score))

    def _outcome(
        self, answer: Answer, items: list[_Checked], verdicts: Iterator[Verdict], number: int
    ) -> tuple[Outcome, Ended]:
        """What the answer brings, and how its subject ends with it."""
        result, subject = answer.result, answer.subject
        if answer.request.step == CREATION:
            return (result if isinstance(result, Failure) else _admit(items, verdicts, number, self._recorded)), ""
        if subject is None:
            raise ValueError(f"an answer of the step {answer.request.step} without a subject")
        step = self._steps[answer.request.step]
        if isinstance(result, Failure):
            gives_up = result.settles or self._state.failures.get(subject, 0) + 1 >= MAX_SUBJECT_FAILURES
            return replace(result, settles=gives_up), _without(step) if gives_up else ""
        outcome = step.read(result, self._state.subject(subject))
        if isinstance(outcome, Rejected) or (isinstance(outcome, Answered) and not outcome.instances):
            return outcome, _without(step)
        return outcome, "complete" if step is self._method.steps[-1] else ""


def _without(step: Step) -> Ended:
    """How a subject ends to which this step brings nothing."""
    return "complete" if step.is_optional else "empty"


def _by_choice(answer: Answer) -> list[Answer]:
    """One answer per choice. A failed request fails for all its choices. A lost choice fails alone."""
    result = answer.result
    if isinstance(result, Failure):
        return [replace(answer, choice=choice) for choice in range(answer.request.sequences)]
    if result.is_lost:
        return [replace(answer, result=Failure("lost_choice", _how_lost(answer, result)))]
    within = bounded(result, answer.request.sampling.max_tokens)
    if answer.request.extra:  # JSON was asked for
        within = as_text(within)
    return [answer if within is result else replace(answer, result=within)]


def _how_lost(answer: Answer, completion: Completion) -> str:
    which = f"choice {answer.choice} of {answer.request.sequences}"
    if completion.finish_reason == "missing":
        return f"{which} was not sent; if that continues, use --samples-per-prompt 1 in a new run"
    return f"{which} was cut off by the server (finish reason {completion.finish_reason})"


def _commit(answer: Answer, outcome: Outcome, ended: Ended, now: float) -> Commit:
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
        request.drawn,
        ended,
    )


def _admit(items: Sequence[_Checked], verdicts: Iterator[Verdict], number: int, recorded: int) -> Created:
    """The outcome of one creating completion. ``verdicts`` has one for each item that no rule rejected."""
    kept: list[Kept] = []
    rejected: list[Rejection] = []
    for one in items:
        item = one.item
        if one.rule is not None:
            rejected.append(Rejection(item.span, one.rule, one.neighbour))
            continue
        verdict = next(verdicts)
        if verdict.novel:
            checked = verdict.nearest_checked[:recorded]
            kept.append(Kept(item.span, number + len(kept), verdict.nearest_seed, checked, item.input))
        else:
            neighbour = None if verdict.neighbour is None else (verdict.neighbour, verdict.score)
            rejected.append(Rejection(item.span, SIMILAR, neighbour))
    return Created(tuple(kept), tuple(rejected))
