"""Read a list of instructions as models really write it, leniently and line by line.

Copes with ``9)``, ``9 .``, ``**9.**``, ``9. **Title**: text``, ``#9``, ``Task 9:``, ``9、``, full-width and Arabic digits,
bullets, numbering that restarts or skips, a chatty line before the list and notes after it, code fences, headings, and
inputs or outputs that follow an instruction. Guarantees: never raises; spans lie in the text, ascend and do not overlap.
Knows nothing of what makes an instruction acceptable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastgen.stages.answer import is_chatter, trim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.records import Span

_OPEN: Final = r"[ \t]*(?:[-*+>#]+[ \t]+)?(?:\*\*|__|\*|_)?[ \t]*"  # bullet, quote or heading mark, then emphasis
_CLOSE: Final = r"[ \t]*(?:\*\*|__|\*)?"
_NOUN: Final = r"(?:task|instruction|prompt|question|item|idea|no\.?|任务|指令|题目|问题|タスク)"
_HAN_NUMBER: Final = "[一二三四五六七八九十]{1,3}"
_NUMBERED: Final = re.compile(
    rf"""{_OPEN}(?:
        {_NOUN}[ \t]*[\#№]?(?P<named>\d{{1,3}}){_CLOSE}[ \t]*(?:[.:)：．、](?!\d)|[-–—](?=\s)|(?=[ \t]*$))
        | [\#№](?P<hashed>\d{{1,3}})[.:)]?(?=[\s*])
        | [(\[（](?:(?P<bracketed>\d{{1,3}})|{_HAN_NUMBER})[)\]）]
        | (?P<plain>\d{{1,3}}){_CLOSE}[ \t]?(?:[.)\]:：．、。）](?!\d)|\\[.)])
        | {_HAN_NUMBER}[、．]
        | [①-⑳]
    ){_CLOSE}[ \t]*""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_LABELLED: Final = re.compile(
    rf"[ \t]*(?:[-*+•>#]+[ \t]+)?(?:\*\*|__|\*|_)?(?:new )?(?:task|instruction|prompt|指令|任务){_CLOSE}[ \t]*[:：]{_CLOSE}[ \t]*",
    re.IGNORECASE,
)
_BULLETED: Final = re.compile(r"[ \t]*[-*+•●▪◦‣·–][ \t]+")
_LONE_NUMBER: Final = re.compile(r"[ \t]*(?:\*\*)?#?\d{1,3}[ \t]*\Z")
_BREAK: Final = re.compile(r"[ \t]*(?:$|```|~~~|#{1,6}[ \t]|(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$)", re.MULTILINE)
_PART: Final = re.compile(
    rf"""[ \t]*(?:[-*+•>][ \t]+)?(?:\*\*|__|\*|_)?
    (?:(?:(?:expected|example|sample)[ ])?(?:input|output)s?|examples?|instances?|answer|response|solution|explanation
    |class[ ]label|note|输入|输出|示例){_CLOSE}[ \t]*\d*{_CLOSE}[ \t]*[:：]""",
    re.IGNORECASE | re.VERBOSE,
)
_INLINE_PART: Final = re.compile(r"(?<=[.?!:。？！])[ \t]+(?:\*\*)?(?:Input|Output)[ \t]*\d*[ \t]*(?:\*\*)?[:：]")
_TITLE: Final = re.compile(
    r"(?P<mark>\*\*|__)(?P<inner>(?:(?!\*\*|__).)+?)(?P<colon>[:：]?)[ \t]*(?P=mark)[ \t]*(?P<after>[:：]|[-–—](?=\s))?[ \t]*"
)
_TITLE_WORDS: Final = 6  # bold text of more words is no title but the instruction itself
_QUOTES: Final = {'"': '"', "“": "”", "「": "」", "«": "»", "`": "`"}


@dataclass(frozen=True, slots=True)
class ListReading:
    """The items found; ``open_ended`` when the last one runs up to the end of the text, so that more may be missing."""

    spans: tuple[Span, ...]
    open_ended: bool


@dataclass(frozen=True, slots=True)
class _Marker:
    start: int
    """Where its line starts."""
    end: int
    """Where the item's own text starts."""
    number: int | None


def read_list(text: str, answer: Span, *, first_number: int) -> ListReading:
    """Return the items in ``text[answer]``.

    :param first_number: the number that the prompt already wrote; text before the first marker is its item, unless it
        speaks to the reader, or the list writes that number itself.
    """
    markers = _markers(text, answer)
    head = (answer[0], markers[0].start if markers else answer[1])
    starts = [marker.end for marker in markers]
    ends = [*(marker.start for marker in markers[1:]), answer[1]]
    chunks = list(zip(starts, ends, strict=False))
    if not markers or _head_is_item(text, head, markers[0], first_number):
        chunks.insert(0, _after_chatter(text, head) if not markers else head)
    read = [_read_item(text, start, end) for start, end in chunks]
    spans = tuple(span for span, _closed in read if span[0] < span[1])
    last_span, last_closed = read[-1]
    return ListReading(spans, last_span[0] < last_span[1] and not last_closed)
