"""The text that a model is tuned on: instruction and input as a prompt, the output as its completion.

The method of Self-Instruct (Wang et al., ACL 2023): seven templates with input and six without, drawn uniformly, so
that the tuned model does not depend on one format; and, with probability 1/2, an input of a single named field loses
that name and its blank lines. Pure: all chance comes in as one number. No end-of-text token is added, since trainers
add their own model's. Knows nothing of files, runs or trainers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fastgen.method.rules import Style
from fastgen.records import Instance

WITH_INPUT: Final = (
    "{instruction}\nInput: {input}\nOutput:",
    "{instruction}\n\nInput: {input}\n\nOutput:",
    "Task: {instruction}\nInput: {input}\nOutput:",
    "{instruction}\n\n{input}\n\nOutput:",
    "{instruction}\n\n{input}\n\n",
    "{instruction}\n{input}\n\n",
    "Task: {instruction}\n\n{input}\n\n",
)
WITHOUT_INPUT: Final = (
    "{instruction} Output:",
    "{instruction}\nOutput:",
    "{instruction}\n\nOutput:",
    "{instruction}\n",
    "{instruction}\n\n",
    "Task: {instruction}\n\n",
)

_FIELD_NAME: Final = re.compile(r"(\w+):")
_OPENING_NAME: Final = re.compile(r"[^\W\d][\w ]*:(?=\s|$)")
_OUTPUT: Final = "Output:"


@dataclass(frozen=True, slots=True)
class TrainingText:
    """What the model reads and what it learns to write; the loss is meant for the completion only."""

    prompt: str
    completion: str


def training_text(instruction: str, instance: Instance, draw: int, style: Style = "lenient") -> TrainingText:
    """Write one instance down in a drawn template.

    ``draw`` are 64 random bits: the lowest is the coin for `plain_input`, the others choose the template. The
    completion begins with a space where the prompt ends in ``Output:``, as tokenisers that attach spaces to the
    following word need it.
    """
    text = plain_input(instance.input, style) if draw & 1 else instance.input.strip()
    templates = WITH_INPUT if text else WITHOUT_INPUT
    template = templates[(draw >> 1) % len(templates)]
    prompt = template.format(instruction=instruction.strip(), input=text)
    return TrainingText(prompt, (" " if template.endswith(_OUTPUT) else "") + instance.output.strip())


def plain_input(text: str, style: Style = "lenient") -> str:
    """The input without the name of its only field and with blank lines halved; other inputs keep their names.

    ``paper`` takes any one distinct word before a colon for the name and drops the text up to the first colon, so
    ``Meet me at 12:30`` becomes ``30``. ``lenient`` asks for a name that opens the input, begins with no digit and is
    followed by a space or a line break.
    """
    if len(set(_FIELD_NAME.findall(text))) == 1 and (style == "paper" or _OPENING_NAME.match(text.lstrip())):
        text = text.partition(":")[2]
    return text.strip().replace("\n\n", "\n")
