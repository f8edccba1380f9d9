"""Find where the items of a list begin.

Knows numbers in every writing (``9)``, ``**9.**``, ``Task 9:``, ``九、``, ``٩.``, ``①``), labels without numbers,
letters and bullets, and numbers in the middle of a line that count on. Guarantees: never raises; linear in the text.
Knows nothing of where an item ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Final

from fastgen.stages.answer import CLOSE, COLON, NOWHERE, OPEN, is_chatter, lines, trim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.records import Span

_MOST_MARKERS: Final = 10_000  # of a completion that lists more, the rest belongs to the last item
# Every pattern but _INLINE_NUMBER is matched at the beginning of a line.
DASH: Final = r"[-\u2013\u2014]"
_NOUN: Final = (
    r"(?:task|instruction|prompt|question|q|item|idea|no\.?|tarea|instrucci[oó]n|tâche|aufgabe|задание|задача"
    r"|مهمة|कार्य|งาน|任务|任務|指令|题目|问题|タスク|課題|작업|과제)"
)
_HAN_NUMBER: Final = "[一二三四五六七八九十]{1,3}"
_NUMBERED: Final = re.compile(
    rf"""{OPEN}(?:
        (?P<noun>{_NOUN})[ \t]*+[\#\u2116]?(?:(?P<named>\d{{1,3}})|{_HAN_NUMBER}){CLOSE}
          [ \t]*+(?:[.:)\uff1a\uff0e、](?!\d)|{DASH}(?=\s)|$)
        | [\#\u2116](?P<hashed>\d{{1,3}})[.:)]?(?=[\s*])
        | [(\[\uff08](?:(?P<bracketed>\d{{1,3}})|{_HAN_NUMBER})[)\]\uff09]
        | (?P<plain>\d{{1,3}})(?(mark)(?:(?P=mark))?)
          (?:[ \t]?\\?[.)\]:\uff1a\uff0e、。\uff09](?!\d) | [ \t]*+{DASH}[ \t]++(?=[^\W\d_]))
        | {_HAN_NUMBER}[、\uff0e]
        | [①-⑳] | (?:\d\ufe0f?\u20e3){{1,2}} | \U0001f51f
    ){CLOSE}[ \t]*+""",
    re.IGNORECASE | re.VERBOSE,
)
_LABEL: Final = rf"{OPEN}(?:new )?(?:task|instruction|prompt|指令|任务%s){CLOSE}[ \t]*+{COLON}{CLOSE}[ \t]*+"
LABELLED: Final = re.compile(_LABEL % "", re.IGNORECASE)
_LABELLED_ITEM: Final = re.compile(_LABEL % "|question", re.IGNORECASE)  # inside an item, a question is its input
_LETTERED: Final = re.compile(rf"{OPEN}\(?(?:[a-h]|[ivx]{{1,5}})[.)]{CLOSE}(?<=[ \t])(?=\S)", re.IGNORECASE)
BULLETED: Final = re.compile(r"[ \t]*+[-*+•●▪◦‣·\u2013][ \t]++")
_INLINE_NUMBER: Final = re.compile(
    r"(?P<before>\S)[ \t]++(?:\*\*)?(?P<number>\d{1,3})[.)](?:\*\*)?[ \t]++(?=(?P<first>\S))"
)
_BEFORE_NUMBER: Final = frozenset('.?!…。\uff1f\uff01"”\u2019)」』*')


@dataclass(frozen=True, slots=True)
class Marker:
    """What begins an item: ``start`` is where its line begins, ``end`` where the item's own text does."""

    start: int
    end: int
    number: int | None
    heading: bool


def find_markers(text: str, answer: Span, first_number: int) -> list[Marker]:
    """Return the markers of one kind, the most telling kind there is: numbers, else labels, letters, or bullets.

    :param first_number: the number that the prompt already wrote.
    """
    if numbered := _matches(text, answer, _NUMBERED):
        return _outermost(_of_the_list(text, answer, numbered, {first_number, first_number + 1}))
    if labelled := _matches(text, answer, _LABELLED_ITEM):
        return [_marker(match) for match in labelled]
    lettered = _matches(text, answer, _LETTERED)
    listed = lettered if len(lettered) > 1 else _matches(text, answer, BULLETED)
    head = trim(text, answer[0], listed[0].start()) if listed else NOWHERE
    are_items = head == NOWHERE or is_chatter(text, *head)  # else they are part of the first item
    return _outermost(listed) if are_items else []


def _of_the_list(text: str, answer: Span, numbered: list[re.Match[str]], wanted: set[int]) -> list[re.Match[str]]:
    """Return the numbers that count the items of the list, not those inside an item ("Question 1: ... Question 2:").

    Numbers with a name and numbers without are told apart: the kind that counts on from the prompt is the list's, else
    the commoner one. A number of the other kind belongs to the list where it counts on.
    """
    named = [match for match in numbered if match["noun"]]
    if len(named) in (0, len(numbered)):
        inside = named and _are_questions_of_an_item(text, answer, named, wanted)
        return [] if inside else numbered
    plain = [match for match in numbered if not match["noun"]]
    counts_named, counts_plain = (any(_number(match) in wanted for match in kind) for kind in (named, plain))
    is_named = counts_named if counts_named != counts_plain else len(named) > len(plain)
    found: list[re.Match[str]] = []
    last = None
    for match in numbered:
        number = _number(match)
        if bool(match["noun"]) == is_named or (last is not None and number == last + 1):
            found.append(match)
            last = number
    return found


def _are_questions_of_an_item(text: str, answer: Span, named: list[re.Match[str]], wanted: set[int]) -> bool:
    """Whether numbered questions follow the text of an item that the prompt began, which is about them."""
    head = trim(text, answer[0], named[0].start())
    return (
        head[0] > answer[0]
        and not is_chatter(text, *head)
        and not any(_number(match) in wanted for match in named)
        and all(match["noun"].lower() in ("question", "q") for match in named)
    )


def _matches(text: str, answer: Span, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Return the matches at the beginnings of lines; the answer itself may begin within a line."""
    first_end = next(lines(text, *answer))[1]
    first = pattern.match(text, answer[0], first_end)
    others = islice(_on_any_line(pattern).finditer(text, first_end, answer[1]), _MOST_MARKERS)
    return [*filter(None, [first]), *others]


@cache
def _on_any_line(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return the pattern for use with ``finditer``, which passes over other lines much faster than a loop."""
    return re.compile(r"^(?!\n)" + pattern.pattern, pattern.flags | re.MULTILINE)


def _outermost(found: list[re.Match[str]]) -> list[Marker]:
    """Return the markers that are not indented; a deeper list belongs to the item that it is in."""
    indents = [len(match[0]) - len(match[0].lstrip(" \t")) for match in found]
    outer = min(indents, default=0) + 1
    return [_marker(match) for match, indent in zip(found, indents, strict=True) if indent <= outer]


def first_inline(text: str, head: Span, markers: list[Marker], first_number: int) -> list[Marker]:
    """Return the item that begins in the head, where chatter and its number are on one line ("Sure: 9. ...")."""
    found = [match for match in _INLINE_NUMBER.finditer(text, *head) if _counts_on(match, _BEFORE_NUMBER | {":"})]
    if markers:
        found = [match for match in found[-1:] if int(match["number"]) + 1 == markers[0].number]
    elif len(found) < 2 or int(found[0]["number"]) not in (1, first_number):  # noqa: PLR2004  # one is no list
        return []
    return [_inline_marker(match) for match in found[:1]]


def with_inline(text: str, markers: list[Marker], end: int) -> Iterator[Marker]:
    """Yield the markers and, between two of them, those inside lines that count on ("9. Sing. 10. Dance.")."""
    for marker, following in zip(markers, [*markers[1:], None], strict=bool(markers)):
        yield marker
        inline: list[Marker] = []
        number = marker.number
        for match in _INLINE_NUMBER.finditer(text, marker.end, following.start if following else end):
            if number is None or int(match["number"]) != number + 1 or not _counts_on(match):
                inline.clear()  # numbers of something else
                break
            number += 1
            inline.append(_inline_marker(match))
        if following is None or (number is not None and following.number == number + 1):
            yield from inline


def _counts_on(match: re.Match[str], before: frozenset[str] = _BEFORE_NUMBER) -> bool:
    """Whether an inline number stands between two sentences."""
    return match["before"] in before and not match["first"].islower()


def _inline_marker(match: re.Match[str]) -> Marker:
    return Marker(match.start("before") + 1, match.end(), int(match["number"]), heading=False)


def _number(match: re.Match[str]) -> int | None:
    digits = match.group("named", "hashed", "bracketed", "plain") if "noun" in match.re.groupindex else ()
    number = next(filter(None, digits), None)
    return int(number) if number else None


def _marker(match: re.Match[str]) -> Marker:
    return Marker(match.start(), match.end(), _number(match), heading="# " in match[0])
