"""Whether the answers of a step are usable: counts of the last ones, a warning, a verdict.

A step is a kind of question: one of the method's three stages, a judge's question, a benchmark's. Its health depends
only on the order of its answers in one session. `StepHealth.warning` reports once that most answers are unusable,
`StepHealth.verdict` that all of the last ones are. Both show one raw answer and a remedy. A resumed session begins
with an empty window, so a stop is never permanent. A session without a single good answer stops at the limit again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from fastgen.text import AnswerKind, quoted

FIRST: Final = 8
"""After this many answers at the start of a session, all of them unreadable, the warning comes at once."""
WINDOW: Final = 64
"""The number of latest answers that are judged; if half of them bring nothing, there is a warning."""
QUESTION_LIMIT: Final = 128
"""Answers in a row to a judge's or benchmark's questions that may be unreadable."""
SHOWN: Final = 200
"""Characters of a raw answer in a message."""


class Raw(NamedTuple):
    """An answer as received, or its reasoning if that is all. ``tokens`` is 0 if the server states none."""

    text: str
    finish_reason: str | None
    tokens: int


READ: Final = Raw("", None, 0)
"""In place of an answer that was read: nothing of it is shown."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step's name and limits, and what its remedies name.

    ``limit`` answers in a row may bring nothing, ``unread_limit`` of them may be unreadable. Where
    ``rejects_are_normal``, rejected answers count for ``limit`` alone: they become more as a run grows.
    """

    name: str
    limit: int = QUESTION_LIMIT
    unread_limit: int = QUESTION_LIMIT
    rejects_are_normal: bool = False
    api: str = "completions"
    api_flag: str = "--api"
    tokens_flag: str = "--max-tokens"
    thinking_flag: str = "--thinking"
    is_thinking_off: bool = False
    """Whether ``thinking_flag`` turns reasoning off already."""
    others: str = "another --model"
    seeds: str = "another --model"
    """What helps against answers that are read and rejected."""
    anew: str = ""
    """Where changed options go, such as " (in a new run)"."""
    one_remedy: str = ""
    """What helps against everything, instead of all that."""
    has_one_api: bool = False
    """Whether the step is asked through this API whatever ``api_flag`` says."""

    def remedy(self, kind: AnswerKind, raw: Raw) -> str:
        """What helps against answers of this kind."""
        if self.one_remedy:
            return self.one_remedy
        if kind is AnswerKind.REJECTED:
            return f"try {self.seeds}{self.anew}"
        if kind is AnswerKind.CUT:
            return f"raise {self.tokens_flag}{self.anew}"
        if kind is AnswerKind.THINKING and self.is_thinking_off:
            return f"raise {self.tokens_flag} or try {self.others}{self.anew}: the model reasons all the same"
        is_reasoning = kind is AnswerKind.THINKING or (
            kind is AnswerKind.EMPTY
            and not self.is_thinking_off
            and (self.api == "chat" or raw.finish_reason == "length")
        )
        if is_reasoning and (self.api == "chat" or not self.has_one_api):
            with_chat = "" if self.api == "chat" else f"{self.api_flag} chat and "
            return (
                f"turn reasoning off with {with_chat}{self.thinking_flag} off, or raise {self.tokens_flag}{self.anew}: "
                "a reasoning model uses up its tokens before it answers"
            )
        return self._another()

    def remedy_of_refusal(self, kind: str) -> str:
        """What helps where servers refuse every request. ``kind`` is that of the failures."""
        if kind == "prompt_too_long":
            return f"lower {self.tokens_flag}, or use a model with a longer context{self.anew}"
        return self._another()

    def _another(self) -> str:
        other = "completions" if self.api == "chat" else "chat"
        api = "" if self.has_one_api else f"{self.api_flag} {other} or "
        return f"try {api}{self.others}{self.anew}"


class StepHealth:
    """The last answers of one step. Give it every answer, in order, through `see`."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._last: deque[AnswerKind] = deque(maxlen=max(step.limit, step.unread_limit, WINDOW))
        self._samples: dict[AnswerKind, Raw] = {}
        self._seen = 0
        self._fruitless_row = 0
        self._unread_row = 0
        self._warned = False

    def see(self, kind: AnswerKind, raw: Raw) -> None:
        """Count one answer. ``raw`` is shown in messages unless it could be read."""
        self._seen += 1
        self._last.append(kind)
        if kind is AnswerKind.READ:
            self._fruitless_row = self._unread_row = 0
            return
        self._fruitless_row += 1
        self._unread_row = self._unread_row + 1 if self._is_void(kind, unread_only=True) else 0
        self._samples[kind] = raw._replace(text=raw.text[: SHOWN + 1])

    @staticmethod
    def _is_void(kind: AnswerKind, *, unread_only: bool) -> bool:
        return kind is not AnswerKind.READ and not (unread_only and kind is AnswerKind.REJECTED)

    def warning(self, *, at_the_end: bool = False) -> str | None:
        """One line about a step most of whose last answers are unusable. ``None`` otherwise, and after the first time.

        ``at_the_end`` of a session any number of answers is enough, if all of them are unusable.
        """
        if self._warned or not self._fruitless_row:  # the last answer was good
            return None
        count = self._troubled()
        if at_the_end and self._seen == self._fruitless_row:
            count = min(self._seen, len(self._last))
        if not count:
            return None
        self._warned = True
        return f"warning: {self._message(count)}"

    def finding(self) -> str | None:
        """One line about the unusable ones of the few answers so far. ``None`` if there are none.

        Answers that were read and rejected count only where that is so for all of a step that asks for something new.
        """
        recent = self._recent(len(self._last))
        unread = [kind for kind in recent if self._is_void(kind, unread_only=True)]
        all_rejected = [*recent] == [AnswerKind.REJECTED] and self.step.rejects_are_normal
        return self._message(len(self._last), among=unread) if unread or all_rejected else None

    def trouble(self) -> str:
        """One clause about a step most of whose last answers are unusable. Empty for a healthy step."""
        count = self._troubled()
        return self._share(count) if count else ""

    def verdict(self) -> str | None:
        """One line about a step that must stop, or ``None`` while it may continue."""
        rows = ((self._fruitless_row, self.step.limit), (self._unread_row, self.step.unread_limit))
        for row, limit in rows:
            if row >= limit:
                return self._message(min(row, len(self._last)))
        return None

    def _troubled(self) -> int:
        """How many of the last answers show that the step is unhealthy. 0 for a healthy step."""
        only = self.step.rejects_are_normal
        row = self._unread_row if only else self._fruitless_row
        if self._seen == row >= FIRST:
            return min(row, len(self._last))
        if self._fruitless_row >= max(FIRST, self.step.limit // 4):
            return min(self._fruitless_row, len(self._last))
        recent = self._recent(WINDOW)
        void = sum(count for kind, count in recent.items() if self._is_void(kind, unread_only=only))
        return WINDOW if recent.total() == WINDOW and 2 * void >= WINDOW else 0

    def _recent(self, count: int) -> Counter[AnswerKind]:
        return Counter(islice(reversed(self._last), count))

    def _share(self, count: int) -> str:
        """How many of the last ``count`` answers were of use, and what the others were."""
        recent = self._recent(count)
        read = recent.pop(AnswerKind.READ, 0)
        kind = recent.most_common(1)[0][0]
        brought = "brought something that is kept" if kind is AnswerKind.REJECTED else "could be read"
        others = ", ".join(f"{number} {kind}" for kind, number in recent.most_common())
        return f"{self.step.name}: {read} of the last {count} answers {brought} ({others})"

    def _message(self, count: int, among: Collection[AnswerKind] = ()) -> str:
        """About the most common kind of the last ``count`` answers, or of those of some kinds."""
        recent = self._recent(count)
        del recent[AnswerKind.READ]
        kind = next(kind for kind, _ in recent.most_common() if not among or kind in among)
        raw = self._samples[kind]
        tokens = f", {raw.tokens} tokens" if raw.tokens else ""
        shown = f"{quoted(raw.text, SHOWN)} (finish reason {quoted(raw.finish_reason or 'none', SHOWN)}{tokens})"
        return f"{self._share(count)}. One of them: {shown}. Remedy: {self.step.remedy(kind, raw)}"
