"""Text of models that other models read, and what these answer: both are taken for text, never for more.

Guarantees: no mark of a common chat template survives in a text that is to be quoted; an answer is read as JSON only if
it is, as a whole, one object that says everything once. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_BAR: Final = "[|\uff5c]"  # also the full-width one, which some models' marks have
_TEMPLATE_MARK: Final = re.compile(
    rf"<(?={_BAR}|<SYS>>|</SYS>>|/?s>|/?think>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>)|\[(?=/?INST\])|{_BAR}(?=>)",
    re.IGNORECASE,
)
_LONGEST: Final = 100_000  # characters, thinking included
_THINKING: Final = re.compile(r"\A\s*<think>.*</think>", re.DOTALL)
_FENCE: Final = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL | re.IGNORECASE)


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
