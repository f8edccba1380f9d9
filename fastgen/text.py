"""Text of others (models, servers, files, users): it is shown and quoted as text and never acts as anything else.

Guarantees: `printable` text has no character that steers a terminal, ends a line or changes the direction of writing;
`markdown` and `markdown_code` have no markup besides; `as_json` is ASCII without control characters. No mark of a
common chat template survives in a text that is to be quoted. An answer is read as JSON only if it is, as a whole, one
object that says everything once. Pure.
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


_BAR: Final = "[|\uff5c]"  # also the full-width one, which some models' marks have
_TEMPLATE_MARK: Final = re.compile(
    rf"<(?={_BAR}|<SYS>>|</SYS>>|/?s>|/?think>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>)|\[(?=/?INST\])|{_BAR}(?=>)",
    re.IGNORECASE,
)
_LONGEST: Final = 100_000  # characters, thinking included
_THINKING: Final = re.compile(r"\A\s*<think>.*</think>", re.DOTALL)
_FENCE: Final = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL | re.IGNORECASE)
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # all that Unicode calls Bidi_Control
    "\u2028\u2029\ud800-\udfff]"  # line and paragraph separators, lone surrogates
)
_MARKUP: Final = re.compile(r"[\\`*_\[\]<>&|#~$@:]|(?<=www)\.")


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with its control characters written as escapes: ``\x1b``, ``\u202e``.

    Control characters are C0 but tab, DEL, C1, bidirectional controls, line separators and lone surrogates. ``lines``
    keeps newlines, CR LF as one; else each becomes a space. What is printable already stays as it is.
    """
    text = text.replace("\r\n", "\n")
    if not lines:
        text = text.replace("\n", " ")
    return _CONTROL.sub(_escaped, text)


def _escaped(control: re.Match[str]) -> str:
    code = ord(control[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - one byte


def quoted(text: str, longest: int) -> str:
    """The first ``longest`` characters in quotation marks, with line ends and control characters as escapes."""
    return repr(text[:longest]) + ("..." if len(text) > longest else "")


def markdown(text: str) -> str:
    """The text as one line of Markdown that shows just this text: no HTML, link, mention, formula or table cell."""
    return _MARKUP.sub(lambda sign: f"\\{sign[0]}", " ".join(printable(text).split()))


def markdown_code(text: str) -> str:
    """The text as a code span on one line, in a table too; its backticks become apostrophes and its bars slashes."""
    return f"`{' '.join(printable(text).split()).replace('`', chr(39)).replace('|', '/')}`"


def as_json(value: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    """A value as JSON text that every terminal shows as it is: ASCII, and control characters as escapes.

    A number that JSON does not have (NaN, infinity) is null. A lone surrogate, which strict readers refuse, is written
    out as text: a backslash, ``u`` and its number.
    """
    return json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, indent=indent).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def without_template_marks(text: str) -> str:
    """The text with chat templates' marks (``<|im_end|>``, ``[/INST]`` ...) broken by a space.

    Servers read such marks in a message as if the template itself had written them.
    """
    return _TEMPLATE_MARK.sub(lambda mark: f"{mark[0]} ", text)


def parse_json_object(answer: str) -> dict[str, Any] | None:
    """The JSON object that an answer is; ``None`` for anything else. Never raises.

    A closed ``<think>`` block before the object and one code fence around it are the model's manners and are taken off.
    An object that says something twice is none: who knows which is meant.
    """
    if len(answer) > _LONGEST:
        return None
    text = _THINKING.sub("", answer, count=1).strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


CUT_REASONS: Final = frozenset({"length", "content_filter", "abort"})
"""Finish reasons after which the end of the text is missing; no finish reason at all counts as finished."""

CHARACTERS_PER_TOKEN: Final = 100
"""Most that a completion may average; text has about four, and only tokens of blanks or rules come near a hundred."""
SHORTEST_BOUND: Final = 10_000
"""Characters that every completion may have, for servers that count or limit tokens in their own way."""

INVISIBLE: Final = "\u200b\u200e\u200f\u2060\ufeff"
"""Zero-width spaces, direction marks and byte order marks; joiners are left out, since they belong to their letters."""
_BLANK: Final = "".join(filter(str.isspace, map(chr, range(0x3001)))) + INVISIBLE

# The beginning and end of a label or list marker at the start of a line: bullet, quote or heading mark, then emphasis,
# which is only taken off again where it was put on. Possessive quantifiers keep patterns linear on runs of blanks.
OPEN: Final = rf"[ \t{INVISIBLE}]*+(?:[-*+•>#]++[ \t]++)?(?P<mark>\*\*|__|\*|_)?[ \t]*+"
CLOSE: Final = r"[ \t]*+(?(mark)(?:(?P=mark))?)"
COLON: Final = r"[:\uff1a]"
NOWHERE: Final = (0, 0)

_THINK: Final = r"(?:think|thinking|thought|reasoning)"
_THINK_OPEN: Final = re.compile(rf"[\s{INVISIBLE}]*+(?:<{_THINK}>|\[THINK\])", re.IGNORECASE)
_THINK_CLOSE: Final = re.compile(rf"</{_THINK}>|\[/THINK\]", re.IGNORECASE)
_END_TOKEN: Final = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end|eom_id|end_of_text)\|>|</s>|<end_of_turn>|<eos>"
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


def answer_span(text: str) -> Span | None:
    """Return where the answer is in ``text``: after thinking, before an end-of-turn token, inside an outer code fence.

    A thinking block may have been opened by the chat template, so that only its end shows. ``None`` when thinking was
    opened and never closed: there is no answer.
    """
    start = 0
    while opened := _THINK_OPEN.match(text, start):
        closed = _THINK_CLOSE.search(text, opened.end())
        if closed is None:
            return None
        start = closed.end()
    if start == 0 and (closed := _THINK_CLOSE.search(text)):
        start = closed.end()
    ended = _END_TOKEN.search(text, start)
    end = ended.start() if ended else len(text)
    fenced = _ALL_FENCED.fullmatch(text, start, end)
    return fenced.span("body") if fenced else (start, end)


def bounded(completion: Completion, max_tokens: int) -> Completion:
    """Return the completion without what is beyond the text that ``max_tokens`` allow.

    It may have `CHARACTERS_PER_TOKEN` times as many characters, and at least `SHORTEST_BOUND`. One that is longer comes
    from a server that does not keep to the limit, and is cut as such: its finish reason becomes ``length``.
    """
    most = max(SHORTEST_BOUND, CHARACTERS_PER_TOKEN * max_tokens)
    if len(completion.text) <= most:
        return completion
    return replace(completion, text=completion.text[:most], finish_reason="length")


def is_cut(completion: Completion) -> bool:
    """Whether the end of the completion is missing."""
    return completion.finish_reason in CUT_REASONS


def is_chatter(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` speaks to the reader instead of answering ("Sure! Here are ...")."""
    return _CHATTER.match(text, start, end) is not None


def is_closing(text: str, start: int, end: int) -> bool:
    """Whether the line ``text[start:end]`` takes leave of the reader ("Let me know if ...", "These tasks are ...")."""
    return _CLOSING_LINE.match(text, start, end) is not None


def trim(text: str, start: int, end: int) -> Span:
    """Return the span without whitespace and invisible characters at its ends; ``(0, 0)`` when nothing is left."""
    return strip(text, start, end, _BLANK)


def strip(text: str, start: int, end: int, blank: str | None = None) -> Span:
    """Return the span without whitespace (or the characters of ``blank``) at its ends; ``(0, 0)`` when it is empty."""
    piece = text[start:end]
    stripped = piece.strip(blank)
    if not stripped:
        return NOWHERE
    start += len(piece) - len(piece.lstrip(blank))
    return start, start + len(stripped)


def lines(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the spans of the lines in ``text[start:end]``, without their line breaks; the last may be empty."""
    while (stop := text.find("\n", start, end)) >= 0:
        yield start, stop
        start = stop + 1
    yield start, end


class AnswerKind(StrEnum):
    """What could be made of one answer."""

    READ = "read"  # something of it is used
    REJECTED = "rejected"  # it was read, and the rules rejected all of it
    EMPTY = "empty"  # no text
    THINKING = "thinking"  # reasoning that never came to an end
    CUT = "cut"  # the token limit came before anything that can be used
    UNREADABLE = "unreadable"  # text of another form than was asked for


def unread_kind(text: str, finish_reason: str | None) -> AnswerKind:
    """Why nothing was found in an answer."""
    if not text.strip():
        return AnswerKind.EMPTY
    if answer_span(text) is None:
        return AnswerKind.THINKING
    return AnswerKind.CUT if finish_reason in CUT_REASONS else AnswerKind.UNREADABLE
