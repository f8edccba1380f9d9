"""The second stage: ask whether an instruction is a classification task, and read the answer.

`parse` never raises. Whatever is not clearly a yes is a no, as in Self-Instruct (Wang et al., ACL 2023).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastgen.methods.base import Labelled
from fastgen.text import answer_span

if TYPE_CHECKING:
    from fastgen.methods.self_instruct.prompts import PromptSet
    from fastgen.methods.self_instruct.rules import Rules
    from fastgen.types import Completion, Message


_PAPER_YES: Final = frozenset({"Yes", "yes", "YES"})
_WORD: Final = (  # Chinese and Japanese write no space after the word
    r"(?:(?P<yes>(?:yes|true|sí|sim|oui|ja|да|हाँ|نعم|ใช่|네|对)(?!\w)|是(?!否)|はい)"
    r"|(?P<no>(?:no|false|não|non|nein|нет|नहीं|لا|아니요)(?!\w)|不|否|いいえ|ไม่))"
)
_AT_THE_START: Final = re.compile(rf"[\W_]*+{_WORD}(?!\s*+(?:or\b|/))", re.IGNORECASE)
_AFTER_A_LABEL: Final = re.compile(
    rf"""(?:classification(?:[ ]task)?["*]*+[ ]*+[?:]
    | \b(?:answer|output|response|therefore)(?:[ ](?:is|would[ ]be))?[ ]*+[\W_]?
    | \b(?:antwort(?:[ ](?:ist|lautet))?|réponse(?:[ ]est)?|respuesta(?:[ ]es)?)[ ]*+[\W_]?
    | (?:答案|回答)(?:[是为](?=\W))?[ ]*+[:\uff1a])
    [\W_]*+{_WORD}(?!\s+or\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_ALONE_ON_A_LINE: Final = re.compile(rf"^[^\w\n]*+{_WORD}[^\w\n]*+$", re.IGNORECASE | re.MULTILINE)
_STATED: Final = re.compile(
    r"""\b(?:this|it|(?:this|the|that)[ ]task)[ ]is[ ](?:clearly[ ]|indeed[ ])?an?[ ]classification[ ]task\b
    | ^\W*classification(?:[ ]task)?\W*$
    | \b(?:das|dies|es)[ ]ist[ ](?:eindeutig[ ])?eine[ ]klassifikation(?:saufgabe)?\b
    | \bc'est[ ](?:bien[ ])?une[ ](?:tâche[ ]de[ ])?classification\b
    | (?<!no[ ])\bes[ ]una[ ](?:tarea[ ]de[ ])?clasificación\b
    | (?<!不)[是属][于]?(?:一[个項项])?分[类類]任[务務](?![吗嗎])""",
    re.IGNORECASE | re.VERBOSE,
)


def build_prompt(instruction: str, prompts: PromptSet) -> str | tuple[Message, ...]:
    """Return the prompt that asks whether an instruction is a classification task."""
    return prompts.classification.fill(instruction=instruction.strip())


def parse(completion: Completion, rules: Rules) -> Labelled:
    """Return whether the completion says that the instruction is a classification task.

    With ``answer_style`` ``paper``, the stripped text has to be "Yes", "yes" or "YES". Everything else is a no.
    ``lenient`` takes the first plain answer: at the start ("**Yes**, because ..."), else after a label ("Answer: yes"),
    else alone on a line, else stated in full ("This is a classification task"). An answer that is neither a yes nor a
    no counts as a no and has the reason in ``unread``.
    """
    if rules.answer_style == "paper":
        return Labelled(completion.text.strip() in _PAPER_YES)
    span = answer_span(completion.text)
    if span is None:
        return Labelled(False, "unclosed_thinking")
    answer = completion.text[slice(*span)]
    found = _AT_THE_START.match(answer) or _AFTER_A_LABEL.search(answer) or _ALONE_ON_A_LINE.search(answer)
    if found is not None:
        return Labelled(found["yes"] is not None)
    if _STATED.search(answer):
        return Labelled(True)
    return Labelled(False, "no_answer" if answer.strip() else "empty")
