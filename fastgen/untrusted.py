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
from typing import Any, Final

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


def whole_object(answer: str) -> dict[str, Any] | None:
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
