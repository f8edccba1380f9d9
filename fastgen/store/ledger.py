"""The counts of a run: what was asked, kept and rejected, by which rule, and the tokens that it took.

A pure fold over commits, so that a live, a resumed and a read run agree. The store saves it next to the log, and
readers bring it up to date from the log's end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from fastgen.methods.base import CREATION, Answered, Commit, Created, Labelled, Rejected
from fastgen.text import AnswerKind, unread_kind
from fastgen.types import MOST_TOKENS, Failure

_NOTHING_FOUND: Final = frozenset({"no_instance", "unclosed_thinking", "unfinished", "no_score"})
"""Rules of the parsers for answers in which there was nothing to judge."""


def answer_kind(commit: Commit) -> AnswerKind | None:
    """The kind of a commit's answer, or ``None`` for a request that failed."""
    completion = commit.completion
    rules: Iterable[str] | None = None  # those that left nothing of the answer
    match commit.outcome:
        case Failure():
            return None
        case Created(kept, rejections):
            rules = None if kept else (one.rule for one in rejections)
        case Answered(instances, rejected):
            rules = None if instances else rejected
        case Rejected(rule):
            rules = (rule,)
        case Labelled(value, unread) if value is not True:
            found = unread_kind(completion.text, completion.finish_reason, completion.reasoning)
            # Under the paper's rules every answer is a yes or a no. An empty one counts as empty here all the same.
            if unread is not None or found in (AnswerKind.EMPTY, AnswerKind.THINKING):
                return found
    if rules is None:
        return AnswerKind.READ
    found = unread_kind(completion.text, completion.finish_reason, completion.reasoning)
    if found in (AnswerKind.EMPTY, AnswerKind.THINKING) or _NOTHING_FOUND.issuperset(rules):
        return found
    return AnswerKind.REJECTED


@dataclass(slots=True)
class Ledger:
    """Counts since the start of the run. Tokens are the server's figures.

    ``complete`` instructions have passed every step, with at least one answer, and are what ``--num-instructions``
    counts. ``empty`` ones have ended without. The rest of ``kept`` is pending.
    """

    kept: int = 0
    complete: int = 0
    empty: int = 0
    classification_tasks: int = 0
    instances: int = 0
    empty_inputs: int = 0
    started_s: float = 0.0
    last_s: float = 0.0
    completions: Counter[str] = field(default_factory=Counter)  # by step
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    completion_tokens: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)  # instructions, by rule
    rejected_instances: Counter[str] = field(default_factory=Counter)  # by rule; also subjects that a step rejected
    failures: Counter[str] = field(default_factory=Counter)  # requests given up, by kind
    answers: Counter[str] = field(default_factory=Counter)  # by step and kind, such as "instance.empty"
    seeds: int = 0  # seed tasks of the run: the pool indexes below this are theirs
    seed_only: int = 0  # instruction completions whose prompt showed seed tasks only

    def apply(self, commit: Commit) -> None:
        """Count one commit."""
        step, outcome = commit.step, commit.outcome
        self.started_s = self.started_s or commit.time_s
        self.last_s = commit.time_s
        self.prompt_tokens[step] += commit.completion.prompt_tokens
        self.completion_tokens[step] += commit.completion.completion_tokens
        self.complete += commit.ended == "complete"
        self.empty += commit.ended == "empty"
        if isinstance(outcome, Failure):
            self.failures[outcome.kind] += 1
            return
        self.completions[step] += 1
        if (kind := answer_kind(commit)) is not None:
            self.answers[step + "." + kind] += 1
        match outcome:
            case Created(kept, rejected):
                self.kept += len(kept)
                self.rejected.update(rejection.rule for rejection in rejected)
                # A rebuilt run may lack machine demonstrations that the prompt had. `shown` is set there.
                shown = commit.demonstrations if commit.shown is None else ()
                self.seed_only += bool(shown) and all(index < self.seeds for index in shown)
            case Labelled(value):
                self.classification_tasks += value is True
            case Answered(instances, rules):
                self.instances += len(instances)
                self.empty_inputs += sum(i == (0, 0) for i, _ in instances)
                self.rejected_instances.update(rules)
            case Rejected(rule):
                self.rejected_instances[rule] += 1

    @property
    def commits(self) -> int:
        """Commits counted."""
        return self.completions.total() + self.failures.total()

    @property
    def pending(self) -> int:
        """Kept instructions that have not ended yet."""
        return self.kept - self.complete - self.empty

    @property
    def generated_tokens(self) -> int:
        """Completion tokens of all steps."""
        return self.completion_tokens.total()

    @property
    def seed_only_share(self) -> float:
        """Share of the creating completions whose prompt showed no machine-generated instruction, 0..1."""
        asked = self.completions[CREATION]
        return self.seed_only / asked if asked else 0.0

    @property
    def yield_per_1000_tokens(self) -> float:
        """Complete instructions per 1,000 generated tokens."""
        return 1000 * self.complete / self.generated_tokens if self.generated_tokens else 0.0

    @property
    def acceptance(self) -> float:
        """Kept share of all instructions that the model wrote."""
        written = self.kept + self.rejected.total()
        return self.kept / written if written else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values. `from_dict` is the inverse."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Fields that a newer version added are ignored.

        :raises KeyError, TypeError, ValueError: not what `as_dict` gave: a field is missing, is of another type, or
            cannot be right.
        """
        ledger = cls()
        for f in fields(cls):
            value = values[f.name]
            if isinstance(getattr(ledger, f.name), Counter):
                if type(value) is not dict or not all(type(one) is int and one >= 0 for one in value.values()):
                    raise TypeError(f"{f.name}: no counts")
                value = Counter(value)
            elif f.type == "float":
                if type(value) not in {int, float} or not math.isfinite(value):
                    raise TypeError(f"{f.name}: no number")
            elif type(value) is not int or value < 0:
                raise TypeError(f"{f.name}: no count")
            setattr(ledger, f.name, value)
        tokens = ledger.prompt_tokens.total() + ledger.completion_tokens.total()
        if tokens > 2 * MOST_TOKENS * ledger.commits:
            raise ValueError(f"{tokens} tokens in {ledger.commits} commits")
        return ledger
