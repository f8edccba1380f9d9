"""The health of a run's steps: a run ends early when the answers of a step are unusable.

`fastgen.engine.health` judges one step by its last answers. A resumed session begins with an empty window, so a stop is
never permanent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Final

from fastgen.engine.health import READ, Raw, Step, StepHealth
from fastgen.methods.base import CREATION, Commit, Method
from fastgen.methods.catalogue import SELF_INSTRUCT
from fastgen.methods.state import REFUSALS
from fastgen.store.ledger import answer_kind
from fastgen.text import AnswerKind
from fastgen.types import Completion, Failure

MAX_REFUSED: Final = 64
"""Refused requests in a row: the cause is then the sampling or the model's context, not one prompt."""
_LEAST_LIMIT: Final = 32


def steps_of_run(method: Method, *, max_fruitless: int, api: str, is_thinking_off: bool = False) -> dict[str, Step]:
    """The steps of a run in order, by name.

    ``max_fruitless`` (``--max-fruitless``) creating completions in a row may bring nothing new. The limit for
    unreadable answers of any step, and for rejected answers of later ones, is a quarter of it.
    """
    quarter = max(min(_LEAST_LIMIT, max_fruitless), max_fruitless // 4)
    others = "another --model or other --prompts" if method.name == SELF_INSTRUCT else "another --model"
    flags = {CREATION: method.creation.tokens_flag} | {step.name: step.tokens_flag for step in method.steps}
    steps = {
        name: Step(
            name=name,
            limit=quarter,
            unread_limit=quarter,
            api=api,
            is_thinking_off=is_thinking_off,
            tokens_flag=flag or f"--step-sampling {name}.max-tokens=N",
            others=f"--structured off or {others}" if name in method.structured else others,
            seeds=others,
            anew=" (in a new run)",
        )
        for name, flag in flags.items()
    }
    more = "more seed tasks (--seed-tasks) or another --model" if method.seeds else "another --model"
    steps[CREATION] = replace(
        steps[CREATION],
        limit=max_fruitless,
        rejects_are_normal=True,
        seeds=f"{more}; 'fastgen status' lists the rules that rejected them",
    )
    return steps


def raw_answer(completion: Completion, kind: AnswerKind) -> Raw:
    """What messages show of an answer."""
    if kind is AnswerKind.READ:
        return READ
    shown = completion.text if completion.text.strip() else completion.reasoning
    return Raw(shown, completion.finish_reason, completion.completion_tokens)


class RunHealth:
    """The health of all steps of a run in one session.

    Call `see` with every commit, and the object after every batch. When a step brings nothing, ``begin_nothing_new`` is
    called with that step and those before it. Work that is past these steps is still finished.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
        begin_nothing_new: Callable[[Collection[str]], None],
        say: Callable[[str], None],
    ) -> None:
        self._steps = {stage: StepHealth(step) for stage, step in steps.items()}
        self._begin_nothing_new = begin_nothing_new
        self._say = say
        self._over: set[str] = set()
        self._refused = dict.fromkeys(steps, 0)  # requests of each step in a row
        self._refusals: dict[str, Failure] = {}
        self.ended_by: str | None = None
        """Why the run ended, if a step ended it: step, share, one answer and the remedy in one line."""

    def see(self, commit: Commit) -> None:
        """Count one commit."""
        outcome = commit.outcome
        if isinstance(outcome, Failure):
            if outcome.kind in REFUSALS and commit.choice == 0 and commit.ended != "complete":
                self._refused[commit.step] += 1
                self._refusals[commit.step] = outcome
        else:
            self._refused[commit.step] = 0
        if (kind := answer_kind(commit)) is not None:
            self._steps[commit.step].see(kind, raw_answer(commit.completion, kind))

    def warn(self, *, at_the_end: bool = False) -> None:
        """Say each step's warning, if it has one."""
        for health in self._steps.values():
            if (warning := health.warning(at_the_end=at_the_end)) is not None:
                self._say(warning)

    def __call__(self) -> None:
        """Warn, and stop asking for steps that bring nothing."""
        self.warn()
        for place, (stage, health) in enumerate(self._steps.items()):
            if stage in self._over or (verdict := health.verdict() or self._refusal(health.step)) is None:
                continue
            self.ended_by = self.ended_by or verdict
            self._over.update([*self._steps][: place + 1])
            self._say(
                f"the answers of the {stage} step cannot be used: it sends no more requests, and what was kept "
                "is finished"
            )
            self._begin_nothing_new(self._over)

    def _refusal(self, step: Step) -> str | None:
        """One line about a step whose requests the server refuses while it answers those of other steps."""
        if (row := self._refused[step.name]) < MAX_REFUSED:
            return None
        refusal = self._refusals[step.name]
        remedy = f"another --model{step.anew}"
        if refusal.kind == "prompt_too_long":
            remedy = f"lower {step.tokens_flag}, or use a model with a longer context{step.anew}"
        return f"{step.name}: the server refused the last {row} requests: {refusal.detail}. Remedy: {remedy}"

    def trouble(self) -> str:
        """The problem of the first unhealthy step. Empty if all are healthy."""
        return next(filter(None, (health.trouble() for health in self._steps.values())), "")
