"""How a model is asked, and what of its text counts as the answer; pure. docs/evaluate.md states both.

One fixed prompt, zero-shot: the task's definition, then the input, in the form that is also one of the templates of
`fastgen.export.rows` (Self-Instruct's own evaluation uses it), so that a tuned model has met it and a base
model can complete it. A chat model gets what `fastgen export --format messages` writes as the user's turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fastgen.evaluate.tasks import BenchmarkName, Case
from fastgen.export.rows import WITH_INPUT, WITHOUT_INPUT, user_turn
from fastgen.generate.batch import Prompt
from fastgen.servers.endpoint import Api
from fastgen.types import Message, Sampling

PROMPT_FORM: Final = "definition-input-output/1"
"""Changes whenever the prompt or the clean-up does: answers of two forms are not mixed."""
STOPS: Final = ("\nInput:", "\nTask:")
"""Sent to completion servers: where a base model begins the next example."""

_WITH_INPUT: Final = WITH_INPUT[1]
_WITHOUT_INPUT: Final = WITHOUT_INPUT[2]
_NEXT_EXAMPLE: Final = re.compile(r"\n\s*(?:Input|Output|Task)\s*:")
_LABEL: Final = re.compile(r"\s*Output\s*:")
_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\n")
_KEPT_EACH_TIME: Final = 0.75
_SHORTENINGS: Final = 16  # leaves 1 % of the input


def build_prompt(case: Case, api: Api, kept: float = 1.0) -> Prompt:
    """The prompt of one instance; ``kept`` is the share (0..1) of its input's characters that is left, from the start.

    Cutting the end of the input and never the definition is what the benchmark's own baselines do.
    """
    definition, text = case.task.definition, case.instance.input.strip()
    text = text[: round(kept * len(text))].rstrip()
    if api == "chat":
        return (Message("user", user_turn(definition, text)),)
    return (_WITH_INPUT if text else _WITHOUT_INPUT).format(instruction=definition, input=text)


def sampling(api: Api, max_tokens: int) -> Sampling:
    """Greedy."""
    return Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, stop=STOPS if api == "completions" else ())


class Shortener:
    """Shorter and shorter prompts of cases that do not fit the model; see `fastgen.generate.batch.Asking`."""

    def __init__(self, cases: Sequence[Case], api: Api) -> None:
        self._cases = cases
        self._api = api
        self._times: Counter[int] = Counter()

    def __call__(self, number: int) -> Prompt | None:
        """The next shorter prompt; ``None`` when there is no input left to cut."""
        case = self._cases[number]
        self._times[number] += 1
        times = self._times[number]
        if times > _SHORTENINGS or not case.instance.input.strip():
            return None
        return build_prompt(case, self._api, _KEPT_EACH_TIME**times)


def clean_up(text: str, benchmark: BenchmarkName) -> str:
    """The answer in what a model wrote.

    A leading ``Output:`` is dropped and the text ends where a line begins another ``Input:``, ``Output:`` or ``Task:``.
    For SuperNI, whose answers are short, only the first paragraph counts (up to the first blank line).
    """
    body = text.strip()
    if label := _LABEL.match(body):
        body = body[label.end() :].lstrip()
    if following := _NEXT_EXAMPLE.search("\n" + body):
        body = body[: max(0, following.start() - 1)]
    body = body.strip()
    return _BLANK_LINE.split(body, maxsplit=1)[0].rstrip() if benchmark == "superni" else body
