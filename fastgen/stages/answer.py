"""Which part of a raw completion is the answer, shared by the three parsers.

Models write more than was asked: thinking before the answer, end-of-turn tokens after it, Markdown around it.
Everything here works on offsets of the raw text, so that what a parser takes out stays a span of it. Knows nothing of
lists, instances or rules.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.records import Completion, Span

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
