"""Options of ``fastgen judge``: name, default and help exist here once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Group, Parameter

from fastgen.errors import InputError
from fastgen.generate.options import AskSpeed, Options, Thinking, endpoint_options

MAX_VOTES: Final = 100
Constraint = Literal["auto", "vllm", "json-schema", "none"]
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WHAT = Group("What is judged", sort_key=1)
_JUDGE = Group("The judge", sort_key=2)


@Parameter(name="*", group=_WHAT)
@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeOptions:
    """Which instances, how often, and under which name."""

    name: str | None = None
    """Name of these judgements in the run folder, one for each judge; default: from the judge's model."""
    votes: int = 1
    """Answers for each instance (at most 100): the majority decides the questions, the median the score. A later call
    with more votes asks only for the missing ones."""
    max_instructions: int | None = None
    """Judge a sample of this many instructions, drawn with --seed; a smaller sample is part of a larger one."""
    seed: int = 0
    """Seed of --max-instructions, which draws the same sample as in 'fastgen export'."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise InputError(f"--name {self.name}: use letters, digits, '.', '_' and '-', a letter or digit first")
        if not 1 <= self.votes <= MAX_VOTES:
            raise InputError(f"--votes: {self.votes} is not within 1 to {MAX_VOTES}")
        if self.max_instructions is not None and self.max_instructions < 1:
            raise InputError(f"--max-instructions: {self.max_instructions} is below 1")


@Parameter(name="*", group=_JUDGE)
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """The judge. Without ``--base-url`` fastgen starts a vLLM server, as ``generate`` does."""

    base_url: tuple[str, ...] = ()
    """An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; may be given several times."""
    model: str | None = None
    """The judge's name at the server, or the model or folder to serve; use an instruct model."""
    api: Literal["completions", "chat"] = "chat"
    """chat for instruct models, completions for base models."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    api_key_file: Path | None = None
    """File that holds the server's key, on its first line."""
    thinking: Thinking = "auto"
    """Whether a judge that can reason does so before it answers. auto: as its server decides."""
    extra_body: str = "{}"
    """JSON object merged into every request, such as '{"min_p": 0.05}'."""
    output_constraint: Constraint = "auto"
    """How the form of an answer is enforced: vllm (its structured_outputs), json-schema (OpenAI's response_format),
    none (the prompt alone), auto (vllm if the servers are vLLM, else none). Answers are always checked."""
    temperature: float = 0.7
    """Sampling temperature (0 to 2); several votes need one above 0."""
    top_p: float = 1.0
    """Probability mass to sample from."""
    max_tokens: int = 120
    """Most tokens of an answer. An answer takes about 50; a judge that thinks needs thousands."""
    server_args: Annotated[str, Parameter(allow_leading_hyphen=True)] = ""
    """More arguments for the 'vllm serve' that fastgen starts, in one string."""
    server_timeout: float = 900.0
    """Seconds to wait at the start until a server answers."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:  # noqa: PLR2004 - the OpenAI API's range
            raise InputError(f"--temperature: {self.temperature} is not within 0 to 2")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: {self.top_p} is not above 0 and at most 1")
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens: {self.max_tokens} is below 1")
        self.options(AskSpeed())

    def options(self, speed: AskSpeed, extra_body: str | None = None) -> Options:
        """The options of `fastgen.generate.serving.serve`; ``extra_body`` replaces the user's.

        :raises InputError: a value is out of range.
        """
        return endpoint_options(self, self.extra_body if extra_body is None else extra_body, speed.speed())
