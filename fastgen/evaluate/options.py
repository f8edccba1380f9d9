"""Options of ``fastgen evaluate``: name, default and help exist here once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from fastgen.errors import InputError
from fastgen.generate.options import AskSpeed, Options, Thinking, endpoint_options
from fastgen.servers.endpoint import Api, normalise_base_url

BenchmarkName = Literal["superni", "user-oriented"]

_WHAT = Group("What is evaluated", sort_key=0)
_MODEL = Group("The model", sort_key=1)
_JUDGE = Group("The judge (user-oriented tasks, with --compare)", sort_key=2)


@Parameter(name="*", group=_WHAT)
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """What to ask and score."""

    benchmark: BenchmarkName = "superni"
    """superni: Super-NaturalInstructions, ROUGE-L and exact match; user-oriented: the 252 tasks of Self-Instruct."""
    data: Path | None = None
    """Folder of Super-NaturalInstructions (tasks/, splits/default/), or the JSON lines of the user-oriented tasks."""
    per_task: int = 100
    """Instances of each task, from the first one; user-oriented tasks have one each."""
    task: tuple[str, ...] = ()
    """Only the task of this name; may be given several times. Default: all."""
    max_tokens: int = 128
    """Most tokens of an answer."""

    def __post_init__(self) -> None:
        for name, value in (("--per-task", self.per_task), ("--max-tokens", self.max_tokens)):
            if value < 1:
                raise InputError(f"{name}: {value} is below 1")


@Parameter(name="*", group=_MODEL)
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The model. Without ``--base-url`` fastgen starts a vLLM server, as ``generate`` does."""

    base_url: tuple[str, ...] = ()
    """An OpenAI-compatible server; may be given several times. Without it fastgen starts one for --model."""
    model: str | None = None
    """The model's name at the server, or the model or folder to serve; default: as 'fastgen generate' chooses."""
    api: Api = "completions"
    """completions: the plain prompt; chat: the prompt as a user's message, for models with a chat template."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    api_key_file: Path | None = None
    """File that holds the server's key, on its first line."""
    thinking: Thinking = "auto"
    """Whether a model that can reason does so before it answers a chat request. auto: as the server decides."""
    extra_body: str = "{}"
    """JSON object merged into every request."""
    server_args: Annotated[str, Parameter(allow_leading_hyphen=True)] = ""
    """More arguments for the 'vllm serve' that fastgen starts, in one string."""
    server_timeout: float = 900.0
    """Seconds to wait at the start until a server answers."""

    def __post_init__(self) -> None:
        self.options(AskSpeed())

    def options(self, speed: AskSpeed) -> Options:
        """The options of `fastgen.generate.serving.serve`.

        :raises InputError: a value is out of range.
        """
        return endpoint_options(self, self.extra_body, speed.speed())


@Parameter(name="*", group=_JUDGE)
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeModelOptions:
    """The judge of the answers to user-oriented tasks."""

    judge_base_url: tuple[str, ...] = ()
    """Server of a model that grades both models' answers A, B, C or D. Without it they are only written for people."""
    judge_model: str | None = None
    """The judge's name at the server; default: its only model."""
    judge_api: Annotated[Api, Parameter(show_default=True)] = "chat"
    """API of the judge's server."""
    judge_api_key_env: str | None = None
    """Name of the environment variable that holds the judge's key."""
    judge_api_key_file: Path | None = None
    """File that holds the judge's key, on its first line."""
    judge_thinking: Thinking = "auto"
    """Whether a judge that can reason does so before it grades. auto: as its server decides."""
    judge_extra_body: str = "{}"
    """JSON object merged into every request to the judge; '{"response_format": null}' for servers that refuse it."""

    def __post_init__(self) -> None:
        for url in self.judge_base_url:
            normalise_base_url(url, "--judge-base-url")
        if self.judge_model is not None and not self.judge_base_url:
            raise InputError(f"--judge-model {self.judge_model}: name its server with --judge-base-url")

    def as_ask_options(self, extra_body: str, server_timeout: float) -> ModelOptions:
        """The same as options of a model, with another body and a time to wait for the server.

        :raises InputError: a value is out of range.
        """
        return ModelOptions(
            base_url=self.judge_base_url,
            model=self.judge_model,
            api=self.judge_api,
            api_key_env=self.judge_api_key_env,
            api_key_file=self.judge_api_key_file,
            thinking=self.judge_thinking,
            extra_body=extra_body,
            server_timeout=server_timeout,
        )
