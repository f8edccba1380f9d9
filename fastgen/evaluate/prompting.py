"""How a model is asked and which part of its text is the answer. docs/evaluate.md describes both.

There is one fixed zero-shot prompt: the task's definition, then the input. Its form is one of the templates of
`fastgen.export.rows` (Self-Instruct's own evaluation uses it), so a tuned model has seen it and a base model can
complete it. A chat model gets the user's turn as ``fastgen export --format messages`` writes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fastgen.evaluate.tasks import BenchmarkName, Case
from fastgen.export.rows import WITH_INPUT, WITHOUT_INPUT, user_turn
from fastgen.generate.batch import Prompt, Shorten
from fastgen.servers.endpoint import Api
from fastgen.types import Message, Sampling

PROMPT_FORM: Final = "definition-input-output/1"
"""Changes with the prompt and with the clean-up; answers of two forms are not mixed."""
STOPS: Final = ("\nInput:", "\nTask:")
"""Sent to completion servers: where a base model begins the next example."""

_NEXT_EXAMPLE: Final = re.compile(r"\n\s*(?:Input|Output|Task)\s*:")
_LABEL: Final = re.compile(r"\s*Output\s*:")
_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\n")
_KEPT_EACH_TIME: Final = 0.75
_SHORTENINGS: Final = 16  # leaves 1 % of the input


def build_prompt(case: Case, api: Api, kept: float = 1.0) -> Prompt:
    """The prompt of one instance; ``kept`` is the share (0..1) of its input's characters to keep, from the start.

    The benchmark's own baselines also cut the end of the input and never the definition.
    """
    definition, text = case.task.definition, case.instance.input.strip()
    text = text[: round(kept * len(text))].rstrip()
    if api == "chat":
        return (Message("user", user_turn(definition, text)),)
    return (WITH_INPUT[1] if text else WITHOUT_INPUT[2]).format(instruction=definition, input=text)


def sampling(api: Api, max_tokens: int) -> Sampling:
    """Greedy decoding."""
    return Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, stop=STOPS if api == "completions" else ())


def shortener(cases: Sequence[Case], api: Api) -> Shorten:
    """A function that gives a shorter prompt of a case each time, and ``None`` when there is no input left to cut."""
    times: Counter[int] = Counter()

    def shorten(number: int) -> Prompt | None:
        times[number] += 1
        if times[number] > _SHORTENINGS or not cases[number].instance.input.strip():
            return None
        return build_prompt(cases[number], api, _KEPT_EACH_TIME ** times[number])

    return shorten


def clean_up(text: str, benchmark: BenchmarkName) -> str:
    """The answer in a model's text.

    A leading ``Output:`` is dropped, and the text ends where a line begins another ``Input:``, ``Output:`` or
    ``Task:``. For SuperNI, whose answers are short, only the first paragraph counts (up to the first blank line).
    """
    body = text.strip()
    if label := _LABEL.match(body):
        body = body[label.end() :].lstrip()
    if following := _NEXT_EXAMPLE.search("\n" + body):
        body = body[: max(0, following.start() - 1)]
    body = body.strip()
    return _BLANK_LINE.split(body, maxsplit=1)[0].rstrip() if benchmark == "superni" else body
