"""Read instances as models really write them: labelled fields at the beginning of lines.

Copes with Markdown around the labels, "Example 1:" headings, pairs without headings, ``Input: N/A`` for no input,
other words for "Output:" and "Class label:", an input written before its class label, code fences around a text, rules
between instances, an echoed task, the next task, and chatter before and after. Guarantees: never raises; spans lie in
the text and are stripped. Knows nothing of what makes an instance valid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastgen.stages.answer import CLOSE, COLON, NOWHERE, OPEN, is_chatter, lines, trim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.records import Span

Pair = tuple["Span", "Span"]
"""(input, output)."""

_START: Final = rf"[ \t]*+(?:\d{{1,2}}[.)][ \t]++)?{OPEN}"  # some models number their fields


def _label(words: str) -> re.Pattern[str]:
    """Return a pattern for a field name at the start of a line: ``words``, maybe a number or a remark, a colon."""
    remark = r"(?:\([^()\n]{0,40}\)[ \t]*+)?"
    return re.compile(rf"{_START}(?:{words})[ \t]*+\d*+[ \t]*+{remark}{CLOSE}[ \t]*+{COLON}{CLOSE}", re.IGNORECASE)


_EXAMPLE: Final = re.compile(
    rf"""{_START}(?:example|instance|test[ ]case|示例|例)
    (?:[ \t]*+[\#\u2116]?(?P<number>\d++){CLOSE}[ \t]*+[.:)\uff1a-]?{CLOSE}|{CLOSE}[ \t]*+{COLON}?{CLOSE}[ \t]*+$)""",
    re.IGNORECASE | re.VERBOSE,
)
_INPUT: Final = _label(r"(?:(?:example|sample|test)[ ])?inputs?|输入")
_OUTPUT: Final = _label(r"(?:(?:example|sample|expected|correct|desired|possible)[ ])?outputs?|输出")
_OUTPUT_ALIAS: Final = _label("answer|response|result|solution|completion|回答|答案")
_CLASS_LABEL: Final = _label(r"(?:class|classification)[ _-]?labels?")
_CLASS_LABEL_ALIAS: Final = _label("label|class|category|classification|类别|标签")
_TASK: Final = _label("task|instruction")
_NEXT_TASK: Final = _label("task")
_INLINE_INPUT: Final = re.compile(rf"(?<=\s)Input[ \t]*+\d*+[ \t]*+{COLON}")
_INLINE_OUTPUT: Final = re.compile(rf"(?<=\s)Output[ \t]*+\d*+[ \t]*+{COLON}")
_FIELD: Final = re.compile(rf"\w[\w \t/'-]{{0,40}}{COLON}")
_NO_INPUT: Final = re.compile(
    r"""[\[(<*_]*+(?:n\s?/\s?a|none|no[ ]?input(?:[ ](?:is[ ])?(?:needed|required))?|not[ ]applicable|empty|nil|null
    |无)[\])>*_.]*+$""",
    re.IGNORECASE | re.VERBOSE,
)
_RULE_AT_END: Final = re.compile(r"\n[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,}|#{1,6}|\*\*|__)[ \t]*$")
_FENCED: Final = re.compile(r"```[^\n`]*\n(?P<body>(?:(?!```).)*?)\n[ \t]*```", re.DOTALL)
_CLOSING: Final = re.compile(
    r"""\n[ \t]*\n[ \t*_]*+(?:
        let\ me\ know\ if\ you(?:['\u2019]d\ like|\ need|\ want|\ would\ like)\b
            [^\n]*\b(?:more|another|else|examples?|changes?)
        | (?:i\ )?hope\ (?:this|these|that)\b | (?:these|the\ above)\ (?:examples?|instances?)\b
        | would\ you\ like\ (?:me|more|another)\b | feel\ free\ to\ (?:ask|modify|adjust|use)\b
    )[^\n]*$""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The pairs found; ``open_ended`` when the last one runs up to the end of the text, so that more may be missing."""

    pairs: tuple[Pair, ...]
    open_ended: bool


@dataclass(frozen=True, slots=True)
class _Field:
    """A label found: its kind, where it starts, and where its content does."""

    kind: re.Pattern[str]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """The text of one example or, where there is no "Example k", all of it; ``headed`` when such a heading is there."""

    start: int
    end: int
    headed: bool
    fields: tuple[_Field, ...]


def read_generation(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that writes an input and then its output.

    Under an "Example k" heading without "Output:", everything is output; without any heading or "Output:", nothing is.
    """
    return _read_pairs(text, answer, (_OUTPUT, _OUTPUT_ALIAS, _INLINE_OUTPUT))


def read_classification(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that writes a class label and then an input for it.

    An answer that writes labelled inputs first, or outputs instead of class labels, is read as such.
    """
    for kind in (_CLASS_LABEL, _CLASS_LABEL_ALIAS):
        fields = _find(text, answer, (kind, _EXAMPLE, _INPUT, _TASK))
        kinds = [field.kind for field in fields]
        if kind in kinds:
            input_comes_first = _INPUT in kinds[: kinds.index(kind)]
            return (
                _read_pairs(text, answer, (kind,)) if input_comes_first else _read_labelled(text, answer, kind, fields)
            )
    return read_generation(text, answer)


def _find(text: str, region: Span, kinds: Sequence[re.Pattern[str]]) -> list[_Field]:
    """Return the labels at the beginnings of lines; a field may also follow a heading on its line."""
    found = []
    for start, stop in lines(text, *region):
        at = start
        while match := next(filter(None, (kind.match(text, at, stop) for kind in kinds)), None):
            if match.re is _EXAMPLE and not match["number"] and not _label_follows(text, stop, region[1], kinds):
                break
            found.append(_Field(match.re, at, match.end()))
            if match.re is not _EXAMPLE:
                break
            at = match.end()
    return found


def _label_follows(text: str, start: int, end: int, kinds: Sequence[re.Pattern[str]]) -> bool:
    """Whether the next text is a label, without which a lone "Example:" is a line of somebody's output."""
    line = next((line for line in lines(text, start, end) if text[slice(*line)].strip()), None)
    return line is not None and any(kind.match(text, *line) for kind in kinds if kind is not _EXAMPLE)


def _within_task(text: str, region: Span, fields: list[_Field]) -> tuple[Span, list[_Field]]:
    """Leave out a task or instruction repeated before the instances, and the next task after them."""
    start, end = region
    others = [field for field in fields if field.kind is not _TASK]
    first = others[0].start if others else end
    for field in fields:
        if field.kind is _TASK and field.start < first:
            line_end = text.find("\n", field.end, end)
            start = line_end + 1 if line_end >= 0 else end
        elif field.kind is _TASK and _NEXT_TASK.match(text, field.start):
            end = field.start
            break
    return (start, end), [field for field in others if start <= field.start < end]


def _read_pairs(text: str, answer: Span, outputs: Sequence[re.Pattern[str]]) -> Reading:
    for output in outputs:
        if output is _INLINE_OUTPUT:
            inline = [_Field(output, *match.span()) for match in output.finditer(text, *answer)]
            fields = sorted([*_find(text, answer, (_EXAMPLE, _INPUT, _TASK)), *inline], key=lambda field: field.start)
        else:
            fields = _find(text, answer, (output, _EXAMPLE, _INPUT, _TASK))
        if any(field.kind is output for field in fields):
            break
    region, fields = _within_task(text, answer, fields)
    pairs: list[tuple[Span, Span, int]] = []
    for segment in _segments(region, fields):
        pairs += _segment_pairs(text, segment)
    return _reading(text, pairs)


def _reading(text: str, pairs: Sequence[tuple[Span, Span, int]]) -> Reading:
    """Clean the pairs, given as (input, output, end of what belongs to the pair)."""
    cleaned = tuple((_clean_input(text, given), _clean_output(text, wanted)) for given, wanted, _ in pairs)
    return Reading(cleaned, open_ended=bool(pairs) and pairs[-1][2] == len(text))


def _segments(region: Span, fields: Sequence[_Field]) -> list[_Segment]:
    headings = [field for field in fields if field.kind is _EXAMPLE]
    starts = [region[0], *(heading.end for heading in headings)]
    ends = [*(heading.start for heading in headings), region[1]]
    return [
        _Segment(start, end, i > 0, tuple(f for f in fields if start <= f.start < end and f.kind is not _EXAMPLE))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _segment_pairs(text: str, segment: _Segment) -> list[tuple[Span, Span, int]]:
    """Return (input, output, end) of every pair in a segment; an input without an output is a pair too."""
    if not segment.fields:
        whole = trim(text, segment.start, segment.end)
        return [(NOWHERE, whole, segment.end)] if segment.headed and whole != NOWHERE else []
    pairs = []
    given: Span | None = _before_fields(text, segment)
    ends = [*(field.start for field in segment.fields[1:]), segment.end]
    for field, end in zip(segment.fields, ends, strict=True):
        if field.kind is not _INPUT:
            if given is not None:
                pairs.append((given, (field.end, end), end))
            given = None  # a second output in a row belongs to no input
        elif given is None or given == NOWHERE:
            given = (field.end, end)
        else:
            given = (given[0], end)  # a further field of the same input
    if given is not None and segment.fields[-1].kind is _INPUT:
        pairs.append((given, NOWHERE, segment.end))
    return pairs


def _before_fields(text: str, segment: _Segment) -> Span:
    """Return the input that stands before the first label: fields of other names, or text right before an output."""
    first = segment.fields[0]
    span = trim(text, segment.start, first.start)
    if span == NOWHERE or is_chatter(text, *span):
        return NOWHERE
    return span if first.kind is not _INPUT or _FIELD.match(text, *span) else NOWHERE


def _read_labelled(text: str, answer: Span, kind: re.Pattern[str], fields: list[_Field]) -> Reading:
    """Read a label line and, up to the next label or heading, the input for it."""
    region, fields = _within_task(text, answer, fields)
    marks = [field for field in fields if field.kind in (kind, _EXAMPLE)]
    ends = [*(mark.start for mark in marks[1:]), region[1]]
    pairs = []
    for mark, end in zip(marks, ends, strict=bool(marks)):
        if mark.kind is kind:
            start, stop = trim(text, mark.end, end)
            line_end = next(lines(text, start, stop))[1]
            inline = _INLINE_INPUT.search(text, start, line_end)
            label_end = inline.start() if inline else line_end
            after = trim(text, label_end, stop)
            prefix = _INPUT.match(text, *after)
            pairs.append(((prefix.end() if prefix else after[0], after[1]), (start, label_end), end))
    return _reading(text, pairs)


def _clean_input(text: str, span: Span) -> Span:
    span = _unwrap(text, span)
    return NOWHERE if _NO_INPUT.match(text, *span) else span


def _clean_output(text: str, span: Span) -> Span:
    start, end = trim(text, *span)
    closing = _CLOSING.search(text, start, end)
    return _unwrap(text, (start, closing.start() if closing else end))


def _unwrap(text: str, span: Span) -> Span:
    """Return the span without blanks, a rule at its end, or a code fence around all of it."""
    span = trim(text, *span)
    while rule := _RULE_AT_END.search(text, *span):
        span = trim(text, span[0], rule.start())
    fenced = _FENCED.fullmatch(text, *span)
    return trim(text, *fenced.span("body")) if fenced else span
