"""Stage 1: ask for new instructions after some numbered ones, and read the list that comes back.

Guarantees of ``parse``: it never raises, its spans lie in the completion in ascending order without overlap, and every
``text`` equals ``item_text(completion.text, span, rules)``, so that a log needs to store spans only. ``list_style``
``paper`` splits as the released code of Self-Instruct does; ``lenient`` is :mod:`fastgen.stages.lists`. Knows nothing
of the rules that judge an item's content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastgen.stages.answer import answer_span, is_cut, strip
from fastgen.stages.lists import read_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.method.rules import Rules
    from fastgen.records import Completion, Message, Span
    from fastgen.stages.prompts import PromptSet

UNFINISHED: Final = "unfinished"
"""The item, or under ``drop_completion`` its whole completion, was cut by the token limit."""
UNCLOSED_THINKING: Final = "unclosed_thinking"
"""The completion is nothing but thinking that never ended."""

_BOLD_START: Final = re.compile(r"^\*\*(?=\S)((?:(?!\*\*).)++)(?<=\S)\*\*")
_PAPER_BREAK: Final = re.compile(r"\n\d+\s?\. ")


@dataclass(frozen=True, slots=True)
class ParsedItem:
    """One list item: where it is, its text, and the parser's own reason for rejecting it, if any."""

    span: Span
    text: str
    rule: str | None


def item_text(raw: str, span: Span, rules: Rules) -> str:
    """Return the instruction that ``raw[start:end]`` holds.

    Whitespace is collapsed; a bold beginning loses its marks (not with ``list_style`` ``paper``); the text is
    capitalised if the rules say so.
    """
    text = " ".join(raw[span[0] : span[1]].split())
    if text.startswith("**") and rules.list_style != "paper":
        text = _BOLD_START.sub(r"\1", text)
    return text.capitalize() if rules.capitalise else text


def build_prompt(demos: Sequence[str], prompts: PromptSet, *, classification_only: bool) -> str | tuple[Message, ...]:
    """Return the prompt that lists ``demos`` and asks for what comes after them.

    Inside the list each demonstration is on one line, without a colon at its end. ``classification_only`` asks for
    classification tasks.
    """
    template = prompts.instruction_classification if classification_only else prompts.instruction
    listed = (f"{i}. {' '.join(demo.split()).rstrip(':')}" for i, demo in enumerate(demos, 1))
    return template.fill(instructions="\n".join(listed), next_number=str(len(demos) + 1))


def parse(completion: Completion, rules: Rules, *, first_number: int) -> list[ParsedItem]:
    """Return the items of the completion, in order; empty ones are left out.

    ``first_number`` is the number at which the prompt left off: a completion prompt ends in it, so that the text before
    the first further number is an item. A cut completion marks its last item, or all of them, :data:`UNFINISHED`.
    """
    text = completion.text
    if rules.list_style == "paper":
        spans, cut, open_ended = _paper_spans(text), completion.finish_reason == "length", True
    else:
        answer = answer_span(text)
        if answer is None:
            return _items(text, (strip(text, 0, len(text)),), rules, UNCLOSED_THINKING)
        reading = read_list(text, answer, first_number=first_number)
        spans, cut, open_ended = reading.spans, is_cut(completion), reading.open_ended
    if cut and rules.unfinished == "drop_completion":
        return _items(text, spans, rules, UNFINISHED)
    if cut and open_ended:
        return _items(text, spans[:-1], rules, None) + _items(text, spans[-1:], rules, UNFINISHED)
    return _items(text, spans, rules, None)


def _paper_spans(text: str) -> tuple[Span, ...]:
    breaks = [match.span() for match in _PAPER_BREAK.finditer(text)]
    starts = [0, *(end for _, end in breaks)]
    ends = [*(start for start, _ in breaks), len(text)]
    spans = (strip(text, start, end) for start, end in zip(starts, ends, strict=True))
    return tuple(span for span in spans if span[0] < span[1])


def _items(text: str, spans: tuple[Span, ...], rules: Rules, rule: str | None) -> list[ParsedItem]:
    return [ParsedItem(span, item_text(text, span, rules), rule) for span in spans]
