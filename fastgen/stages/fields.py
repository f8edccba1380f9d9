"""Read instances as models really write them: labelled fields at the beginning of lines.

Copes with Markdown around the labels, "Example 1:" headings, pairs without headings, ``Input: N/A`` for no input,
other words and languages for the labels, an input written before its class label, code fences around a text or a whole
example, rules between instances, an echoed task, the next task, explanations of a label, chatter before and after, JSON
and tables. Guarantees: never raises; spans lie in the text and are stripped. Knows nothing of what makes an instance
valid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from fastgen.stages.answer import CLOSE, COLON, NOWHERE, OPEN, is_chatter, lines, trim
from fastgen.stages.labels import (
    CLASS_LABEL,
    CLASS_LABEL_ALIAS,
    EXAMPLE,
    FENCE,
    INLINE_INPUT,
    INLINE_OUTPUT,
    INPUT,
    NEXT_TASK,
    OUTPUT,
    OUTPUT_ALIAS,
    TASK,
    Field,
    candidates,
    find_fields,
    find_inline_outputs,
    without_begun_label,
)
from fastgen.stages.structured import NUMBER_NAMES, read_records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.records import Span

Pair = tuple["Span", "Span"]
"""(input, output)."""


class _Piece(NamedTuple):
    """What was found of one instance; ``end`` is the end of what belongs to it."""

    input: Span
    output: Span
    end: int
    is_labelled: bool = True


_FIELD: Final = re.compile(rf"\w[\w \t/'-]{{0,40}}{COLON}")
_NAMED: Final = re.compile(
    rf"{OPEN}(?P<name>[^\W\d_][^\n\d:\uff1a.,;!?()\[\]{{}}<>=\"'`*_\\/|]{{0,39}}){CLOSE}[ \t]*+"
    r"(?::(?=[\s*_]|$)|\uff1a)"
)
_MOST_LABELS: Final = 2
_LABEL_WORDS: Final = 4
_NAMES_IN_TEXTS: Final = frozenset(  # first words of lines that belong to a text
    """title subject note notes dear hint tip warning caution remember ps quote fact headline slogan chorus verse
    titel betreff hinweis anmerkung titre objet remarque título asunto assunto nota заголовок тема примечание
    العنوان الموضوع ملاحظة 标题 主题 注 注意 提示 備考 件名 タイトル 題名 the a an this here my your""".split()  # noqa: SIM905
)
_NO_INPUT: Final = re.compile(
    r"""[\[(<*_]*+(?:
        n\s?/\s?a(?:[ ][(\u2013\u2014-][^\n]{0,80})? | none | not[ ](?:applicable|needed|required) | empty | nil | null
        | (?:there[ ]is[ ])?no[ ]?(?:additional[ ]|further[ ]|specific[ ])?input
          (?:[ ](?:is[ ])?(?:needed|required|necessary|given|provided))?(?:[ ]for[ ]this[ ]task)?
        | [-\u2013\u2014] | 无 | 無 | 没有 | [无無][输輸]入 | (?:入力)?(?:なし|無し)
        | keine?(?:[ ]eingabe)? | aucune?(?:[ ]entrée)? | ninguna? | (?:sin|sem)[ ]entrada | нет(?:[ ]ввода)?
        | لا[ ]يوجد
    )[\])>*_.。]*+$""",
    re.IGNORECASE | re.VERBOSE,
)
_RULE: Final = re.compile(r"[ \t]*+(?:-{3,}|\*{3,}|_{3,}|={3,}|#{1,6}|\*\*|__)[ \t\r]*+$")
_OUTPUT_NAMES: Final = ("class label", "output", "label", "class", "answer", "response", "completion")
_FENCED: Final = re.compile(r"```[^\n`]*\n(?P<body>(?:(?!```).)*?)\n[ \t]*```", re.DOTALL)
_EXPLANATIONS: Final = (
    "explanation|reasoning|rationale|justification|erklärung|begründung|explication|explicaci[oó]n|explicação"
    "|объяснение|пояснение|(?:ال)?(?:شرح|تفسير)|解释|解釋|解釈|説明|理由"
)
_EXPLANATION: Final = re.compile(rf"\n{OPEN}(?:{_EXPLANATIONS}){CLOSE}[ \t]*+{COLON}", re.IGNORECASE)
_CLOSING: Final = re.compile(
    r"""\n[ \t]*+\n[ \t*_]*+(?:
        let\ me\ know\ if\ you(?:['\u2019]d\ like|\ need|\ want|\ would\ like)\b
            (?>[^\n]*?\b(?:more|another|else|examples?|changes?))
        | (?:i\ )?hope\ (?:this|these|that)\b | (?:these|the\ above)\ (?:examples?|instances?)\b
        | note(?:\ that|:)\ (?:these|the\ above|all)\ (?:\w+\ )?(?:examples|instances|inputs|outputs)\b
        | would\ you\ like\ (?:me|more|another)\b | feel\ free\ to\ (?:ask|modify|adjust|use)\b
    )[^\n]*+$""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The pairs found; ``open_ended`` when the last one runs up to the end of the text, so that more may be missing.

    ``unlabelled`` are those of the pairs whose output is all of an example, for want of a label in it.
    """

    pairs: tuple[Pair, ...]
    open_ended: bool
    unlabelled: frozenset[Pair] = frozenset()


@dataclass(frozen=True, slots=True)
class _Segment:
    """The text of one example or, where there is no "Example k", all of it; ``headed`` when such a heading is there."""

    start: int
    end: int
    headed: bool
    fields: tuple[Field, ...]


def read_generation(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that writes an input and then its output.

    Under an "Example k" heading without "Output:", everything is output; without any heading or "Output:", nothing is.
    """
    answer = without_begun_label(text, answer)
    return _read_generation(text, answer, candidates(text, answer))


def _read_generation(text: str, answer: Span, rows: Sequence[Span]) -> Reading:
    reading = _read_pairs(text, answer, rows, (OUTPUT, OUTPUT_ALIAS, INLINE_OUTPUT))
    return reading if reading.pairs else _read_structured(text, answer)


def read_classification(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that writes a class label and then an input for it.

    An answer that writes labelled inputs first, or outputs instead of class labels, is read as such.
    """
    answer = without_begun_label(text, answer)
    rows = candidates(text, answer)
    for kind in (CLASS_LABEL, CLASS_LABEL_ALIAS):
        fields = find_fields(text, answer, rows, (kind, EXAMPLE, INPUT, TASK))
        kinds = [field.kind for field in fields]
        if kind in kinds:
            input_comes_first = INPUT in kinds[: kinds.index(kind)] or _is_headed_by_field(text, fields, kind)
            return _without_explanations(
                text,
                _read_pairs(text, answer, rows, (kind,))
                if input_comes_first
                else _read_labelled(text, answer, kind, fields),
            )
    return _without_explanations(text, _read_generation(text, answer, rows))


def _is_headed_by_field(text: str, fields: list[Field], kind: re.Pattern[str]) -> bool:
    """Whether the first label comes after "Example k" and a field of another name ("Text: ..."), hence an input."""
    at = next(i for i, field in enumerate(fields) if field.kind is kind)
    if at == 0 or fields[at - 1].kind is not EXAMPLE:
        return False
    before = trim(text, fields[at - 1].end, fields[at].start)
    return before != NOWHERE and _FIELD.match(text, *before) is not None


def _read_structured(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that is JSON or a table."""
    pairs = []
    for record in read_records(text, answer):
        wanted = next((record[name] for name in _OUTPUT_NAMES if name in record), None)
        if wanted is not None:
            others = [span for name, span in record.items() if name not in _OUTPUT_NAMES and name not in NUMBER_NAMES]
            pairs.append(_Piece(record.get("input", others[0] if len(others) == 1 else NOWHERE), wanted, 0))
    return _reading(text, pairs)


def _without_explanations(text: str, reading: Reading) -> Reading:
    """Leave out what is said about a label: it belongs neither to the label nor to its input."""

    def shortened(pair: Pair) -> Pair:
        return _before_explanation(text, pair[0]), _before_explanation(text, pair[1])

    pairs, unlabelled = map(shortened, reading.pairs), map(shortened, reading.unlabelled)
    return Reading(tuple(pairs), reading.open_ended, frozenset(unlabelled))


def _before_explanation(text: str, span: Span) -> Span:
    explained = _EXPLANATION.search(text, *span)
    return trim(text, span[0], explained.start()) if explained else span


def _within_task(text: str, region: Span, fields: list[Field]) -> tuple[Span, list[Field]]:
    """Leave out a task or instruction repeated before the instances, and the next task after them."""
    start, end = region
    others = [field for field in fields if field.kind is not TASK]
    first = others[0].start if others else end
    for field in fields:
        if field.kind is TASK and field.start < first:
            line_end = text.find("\n", field.end, end)
            start = line_end + 1 if line_end >= 0 else end
        elif field.kind is TASK and NEXT_TASK.match(text, field.start):
            end = field.start
            break
    return (start, end), [field for field in others if start <= field.start < end]


def _read_pairs(text: str, answer: Span, rows: Sequence[Span], outputs: Sequence[re.Pattern[str]]) -> Reading:
    for output in outputs:
        fields = find_fields(text, answer, rows, (output, EXAMPLE, INPUT, TASK))
        if output is INLINE_OUTPUT:
            fields = sorted([*fields, *find_inline_outputs(text, answer)], key=lambda field: field.start)
        if any(field.kind is output for field in fields):
            break
    region, fields = _within_task(text, answer, fields)
    pieces: list[_Piece] = []
    for segment in _segments(region, fields):
        pieces += _read_segment(text, segment)
    return _reading(text, pieces)


def _reading(text: str, pieces: Sequence[_Piece]) -> Reading:
    """Clean what was found."""
    pairs = tuple((_clean_input(text, piece.input), _clean_output(text, piece.output)) for piece in pieces)
    unlabelled = (pair for pair, piece in zip(pairs, pieces, strict=True) if not piece.is_labelled)
    return Reading(pairs, bool(pieces) and pieces[-1].end == len(text), frozenset(unlabelled))


def _segments(region: Span, fields: Sequence[Field]) -> list[_Segment]:
    headings = [field for field in fields if field.kind is EXAMPLE]
    starts = [region[0], *(heading.end for heading in headings)]
    ends = [*(heading.start for heading in headings), region[1]]
    within: list[list[Field]] = [[]]
    for field in fields:
        if field.kind is EXAMPLE:
            within.append([])
        else:
            within[-1].append(field)
    return [
        _Segment(start, end, i > 0, tuple(inside))
        for i, (start, end, inside) in enumerate(zip(starts, ends, within, strict=True))
    ]


def _read_segment(text: str, segment: _Segment) -> list[_Piece]:
    """Return every pair in a segment; an input without an output is a pair too."""
    labels = [field for field in segment.fields if field.kind is not FENCE]
    if not labels:
        whole = trim(text, segment.start, segment.end)
        is_output = segment.headed and whole != NOWHERE
        return [_Piece(NOWHERE, whole, segment.end, is_labelled=False)] if is_output else []
    pairs = []
    given: Span | None = _before_fields(text, segment)
    ends = [*(field.start for field in segment.fields[1:]), segment.end]
    for field, end in zip(segment.fields, ends, strict=True):
        if field.kind is FENCE:
            continue
        if field.kind is not INPUT:
            if given is not None:
                pairs.append(_Piece(given, (field.end, end), end))
            given = None  # a second output in a row belongs to no input
        elif given is None or given == NOWHERE:
            given = (field.end, end)
        else:
            given = (given[0], end)  # a further field of the same input
    if given is not None and labels[-1].kind is INPUT:
        pairs.append(_Piece(given, NOWHERE, segment.end))
    return pairs


def _before_fields(text: str, segment: _Segment) -> Span:
    """Return the input that stands before the first label: fields of other names, or text right before an output."""
    first = segment.fields[0]
    span = trim(text, segment.start, first.start)
    if span == NOWHERE or first.kind is FENCE or is_chatter(text, *span) or _is_introduction(text, span):
        return NOWHERE
    return span if first.kind is not INPUT or _FIELD.match(text, *span) else NOWHERE


def _is_introduction(text: str, span: Span) -> bool:
    """Whether the last line is more than the name of a field, and ends in a colon."""
    line = max(text.rfind("\n", *span) + 1, span[0])
    return text[span[1] - 1] in ":\uff1a" and text.find(" ", line, span[1] - 1) >= 0


def _read_labelled(text: str, answer: Span, kind: re.Pattern[str], fields: list[Field]) -> Reading:
    """Read a label line and, up to the next label or heading, the input for it."""
    region, fields = _within_task(text, answer, fields)
    marks = [field for field in fields if field.kind in (kind, EXAMPLE, FENCE)]
    ends = [*(mark.start for mark in marks[1:]), region[1]]
    pairs = []
    for mark, end in zip(marks, ends, strict=bool(marks)):
        if mark.kind is kind:
            start, stop = trim(text, mark.end, end)
            line_end = next(lines(text, start, stop))[1]
            inline = INLINE_INPUT.search(text, start, line_end)
            label_end = inline.start() if inline else line_end
            after = trim(text, label_end, stop)
            prefix = INPUT.match(text, *after)
            pairs.append(_Piece((prefix.end() if prefix else after[0], after[1]), (start, label_end), end))
    return _reading(text, pairs)


def begins_with_label(text: str, span: Span) -> bool:
    """Whether an example in which no label is known begins with one all the same ("Ulaz: 3 kg").

    A name of up to four words, of which the first is not written small, and a colon. Not a title, a note or the like,
    nor what has three such lines or one name twice: that is a dialogue, a form, a list or a file.
    """
    named = []
    for line in lines(text, *span):
        if match := _NAMED.match(text, *line):
            named.append(match["name"].casefold())
        if len(named) > _MOST_LABELS:
            return False
    first = _NAMED.match(text, *next(lines(text, *span)))
    if first is None or first["name"][0].islower() or len(set(named)) < len(named):
        return False
    words = named[0].split()
    return len(words) <= _LABEL_WORDS and words[0] not in _NAMES_IN_TEXTS


def _clean_input(text: str, span: Span) -> Span:
    span = _unwrap(text, _before_closing(text, span))
    return NOWHERE if _NO_INPUT.match(text, *span) else span


def _clean_output(text: str, span: Span) -> Span:
    return _unwrap(text, _before_closing(text, span))


def _before_closing(text: str, span: Span) -> Span:
    start, end = trim(text, *span)
    closing = _CLOSING.search(text, start, end)
    return trim(text, start, closing.start()) if closing else (start, end)


def _unwrap(text: str, span: Span) -> Span:
    """Return the span without blanks, rules at its end, or a code fence around all of it."""
    start, end = trim(text, *span)
    while (line := text.rfind("\n", start, end)) >= 0 and (
        _RULE.match(text, line + 1, end) or text[line:end].isspace()
    ):
        end = line
    if (
        text.endswith("**", start, end) and text.count("**", start, end) % 2
    ):  # "**Output: 4, 5**": the label has the other
        end -= 2
    span = trim(text, start, end)
    fenced = _FENCED.fullmatch(text, *span)
    return trim(text, *fenced.span("body")) if fenced else span
