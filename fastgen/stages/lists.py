"""Read a list of instructions as models really write it, leniently and line by line.

Copes with ``9)``, ``9 .``, ``**9.**``, ``9. **Title**: text``, ``#9``, ``Task 9:``, Chinese, full-width and Arabic
numerals, letters, bullets, numbering that restarts or skips, several items on a line, a chatty line before the list
and notes after it, code fences, headings, inputs or outputs that follow an instruction, JSON and tables. Guarantees:
never raises; spans lie in the text, ascend and do not overlap. Knows nothing of what makes an instruction acceptable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastgen.stages.answer import CLOSE, COLON, NOWHERE, OPEN, is_chatter, is_closing, lines, trim
from fastgen.stages.marks import BULLETED, DASH, LABELLED, Marker, find_markers, first_inline, with_inline
from fastgen.stages.structured import NUMBER_NAMES, read_records

if TYPE_CHECKING:
    from fastgen.records import Span

# Every pattern is matched against one line.
_LONE_NUMBER: Final = re.compile(r"[ \t]*+(?:\*\*)?#?\d{1,3}[ \t]*+$")
_BREAK: Final = re.compile(r"[ \t\r]*+(?:$|```|~~~|\#{1,6}[ \t]|(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t\r]*+$)")
_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*+\n")
_PART: Final = re.compile(
    rf"""{OPEN}[(\[]?(?:(?:(?:expected|example|sample)[ ])?(?:input|output)s?|examples?|instances?|answer|response
    |solution|explanation|class[ ]label|note|输入|输出|示例){CLOSE}[ \t]*+\d*+{CLOSE}[ \t]*+{COLON}""",
    re.IGNORECASE | re.VERBOSE,
)
_INLINE_PART: Final = re.compile(
    rf"(?<=[.?!:。\uff1f\uff01])[ \t]++(?:\*\*)?(?:Input|Output)[ \t]*+\d*+[ \t]*+(?:\*\*)?{COLON}"
)
_BOLD: Final = rf"(?P<inner>(?:(?!\*\*|__).)+?)(?P<colon>{COLON}?)(?:\*\*|__)[ \t]*+(?P<after>{COLON}|{DASH}(?=\s))?"
_TITLE: Final = re.compile(rf"(?:\*\*|__){_BOLD}")
_ITALIC_TITLE: Final = re.compile(rf"([*_])(?![*_ \t])[^*_\n]{{1,60}}(?:{COLON}\1|\1[ \t]*+{COLON})")
_TITLE_OPENED_BEFORE: Final = re.compile(_BOLD)  # "**9. Title**: text", where the marker took the opening
_MOST_LINES: Final = 10_000  # an item of more lines is not looked at more closely
_TITLE_WORDS: Final = 6  # bold text of more words is no title but the instruction itself
_SENTENCE_ENDS: Final = (".", "?", "!", "。", "\uff1f", "\uff01")
_INSTRUCTION_NAMES: Final = ("instruction", "task", "prompt", "question", "text", "")
_QUOTES: Final = {'"': '"', "“": "”", "「": "」", "«": "»", "`": "`"}


@dataclass(frozen=True, slots=True)
class ListReading:
    """The items found; ``open_ended`` when the last one runs up to the end of the text, so that more may be missing."""

    spans: tuple[Span, ...]
    open_ended: bool


@dataclass(frozen=True, slots=True)
class _Item:
    """One item; ``closed`` when something after it shows that it is complete."""

    span: Span
    closed: bool


def read_list(text: str, answer: Span, *, first_number: int) -> ListReading:
    """Return the items in ``text[answer]``.

    :param first_number: the number that the prompt already wrote; text before the first marker is its item, unless it
        speaks to the reader or the list writes that number itself.
    """
    markers = find_markers(text, answer, first_number)
    if not markers and (reading := _read_structured(text, answer)):
        return reading
    head = (answer[0], markers[0].start if markers else answer[1])
    if _head_is_item(text, head, markers, first_number):
        markers.insert(0, Marker(head[0], _after_chatter(text, head), first_number, heading=False))
    else:
        markers[:0] = first_inline(text, head, markers, first_number)
    markers = list(with_inline(text, markers, answer[1]))
    ends = [*(marker.start for marker in markers[1:]), answer[1]]
    items = [_read_item(text, marker, end) for marker, end in zip(markers, ends, strict=bool(markers))]
    spans = tuple(item.span for item in items if item.span != NOWHERE)
    open_ended = answer[1] == len(text) and bool(items) and items[-1].span != NOWHERE and not items[-1].closed
    return ListReading(spans, open_ended)


def _read_structured(text: str, answer: Span) -> ListReading | None:
    """Return the instructions of an answer that is JSON or a table; ``None`` for any other."""
    spans = []
    for record in read_records(text, answer):
        named = [record[name] for name in _INSTRUCTION_NAMES if name in record]
        others = [span for name, span in record.items() if name not in NUMBER_NAMES]
        spans += named[:1] or (others if len(others) == 1 else [])
    spans = [_clean(text, span) for span in spans if span != NOWHERE]
    return ListReading(tuple(spans), open_ended=False) if spans else None


def _head_is_item(text: str, head: Span, markers: list[Marker], first_number: int) -> bool:
    """Whether what stands before the first marker is the item whose number the prompt ended in."""
    start, end = trim(text, *head)
    if (start, end) == NOWHERE:
        return False
    goes_on = start > head[0]  # right after "9." comes a blank; an answer to a chat prompt starts without one
    chatter = is_chatter(text, start, end)
    if not markers:
        return goes_on
    blank_line = _BLANK_LINE.search(text, start, head[1]) is not None
    if markers[0].number == first_number + 1:
        return not (chatter and blank_line)
    return (
        goes_on and markers[0].number != first_number and not (chatter or blank_line or text[end - 1] in ":\uff1a#*`")
    )


def _after_chatter(text: str, head: Span) -> int:
    """Return where the head begins in earnest: after an opening paragraph that speaks to the reader."""
    start, end = trim(text, *head)
    blank_line = _BLANK_LINE.search(text, start, end)
    return blank_line.end() if blank_line and is_chatter(text, start, blank_line.start()) else start


def _read_item(text: str, marker: Marker, end: int) -> _Item:
    """Return the item that begins at ``marker``: its first paragraph, up to an input, output, fence or heading.

    A title before the instruction ("**Haiku**: Write ...", or a bold line of its own) is left out, and so is what
    follows a first line that is wholly bold and no title: a remark on it.
    """
    body, is_title, is_whole = NOWHERE, marker.heading, False
    whole = trim(text, marker.end, end)
    if whole == NOWHERE:
        return _Item(NOWHERE, closed=False)
    for number, (start, stop) in enumerate(lines(text, whole[0], end)):
        if number == _MOST_LINES:
            return _Item(_clean(text, (body[0], end)), closed=False)
        if body != NOWHERE and (is_whole or _ends_item(text, (start, stop), is_title=is_title)):
            return _Item(_clean(text, body), closed=True)
        if _BREAK.match(text, start, stop):
            continue
        label = LABELLED.match(text, start, stop)
        if label and (number <= 1 or is_title):
            body, is_title = (label.end(), stop), False
        elif body == NOWHERE:
            body, is_title = _first_line(text, (start, stop), heading=is_title)
            is_whole = not is_title and text[body[1] : stop].strip() in ("**", "__")
        elif is_title:
            body, is_title = (_after(BULLETED, text, (start, stop)), stop), False
        else:
            body = (body[0], stop)
        if part := _INLINE_PART.search(text, max(start, body[0]), stop):
            return _Item(_clean(text, (body[0], part.start())), closed=True)
    return _Item(_clean(text, body), closed=False)


def _ends_item(text: str, line: Span, *, is_title: bool) -> bool:
    if _PART.match(text, *line) or is_closing(text, *line):
        return True
    if line[1] == len(text) and _LONE_NUMBER.match(text, *line):  # the next marker, cut short
        return True
    return not is_title and _BREAK.match(text, *line) is not None


def _after(pattern: re.Pattern[str], text: str, line: Span) -> int:
    match = pattern.match(text, *line)
    return match.end() if match else line[0]


def _first_line(text: str, line: Span, *, heading: bool) -> tuple[Span, bool]:
    """Return what of an item's first line is instruction, and whether it is only a title."""
    start, stop = _after(BULLETED, text, line), line[1]
    opened_before = text.count("**", start, stop) % 2
    title = (_TITLE_OPENED_BEFORE if opened_before else _TITLE).match(text, start, stop)
    if title is None and (title := _ITALIC_TITLE.match(text, start, stop)):
        return (title.end() if text[title.end() : stop].strip() else start, stop), False
    if title is None:
        return (start, stop), heading and _could_be_title(text[start:stop])
    if text[title.end() : stop].strip():
        return (title.end() if title["colon"] or title["after"] else start, stop), False
    return title.span("inner"), _could_be_title(title["inner"])


def _could_be_title(line: str) -> bool:
    return len(line.split()) <= _TITLE_WORDS and not line.rstrip().endswith(_SENTENCE_ENDS)


def _clean(text: str, span: Span) -> Span:
    """Return the span without blanks, a stray emphasis mark at its end, or quotation marks around it."""
    start, end = trim(text, *span)
    for mark in ("**", "__"):
        if text.endswith(mark, start, end) and text.count(mark, start, end) % 2:
            start, end = trim(text, start, end - len(mark))
    for opening, closing in (("**", "**"), ("__", "__"), *_QUOTES.items()):
        inner = (start + len(opening), end - len(closing))
        wrapped = text.startswith(opening, start, end) and text.endswith(closing, start, end)
        if wrapped and inner[0] < inner[1] and closing not in text[slice(*inner)]:
            start, end = trim(text, *inner)
    return start, end
