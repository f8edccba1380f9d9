"""Text that models, servers, files and users wrote: show it safely, and find the answer in a model's text.

**Shown text** never acts as anything but text. What `printable` returns has no character that steers a terminal, ends
a line or changes the direction of writing. `markdown` and `markdown_code` return no markup of the author's. `as_json`
returns ASCII without control characters. `without_template_marks` leaves no mark of a common chat template.

**A model's answer** comes with more than was asked for: reasoning before it, end-of-turn tokens after it, Markdown
around it. `answer_span` and the functions after it work on offsets of the raw text, so that whatever a parser takes
out is a span of the completion. They never raise and take time linear in the text.

**Reasoning** is marked in two ways: between ``<think>`` and ``</think>`` (Qwen, DeepSeek, Magistral and others), or by
*harmony*, the format of gpt-oss, as messages of the channels ``analysis`` and ``commentary`` before one of the channel
``final`` (https://github.com/openai/harmony/blob/main/docs/format.md). Most servers take it out of the text. Others
leave it there, with the marks or, where they leave out special tokens, with what is left of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.types import Completion, Span


# -- text made safe to show --------------------------------------------------------------------------------------------

_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # all that Unicode calls Bidi_Control
    "\u2028\u2029\ud800-\udfff]"  # line and paragraph separators, lone surrogates
)
_MARKUP: Final = re.compile(r"[\\`*_\[\]<>&|#~$@:]|(?<=www)\.")
_BAR: Final = "[|\uff5c]"  # the full-width one occurs in the marks of some models
_TEMPLATE_MARK: Final = re.compile(
    rf"<(?={_BAR}|<SYS>>|</SYS>>|/?s>|/?think>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>)|\[(?=/?INST\])|{_BAR}(?=>)",
    re.IGNORECASE,
)


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return the text with its control characters written as escapes: ``\x1b``, ``\u202e``.

    Control characters are C0 except tab, DEL, C1, bidirectional controls, line separators and lone surrogates. Newlines
    become spaces, or stay with ``lines`` (CR LF as one). Text that is printable already is returned unchanged.
    """
    text = text.replace("\r\n", "\n")
    if not lines:
        text = text.replace("\n", " ")
    return _CONTROL.sub(_escaped, text)


def _escaped(control: re.Match[str]) -> str:
    code = ord(control[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - one byte


def quoted(text: str, longest: int) -> str:
    """Return the first ``longest`` characters in quotation marks, line ends and control characters as escapes."""
    return repr(text[:longest]) + ("..." if len(text) > longest else "")


def markdown(text: str) -> str:
    """Return one line of Markdown that shows exactly this text: no HTML, link, mention, formula or table cell."""
    return _MARKUP.sub(lambda sign: f"\\{sign[0]}", " ".join(printable(text).split()))


def markdown_code(text: str) -> str:
    """Return the text as a code span on one line, also for a table: backticks become apostrophes, bars slashes."""
    return f"`{' '.join(printable(text).split()).replace('`', chr(39)).replace('|', '/')}`"


def as_json(value: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    """Return a value as JSON text in printable ASCII.

    A number that JSON does not have (NaN, infinity) becomes null. A lone surrogate, which strict readers refuse,
    becomes six characters of text: a backslash, ``u`` and its number.
    """
    return json.dumps(_encodable(value), ensure_ascii=True, allow_nan=False, indent=indent).replace("\x7f", "\\u007f")


def _encodable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_encodable(str(name)): _encodable(one) for name, one in value.items()}
    return [_encodable(one) for one in value] if isinstance(value, list | tuple) else value


def without_template_marks(text: str) -> str:
    """Return the text with chat templates' marks (``<|im_end|>``, ``[/INST]`` ...) broken by a space.

    Servers read such marks in a message as if the template itself had written them.
    """
    return _TEMPLATE_MARK.sub(lambda mark: f"{mark[0]} ", text)


# -- the answer in a model's text --------------------------------------------------------------------------------------

CUT_REASONS: Final = frozenset({"length", "content_filter", "abort"})
"""Finish reasons after which the end of the text is missing. No finish reason at all counts as finished."""
CHARACTERS_PER_TOKEN: Final = 100
"""Most that a completion may average. Text has about four; only tokens of blanks or rules come near a hundred."""
SHORTEST_BOUND: Final = 10_000
"""Characters that every completion may have, for servers that count or limit tokens in their own way."""
NOWHERE: Final = (0, 0)
"""The span of an empty text."""

# Zero-width spaces, direction marks and byte order marks. Joiners are left out: they belong to their letters.
_INVISIBLE: Final = "\u200b\u200e\u200f\u2060\ufeff"
_BLANK: Final = "".join(filter(str.isspace, map(chr, range(0x3001)))) + _INVISIBLE

# The beginning and end of a label or list marker at the start of a line: bullet, quote or heading mark, then emphasis,
# which CLOSE takes off only where OPEN found it. Possessive quantifiers keep patterns linear on runs of blanks.
OPEN: Final = rf"[ \t{_INVISIBLE}]*+(?:[-*+•>#]++[ \t]++)?(?P<mark>\*\*|__|\*|_)?[ \t]*+"
CLOSE: Final = r"[ \t]*+(?(mark)(?:(?P=mark))?)"
COLON: Final = r"[:\uff1a]"

_BLANKS: Final = re.compile(rf"[\s{_INVISIBLE}]*+")
_THINK: Final = r"(?:think|thinking|thought|reasoning|seed:think)"
_THINK_OPEN: Final = re.compile(rf"[\s{_INVISIBLE}]*+(?:<{_THINK}>|\[THINK\])", re.IGNORECASE)
_THINK_MARK: Final = re.compile(
    rf"(?P<close></{_THINK}>|\[/THINK\])(?P<line_end>[ \t]*+(?:\n|\Z))?+"
    rf"|(?P<line_start>\n[ \t]*+)?+(?P<open><{_THINK}>|\[THINK\])",
    re.IGNORECASE,
)
_HARMONY_OPEN: Final = re.compile(rf"[\s{_INVISIBLE}]*+(?:<\|start\|>assistant)?+<\|channel\|>")
_HARMONY_HEADER: Final = re.compile(
    r"<\|channel\|>[ \t]*+(?P<channel>analysis|commentary|final)"
    r"(?:[^<\n]{0,200}+(?:<\|constrain\|>[^<\n]{0,100}+)?+<\|message\|>)?+"
)
_HARMONY_END: Final = re.compile(r"<\|(?:end|return)\|>\s*+(?:<\|start\|>assistant(?:<\|message\|>)?+)?+")
_HARMONY_TAIL: Final = ("<|end|>", "<|call|>", "<|start|>assistant", "<|start|>")
_BARE_OPEN: Final = re.compile(r"\s*+analysis(?=\S)")
_BARE_CUT: Final = re.compile(r"\s*+analysis(?:We|The|User|I|Let|Need|Okay|So|This|It|They)(?=[ '\u2019])")
_BARE_FINAL: Final = "assistantfinal"  # what special tokens leave of the final message's header
_BARE_FINAL_ALONE: Final = re.compile(rf"(?<=[\s.?!…)\"”'*`]){_BARE_FINAL}(?![a-z])")
_MARK: Final = re.compile(
    rf"</?{_THINK}>|\[/?THINK\]|<\|start\|>assistant|<\|(?:start|end|call|return)\|>|{_HARMONY_HEADER.pattern}",
    re.IGNORECASE,
)
_END_TOKEN: Final = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end|eom_id|end_of_text|return|call|start|channel)\|>"
    r"|</s>|<end_of_turn>|<eos>"
)
_ALL_FENCED: Final = re.compile(r"\s*+```[^\n`]*+\n(?P<body>(?:[^`]++|`(?!``))*+)```\s*+", re.DOTALL)
_CHATTER: Final = re.compile(
    r"""[\s*_\#>"“]*+(?:
        (?:sure|certainly|of\ course|absolutely|ok(?:ay)?|great|got\ it|no\ problem|happy\ to\ help|thank\ you|thanks
          |here\ you | (?:here|below|following|these)(?:\ (?:are|is)|['\u2019]s) | the\ following | as\ requested
          |i(?:['\u2019](?:ll|d|ve|m)|\ (?:will|can|have|am)) | let(?:\ me|['\u2019]s) | hi | hello
          |voici | bien\ s[uû]r | claro | aqu[ií] | por\ supuesto | nat[uü]rlich | hier\ sind)\b
        | 当然 | 好的 | 以下是 | 以下は | もちろん | はい、 | конечно\b | вот\b | بالتأكيد | إليك | ज़रूर | यहाँ | แน่นอน
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_CLOSING_LINE: Final = re.compile(
    r"""[\s*_(\[>]*+(?:
        let\ me\ know\ (?:if|whether|which)\b | (?:i\ )?hope\ (?:this|these|that)\b | (?:please\ )?feel\ free\ to\b
        | would\ you\ like\ (?:me|more|another)\b | do\ you\ want\ me\b
        | (?:these|the\ above)\ (?:\w+\ ){0,2}?(?:tasks|instructions|examples|instances|prompts)
          \ (?:are|were|cover|should)\b
        | 希望这些 | これらの
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_LONGEST_JSON: Final = 100_000  # characters, reasoning included
_JSON_FENCE: Final = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL | re.IGNORECASE)


class AnswerKind(StrEnum):
    """What could be made of one answer."""

    READ = "read"  # something of it is used
    REJECTED = "rejected"  # it was read, and the rules rejected all of it
    EMPTY = "empty"  # no text
    THINKING = "thinking"  # reasoning without an answer
    CUT = "cut"  # the token limit came before anything that can be used
    UNREADABLE = "unreadable"  # text of another form than was asked for


def unread_kind(text: str, finish_reason: str | None, reasoning: str = "") -> AnswerKind:
    """Return why nothing was found in an answer. ``reasoning`` is what the server sent apart from the text."""
    if not text.strip():
        return AnswerKind.THINKING if reasoning.strip() else AnswerKind.EMPTY
    span = answer_span(text)
    if span is None or (not text[slice(*span)].strip() and reasoning_span(text) is not None):
        return AnswerKind.THINKING
    return AnswerKind.CUT if finish_reason in CUT_REASONS else AnswerKind.UNREADABLE


def bounded(completion: Completion, max_tokens: int) -> Completion:
    """Return the completion, cut to the length that ``max_tokens`` allow.

    That is `CHARACTERS_PER_TOKEN` characters for each token and at least `SHORTEST_BOUND`. Longer text comes from a
    server that does not keep to the limit. The finish reason of what is cut becomes ``length``. The same bound cuts
    `Completion.reasoning`, without which the answer is still whole.
    """
    most = max(SHORTEST_BOUND, CHARACTERS_PER_TOKEN * max_tokens)
    if len(completion.reasoning) > most:
        completion = replace(completion, reasoning=completion.reasoning[:most])
    if len(completion.text) <= most:
        return completion
    return replace(completion, text=completion.text[:most], finish_reason="length")


def is_cut(completion: Completion) -> bool:
    """Whether the end of the completion is missing."""
    return completion.finish_reason in CUT_REASONS


def answer_span(text: str) -> Span | None:
    """Return where the answer is in ``text``: after reasoning, before an end-of-turn token, inside an outer code fence.

    Reasoning may have been opened by the chat template, so that only its end shows. An answer ends where the model
    begins to reason again. ``None`` when reasoning was opened and never closed: there is no answer.
    """
    answer, _ = _parts(text)
    if answer is None:
        return None
    start, end = answer
    ended = _END_TOKEN.search(text, start, end)
    end = ended.start() if ended else end
    fenced = _ALL_FENCED.fullmatch(text, start, end)
    return fenced.span("body") if fenced else (start, end)


def whole_answer(completion: Completion, *, keeps_fence: bool = False) -> tuple[Span, str | None]:
    """Return where the answer is, without blanks around it, and the rule that rejects it, if one does.

    The rules: ``unclosed_thinking``, ``empty_output``, ``unfinished`` (the token limit came before the answer's end).
    Either the span or the rule is empty. ``keeps_fence`` leaves a code fence around all of it in the answer.
    """
    text = completion.text
    answer = answer_span(text)
    if answer is None:
        return NOWHERE, "unclosed_thinking"
    start, end = answer
    if keeps_fence and text.startswith("```", end):
        start, end = text.rindex("```", 0, start), end + len("```")
    span = trim(text, start, end)
    if span == NOWHERE:
        return NOWHERE, "empty_output"
    if is_cut(completion) and not text[end:].strip():  # an end-of-turn token shows that it is complete
        return NOWHERE, "unfinished"
    return span, None


def reasoning_span(text: str) -> Span | None:
    """Return where the reasoning before the answer is in ``text``, or ``None`` where there is none.

    Several blocks in a row are one span, with the marks between them. `reasoning_of` takes these out.
    """
    _, reasoning = _parts(text)
    return None if reasoning == NOWHERE else reasoning


def reasoning_of(completion: Completion) -> str:
    """Return what the model thought before its answer, sent apart or inside the text. Empty if there is nothing."""
    if completion.reasoning:
        return completion.reasoning.strip()
    span = reasoning_span(completion.text)
    return "" if span is None else _MARK.sub("", completion.text[slice(*span)]).strip()


# The functions of parts return two spans: the answer with its end-of-turn tokens (`None` where reasoning never ends),
# and the reasoning (`NOWHERE` where there is none).


def _parts(text: str) -> tuple[Span | None, Span]:
    if "<|channel|>" in text and (found := _harmony_parts(text)) is not None:
        return found
    if (_BARE_FINAL in text or _BARE_OPEN.match(text)) and (found := _bare_harmony_parts(text)) is not None:
        return found
    return _thinking_parts(text) if "<" in text or "[" in text else ((0, len(text)), NOWHERE)


def _harmony_parts(text: str) -> tuple[Span | None, Span] | None:
    """The parts of a text with headers of messages. ``None`` where they are only written about."""
    opened = _HARMONY_OPEN.match(text) is not None  # if not, the chat template wrote the first header
    begin, last = 0, None
    for header in _HARMONY_HEADER.finditer(text):
        if header["channel"] == "final":
            return (header.end(), len(text)), _without_tail(text, begin, header.start())
        begin = header.end() if opened and last is None else begin
        last = header
    if not opened:
        return None
    ended = None if last is None else _HARMONY_END.search(text, last.end())
    if ended is not None and last is not None and last["channel"] == "analysis" and text[ended.end() :].strip():
        return (ended.end(), len(text)), _without_tail(text, begin, ended.start())  # no header before the answer
    return None, _without_tail(text, begin, len(text))


def _bare_harmony_parts(text: str) -> tuple[Span | None, Span] | None:
    """The parts of a text whose special tokens were left out, so that headers are words glued to other words."""
    opened = _BARE_OPEN.match(text)
    begin = opened.end() if opened else 0
    if opened is None:
        found = _BARE_FINAL_ALONE.search(text)
        final = -1 if found is None else found.start()
    else:
        final = text.find(_BARE_FINAL, begin)
    if final >= 0:
        return (final + len(_BARE_FINAL), len(text)), _without_tail(text, begin, final)
    return (None, _without_tail(text, begin, len(text))) if _BARE_CUT.match(text) else None


def _without_tail(text: str, start: int, end: int) -> Span:
    """The span without blanks at its ends and without the marks of harmony that end a message."""
    while end > start:
        if text[end - 1].isspace():
            end -= 1
        elif tail := next((mark for mark in _HARMONY_TAIL if text.endswith(mark, start, end)), ""):
            end -= len(tail)
        else:
            break
    return strip(text, start, end)


def _thinking_parts(text: str) -> tuple[Span | None, Span]:
    """The parts of a text with ``<think>``.

    Opening marks count at the start of a line or after another block, so that an answer may speak of them. A second
    closing mark counts at the end of a line: some models close what they did not open.
    """
    opened = _THINK_OPEN.match(text)
    is_open = opened is not None
    begin = opened.end() if opened else 0
    start, solid, end, reasoned = 0, 0, len(text), begin
    for mark in _THINK_MARK.finditer(text, begin):
        if mark["close"]:
            if start and not is_open and mark["line_end"] is None:
                continue
            start, reasoned, is_open, end = mark.end("close"), mark.start(), False, len(text)
            solid = _BLANKS.match(text, start).end()  # type: ignore[union-attr]  # it matches nothing as well
        elif is_open:
            continue
        elif start and mark.start() <= solid:
            is_open = True
        elif mark["line_start"] is not None:
            end = min(end, mark.start())
            if start:
                break
            begin = begin or mark.end()
    if is_open:
        return None, strip(text, begin, len(text))
    return (start, end), strip(text, begin, reasoned) if start else NOWHERE


def parse_json_object(answer: str) -> dict[str, Any] | None:
    """Return the JSON object that makes up the whole answer, or ``None``. Never raises.

    Reasoning before the object and one code fence around it are ignored. An object with a field twice is refused as
    ambiguous, and so is an answer of more than 100,000 characters.
    """
    if len(answer) > _LONGEST_JSON:
        return None
    text = answer.strip()
    if not text.startswith(("{", "`")):  # marks of reasoning inside an object are its text
        span = answer_span(text)
        text = "" if span is None else text[slice(*span)].strip()
    if fenced := _JSON_FENCE.match(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def is_chatter(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` speaks to the reader instead of answering ("Sure! Here are ...")."""
    return _CHATTER.match(text, start, end) is not None


def is_closing(text: str, start: int, end: int) -> bool:
    """Whether the line ``text[start:end]`` takes leave of the reader ("Let me know if ...", "These tasks are ...")."""
    return _CLOSING_LINE.match(text, start, end) is not None


def trim(text: str, start: int, end: int) -> Span:
    """Return the span without whitespace and invisible characters at its ends. `NOWHERE` when nothing is left."""
    return strip(text, start, end, _BLANK)


def strip(text: str, start: int, end: int, blank: str | None = None) -> Span:
    """Return the span without whitespace (or the characters of ``blank``) at its ends. `NOWHERE` when it is empty."""
    piece = text[start:end]
    stripped = piece.strip(blank)
    if not stripped:
        return NOWHERE
    start += len(piece) - len(piece.lstrip(blank))
    return start, start + len(stripped)


def lines(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the spans of the lines in ``text[start:end]``, without their line breaks. The last may be empty."""
    while (stop := text.find("\n", start, end)) >= 0:
        yield start, stop
        start = stop + 1
    yield start, end
