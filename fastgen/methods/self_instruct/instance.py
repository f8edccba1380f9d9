"""The third stage: ask for instances of a task, read them, and drop the invalid ones.

Generation tasks are asked input-first (an input, then its output), classification tasks output-first (a class label,
then an input for it). `parse` never raises. Every span lies in the completion and is stripped, and `NOWHERE` is the
span of an empty text. Every instance that was found is either kept or rejected under a rule. The rules and their order
are those of Self-Instruct (Wang et al., ACL 2023). ``instance_style`` says how labels are recognised: exactly as in the
released code (``paper``, here) or as models write them (``lenient``, `fastgen.methods.self_instruct.fields`).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastgen.methods.self_instruct.fields import (
    ParsedInstance,
    begins_with_label,
    read_classification,
    read_generation,
)
from fastgen.text import NOWHERE, answer_span, is_cut, strip

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fastgen.methods.self_instruct.prompts import PromptSet
    from fastgen.methods.self_instruct.rules import Rules
    from fastgen.types import Completion, Message, Span


@dataclass(frozen=True, slots=True)
class RejectedInstance:
    """An instance that was found and dropped, and the rule that dropped it."""

    rule: str
    input: Span
    output: Span


@dataclass(frozen=True, slots=True)
class ParsedInstances:
    """What a completion holds: at most ``max_instances`` kept, the others with their rule.

    ``discarded`` says why the completion as a whole gives nothing: ``no_instance`` (none was found),
    ``unclosed_thinking``, or ``conflicting_outputs``. It is ``None`` where every instance was rejected individually.
    """

    instances: tuple[ParsedInstance, ...]
    rejected: tuple[RejectedInstance, ...]
    discarded: str | None

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that rejected instances, one for each, and the one that discards them all if that is another."""
        rules = tuple(rejected.rule for rejected in self.rejected)
        return rules if self.discarded is None or self.discarded in rules else (*rules, self.discarded)


def build_prompt(instruction: str, is_classification: bool, prompts: PromptSet) -> str | tuple[Message, ...]:
    """Return the prompt that asks for instances of ``instruction``."""
    template = prompts.output_first if is_classification else prompts.input_first
    return template.fill(instruction=instruction.strip())


def parse(completion: Completion, is_classification: bool, rules: Rules, instruction: str = "") -> ParsedInstances:
    """Return the valid instances of the completion and the rejected ones.

    The rules, in order:

    - ``unfinished``: the last instance of a cut completion.
    - ``input_equals_output``, ``empty_output``, ``ends_with_colon`` (either part), ``unknown_label`` (it begins with
      one), ``output_repeats_instruction`` (of ``instruction``, the task's): each by itself.
    - ``conflicting_outputs``: the same input has two outputs, which discards all instances.
    - ``contradictory_outputs``: those without any input, if only one of their outputs can be right.
    - ``duplicate``: of equal instances the first is kept.
    - ``too_many``: those after ``max_instances``.
    """
    text = completion.text
    if rules.instance_style == "paper":
        found = (_paper_classification if is_classification else _paper_generation)(text)
        last_is_cut = completion.finish_reason == "length"
    else:
        answer = answer_span(text)
        if answer is None:
            return ParsedInstances((), (), "unclosed_thinking")
        found, open_ended = (read_classification if is_classification else read_generation)(text, answer)
        last_is_cut = is_cut(completion) and open_ended
    if not found:
        return ParsedInstances((), (), "no_instance")
    rejected = [_reject("unfinished", found[-1])] if last_is_cut else []
    valid = []
    for one in found[:-1] if last_is_cut else found:
        rule = _invalid(text, one, rules, instruction)
        if rule is None:
            valid.append(one)
        else:
            rejected.append(_reject(rule, one))
    return _choose(text, valid, rejected, rules, is_classification=is_classification)


# -- the released code's parser ----------------------------------------------------------------------------------------

_EXAMPLE: Final = re.compile(r"Example\s?\d*\.?")
# The released code's `Output\s*\d*\s*:` and `Input\s*\d*\s*:`, written so that a run of blanks takes linear time.
_OUTPUT: Final = re.compile(r"Output\s*+(?:\d++\s*+)?:")
_INPUT: Final = re.compile(r"Input\s*+(?:\d++\s*+)?:")
_CLASS_LABEL: Final = re.compile(r"Class label:")


def _paper_generation(text: str) -> list[ParsedInstance]:
    start, end = strip(text, 0, len(text))
    breaks = [match.span() for match in _EXAMPLE.finditer(text, start, end)]
    if not breaks:
        return [_paper_pair(text, (start, end))] if _OUTPUT.search(text, start, end) else []
    edges = zip([start, *(b for _, b in breaks)], [*(a for a, _ in breaks), end], strict=True)
    pieces = (strip(text, *edge) for edge in edges)
    return [_paper_pair(text, piece) for piece in pieces if piece[0] < piece[1]]


def _paper_pair(text: str, piece: Span) -> ParsedInstance:
    """Split a piece at its first "Output:". Without one, all of it is output."""
    outputs = [match.span() for match in _OUTPUT.finditer(text, *piece)]
    given, wanted = NOWHERE, piece
    if outputs:
        given = strip(text, piece[0], outputs[0][0])
        wanted = strip(text, outputs[0][1], outputs[1][0] if len(outputs) > 1 else piece[1])
    if following := _INPUT.search(text, *wanted):
        wanted = strip(text, wanted[0], following.start())
    if prefix := _INPUT.match(text, *given):
        given = strip(text, prefix.end(), given[1])
    return ParsedInstance(given, wanted)


def _paper_classification(text: str) -> list[ParsedInstance]:
    labels = [match.span() for match in _CLASS_LABEL.finditer(text)]
    ends = [*(start for start, _ in labels[1:]), len(text)]
    pieces = [strip(text, start, end) for (_, start), end in zip(labels, ends, strict=bool(labels))]
    return [_paper_labelled(text, piece) for piece in pieces]


def _paper_labelled(text: str, piece: Span) -> ParsedInstance:
    """Take the first line as the label and the rest as the input."""
    line_end = text.find("\n", *piece)
    if line_end < 0:
        return ParsedInstance(NOWHERE, piece)
    return ParsedInstance(strip(text, line_end, piece[1]), strip(text, piece[0], line_end))


# -- rules -------------------------------------------------------------------------------------------------------------

_SHORT_ANSWER: Final = 5  # words; longer answers may differ and all be right
_FIRST_WORD: Final = re.compile(r"[A-Za-z0-9]++")
_REPEATED_SHARE: Final = 0.75  # of the instruction; a shorter part of it may be what was asked for
_TO_SPACES: Final = {code: " " for code in range(128) if not chr(code).isalnum()}
_DIALOGUE: Final = re.compile(  # a requested dialogue begins with a name and a colon
    r"dialog|diálog|conversa|interview|\bscript|gespräch|unterhaltung|对话|對話|会話|対話|диалог|разговор|حوار|محادثة",
    re.IGNORECASE,
)
_YES_OR_NO: Final = frozenset(
    "yes no true false ja nein oui non sí si sim não да нет 是 否 对 不是 はい いいえ 예 아니요 نعم لا हाँ नहीं".split()  # noqa: SIM905
)


def _texts(text: str, instance: ParsedInstance) -> tuple[str, str]:
    return text[slice(*instance.input)], text[slice(*instance.output)]


def _reject(rule: str, instance: ParsedInstance) -> RejectedInstance:
    return RejectedInstance(rule, instance.input, instance.output)


def _invalid(text: str, instance: ParsedInstance, rules: Rules, instruction: str) -> str | None:
    given, wanted = _texts(text, instance)
    colons = (":",) if rules.instance_style == "paper" else (":", "\uff1a")
    if given == wanted:
        return "input_equals_output"
    if not wanted:
        return "empty_output"
    if given.endswith(colons) or wanted.endswith(colons):
        return "ends_with_colon"
    may_be_label = rules.reject_unknown_labels and not instance.is_labelled and not _DIALOGUE.search(instruction)
    if may_be_label and begins_with_label(text, instance.output):
        return "unknown_label"
    if rules.reject_repeated_instruction and repeats_instruction(instruction, given, wanted):
        return "output_repeats_instruction"
    return None


def _choose(
    text: str,
    valid: list[ParsedInstance],
    rejected: list[RejectedInstance],
    rules: Rules,
    *,
    is_classification: bool,
) -> ParsedInstances:
    """Apply the rules that compare a completion's instances with each other."""
    if _conflicts(text, valid):
        rejected += (_reject("conflicting_outputs", instance) for instance in valid)
        return ParsedInstances((), tuple(rejected), "conflicting_outputs")
    if rules.reject_contradictions and _contradict(text, valid, is_classification=is_classification):
        rejected += (_reject("contradictory_outputs", instance) for instance in valid if instance.input == NOWHERE)
        valid = [instance for instance in valid if instance.input != NOWHERE]
    kept: dict[tuple[str, str], ParsedInstance] = {}
    for instance in valid:
        texts = _texts(text, instance)
        if texts in kept:
            rejected.append(_reject("duplicate", instance))
        elif len(kept) == rules.max_instances:
            rejected.append(_reject("too_many", instance))
        else:
            kept[texts] = instance
    return ParsedInstances(tuple(kept.values()), tuple(rejected), None)


def _conflicts(text: str, instances: Sequence[ParsedInstance]) -> bool:
    """Whether one input that is not empty has two different outputs."""
    outputs: dict[str, str] = {}
    pairs = (_texts(text, instance) for instance in instances)
    return any(given and outputs.setdefault(given, wanted) != wanted for given, wanted in pairs)


def _contradict(text: str, instances: Sequence[ParsedInstance], *, is_classification: bool) -> bool:
    """Whether the outputs without an input differ where only one can be right.

    That is so for class labels, and for short answers of which all hold a number or all are yes or no. Two poems, or
    two names for a cat, do not contradict each other.
    """
    plain = [text[slice(*one.output)] for one in instances if one.input == NOWHERE]
    if len(plain) < 2:  # noqa: PLR2004 - one cannot contradict itself
        return False
    outputs = {_folded(output) for output in plain}
    return len(outputs) > 1 and (is_classification or _have_one_truth(outputs))


def _have_one_truth(outputs: Collection[str]) -> bool:
    answers = [output.split() for output in outputs]
    if any(not 1 <= len(words) <= _SHORT_ANSWER for words in answers):
        return False
    hold_numbers = all(any(map(str.isdecimal, "".join(words))) for words in answers)
    return hold_numbers or all(words[0] in _YES_OR_NO for words in answers)


def repeats_instruction(instruction: str, given: str, wanted: str) -> bool:
    """Whether the output is the instruction, alone or with its input, or most of the instruction and nothing else.

    Case, punctuation and whitespace do not count.
    """
    if len(wanted) > 2 * (len(instruction) + len(given)):  # far more than a repetition; spares folding a long text
        return False
    asked = _folded_instruction(instruction)
    if wanted.isascii() and (  # tells most outputs without folding them
        len(wanted) < _REPEATED_SHARE * len(asked)
        or ((word := _FIRST_WORD.search(wanted)) is not None and word[0].lower() not in asked)
    ):
        return False
    answered = _folded(wanted)
    if not answered:
        return False
    if answered in asked:
        return len(answered) >= _REPEATED_SHARE * len(asked)
    return bool(given) and answered == f"{asked} {_folded(given)}"


@functools.lru_cache(maxsize=1)  # an answer has several instances of one instruction
def _folded_instruction(instruction: str) -> str:
    return _folded(instruction)


def _folded(text: str) -> str:
    """Return the letters and digits, case folded, with one space where anything else was."""
    if text.isascii():  # the same, many times as fast
        return " ".join(text.lower().translate(_TO_SPACES).split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split())
