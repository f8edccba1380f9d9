"""Stage 2: ask whether an instruction is a classification task, and read the answer.

Guarantee: ``parse`` never raises; whatever is not clearly a "yes" is a "no", as in Self-Instruct (Wang et al., ACL
2023).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastgen.rules import PRESETS
from fastgen.stages.answer import answer_span

if TYPE_CHECKING:
    from fastgen.records import Completion, Message
    from fastgen.rules import Rules
    from fastgen.stages.prompts import PromptSet

_PAPER_YES: Final = frozenset({"Yes", "yes", "YES"})
_AT_THE_START: Final = re.compile(r"[\W_]*+(yes|no)\b", re.IGNORECASE)
_AFTER_A_LABEL: Final = re.compile(
    r"""(?:classification(?:[ ]task)?[ ]*+\? | \b(?:answer|output|response)(?:[ ]is)?[ ]*+[\W_]?)
    [\W_]*+(yes|no)\b(?!\s+or\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_ALONE_ON_A_LINE: Final = re.compile(r"^[\W_]*?(yes|no)[\W_]*?$", re.IGNORECASE | re.MULTILINE)


def build_prompt(instruction: str, prompts: PromptSet) -> str | tuple[Message, ...]:
    """Return the prompt that asks about ``instruction``."""
    return prompts.classification.fill(instruction=instruction.strip())


def parse(completion: Completion, rules: Rules = PRESETS["default"]) -> bool:
    """Whether the completion says that the instruction is a classification task.

    With ``answer_style`` ``paper``, the stripped text has to be "Yes", "yes" or "YES". ``lenient`` takes the first
    plain answer: at the start ("**Yes**, because ..."), else after a label ("Answer: yes"), else alone on a line.
    """
    if rules.answer_style == "paper":
        return completion.text.strip() in _PAPER_YES
    span = answer_span(completion.text)
    if span is None:
        return False
    answer = completion.text[slice(*span)]
    found = _AT_THE_START.match(answer) or _AFTER_A_LABEL.search(answer) or _ALONE_ON_A_LINE.search(answer)
    return found is not None and found[1].lower() == "yes"
