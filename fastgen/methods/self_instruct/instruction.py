"""The first stage: ask for new instructions after some numbered ones, and read the list that comes back.

`parse` never raises and takes time linear in the text. Its spans lie in the completion, ascend and do not overlap, and
every ``text`` equals ``item_text(completion.text, span, rules)``, so a log needs to store spans only.

``list_style`` ``paper`` splits as the released code of Self-Instruct (Wang et al., ACL 2023) does. ``lenient`` reads
lists as models write them, in three steps: `_find_markers` finds where items begin, `_read_list` cuts the answer there,
and `_read_item` decides what of each piece is the instruction. It copes with ``9)``, ``9 .``, ``**9.**``,
``9. **Title**: text``, ``#9``, ``Task 9:``, Chinese, full-width and Arabic numerals, letters, bullets, numbering that
restarts or skips, several items on a line, a chatty line before the list and notes after it, code fences, headings,
inputs or outputs that follow an instruction, JSON and tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Final

from fastgen.methods.base import Item
from fastgen.methods.structured import NUMBER_NAMES, is_left_open, is_written, read_records
from fastgen.text import CLOSE, COLON, NOWHERE, OPEN, answer_span, is_chatter, is_closing, is_cut, lines, strip, trim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fastgen.methods.self_instruct.prompts import PromptSet
    from fastgen.methods.self_instruct.rules import Rules
    from fastgen.types import Completion, Message, Span


UNFINISHED: Final = "unfinished"
"""The rule that rejects an item, or under ``drop_completion`` a completion, that the token limit cut."""
UNCLOSED_THINKING: Final = "unclosed_thinking"
"""The rule that rejects a completion of nothing but thinking that never ends."""


def build_prompt(
    demos: Sequence[str], prompts: PromptSet, *, classification_only: bool, drawn: Mapping[str, str] | None = None
) -> str | tuple[Message, ...]:
    """Return the prompt that lists ``demos`` and asks for the items after them.

    Each demonstration is on one line, without a colon at its end. ``classification_only`` asks for classification
    tasks. A topic or persona in ``drawn`` is named in a line before the list, where the prompts begin to differ anyway.
    """
    template = prompts.instruction_classification if classification_only else prompts.instruction
    listed = "\n".join(f"{i}. {' '.join(demo.split()).rstrip(':')}" for i, demo in enumerate(demos, 1))
    return template.fill(instructions=_about(drawn or {}) + listed, next_number=str(len(demos) + 1))


def _about(drawn: Mapping[str, str]) -> str:
    topic = f" about this topic: {drawn['topic']}" if "topic" in drawn else ""
    persona = f" by this person: {drawn['persona']}" if "persona" in drawn else ""
    return f"The new tasks are asked{persona}{topic}\n\n" if topic or persona else ""


def item_text(raw: str, span: Span, rules: Rules) -> str:
    """Return the instruction that ``raw[start:end]`` holds.

    Whitespace is collapsed; a bold beginning loses its marks (not with ``list_style`` ``paper``); the text is
    capitalised if the rules say so.
    """
    text = " ".join(raw[span[0] : span[1]].split())
    if text.startswith("**") and rules.list_style != "paper":
        text = _BOLD_START.sub(r"\1", text)
    return text.capitalize() if rules.capitalise else text


def parse(completion: Completion, rules: Rules, *, first_number: int) -> list[Item]:
    """Return the items of the completion, in order. Empty ones are left out.

    ``first_number`` is the number at which the prompt ends. A completion prompt writes that number itself, so that the
    text before the next number is an item too. A cut completion marks its last item, or all of them, `UNFINISHED`.
    """
    text = completion.text
    answer = (0, len(text)) if rules.list_style == "paper" else answer_span(text)
    if answer is not None and is_written(text, answer):
        spans, cut, open_ended = _read_structured(text, answer), is_cut(completion), is_left_open(text)
    elif rules.list_style == "paper":
        spans, cut, open_ended = _paper_spans(text), completion.finish_reason == "length", True
    elif answer is None:
        return _items(text, (strip(text, 0, len(text)),), rules, UNCLOSED_THINKING)
    else:
        spans, open_ended = _read_list(text, answer, first_number)
        cut = is_cut(completion)
    if cut and rules.unfinished == "drop_completion":
        return _items(text, spans, rules, UNFINISHED)
    if cut and open_ended:
        return _items(text, spans[:-1], rules, None) + _items(text, spans[-1:], rules, UNFINISHED)
    return _items(text, spans, rules, None)


_BOLD_START: Final = re.compile(r"^\*\*(?=\S)((?:(?!\*\*).)++)(?<=\S)\*\*")
_PAPER_BREAK: Final = re.compile(r"\n\d+\s?\. ")


def _items(text: str, spans: tuple[Span, ...], rules: Rules, rule: str | None) -> list[Item]:
    return [Item(span, item_text(text, span, rules), rule) for span in spans]


def _paper_spans(text: str) -> tuple[Span, ...]:
    breaks = [match.span() for match in _PAPER_BREAK.finditer(text)]
    starts = [0, *(end for _, end in breaks)]
    ends = [*(start for start, _ in breaks), len(text)]
    spans = (strip(text, start, end) for start, end in zip(starts, ends, strict=True))
    return tuple(span for span in spans if span[0] < span[1])


# -- the list ----------------------------------------------------------------------------------------------------------

_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*+\n")
_INSTRUCTION_NAMES: Final = ("instruction", "task", "prompt", "question", "text", "")


def _read_list(text: str, answer: Span, first_number: int) -> tuple[tuple[Span, ...], bool]:
    """Return the items in ``text[answer]``, and whether the last one runs up to the end of the text.

    Text before the first marker is the item ``first_number``, unless it speaks to the reader or the list writes that
    number itself.
    """
    markers = _find_markers(text, answer, first_number)
    if not markers and (spans := _read_structured(text, answer)):
        return spans, False
    head = (answer[0], markers[0].start if markers else answer[1])
    if _head_is_item(text, head, markers, first_number):
        markers.insert(0, _Marker(head[0], _after_chatter(text, head), first_number, heading=False))
    else:
        markers[:0] = _first_inline(text, head, markers, first_number)
    markers = list(_with_inline(text, markers, answer[1]))
    ends = [*(marker.start for marker in markers[1:]), answer[1]]
    items = [_read_item(text, marker, end) for marker, end in zip(markers, ends, strict=bool(markers))]
    open_ended = answer[1] == len(text) and bool(items) and items[-1][0] != NOWHERE and not items[-1][1]
    return tuple(span for span, _ in items if span != NOWHERE), open_ended


def _read_structured(text: str, answer: Span) -> tuple[Span, ...]:
    """Return the instructions of an answer that is JSON or a table."""
    spans = []
    for record in read_records(text, answer):
        named = [record[name] for name in _INSTRUCTION_NAMES if name in record]
        others = [span for name, span in record.items() if name not in NUMBER_NAMES]
        spans += named[:1] or (others if len(others) == 1 else [])
    return tuple(unwrap(text, without_number(text, span)) for span in spans if span != NOWHERE)


def without_number(text: str, span: Span) -> Span:
    """Return an instruction of a record without the number that a list would have before it ("9. ", "Task 9: ")."""
    number = _NUMBERED.match(text, *span)
    return span if number is None or number.end() == span[1] else (number.end(), span[1])


def _head_is_item(text: str, head: Span, markers: list[_Marker], first_number: int) -> bool:
    """Whether the text before the first marker is the item whose number ends the prompt."""
    start, end = trim(text, *head)
    if (start, end) == NOWHERE:
        return False
    continues_prompt = start > head[0]  # after "9." comes a blank; an answer to a chat prompt starts without one
    chatter = is_chatter(text, start, end)
    if not markers:
        return continues_prompt
    blank_line = _BLANK_LINE.search(text, start, head[1]) is not None
    if markers[0].number == first_number + 1:
        return not (chatter and blank_line)
    is_heading = text[end - 1] in ":\uff1a#*`"
    return continues_prompt and markers[0].number != first_number and not (chatter or blank_line or is_heading)


def _after_chatter(text: str, head: Span) -> int:
    """Return where the head begins, after an opening paragraph that speaks to the reader."""
    start, end = trim(text, *head)
    blank_line = _BLANK_LINE.search(text, start, end)
    return blank_line.end() if blank_line and is_chatter(text, start, blank_line.start()) else start


# -- where items begin -------------------------------------------------------------------------------------------------

_MOST_MARKERS: Final = 10_000  # of a completion that lists more, the rest belongs to the last item
# Every pattern but _INLINE_NUMBER is matched at the beginning of a line.
_DASH: Final = r"[-\u2013\u2014]"
_NOUN: Final = (
    r"(?:task|instruction|prompt|question|q|item|idea|no\.?|tarea|instrucci[oó]n|tâche|aufgabe|задание|задача"
    r"|مهمة|कार्य|งาน|任务|任務|指令|题目|问题|タスク|課題|작업|과제)"
)
_HAN_NUMBER: Final = "[一二三四五六七八九十]{1,3}"
_NUMBERED: Final = re.compile(
    rf"""{OPEN}(?:
        (?P<noun>{_NOUN})[ \t]*+[\#\u2116]?(?:(?P<named>\d{{1,3}})|{_HAN_NUMBER}){CLOSE}
          [ \t]*+(?:[.:)\uff1a\uff0e、](?!\d)|{_DASH}(?=\s)|$)
        | [\#\u2116](?P<hashed>\d{{1,3}})[.:)]?(?=[\s*])
        | [(\[\uff08](?:(?P<bracketed>\d{{1,3}})|{_HAN_NUMBER})[)\]\uff09]
        | (?P<plain>\d{{1,3}})(?(mark)(?:(?P=mark))?)
          (?:[ \t]?\\?[.)\]:\uff1a\uff0e、。\uff09](?!\d) | [ \t]*+{_DASH}[ \t]++(?=[^\W\d_]))
        | {_HAN_NUMBER}[、\uff0e]
        | [①-⑳] | (?:\d\ufe0f?\u20e3){{1,2}} | \U0001f51f
    ){CLOSE}[ \t]*+""",
    re.IGNORECASE | re.VERBOSE,
)
_LABEL: Final = rf"{OPEN}(?:new )?(?:task|instruction|prompt|指令|任务%s){CLOSE}[ \t]*+{COLON}{CLOSE}[ \t]*+"
_LABELLED: Final = re.compile(_LABEL % "", re.IGNORECASE)
_LABELLED_ITEM: Final = re.compile(_LABEL % "|question", re.IGNORECASE)  # inside an item, a question is its input
_LETTERED: Final = re.compile(rf"{OPEN}\(?(?:[a-h]|[ivx]{{1,5}})[.)]{CLOSE}(?<=[ \t])(?=\S)", re.IGNORECASE)
_BULLETED: Final = re.compile(r"[ \t]*+[-*+•●▪◦‣·\u2013][ \t]++")
_INLINE_NUMBER: Final = re.compile(
    r"(?P<before>\S)[ \t]++(?:\*\*)?(?P<number>\d{1,3})[.)](?:\*\*)?[ \t]++(?=(?P<first>\S))"
)
_BEFORE_NUMBER: Final = frozenset('.?!…。\uff1f\uff01"”\u2019)」』*')


@dataclass(frozen=True, slots=True)
class _Marker:
    """The beginning of an item: ``start`` is where its line begins, ``end`` where its text does."""

    start: int
    end: int
    number: int | None
    heading: bool


def _find_markers(text: str, answer: Span, first_number: int) -> list[_Marker]:
    """Return the markers of the most telling kind there is: numbers, else labels, letters, or bullets."""
    if numbered := _matches(text, answer, _NUMBERED):
        return _outermost(_of_the_list(text, answer, numbered, {first_number, first_number + 1}))
    if labelled := _matches(text, answer, _LABELLED_ITEM):
        return [_marker(match) for match in labelled]
    lettered = _matches(text, answer, _LETTERED)
    listed = lettered if len(lettered) > 1 else _matches(text, answer, _BULLETED)
    head = trim(text, answer[0], listed[0].start()) if listed else NOWHERE
    are_items = head == NOWHERE or is_chatter(text, *head)  # else they are part of the first item
    return _outermost(listed) if are_items else []


def _of_the_list(text: str, answer: Span, numbered: list[re.Match[str]], wanted: set[int]) -> list[re.Match[str]]:
    """Return the numbers that count the items of the list, not those inside an item ("Question 1: ... Question 2:").

    There are numbers with a name and numbers without. The kind that continues the prompt's numbers is the list's, else
    the more frequent one. A number of the other kind belongs to the list where it is the next one.
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
    """Whether numbered questions follow an item that the prompt began, and belong to it."""
    head = trim(text, answer[0], named[0].start())
    return (
        head[0] > answer[0]
        and not is_chatter(text, *head)
        and not any(_number(match) in wanted for match in named)
        and all(match["noun"].lower() in ("question", "q") for match in named)
    )


def _matches(text: str, answer: Span, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Return the matches at the beginnings of lines. The answer itself may begin within a line."""
    first_end = next(lines(text, *answer))[1]
    first = pattern.match(text, answer[0], first_end)
    others = islice(_on_any_line(pattern).finditer(text, first_end, answer[1]), _MOST_MARKERS)
    return [*filter(None, [first]), *others]


@cache
def _on_any_line(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return the pattern for ``finditer``, which skips other lines much faster than a loop."""
    return re.compile(r"^(?!\n)" + pattern.pattern, pattern.flags | re.MULTILINE)


def _outermost(found: list[re.Match[str]]) -> list[_Marker]:
    """Return the markers that are not indented. A deeper list belongs to the item that it is in."""
    indents = [len(match[0]) - len(match[0].lstrip(" \t")) for match in found]
    outer = min(indents, default=0) + 1
    return [_marker(match) for match, indent in zip(found, indents, strict=True) if indent <= outer]


def _first_inline(text: str, head: Span, markers: list[_Marker], first_number: int) -> list[_Marker]:
    """Return the item that begins in the head, after chatter on the same line ("Sure: 9. ...")."""
    found = [match for match in _INLINE_NUMBER.finditer(text, *head) if _counts_on(match, _BEFORE_NUMBER | {":"})]
    if markers:
        found = [match for match in found[-1:] if int(match["number"]) + 1 == markers[0].number]
    elif len(found) < 2 or int(found[0]["number"]) not in (1, first_number):  # noqa: PLR2004  # one is no list
        return []
    return [_inline_marker(match) for match in found[:1]]


def _with_inline(text: str, markers: list[_Marker], end: int) -> Iterator[_Marker]:
    """Yield the markers and, between two of them, consecutive ones inside lines ("9. Sing. 10. Dance.")."""
    for marker, following in zip(markers, [*markers[1:], None], strict=bool(markers)):
        yield marker
        inline: list[_Marker] = []
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
    """Whether an inline number is between two sentences."""
    return match["before"] in before and not match["first"].islower()


def _inline_marker(match: re.Match[str]) -> _Marker:
    return _Marker(match.start("before") + 1, match.end(), int(match["number"]), heading=False)


def item_number(text: str, line: Span) -> tuple[int | None, str] | None:
    """Return the number with which a line begins an item of a list, and its noun in lower case ("task" of "Task 9:").

    The number is ``None`` where signs or words of their own write it (①), the noun is empty where there is none.
    ``None`` for a line that begins no item.
    """
    match = _NUMBERED.match(text, *line)
    return None if match is None else (_number(match), (match["noun"] or "").lower())


def is_labelled(text: str, line: Span) -> bool:
    """Whether a line begins with the label of an instruction ("Task:", "**Instruction:**")."""
    return _LABELLED.match(text, *line) is not None


def _number(match: re.Match[str]) -> int | None:
    digits = match.group("named", "hashed", "bracketed", "plain") if "noun" in match.re.groupindex else ()
    number = next(filter(None, digits), None)
    return int(number) if number else None


def _marker(match: re.Match[str]) -> _Marker:
    return _Marker(match.start(), match.end(), _number(match), heading="# " in match[0])


# -- where an item ends ------------------------------------------------------------------------------------------------

# Every pattern is matched against one line.
_MOST_LINES: Final = 10_000  # an item of more lines is not looked at more closely
_TITLE_WORDS: Final = 6  # bold text of more words is no title but the instruction itself
_SENTENCE_ENDS: Final = (".", "?", "!", "。", "\uff1f", "\uff01")
_QUOTES: Final = {'"': '"', "“": "”", "「": "」", "«": "»", "`": "`"}
_LONE_NUMBER: Final = re.compile(r"[ \t]*+(?:\*\*)?#?\d{1,3}[ \t]*+$")
_BREAK: Final = re.compile(r"[ \t\r]*+(?:$|```|~~~|\#{1,6}[ \t]|(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t\r]*+$)")
_PART: Final = re.compile(
    rf"""{OPEN}[(\[]?(?:(?:(?:expected|example|sample)[ ])?(?:input|output)s?|examples?|instances?|answer|response
    |solution|explanation|class[ ]label|note|输入|输出|示例){CLOSE}[ \t]*+\d*+{CLOSE}[ \t]*+{COLON}""",
    re.IGNORECASE | re.VERBOSE,
)
_INLINE_PART: Final = re.compile(
    rf"(?<=[.?!:。\uff1f\uff01])[ \t]++(?:\*\*)?(?:Input|Output)[ \t]*+\d*+[ \t]*+(?:\*\*)?{COLON}"
)
_BOLD: Final = rf"(?P<inner>(?:(?!\*\*|__).)+?)(?P<colon>{COLON}?)(?:\*\*|__)[ \t]*+(?P<after>{COLON}|{_DASH}(?=\s))?"
_TITLE: Final = re.compile(rf"(?:\*\*|__){_BOLD}")
_ITALIC_TITLE: Final = re.compile(rf"([*_])(?![*_ \t])[^*_\n]{{1,60}}(?:{COLON}\1|\1[ \t]*+{COLON})")
_TITLE_OPENED_BEFORE: Final = re.compile(_BOLD)  # "**9. Title**: text", where the marker took the opening


def _read_item(text: str, marker: _Marker, end: int) -> tuple[Span, bool]:
    """Return the item that begins at ``marker``, and whether something after it shows that it is complete.

    It is the first paragraph, up to an input, output, fence or heading. A title before the instruction ("**Haiku**:
    Write ...", or a bold line by itself) is left out. So is what follows a first line that is wholly bold and no title:
    a remark on it.
    """
    body, is_title, is_whole = NOWHERE, marker.heading, False
    whole = trim(text, marker.end, end)
    if whole == NOWHERE:
        return NOWHERE, False
    for number, (start, stop) in enumerate(lines(text, whole[0], end)):
        if number == _MOST_LINES:
            return unwrap(text, (body[0], end)), False
        if body != NOWHERE and (is_whole or _ends_item(text, (start, stop), is_title=is_title)):
            return unwrap(text, body), True
        if _BREAK.match(text, start, stop):
            continue
        label = _LABELLED.match(text, start, stop)
        if label and (number <= 1 or is_title):
            body, is_title = (label.end(), stop), False
        elif body == NOWHERE:
            body, is_title = _first_line(text, (start, stop), heading=is_title)
            is_whole = not is_title and text[body[1] : stop].strip() in ("**", "__")
        elif is_title:
            body, is_title = (_after_bullet(text, (start, stop)), stop), False
        else:
            body = (body[0], stop)
        if part := _INLINE_PART.search(text, max(start, body[0]), stop):
            return unwrap(text, (body[0], part.start())), True
    return unwrap(text, body), False


def _ends_item(text: str, line: Span, *, is_title: bool) -> bool:
    if _PART.match(text, *line) or is_closing(text, *line):
        return True
    if line[1] == len(text) and _LONE_NUMBER.match(text, *line):  # the next marker, cut short
        return True
    return not is_title and _BREAK.match(text, *line) is not None


def _after_bullet(text: str, line: Span) -> int:
    match = _BULLETED.match(text, *line)
    return match.end() if match else line[0]


def _first_line(text: str, line: Span, *, heading: bool) -> tuple[Span, bool]:
    """Return the part of an item's first line that is instruction, and whether it is only a title."""
    start, stop = _after_bullet(text, line), line[1]
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


def unwrap(text: str, span: Span) -> Span:
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
