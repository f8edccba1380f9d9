"""Numbers the answers of a judge: instruction, instance, vote and attempt as one whole number, readable in decimal.

``12_0003_02_1``: machine instruction 12, its instance 3, vote 2, second attempt (all but the instruction from 0). A
number means the same in every session, whatever else is judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

from cyclopts import Group, Parameter

from fastgen.errors import InputError
from fastgen.generate.options import AskSpeed, Options, options_of

MAX_INSTANCES = 10_000
MAX_VOTES = 100
_ATTEMPTS = 10
_VOTES = MAX_VOTES * _ATTEMPTS


class AnswerId(NamedTuple):
    """Who is judged, and for the which time."""

    number: int
    """Machine instruction number."""
    instance: int
    """Instance of the instruction (0 to 9,999)."""
    vote: int
    """0 to 99."""
    attempt: int
    """0, or 1 after an answer that could not be read."""

    def pack(self) -> int:
        """The slot as one number (below 2**63 for up to 9e11 instructions)."""
        return ((self.number * MAX_INSTANCES + self.instance) * MAX_VOTES + self.vote) * _ATTEMPTS + self.attempt

    @classmethod
    def unpack(cls, packed: int) -> Self:
        """The slot of a number that `pack` gave."""
        key, rest = divmod(packed, _VOTES)
        return cls(*divmod(key, MAX_INSTANCES), *divmod(rest, _ATTEMPTS))


def instance_key(number: int, instance: int) -> int:
    """One number for an instance; sorts by instruction, then by instance."""
    return number * MAX_INSTANCES + instance


Constraint = Literal["auto", "vllm", "json-schema", "none"]
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WHAT = Group("What is judged", sort_key=1)
_JUDGE = Group("The judge", sort_key=2)


@Parameter(name="*", group=_WHAT)
@dataclass(frozen=True, slots=True, kw_only=True)
class WhatOptions:
    """Which instances, how often, and under which name."""

    name: str | None = None
    """Name of these judgements in the run folder, one for each judge; default: made from the judge's model."""
    votes: int = 1
    """Answers for each instance (at most 100): the majority decides the questions, the median the score. A later call
    with more asks for what is missing."""
    max_instructions: int | None = None
    """Only so many instructions, drawn with --seed; a smaller number gives a part of what a larger one gives."""
    seed: int = 0
    """Keys the draw of --max-instructions, which is that of 'fastgen export'."""

    def __post_init__(self) -> None:
        if self.name is not None and not NAME.fullmatch(self.name):
            raise InputError(f"--name {self.name}: use letters, digits, '.', '_' and '-', a letter or digit first")
        if not 1 <= self.votes <= MAX_VOTES:
            raise InputError(f"--votes: {self.votes} is not within 1 to {MAX_VOTES}")
        if self.max_instructions is not None and self.max_instructions < 1:
            raise InputError(f"--max-instructions: {self.max_instructions} is below 1")


@Parameter(name="*", group=_JUDGE)
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """Who judges. Without ``--base-url`` fastgen starts a vLLM server itself, as ``generate`` does."""

    base_url: tuple[str, ...] = ()
    """An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; may be given several times."""
    model: str | None = None
    """The judge's name at the server, or what to serve; take an instruct model."""
    api: Literal["completions", "chat"] = "chat"
    """chat for instruct models, completions for base models."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    api_key_file: Path | None = None
    """File that holds the server's key, on its first line."""
    extra_body: str = "{}"
    """JSON object merged into every request, such as '{"chat_template_kwargs": {"enable_thinking": false}}'."""
    output_constraint: Constraint = "auto"
    """What holds the judge to the form of its answer: vllm (its structured_outputs), json-schema (OpenAI's
    response_format), none (the prompt alone), auto (vllm where the servers are vLLM, else none). Answers are checked
    all the same."""
    temperature: float = 0.7
    """Sampling temperature (0 to 2); several votes need one above 0."""
    top_p: float = 1.0
    """Probability mass that is sampled from."""
    max_tokens: int = 120
    """Most tokens of an answer, which needs about 50; a judge that thinks needs thousands."""
    server_args: str = ""
    """More arguments for the 'vllm serve' that fastgen starts, in one string."""
    server_timeout: float = 900.0
    """Seconds to wait until a server answers at the start."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:  # noqa: PLR2004 - the OpenAI API's range
            raise InputError(f"--temperature: {self.temperature} is not within 0 to 2")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: {self.top_p} is not above 0 and at most 1")
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens: {self.max_tokens} is below 1")
        self.options(AskSpeed())

    def check_votes(self, votes: int) -> None:
        """:raises InputError: votes that would all be the same one."""
        if votes > 1 and self.temperature == 0:
            raise InputError(f"--votes {votes}: at --temperature 0 all votes are the same; give a higher one or 1 vote")

    def told_to_serve(self, model: str | None) -> JudgeOptions:
        """The same with the model that fastgen is to serve, where it starts the server and was told none."""
        return self if self.base_url or self.model is not None or model is None else replace(self, model=model)

    def options(self, speed: AskSpeed, extra_body: str | None = None) -> Options:
        """What `fastgen.generate.serving.serve` needs to know; ``extra_body`` in place of the user's.

        :raises InputError: a value is out of range.
        """
        return options_of(self, self.extra_body if extra_body is None else extra_body, speed.speed())
