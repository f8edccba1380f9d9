"""Every option of ``fastgen generate``: name, default and help exist here once, for flags, TOML and run folders.

Values come, most important first, from flags, ``--config FILE``, the run folder (on resume), the preset, and the
defaults of the dataclasses. The module has this order: the groups of options, the values of a preset, what a run
folder remembers, and what a resume may not change. That last part is a run's *configuration*: `MethodOptions`, the
similarity filter, the rules, the sampling, the models, and the contents of the files it was given. It is fixed for the
run's life. Everything else may change on every resume.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import Group, Parameter

from fastgen.errors import InputError, at_least, check_seconds, flag_name, within
from fastgen.methods.base import CREATION, Method
from fastgen.methods.catalogue import METHODS, RULES_FOR_LONG_TEXTS, SELF_INSTRUCT, Entry
from fastgen.methods.demonstrations import Policy
from fastgen.methods.self_instruct.rules import (
    CHAT_SAMPLING_PRESETS,
    PRESETS,
    RULES_OF_EARLIER_RUNS,
    SAMPLING_PRESETS,
    Rules,
)
from fastgen.servers.endpoint import Api, check_extra_body, normalise_base_url, redact_url, secret_name_in
from fastgen.servers.spec import check_server_args, has_flag, parse_server_args, without_secrets
from fastgen.similarity.options import METHOD_GROUP, SimilarityOptions
from fastgen.store.files import check_storable
from fastgen.text import quoted
from fastgen.types import Sampling

Thinking = Literal["auto", "on", "off"]
MAX_STOPS = 4  # of the OpenAI API
MAX_PORT = 65535
JOB = Group("The job", sort_key=0)
_SERVER = Group("The server", sort_key=10)
_OWN_SERVERS = Group("Servers that fastgen starts (without --base-url)", sort_key=11)
_ROLES = Group("Other servers for single steps", sort_key=12)
_SPEED = Group("Speed and faults (may change on resume)", sort_key=20)
_ASK_SPEED = Group("Speed and faults", sort_key=20)
_ONE_METHOD = Group("Options of single methods (fixed for a run's life)", sort_key=31)
_RULES = Group("Filter rules (fixed for a run's life; defaults from --preset)", sort_key=40)
_SAMPLING = Group("Sampling per step of self-instruct (fixed for a run's life; defaults from --preset)", sort_key=50)
_DISPLAY = Group("Display, logs and metrics", sort_key=60)


# -- groups of options -------------------------------------------------------------------------------------------------


@Parameter(name="*", group=JOB)
@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What to make and how to show it."""

    num_instructions: int = 100
    """Instructions to make. Only those count that pass every filter and have at least one valid instance."""
    quiet: Annotated[bool, Parameter(group=_DISPLAY)] = False
    """Print only errors and the last line."""
    log_json: Annotated[bool, Parameter(group=_DISPLAY)] = False
    """Write progress and events as JSON lines on standard error, and the estimate of --dry-run as JSON."""
    log_file: Annotated[Path | None, Parameter(group=_DISPLAY)] = None
    """Also append events, and progress now and then, to this file."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Parameter(group=_DISPLAY)] = "info"
    """Lowest level that --log-file records."""
    dry_run: bool = False
    """Make a few instructions in a temporary folder and estimate what the whole run would take."""
    probe: Literal["auto", "on", "off"] = "auto"
    """Before a new run, ask a few answers of each step, and do not begin if those of a step are of no use
    (docs/models.md). auto: with --dry-run, and before runs of at least 200 instructions unless --preset paper is
    given."""
    metrics_port: Annotated[int | None, Parameter(group=_DISPLAY)] = None
    """Serve the run's figures for Prometheus at this port, under /metrics (0: any free port); see docs/metrics.md."""
    metrics_host: Annotated[str, Parameter(group=_DISPLAY)] = "127.0.0.1"
    """Address that --metrics-port listens on. The page has no password; do not expose it to strangers."""
    dashboard: Annotated[bool, Parameter(group=_DISPLAY)] = False
    """Show the run as a live page, on this machine only. The page's process starts with the first visitor and uses
    only idle CPU time; see docs/report.md. 'fastgen dashboard' shows any run."""
    dashboard_port: Annotated[int, Parameter(group=_DISPLAY)] = 8642
    """Port of --dashboard (0: any free port)."""
    price_in: float | None = None
    """Price of a million tokens read, for --dry-run and for the summary at the end."""
    price_out: float | None = None
    """Price of a million tokens generated, for the same."""

    def __post_init__(self) -> None:
        at_least("--num-instructions", self.num_instructions, 0)
        if self.metrics_port is not None:
            within("--metrics-port", self.metrics_port, 0, MAX_PORT)
        within("--dashboard-port", self.dashboard_port, 0, MAX_PORT)
        if (self.price_in is None) != (self.price_out is None):
            raise InputError("--price-in: goes together with --price-out; give both or neither")
        for name in ("price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{flag_name(name)}: {value} is not a number of at least 0")


_ROLES_WITH_FLAGS = ("instance", "classification")
"""Roles whose servers have flags of their own, which begin with these names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleServer:
    """The servers of one role; without any URL, the model is at the servers of the other roles."""

    name: str
    base_url: tuple[str, ...] = ()
    model: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None

    @property
    def has_key(self) -> bool:
        """Whether a key for these servers is named."""
        return self.api_key_env is not None or self.api_key_file is not None

    def flag(self, part: str) -> str:
        """The flag that sets a part, such as ``model``, for messages."""
        return f"--{self.name}-{part}" if self.name in _ROLES_WITH_FLAGS else f"--role {self.name}"


_ROLE = re.compile(r"[a-z][a-z0-9_]*")


def parse_roles(given: Sequence[str]) -> dict[str, RoleServer]:
    """``--role`` as servers by role. Several of one role share its work.

    :raises InputError: one is not of the form NAME=URL[,MODEL[,KEY_ENV]], or two disagree.
    """
    found: dict[str, RoleServer] = {}
    for one in given:
        name, _, rest = one.partition("=")
        parts = [part.strip() or None for part in rest.split(",")]
        is_role = _ROLE.fullmatch(name) is not None
        if not (is_role and any(parts)) or len(parts) > 3:  # noqa: PLR2004 - URL, model, key
            shown = f" {name}" if is_role else ""  # anything else may be a URL with a password
            raise InputError(f"--role{shown}: write NAME=URL,MODEL or NAME=,MODEL (KEY_ENV may follow)")
        if any("@" in (part or "") for part in parts[1:]):
            raise InputError(f"--role {name}: write ',' in a password as %2C, and '@' in a model's name cannot be used")
        url, model, key = (*parts, None, None)[:3]
        before = found.get(name, RoleServer(name=name, model=model, api_key_env=key))
        if (before.model, before.api_key_env) != (model, key):
            raise InputError(f"--role {name}: is given twice with another model or key; give the same one each time")
        found[name] = dataclasses.replace(before, base_url=(*before.base_url, *((url,) if url else ())))
    return found


def _redact_role(given: str) -> str:
    name, _, rest = given.partition("=")
    url, *others = rest.split(",")
    return f"{name}={','.join([redact_url(url) if url else '', *others])}"


@Parameter(name="*", group=_SERVER)
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Which servers write. Without ``--base-url``, fastgen starts a vLLM server."""

    base_url: tuple[str, ...] = ()
    """An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; may be given several times. Without it, fastgen
    starts vLLM on the GPU if there is one, else a small model on the CPU, which it sets up on first use."""
    model: str | None = None
    """The model's name at the server, or the model to serve. Default: the server's only model, or Qwen/Qwen3-4B-Base
    on a GPU."""
    api: Literal["auto", "completions", "chat"] = "auto"
    """completions: for base models, as in the original; chat: for instruct models and services without completions;
    auto: chat if the server's model has a chat template, else completions (docs/models.md); fixed for a run's life."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    api_key_file: Path | None = None
    """File that holds the server's key on its first line."""
    thinking: Thinking = "auto"
    """Whether a model that can reason does so before it answers a chat request. auto: as --model-preset says, else as
    the server decides. Fields of --extra-body win; fixed for a run's life."""
    model_preset: Literal["auto", "none", "qwen3", "llama3", "gpt-oss", "smollm3", "gemma3", "base"] = "auto"
    """How the model's authors recommend to sample its answers to chat requests, and whether it reasons. auto: by the
    model's name; sampling flags win (docs/models.md); fixed for a run's life."""
    extra_body: str = "{}"
    """JSON object merged into every request, such as '{"min_p": 0.05}'; fixed for a run's life."""
    server_args: Annotated[str, Parameter(group=_OWN_SERVERS, allow_leading_hyphen=True)] = ""
    """More arguments for the 'vllm serve' that fastgen starts, in one string."""
    server_timeout: float = 900.0
    """Seconds to wait for a server's first answer at the start."""
    num_servers: Annotated[int, Parameter(group=_OWN_SERVERS)] = 1
    """Servers that fastgen starts, each on its own GPUs (on the CPU: on its share of the cores). One that dies is
    restarted while the others keep working."""
    tensor_parallel_size: Annotated[int, Parameter(group=_OWN_SERVERS)] = 1
    """GPUs that share one copy of the model, in each server that fastgen starts."""
    data_parallel_size: Annotated[int, Parameter(group=_OWN_SERVERS)] = 1
    """Copies of the model behind one address, in each server that fastgen starts."""
    api_server_count: Annotated[int | None, Parameter(group=_OWN_SERVERS)] = None
    """HTTP processes of each server that fastgen starts, for thousands of short requests a second. Default: one for
    each copy of the model."""
    instance_base_url: Annotated[tuple[str, ...], Parameter(group=_ROLES)] = ()
    """Separate servers that write the instances, with a stronger model for example. May be given several times; they
    are asked through the same --api."""
    instance_model: Annotated[str | None, Parameter(group=_ROLES)] = None
    """The model that writes the instances, at --instance-base-url or else at --base-url. Default: the only one there;
    fixed for a run's life."""
    instance_api_key_env: Annotated[str | None, Parameter(group=_ROLES)] = None
    """Name of the environment variable with the key of --instance-base-url. That key is sent to no other server."""
    instance_api_key_file: Annotated[Path | None, Parameter(group=_ROLES)] = None
    """File that holds that key on its first line."""
    classification_base_url: Annotated[tuple[str, ...], Parameter(group=_ROLES)] = ()
    """Separate servers that tell classification tasks from others."""
    classification_model: Annotated[str | None, Parameter(group=_ROLES)] = None
    """The model that tells classification tasks from others; fixed for a run's life."""
    classification_api_key_env: Annotated[str | None, Parameter(group=_ROLES)] = None
    """Name of the environment variable with the key of --classification-base-url."""
    classification_api_key_file: Annotated[Path | None, Parameter(group=_ROLES)] = None
    """File that holds that key on its first line."""
    role: Annotated[tuple[str, ...], Parameter(group=_ROLES)] = ()
    """Separate servers or another model for the steps of one role, as NAME=URL,MODEL or NAME=,MODEL; a third part names
    the environment variable of a key. 'fastgen methods' lists the roles. May be given several times."""

    def __post_init__(self) -> None:
        check_seconds("--server-timeout", self.server_timeout)
        for name in ("num_servers", "tensor_parallel_size", "data_parallel_size", "api_server_count"):
            if (value := getattr(self, name)) is not None:
                at_least(flag_name(name), value, 1)
        check_extra_body(self.extra_fields())
        if self.base_url:
            parse_server_args(self.server_args)  # unused, but kept in the run folder
        else:
            check_server_args(self.server_args, self.num_servers)
        has_key = self.api_key_env is not None or self.api_key_file is not None
        for url in self.base_url:
            _check_url("--base-url", url, "--api-key-env", has_key=has_key)
        for own in self.roles().values():
            self._check_role(own)

    def _check_role(self, own: RoleServer) -> None:
        for url in own.base_url:
            _check_url(own.flag("base-url"), url, own.flag("api-key-env"), has_key=own.has_key)
        if own.base_url:
            return
        if own.model is not None and not self.base_url:
            raise InputError(
                f"{own.flag('model')} {own.model}: name its server with {own.flag('base-url')} (or --base-url, if all "
                "models are there); a server that fastgen starts has one model"
            )
        if own.has_key:
            keys = ", ".join(dict.fromkeys((own.flag("api-key-env"), own.flag("api-key-file"))))
            raise InputError(f"{keys}: belong to {own.flag('base-url')}; give that")

    def roles(self) -> dict[str, RoleServer]:
        """The roles that have separate servers, another model or a key.

        :raises InputError: a value of ``--role`` is not of its form, or a role is given in two ways.
        """
        found = parse_roles(self.role)
        parts = [field.name for field in dataclasses.fields(RoleServer) if field.name != "name"]
        for name in _ROLES_WITH_FLAGS:
            own = RoleServer(name=name, **{part: getattr(self, f"{name}_{part}") for part in parts})
            if own == RoleServer(name=name):
                continue
            if name in found:
                raise InputError(
                    f"--role {name}: the flags that begin with --{name}- say the same; give one of the two"
                )
            found[name] = own
        return found

    def extra_fields(self) -> dict[str, Any]:
        """``--extra-body`` as an object.

        :raises InputError: it is not a JSON object.
        """
        try:
            body = json.loads(self.extra_body, parse_constant=_refuse_constant)
        except ValueError as error:
            raise InputError(
                f"--extra-body: not JSON ({error}); give an object such as '{{\"min_p\": 0.05}}'"
            ) from None
        if not isinstance(body, dict):
            raise InputError(f"--extra-body: a JSON object is needed, not {self.extra_body}")
        return body


def _check_url(flag: str, url: str, key_flag: str, *, has_key: bool) -> None:
    normalised = normalise_base_url(url, flag)
    if has_key and (shown := redact_url(normalised)) != normalised:
        raise InputError(f"{flag} {shown}: give either user:password in the URL or {key_flag}, not both")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that a request can carry")


@Parameter(name="*", group=_ASK_SPEED)
@dataclass(frozen=True, slots=True, kw_only=True)
class AskSpeed:
    """How fast to send requests and when to give up, for every command that asks a model."""

    concurrency: int | Literal["auto"] = "auto"
    """Completions in flight on all servers together. auto: as many as each server can hold (docs/concurrency.md); 1:
    one request at a time, each after the answer to the one before is recorded."""
    max_concurrency: int = 4096
    """Most completions in flight on one server under --concurrency auto."""
    requests_per_minute: int | None = None
    """Most requests sent in any minute, evenly spread, for services that limit them. Retries count too."""
    tokens_per_minute: int | None = None
    """Most tokens a minute, prompts and answers: estimated when a request is sent, corrected by its answer."""
    max_attempts: int = 8
    """Attempts of one request before it is recorded as failed."""
    outage_timeout: float = 600.0
    """Seconds without any answer from any server before the command stops (resumable, exit code 3)."""
    drain_timeout: float = 60.0
    """Seconds that requests in flight have to finish after the first Ctrl-C."""
    request_timeout: float | None = None
    """Seconds one request may take. Default: derived from its max_tokens."""

    def __post_init__(self) -> None:
        if isinstance(self.concurrency, int):
            at_least("--concurrency", self.concurrency, 1)
        for name in ("max_concurrency", "requests_per_minute", "tokens_per_minute", "max_attempts"):
            if (value := getattr(self, name)) is not None:
                at_least(flag_name(name), value, 1)
        for name in ("outage_timeout", "drain_timeout", "request_timeout"):
            if (value := getattr(self, name)) is not None:
                check_seconds(flag_name(name), value)

    def speed(self) -> SpeedOptions:
        """These values as `SpeedOptions`."""
        return SpeedOptions(**option_values(self))


@Parameter(name="*", group=_SPEED)
@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOptions(AskSpeed):
    """`AskSpeed` and what else carries out a run; nothing here is part of its configuration."""

    classification_batch: int = 8
    """Most classification prompts in one request (--api completions, short answers); saves client CPU. A request never
    waits for more of them; 1 sends each by itself."""
    max_fruitless: int = 1000
    """Instruction completions in a row without anything new, after which the run finishes what is kept and stops
    (resumable, exit code 3). Of unreadable answers of any step, a quarter of that in a row is enough."""
    stop_when_yield_below: float = 0.0
    """End the run when fewer instructions than this are kept per 1,000 generated tokens over the yield window. Work in
    progress is finished first (exit code 0; 0: never). The same command with a lower value resumes the run."""
    yield_window: int = 500
    """Instruction completions over which yield and novelty are measured (docs/metrics.md)."""
    audit_rate: float = 0.0
    """Share of the similarity decisions that the full scan checks in the background (0: none; 0.001 is plenty)."""
    sync_interval: float = 1.0
    """Seconds between forced writes to disk: what a power cut can cost. A killed process loses nothing committed."""

    def __post_init__(self) -> None:
        AskSpeed.__post_init__(self)  # super() does not work in a dataclass with slots
        within("--audit-rate", self.audit_rate, 0, 1)
        for name in ("classification_batch", "max_fruitless", "yield_window"):
            at_least(flag_name(name), getattr(self, name), 1)
        if not 0 <= self.stop_when_yield_below < math.inf:
            raise InputError(f"--stop-when-yield-below: {self.stop_when_yield_below} is not a number of at least 0")
        check_seconds("--sync-interval", self.sync_interval)


@Parameter(name="*", group=METHOD_GROUP)
@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """The method's parameters, apart from rules and sampling; part of a run's configuration."""

    method: str = SELF_INSTRUCT
    """The method that makes the data ('fastgen methods' lists them), or a Python file with your own
    (docs/methods.md)."""
    preset: Literal["default", "paper"] = "default"
    """paper: the original's rules and figures, of self-instruct only; default: the same without its defects
    (docs/rules.md)."""
    seed_tasks: Path | None = None
    """Seed tasks, JSON lines in the original's schema. Default: the 175 that ship with fastgen."""
    prompts: Path | None = None
    """Folder with prompt templates and demonstrations that replace the shipped ones of the same names
    (self-instruct). 'fastgen prompts init' writes one."""
    decontaminate: tuple[Path, ...] = ()
    """Files with tasks that no kept instruction may resemble: JSON lines or Parquet with a field 'instruction', or
    tasks of Super-NaturalInstructions (.json). May be given several times."""
    num_prompt_instructions: int = 8
    """Demonstrations in an instruction prompt."""
    num_machine_instructions: int = 2
    """How many of them are machine-generated, once there are any."""
    demonstrations: Policy = "uniform"
    """How demonstrations are drawn: uniformly, the least used of a few, or a few that have little in common
    (docs/yield.md)."""
    samples_per_prompt: int = 1
    """Completions of each instruction prompt; fewer where the target needs fewer."""
    classification_only: Annotated[bool, Parameter(group=_ONE_METHOD)] = False
    """Ask for classification tasks only, with classification seeds as demonstrations."""
    topics: Path | None = None
    """Text file with one topic a line. Each prompt for new instructions names one, and the run records which."""
    personas: Path | None = None
    """Text file with one persona a line, such as "a nurse on a night shift". Each prompt names one, as with topics."""
    documents: Annotated[tuple[Path, ...], Parameter(group=_ONE_METHOD)] = ()
    """Texts to make instructions for (backtranslate): JSON lines or Parquet with a field 'text'."""
    from_dataset: Annotated[Path | None, Parameter(name="--from", group=_ONE_METHOD)] = None
    """Instructions to begin with instead of seed tasks (evol): JSON lines or Parquet with a field 'instruction'."""
    turns: Annotated[int, Parameter(group=_ONE_METHOD)] = 1
    """Turns of each conversation, 1 to 8 (magpie)."""
    rounds: Annotated[int, Parameter(group=_ONE_METHOD)] = 4
    """Most rewritings between a seed task and an instruction that is made from it, 1 to 16 (evol)."""
    min_score: Annotated[int, Parameter(group=_ONE_METHOD)] = 4
    """Least score of 1 to 5 that a row needs (backtranslate)."""
    max_document: Annotated[int, Parameter(group=_ONE_METHOD)] = 2048
    """Most tokens of a document that a prompt shows (backtranslate)."""
    passes: Annotated[int, Parameter(group=_ONE_METHOD)] = 1
    """How often each document is used (backtranslate)."""
    pre_query: Annotated[str, Parameter(group=_ONE_METHOD)] = ""
    """The text that precedes the user's words in the model's chat template (magpie). Default: as the server says."""
    method_option: Annotated[tuple[str, ...], Parameter(group=_ONE_METHOD)] = ()
    """An option of a method of yours, as NAME=VALUE. May be given several times."""
    step_sampling: Annotated[tuple[str, ...], Parameter(group=_ONE_METHOD)] = ()
    """How a step of a method other than self-instruct samples, or all steps of a role: answer.temperature=0.7. May be
    given several times; the names are those of the sampling flags below."""
    structured: str = "auto"
    """Steps that ask for JSON by a schema, separated by commas (structured output; --api chat). on: all that can; off:
    none; auto: those whose answers the probe cannot read as text, but as JSON (docs/models.md)."""
    seed: int = 0
    """Keys every random draw together with the request's number."""

    def own_options(self) -> dict[str, object]:
        """What methods find in their setup's ``options``."""
        names = (
            *("turns", "rounds", "min_score", "max_document", "passes"),
            *("num_prompt_instructions", "num_machine_instructions"),
        )
        given = dict(one.split("=", 1) for one in self.method_option)
        return {name: getattr(self, name) for name in names} | given

    def __post_init__(self) -> None:
        within("--turns", self.turns, 1, 8)
        within("--rounds", self.rounds, 1, 16)
        within("--min-score", self.min_score, 1, 5)
        at_least("--max-document", self.max_document, 64)
        within("--passes", self.passes, 1, 100)
        for one in self.method_option:
            if "=" not in one:
                raise InputError(f"--method-option {one}: write NAME=VALUE")
        parse_step_sampling(self.step_sampling)
        at_least("--num-prompt-instructions", self.num_prompt_instructions, 1)
        at_least("--num-machine-instructions", self.num_machine_instructions, 0)
        if self.num_machine_instructions >= self.num_prompt_instructions:
            raise InputError("--num-machine-instructions: must be below --num-prompt-instructions, seeds fill the rest")
        at_least("--samples-per-prompt", self.samples_per_prompt, 1)


def parse_step_sampling(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``--step-sampling`` as values of `Sampling` by step.

    :raises InputError: a value is not of the form STEP.NAME=VALUE, or of the wrong type.
    """
    kinds = get_type_hints(Sampling)
    found: dict[str, dict[str, Any]] = {}
    for one in given:
        left, is_set, value = one.partition("=")
        step, dot, name = left.partition(".")
        name = name.replace("-", "_")
        if not (is_set and dot and step) or name not in kinds:
            names = ", ".join(flag_name(kind).removeprefix("--") for kind in kinds)
            raise InputError(f"--step-sampling {one}: write STEP.NAME=VALUE, with NAME one of {names}")
        values = found.setdefault(step, {})
        try:
            values[name] = (*values.get(name, ()), value) if name == "stop" else kinds[name](value)
        except ValueError:
            raise InputError(f"--step-sampling {one}: {value!r} is not a number") from None
    return found


def with_structured(method: Method, given: str) -> Method:
    """The method with the steps of ``--structured`` asking for JSON. Under ``auto`` none does until a probe says so.

    :raises InputError: a step cannot.
    """
    if given in ("auto", "off"):
        return method
    able = [name for name in method.step_names if name in method.forms]
    if not able:
        raise InputError(
            f"--structured {given}: no step of {method.name} asks for JSON with this --api and --preset; leave it out"
        )
    steps = able if given == "on" else [name.strip() for name in given.split(",")]
    for name in steps:
        if name not in able:
            raise InputError(f"--structured: {quoted(name, 40)} is not one of on, off, auto, {', '.join(able)}")
    return dataclasses.replace(method, structured=frozenset(steps))


def with_sampling(method: Method, given: Sequence[str]) -> Method:
    """The method with ``--step-sampling`` in place of its own figures.

    :raises InputError: it has no such step, or a figure is out of range.
    """
    changes = parse_step_sampling(given)
    names = dict.fromkeys((*method.roles, *method.step_names))
    for name in changes:
        if name not in names:
            raise InputError(f"--step-sampling {name}.: {method.name} has the steps and roles {', '.join(names)}")
    roles = {CREATION: method.creation.role} | {step.name: step.role or step.name for step in method.steps}
    samplings = {
        name: dataclasses.replace(sampling, **changes.get(roles[name], {}) | changes.get(name, {}))
        for name, sampling in method.sampling().items()
    }
    for name, sampling in samplings.items():
        _check_sampling(f"--step-sampling {name}.", sampling)
    return dataclasses.replace(
        method,
        creation=dataclasses.replace(method.creation, sampling=samplings[CREATION]),
        steps=tuple(dataclasses.replace(step, sampling=samplings[step.name]) for step in method.steps),
    )


_FLAGS_OF_METHODS = {
    "turns": "magpie",
    "pre_query": "magpie",
    "rounds": "evol",
    "from_dataset": "evol",
    "classification_only": SELF_INSTRUCT,
    **dict.fromkeys(("documents", "min_score", "max_document", "passes"), "backtranslate"),
}


def check_method_options(options: Options, entry: Entry) -> None:
    """:raises InputError: an option that the method has no use for."""
    asked, defaults = options.method, MethodOptions()
    for name, owner in _FLAGS_OF_METHODS.items():
        if getattr(asked, name) != getattr(defaults, name) and entry.is_own and entry.name != owner:
            flag = "--from" if name == "from_dataset" else flag_name(name)
            raise InputError(f"{flag}: belongs to --method {owner}; leave it out")
    if not entry.uses_seeds and asked.seed_tasks is not None:
        raise InputError(f"--seed-tasks: {entry.name} has no seeds; leave it out")
    if asked.prompts is not None and entry.name != SELF_INSTRUCT:
        raise InputError(f"--prompts: belongs to --method {SELF_INSTRUCT}; leave it out")
    for name in ("num_prompt_instructions", "num_machine_instructions"):
        is_unused = entry.is_own and entry.name != SELF_INSTRUCT and name not in entry.options
        if is_unused and getattr(asked, name) != getattr(defaults, name):
            raise InputError(f"{flag_name(name)}: {entry.name} has no use for it; leave it out")
    if asked.step_sampling and entry.name == SELF_INSTRUCT:
        raise InputError("--step-sampling: self-instruct has flags for that, such as --instruction.temperature")
    if asked.preset == "paper" and entry.name != SELF_INSTRUCT:
        raise InputError(f"--preset paper: belongs to --method {SELF_INSTRUCT}; leave it out")
    if asked.method_option and entry.is_own:
        raise InputError(f"--method-option {asked.method_option[0]}: is for methods of yours; {entry.name} has flags")


_DEFAULT_SAMPLING = SAMPLING_PRESETS["default"]


@Parameter(name="*", group=_SAMPLING, show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How each step of Self-Instruct samples."""

    instruction: Sampling = _DEFAULT_SAMPLING["instruction"]
    """Writing new instructions."""
    classification: Sampling = _DEFAULT_SAMPLING["classification"]
    """Telling classification tasks from others."""
    instance_input_first: Sampling = _DEFAULT_SAMPLING["instance_input_first"]
    """Writing instances, input before output."""
    instance_output_first: Sampling = _DEFAULT_SAMPLING["instance_output_first"]
    """Writing instances of classification tasks, label before input."""
    sampling_given: Annotated[tuple[str, ...], Parameter(show=False)] = dataclasses.field(default=(), compare=False)
    """The figures that the user has set, such as ``instruction.temperature``. Set by the command line. The others are
    those of the preset for the API that ``--api auto`` finds."""

    def __post_init__(self) -> None:
        for stage, sampling in self.by_step().items():
            _check_sampling(f"{flag_name(stage)}.", sampling)

    def by_step(self) -> dict[str, Sampling]:
        """The four, by the names that the method uses."""
        names = ("instruction", "classification", "instance_input_first", "instance_output_first")
        return {name: getattr(self, name) for name in names}


def _check_sampling(prefix: str, sampling: Sampling) -> None:
    """Check the ranges of the OpenAI API, without which a server would refuse every single request."""
    at_least(f"{prefix}max-tokens", sampling.max_tokens, 1)
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise InputError(f"{prefix}stop: at most {MAX_STOPS} texts, none of them empty")
    limits = {"temperature": (0.0, 2.0), "presence-penalty": (-2.0, 2.0), "frequency-penalty": (-2.0, 2.0)}
    for name, (low, high) in limits.items():
        value = getattr(sampling, name.replace("-", "_"))
        if not low <= value <= high:
            raise InputError(f"{prefix}{name}: {value} is not within {low:g} to {high:g}")
    at_least(f"{prefix}top-k", sampling.top_k, 0)
    within(f"{prefix}min-p", sampling.min_p, 0, 1)
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"{prefix}top-p: {sampling.top_p} is not above 0 and at most 1")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option of ``fastgen generate`` except the run folder."""

    job: JobOptions = JobOptions()
    server: ServerOptions = ServerOptions()
    speed: SpeedOptions = SpeedOptions()
    method: MethodOptions = MethodOptions()
    similarity: SimilarityOptions = SimilarityOptions()
    rules: Annotated[Rules, Parameter(name="*", group=_RULES)] = PRESETS["default"]
    sampling: SamplingOptions = SamplingOptions()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_storable(option_values(getattr(self, field.name)))


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RefilterOptions:
    """What ``fastgen refilter`` can change. Everything else is that of the run."""

    preset: Annotated[Literal["default", "paper"] | None, Parameter(group=METHOD_GROUP)] = None
    """Take rules, tokenizer and index from this preset. Default: the run's."""
    similarity: SimilarityOptions = SimilarityOptions()
    rules: Annotated[Rules, Parameter(name="*", group=_RULES)] = PRESETS["default"]

    def values(self) -> dict[str, Any]:
        """By option name, as JSON values."""
        preset = {} if self.preset is None else {"preset": self.preset}
        return option_values(self.similarity) | option_values(self.rules) | preset


_ENDPOINT_FIELDS = (
    *("base_url", "model", "api", "thinking", "api_key_env", "api_key_file", "server_args", "server_timeout"),
)


def endpoint_options(endpoint: Any, extra_body: str, speed: SpeedOptions) -> Options:  # noqa: ANN401 - see below
    """The options with which `fastgen.generate.serving.serve` opens the endpoint of ``judge`` or ``evaluate``.

    ``endpoint`` is a dataclass with the fields of ``_ENDPOINT_FIELDS``, ``extra_body`` a JSON object for every request.

    :raises InputError: a value is out of range.
    """
    server = ServerOptions(**{name: getattr(endpoint, name) for name in _ENDPOINT_FIELDS}, extra_body=extra_body)
    options = Options(server=server, speed=speed)
    refuse_credentials(options)
    return options


def refuse_credentials(options: Options) -> None:
    """:raises InputError: ``--extra-body`` holds a credential, which the run folder would keep."""
    if (name := secret_name_in(options.server.extra_fields())) is not None:
        raise InputError(
            f"--extra-body: '{name}' looks like a credential, and the run folder keeps --extra-body; put the key into "
            "an environment variable and name that with --api-key-env"
        )


# -- presets -----------------------------------------------------------------------------------------------------------


def preset_values(preset: str, api: str, method: str = SELF_INSTRUCT) -> dict[str, Any]:
    """The values of ``--preset`` under ``--api`` for a method, by option name, as JSON values."""
    steps = (CHAT_SAMPLING_PRESETS if api == "chat" else SAMPLING_PRESETS)[preset]
    values = option_values(PRESETS[preset]) | {name: option_values(sampling) for name, sampling in steps.items()}
    values |= METHODS[method].rules if method in METHODS else RULES_FOR_LONG_TEXTS
    if preset == "paper":
        values |= {"tokenizer": "rouge", "index": "exact"}
    return values


_GENERATION_CONFIG = "--generation-config"


def with_paper_server(options: Options, saved: Mapping[str, Any] | None) -> Options:
    """The options, with ``--generation-config vllm`` for the servers that fastgen starts under ``--preset paper``.

    Without it vLLM adds what the model's own generation_config.json says (top_k, repetition_penalty) to every request.
    The flag in ``--server-args`` wins. ``saved`` are the options of a run that has begun, which keeps its own.
    """
    server = options.server
    if options.method.preset != "paper" or server.base_url or has_flag(server.server_args, _GENERATION_CONFIG):
        return options
    if saved is not None and not has_flag(str(saved.get("server_args", "")), _GENERATION_CONFIG):
        return options
    arguments = f"{_GENERATION_CONFIG} vllm {server.server_args}".strip()
    return dataclasses.replace(options, server=dataclasses.replace(server, server_args=arguments))


OPTIONS_OF_EARLIER_RUNS = MappingProxyType({"api": "completions", "model_preset": "none"})
"""The values of options that came, or changed their default, after a run was begun that does not have them."""


def with_api(options: Options, api: Api) -> Options:
    """The options for the API that was found, with the preset's sampling for it where the user set none."""
    preset = preset_values(options.method.preset, api)
    given = options.sampling.sampling_given
    steps: dict[str, Any] = {}
    for step, sampling in options.sampling.by_step().items():
        values: dict[str, Any] = {n: v for n, v in preset[step].items() if f"{step}.{n}" not in given}
        if "stop" in values:
            values["stop"] = tuple(values["stop"])
        steps[step] = dataclasses.replace(sampling, **values)
    server, sampled = dataclasses.replace(options.server, api=api), dataclasses.replace(options.sampling, **steps)
    return dataclasses.replace(options, server=server, sampling=sampled)


_SETTLED = ("thinking", "samples_per_prompt", "step_sampling", "structured")
"""Options that a new run may replace by what fits its servers and models."""
ASKED = "asked"
"""The key of a run's configuration that holds the replaced values, as they were given."""


def settled_values(asked: Options, used: Options) -> dict[str, Any]:
    """What the configuration of a new run says of the options that it replaced. Empty where it replaced none."""
    before, after = (option_values(one.server) | option_values(one.method) for one in (asked, used))
    replaced = {name: before[name] for name in _SETTLED if before[name] != after[name]}
    return {ASKED: replaced} if replaced else {}


def as_settled(options: Options, saved: Mapping[str, Any]) -> Options:
    """The options of a resume, with what the run made of them where they are given as they were at its beginning."""
    asked: Mapping[str, Any] = saved.get(ASKED, {})
    given = option_values(options.server) | option_values(options.method)
    same = [name for name in _SETTLED if name in asked and given[name] == asked[name]]
    values: dict[str, Any] = {name: saved[name] for name in same}
    server = dataclasses.replace(options.server, thinking=values.pop("thinking", options.server.thinking))
    if "step_sampling" in values:
        values["step_sampling"] = tuple(values["step_sampling"])
    return dataclasses.replace(options, server=server, method=dataclasses.replace(options.method, **values))


# -- what a run folder remembers ---------------------------------------------------------------------------------------

NOT_SAVED = frozenset(
    {
        *("seed_tasks", "prompts", "decontaminate", "documents", "topics", "personas", "from_dataset"),
        "sampling_given",
        *("quiet", "log_json", "log_file", "log_level", "dry_run", "probe", "price_in", "price_out"),
        *("metrics_port", "metrics_host", "dashboard", "dashboard_port"),
    }
)
"""Options that a run folder does not remember: it holds the seeds and prompts themselves, and display is temporary."""


def saved_values(options: Options) -> dict[str, Any]:
    """All options by name, as JSON values, for the run folder. Holds no secret: keys are only named."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        values |= option_values(getattr(options, field.name))
    for name in ("base_url", *(f"{role}_base_url" for role in _ROLES_WITH_FLAGS)):
        values[name] = [redact_url(url) for url in getattr(options.server, name)]
    values["role"] = [_redact_role(one) for one in options.server.role]
    values["server_args"] = without_secrets(options.server.server_args)
    return {name: value for name, value in values.items() if value is not None and name not in NOT_SAVED}


def option_values(options: Any) -> dict[str, Any]:  # noqa: ANN401 - any options dataclass
    """An options dataclass as JSON values, by option name."""
    return {field.name: _json_value(getattr(options, field.name)) for field in dataclasses.fields(options)}


def _json_value(value: Any) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value):
        return option_values(value)
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# -- what a resume may not change --------------------------------------------------------------------------------------


def model_names(options: Options, saved: Mapping[str, Any]) -> dict[str, str]:
    """The models that are known before any server is asked: as given, else as in ``saved``, a run's configuration.

    By option name: ``model``, and ``ROLE_model`` for the roles that have another one.
    """
    own = {f"{name}_model": role.model for name, role in options.server.roles().items() if role.model is not None}
    before = {name: str(value) for name, value in saved.items() if name.endswith("_model") or name == "model"}
    named = {} if options.server.model is None else {"model": options.server.model}
    return {**before, **named, **own}


def role_models(models: Mapping[str, str]) -> dict[str, str]:
    """Those of `model_names` that are a role's own and differ from the main one."""
    return {name: model for name, model in models.items() if name != "model" and model != models.get("model")}


_CONTENTS = ("seed_tasks", "prompts", "decontaminate", "documents", "topics", "personas", "method_file")
"""What a configuration holds of files: the fingerprints of their contents, by these names."""


def run_configuration(
    options: Options, *, model: str, contents: Mapping[str, str], own_models: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a resume may not change, flat: option name to JSON value. ``contents`` are fingerprints of files.

    ``own_models`` are the `role_models`. A run in which one model does everything has no keys for them.
    """
    values = option_values(options.method) | option_values(options.similarity) | option_values(options.rules)
    del values["record_top_k"]  # changes what is recorded, not what is decided
    del values["from_dataset"]  # its rows are the seed tasks
    values["method"] = method_name(options.method.method)
    server = options.server
    values |= {"api": server.api, "extra_body": server.extra_body, "model": model}
    values |= {"thinking": server.thinking, "model_preset": server.model_preset}
    for step, sampling in options.sampling.by_step().items():
        values |= {f"{step}.{name}": value for name, value in option_values(sampling).items()}
    values |= own_models or {}
    return values | {name: contents.get(name, "") for name in _CONTENTS}


def method_name(given: str) -> str:
    """The name of ``--method``: of a file, that without the folder and the suffix."""
    return Path(given).stem if given.endswith(".py") else given


def check_same_configuration(saved: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Compare a run's saved configuration with the one that its resume asks for.

    What the saved one lacks came with a later version: the rules of `RULES_OF_EARLIER_RUNS` were off, every other
    option had its default.

    :raises InputError: they differ; the message names the first three differences.
    """
    defaults = run_configuration(Options(), model="", contents={})
    for name in ("model", "seed_tasks", "prompts"):
        del defaults[name]
    saved = {**defaults, **RULES_OF_EARLIER_RUNS, **OPTIONS_OF_EARLIER_RUNS, **saved}
    saved.pop(ASKED, None)
    changed = [name for name in sorted({*saved, *asked}) if saved.get(name) != asked.get(name)]
    if not changed:
        return
    shown = "; ".join(_difference(name, saved.get(name), asked.get(name)) for name in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""  # noqa: PLR2004 - as shown above
    raise InputError(f"--run-dir {folder}: was made with {shown}{more}; leave that as it was, or name a new run folder")


def _difference(name: str, saved: object, asked: object) -> str:
    if name in _CONTENTS:
        return f"other contents of {'--method' if name == 'method_file' else flag_name(name)}"
    return f"{flag_name(name)} {saved} (not {asked})"
