"""Provide the servers of a run: those that the user named, or those that fastgen starts and stops with the run.

`serve` yields a `Serving`: a router whose servers answer, the models' names, and how many requests in flight fit. A
stage with separate servers or a separate model gets a separate group of endpoints. An API key is sent only to the
servers that it was given for.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fastgen.engine.backend import ServerMetrics
from fastgen.errors import InputError
from fastgen.generate.model_presets import PRESETS, ModelPreset, preset_of, thinking_fields, thinking_is_off
from fastgen.generate.options import Options, RoleServer, SpeedOptions
from fastgen.servers.choose import choose_servers
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy
from fastgen.servers.fleet import Fleet, start_fleet
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.router import Router
from fastgen.servers.spec import Layout
from fastgen.store.run_folder import RunFolder

START_CONCURRENCY = 64  # for each server of the user's: a second from a full batch on a GPU, soon drained on a CPU
_SHARE_OF_FILES: Final = 0.75
"""Of the file descriptors that are free: the rest is for logs, checkpoints, health checks and idle connections."""
_MOST_FILES: Final = 1 << 20
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Keys:
    """API keys: of the main servers, and of roles that have separate servers."""

    main: str | None = field(default=None, repr=False)
    by_role: Mapping[str, str | None] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Serving:
    """Servers that answer, for as long as the run.

    ``models`` are names by option: ``model``, and ``ROLE_model`` for roles with servers or a model of their own.
    ``sizes`` are the initial limits: how many completions in flight are expected to fit each of the router's endpoints.
    ``most_in_flight`` is how many requests this process can have connections for.
    """

    backend: Router
    models: Mapping[str, str]
    sizes: Sequence[int]
    fleet: Fleet | None
    most_in_flight: int = sys.maxsize
    _before: tuple[ServerMetrics | None, ...] = ()  # the servers' counters when the run began

    @property
    def is_others_vllm(self) -> bool:
        """Whether a user's own server is a vLLM, by its metrics page."""
        return self.fleet is None and any(page is not None for page in self._before)

    def is_thinking_off(self, options: Options) -> bool:
        """Whether chat requests of the main model ask it not to reason."""
        return thinking_is_off(chosen_preset(options, self.models["model"]), options.server.thinking)

    def can_stop_thinking(self, options: Options) -> bool:
        """Whether ``--thinking off`` would change what is sent, where the user left that open."""
        server = options.server
        if server.thinking != "auto" or server.api != "chat":
            return False
        off = replace(options, server=replace(server, thinking="off"))
        return any(
            one.endpoint.chat_body != _chat_body(off, one.endpoint.model)
            and not {"chat_template_kwargs", "reasoning_effort"} & {*one.endpoint.extra_body}
            for one in self.backend.backends
        )

    def think(self, options: Options) -> None:
        """From now on send chat requests with what ``--thinking`` says."""
        for one in self.backend.backends:
            one.endpoint = replace(one.endpoint, chat_body=_chat_body(options, one.endpoint.model))

    async def figures(self) -> dict[str, Any]:
        """The servers' own figures since the run began: ``prefix_cache_hit_rate`` (0..1), where they have it."""
        queries = hits = 0
        for before, now in zip(self._before, await self.backend.metrics(), strict=True):
            if before is not None and now is not None and now.prefix_queries_tokens >= before.prefix_queries_tokens:
                queries += now.prefix_queries_tokens - before.prefix_queries_tokens
                hits += now.prefix_hits_tokens - before.prefix_hits_tokens
        return {"prefix_cache_hit_rate": round(min(max(hits / queries, 0.0), 1.0), 4)} if queries else {}

    async def watch(self) -> None:
        """Run until cancelled.

        :raises ServerError: none of the servers that fastgen started is left.
        """
        if self.fleet is None:
            await asyncio.Event().wait()
        else:
            await self.fleet.watch()


@asynccontextmanager
async def serve(
    options: Options, folder: RunFolder, cache_dir: Path, keys: Keys, models: Mapping[str, str], report: Report
) -> AsyncIterator[Serving]:
    """The servers that the options ask for.

    ``models`` are the names that are known before a server is asked (`fastgen.generate.options.model_names`).

    :raises InputError: unknown model, refused key, wrong API, too few GPUs, or nothing here can serve.
    :raises StoppedError: nothing answered in time, or no server that was started came up.
    """
    server = options.server
    file_limit = raise_file_limit()
    async with AsyncExitStack() as stack:
        urls, key, model = server.base_url, keys.main, models.get("model")
        fleet, sizes = None, [START_CONCURRENCY] * len(urls)
        if not urls:
            layout = Layout(
                *(server.num_servers, server.tensor_parallel_size, server.data_parallel_size, server.api_server_count)
            )
            specs = await choose_servers(server.model, server.server_args, layout, cache_dir=cache_dir, report=report)
            fleet = await stack.enter_async_context(
                start_fleet(specs, folder.server_log_path, timeout_s=server.server_timeout, report=report)
            )
            urls, key, model, sizes = fleet.base_urls, None, fleet.model, [spec.concurrency for spec in specs]
        say = report if fleet is None else lambda _: None  # the fleet itself reports on its servers
        main, model, absent = await _connect(options, "--model", urls, key, model, say)
        names = {"model": model}
        by_role: dict[str, list[OpenAIBackend]] = {}
        roles = server.roles()
        saved = {name.removesuffix("_model"): RoleServer(name=name) for name in models if name.endswith("_model")}
        for name, role in (saved | roles).items():
            own_urls, own_model = role.base_url, models.get(f"{name}_model")
            if own_urls or own_model not in (None, model):
                own_key = keys.by_role.get(name) if own_urls else key
                by_role[name], names[f"{name}_model"], also_absent = await _connect(
                    options, role.flag("model"), own_urls or urls, own_key, own_model, report
                )
                absent += also_absent
        router = Router(main, by_role)
        stack.push_async_callback(router.close)
        router.begin_without(absent)
        sizes += [START_CONCURRENCY] * (len(router.backends) - len(sizes))
        most = _most_in_flight(options.speed, len(sizes), file_limit, report)
        router.set_limits(_initial_limits(options.speed.concurrency, sizes))
        yield Serving(router, names, sizes, fleet, most, await router.metrics())


async def _connect(
    options: Options, flag: str, urls: Sequence[str], key: str | None, model: str | None, report: Report
) -> tuple[list[OpenAIBackend], str, list[OpenAIBackend]]:
    """Wait until one of these servers answers: the backends, the model's name, and those that do not answer yet.

    ``flag`` is the one that names the model.
    """
    asking = Router(_backends(options, urls, key, ""))
    try:
        offered = await asking.wait_until_answering(options.server.server_timeout, report)
        healthy = [one.healthy for one in asking.statistics().endpoints]
    finally:
        await asking.close()
    name = _model_name(flag, model, offered)
    backends = _backends(options, urls, key, name)
    return backends, name, [backend for backend, answers in zip(backends, healthy, strict=True) if not answers]


def _backends(options: Options, urls: Sequence[str], key: str | None, model: str) -> list[OpenAIBackend]:
    timeout = TimeoutPolicy(total_s=options.speed.request_timeout)
    server = options.server
    api, extra = "completions" if server.api == "auto" else server.api, server.extra_fields()
    chat = _chat_body(options, model)
    return [OpenAIBackend(Endpoint(url, model, api, key, extra, timeout, chat_body=chat)) for url in urls]


def _chat_body(options: Options, model: str) -> dict[str, Any]:
    return thinking_fields(chosen_preset(options, model), options.server.thinking)


def chosen_preset(options: Options, model: str) -> ModelPreset | None:
    """What ``--model-preset`` means for a model. ``--preset paper`` keeps the original's figures."""
    name = options.server.model_preset
    if name == "none" or options.method.preset == "paper":
        return None
    return preset_of(model) if name == "auto" else PRESETS[name]


def _most_in_flight(speed: SpeedOptions, servers: int, file_limit: int, report: Report) -> int:
    """How many requests can have a connection. Reported where the options ask for more."""
    most = most_connections(file_limit)
    wanted = speed.max_concurrency * servers if speed.concurrency == "auto" else speed.concurrency
    if wanted > most:
        report(
            f"at most {most} requests in flight: this process may open {file_limit} files; raise the hard limit "
            "(ulimit -Hn) for more"
        )
    return most


def _initial_limits(concurrency: object, sizes: Sequence[int]) -> list[int]:
    """Each server's limit at first: its size, or its part of a total that the user gave."""
    if not isinstance(concurrency, int):
        return list(sizes)
    return [max(1, -(-concurrency * size // sum(sizes))) for size in sizes]


def _model_name(flag: str, model: str | None, offered: Sequence[str]) -> str:
    if model is not None:
        if offered and model not in offered:
            raise InputError(f"{flag} {model}: the server does not have it; it offers {', '.join(offered[:8])}")
        return model
    if len(offered) != 1:
        listed = f"it offers {', '.join(offered[:8])}" if offered else "the server does not list its models"
        raise InputError(f"{flag}: name the model to use; {listed}")
    return offered[0]


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one where possible and return the limit that applies now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def most_connections(limit: int) -> int:
    """How many connections may still be opened (at least 1) where ``limit`` files may be open."""
    folders = (Path("/proc/self/fd"), Path("/dev/fd"))
    used = next((len(list(folder.iterdir())) for folder in folders if folder.is_dir()), 0)
    return max(1, int(_SHARE_OF_FILES * (min(limit, _MOST_FILES) - used)))
