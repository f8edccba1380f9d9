"""Every option of ``fastgen generate``: name, default and help exist here once, for flags, TOML and run folders.

Values come, most important first, from flags, ``--config FILE``, the run folder (on resume), the preset, these
defaults. `MethodOptions`, the rules and the sampling are what a run *means* and stay for its whole life; the rest is
how it is carried out and may change on every resume. Knows nothing of argv, files or servers.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from fastgen.backends.endpoint import normalise_base_url
from fastgen.errors import InputError
from fastgen.records import Sampling
from fastgen.rules import PRESETS, SAMPLING_PRESETS, Rules

MAX_STOPS = 4  # of the OpenAI API
MIN_RECALL, MAX_RECALL = 0.5, 0.999999
JOB = Group("The job", sort_key=0)
_SERVER = Group("The server", sort_key=1)
_SPEED = Group("Speed and faults (may change on resume)", sort_key=2)
_METHOD = Group("The method (fixed for a run's life)", sort_key=3)
_RULES = Group("Filter rules (fixed for a run's life; defaults from --preset)", sort_key=4)
_SAMPLING = Group("Sampling per stage (fixed for a run's life; defaults from --preset)", sort_key=5)


def plain(part: Any) -> dict[str, Any]:  # noqa: ANN401 - any options dataclass
    """An options dataclass as JSON values, by option name."""
    return {field.name: _plain_value(getattr(part, field.name)) for field in dataclasses.fields(part)}


def _plain_value(value: Any) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flag(name: str) -> str:
    """The command line's form of an option's name."""
    return "--" + name.replace("_", "-")


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{flag}: {value} is below {least}")


def _check_sampling(flag: str, sampling: Sampling) -> None:
    """Ranges of the OpenAI API: a server would refuse every single request for them."""
    _at_least(f"{flag}max-tokens", sampling.max_tokens, 1)
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise InputError(f"{flag}stop: at most {MAX_STOPS} texts, none of them empty")
    within = {"temperature": (0.0, 2.0), "presence-penalty": (-2.0, 2.0), "frequency-penalty": (-2.0, 2.0)}
    for name, (low, high) in within.items():
        value = getattr(sampling, name.replace("-", "_"))
        if not low <= value <= high:
            raise InputError(f"{flag}{name}: {value} is not within {low:g} to {high:g}")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"{flag}top-p: {sampling.top_p} is not above 0 and at most 1")


def _above(flag: str, value: float, limit: float) -> None:
    if not limit < value < math.inf:
        raise InputError(f"{flag}: {value} is not a number above {limit}")


@Parameter(name="*", group=JOB)
@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What to make and how to show it."""

    num_instructions: int = 100
    """Instructions to make: counted are those that pass every filter and have at least one valid instance."""
    quiet: bool = False
    """Say nothing but errors and the last line."""
    log_json: bool = False
    """Write progress and events as JSON lines on standard error."""
    log_file: Path | None = None
    """Append events, and progress now and then, to this file too."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is worth a line in --log-file."""
    dry_run: bool = False
    """Make a few instructions in a folder that is thrown away, and say what all of them would take."""
    price_in: float | None = None
    """Price of a million tokens read, for --dry-run."""
    price_out: float | None = None
    """Price of a million tokens generated, for --dry-run."""

    def __post_init__(self) -> None:
        _at_least("--num-instructions", self.num_instructions, 0)
        if (self.price_in is None) != (self.price_out is None):
            raise InputError("--price-in: goes together with --price-out; give both or neither")
        for name in ("price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{flag(name)}: {value} is below 0")


@Parameter(name="*", group=_SERVER)
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Who writes. Without ``--base-url`` fastgen starts a vLLM server itself."""

    base_url: tuple[str, ...] = ()
    """An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; may be given several times. Without it: vLLM on
    the GPU if there is one, else a small model on the CPU, set up on first use."""
    model: str | None = None
    """The model's name at the server, or what to serve; default: the server's only model, Qwen/Qwen3-4B-Base on a
    GPU."""
    api: Literal["completions", "chat"] = "completions"
    """completions for base models (the method's own way), chat for instruct models and hosts without completions."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    api_key_file: Path | None = None
    """File that holds the server's key, on its first line."""
    extra_body: str = "{}"
    """JSON object merged into every request, such as '{"min_p": 0.05}'; fixed for a run's life."""
    server_args: str = ""
    """More arguments for the 'vllm serve' that fastgen starts, in one string."""
    server_timeout: float = 900.0
    """Seconds to wait until a server answers at the start."""

    def __post_init__(self) -> None:
        _above("--server-timeout", self.server_timeout, 0)
        self.extra_fields()
        for url in self.base_url:
            normalise_base_url(url)

    def extra_fields(self) -> dict[str, Any]:
        """``--extra-body`` as an object.

        :raises InputError: it is not a JSON object.
        """
        try:
            body = json.loads(self.extra_body)
        except json.JSONDecodeError as error:
            raise InputError(
                f"--extra-body: not JSON ({error}); give an object such as '{{\"min_p\": 0.05}}'"
            ) from None
        if not isinstance(body, dict):
            raise InputError(f"--extra-body: a JSON object is needed, not {self.extra_body}")
        return body


@Parameter(name="*", group=_SPEED)
@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOptions:
    """How fast and how stubbornly; none of it changes what a run means."""

    concurrency: int | None = None
    """Requests in flight; default: 256 for a server of yours, what fits for one that fastgen starts."""
    max_attempts: int = 8
    """Attempts of one request before it is recorded as failed and replaced by another."""
    outage_timeout: float = 600.0
    """Seconds without any answer from any server before the run stops (resumable, exit code 3)."""
    drain_timeout: float = 60.0
    """Seconds that requests in flight get to finish after the first Ctrl-C."""
    request_timeout: float | None = None
    """Seconds one request may take; default: derived from its max_tokens."""
    max_fruitless: int = 1000
    """Instruction completions in a row without one kept instruction before the run stops (resumable, exit code 3)."""
    audit_rate: float = 0.0
    """Share of the similarity decisions to make again by the full scan, in the background (0: none; 0.001 is
    plenty)."""
    sync_interval: float = 1.0
    """Seconds between forced writes to disk: what a power cut can cost; a killed process loses nothing committed."""

    def __post_init__(self) -> None:
        if self.concurrency is not None:
            _at_least("--concurrency", self.concurrency, 1)
        _at_least("--max-attempts", self.max_attempts, 1)
        if not 0 <= self.audit_rate <= 1:
            raise InputError(f"--audit-rate: {self.audit_rate} is not within 0 to 1")
        _at_least("--max-fruitless", self.max_fruitless, 1)
        for name in ("outage_timeout", "drain_timeout", "sync_interval"):
            _above(flag(name), getattr(self, name), 0)
        if self.request_timeout is not None:
            _above("--request-timeout", self.request_timeout, 0)


@Parameter(name="*", group=_METHOD)
@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What the run means, apart from rules and sampling."""

    preset: Literal["default", "paper"] = "default"
    """paper: the original's rules and figures to the letter; default: the same method without its defects
    (docs/rules.md)."""
    seed_tasks: Path | None = None
    """Seed tasks, JSON lines in the original's schema; default: the 175 that ship with fastgen."""
    prompts: Path | None = None
    """Folder with prompt templates and demonstrations that replace the shipped ones of the same names."""
    decontaminate: tuple[Path, ...] = ()
    """Files with tasks that no kept instruction may resemble: JSON lines or Parquet with a field 'instruction', or
    tasks of Super-NaturalInstructions (.json). May be given several times."""
    num_prompt_instructions: int = 8
    """Demonstrations in an instruction prompt."""
    num_machine_instructions: int = 2
    """How many of them are machine-generated, once there are any."""
    classification_only: bool = False
    """Ask for classification tasks only, with classification seeds as demonstrations."""
    seed: int = 0
    """Keys every random draw together with the request's number."""

    def __post_init__(self) -> None:
        _at_least("--num-prompt-instructions", self.num_prompt_instructions, 1)
        _at_least("--num-machine-instructions", self.num_machine_instructions, 0)
        if self.num_machine_instructions >= self.num_prompt_instructions:
            raise InputError("--num-machine-instructions: must be below --num-prompt-instructions, seeds fill the rest")


@Parameter(name="*", group=_METHOD)
@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityOptions:
    """When a new instruction is too similar to one that is there, and how that is found."""

    threshold: float = 0.7
    """ROUGE-L F1 to any seed or kept instruction above which a new one is rejected (0..1)."""
    reject_at: Literal["gt", "ge"] = "gt"
    """gt: reject above the threshold (the original's code); ge: at the threshold too (the paper's text)."""
    tokenizer: Literal["unicode", "rouge"] = "unicode"
    """What ROUGE-L counts as tokens: every script's words, or rouge_score's [a-z0-9]+ only."""
    index: Literal["lsh", "exact", "exhaustive"] = "lsh"
    """Similarity index: MinHash-LSH with a known miss rate, an exact prefix index, or the full scan."""
    lsh_recall: float = 0.9998
    """Expected share of true neighbours that --index lsh finds; chooses bands and rows."""
    lsh_bands: int | None = None
    """Bands of --index lsh, together with --lsh-rows instead of a recall."""
    lsh_rows: int | None = None
    """Rows of a band of --index lsh."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"--threshold: {self.threshold} is not above 0 and at most 1")
        if not MIN_RECALL <= self.lsh_recall <= MAX_RECALL:
            raise InputError(f"--lsh-recall: {self.lsh_recall} is not within {MIN_RECALL} to {MAX_RECALL}")
        if (self.lsh_bands is None) != (self.lsh_rows is None):
            raise InputError("--lsh-bands: goes together with --lsh-rows; give both or neither")


_DEFAULT_SAMPLING = SAMPLING_PRESETS["default"]


@Parameter(name="*", group=_SAMPLING, show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How each stage samples."""

    instruction: Sampling = _DEFAULT_SAMPLING["instruction"]
    """Writing new instructions."""
    classification: Sampling = _DEFAULT_SAMPLING["classification"]
    """Telling classification tasks from others."""
    instance_input_first: Sampling = _DEFAULT_SAMPLING["instance_input_first"]
    """Writing instances, input before output."""
    instance_output_first: Sampling = _DEFAULT_SAMPLING["instance_output_first"]
    """Writing instances of classification tasks, label before input."""

    def __post_init__(self) -> None:
        for stage, sampling in self.by_stage().items():
            _check_sampling(f"{flag(stage)}.", sampling)

    def by_stage(self) -> dict[str, Sampling]:
        """The four, by the names that the plan uses."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything that ``fastgen generate`` can be told, except where the run folder is."""

    job: JobOptions = JobOptions()
    server: ServerOptions = ServerOptions()
    speed: SpeedOptions = SpeedOptions()
    method: MethodOptions = MethodOptions()
    similarity: SimilarityOptions = SimilarityOptions()
    rules: Annotated[Rules, Parameter(name="*", group=_RULES)] = PRESETS["default"]
    sampling: SamplingOptions = SamplingOptions()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RefilterOptions:
    """What ``fastgen refilter`` can change; the rest stays as the run has it."""

    preset: Annotated[Literal["default", "paper"] | None, Parameter(group=_METHOD)] = None
    """Take rules, tokenizer and index from this preset; without it they are the run's own."""
    similarity: SimilarityOptions = SimilarityOptions()
    rules: Annotated[Rules, Parameter(name="*", group=_RULES)] = PRESETS["default"]

    def values(self) -> dict[str, Any]:
        """By option name, as JSON values."""
        preset = {} if self.preset is None else {"preset": self.preset}
        return plain(self.similarity) | plain(self.rules) | preset
