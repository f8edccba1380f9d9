"""Brings up what `generate` asks: the servers a user named, or those that fastgen starts and stops with the run.

Yields a `Serving`: a backend that answers, the models' names, and how many requests in flight fit it. A stage with
servers (or a model) of its own gets a router of its own; its key goes to its servers only, and theirs to no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastgen.engine.backend import ServerMetrics
from fastgen.errors import InputError
from fastgen.generate.options import STAGES_WITH_SERVERS, Options, SpeedOptions
from fastgen.servers.choose import choose_servers
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy
from fastgen.servers.fleet import Fleet, start_fleet
from fastgen.servers.openai import ModelInfo, OpenAIBackend
from fastgen.servers.router import Router
from fastgen.servers.spec import Layout
from fastgen.servers.staged import StagedRouter
from fastgen.store.run_folder import RunFolder
from fastgen.types import Stage

START_CONCURRENCY = 64  # for each server of the user's: a second from a full batch on a GPU, soon drained on a CPU
_SHARE_OF_FILES: Final = 0.75
"""Of the descriptors that are free: the rest is for logs, snapshots, pages, health checks, and idle connections."""
_MOST_FILES: Final = 1 << 20
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Keys:
    """API keys, by who gets them."""

    main: str | None = field(default=None, repr=False)
    by_stage: Mapping[str, str | None] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Serving:
    """Servers that answer; close to the run, since `figures` counts from here on.

    ``models`` are names by option: ``model``, and ``instance_model``, ``classification_model`` for stages with servers
    or a model of their own. ``sizes`` are how many completions in flight are believed to fit each of the backend's
    servers, to begin with. ``most_in_flight`` is how many requests this process can have connections for.
    """

    backend: StagedRouter
    models: Mapping[str, str]
    sizes: Sequence[int]
    fleet: Fleet | None
    most_in_flight: int = sys.maxsize
    _before: tuple[ServerMetrics | None, ...] = ()

    @property
    def is_others_vllm(self) -> bool:
        """Whether a user's own server is a vLLM, by its metrics page."""
        return self.fleet is None and any(page is not None for page in self._before)

    async def begin(self) -> None:
        """Remember where the servers' counters stand."""
        self._before = await self.backend.metrics()

    async def figures(self) -> dict[str, Any]:
        """What the servers say of this session: ``prefix_cache_hit_rate`` (0..1), where they have such a figure."""
        queries = hits = 0
        for before, now in zip(self._before, await self.backend.metrics(), strict=True):
            if before is not None and now is not None and now.prefix_queries_tokens >= before.prefix_queries_tokens:
                queries += now.prefix_queries_tokens - before.prefix_queries_tokens
                hits += now.prefix_hits_tokens - before.prefix_hits_tokens
        return {"prefix_cache_hit_rate": round(min(max(hits / queries, 0.0), 1.0), 4)} if queries else {}

    async def watch(self) -> None:
        """Runs until cancelled.

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
    """The servers that the options ask for, answering; ``models`` are the names that are known (`config.model_names`).

    :raises InputError: unknown model, refused key, wrong API, too few GPUs, or nothing here can serve.
    :raises StoppedError: nothing answered in time, or no server that was started came up.
    """
    server = options.server
    file_limit = raise_file_limit()
    async with AsyncExitStack() as stack:
        if server.base_url:
            place = _Place("", server.base_url, keys.main, models.get("model"))
            fleet, sizes = None, [START_CONCURRENCY] * len(server.base_url)
        else:
            layout = Layout(
                *(server.num_servers, server.tensor_parallel_size, server.data_parallel_size, server.api_server_count)
            )
            specs = await choose_servers(server.model, server.server_args, layout, cache_dir=cache_dir, report=report)
            fleet = await stack.enter_async_context(
                start_fleet(specs, folder.server_log_path, timeout_s=server.server_timeout, report=report)
            )
            place, sizes = _Place("", fleet.base_urls, None, fleet.model), [spec.concurrency for spec in specs]
        told = report if fleet is None else _nothing_more  # the fleet itself tells of its servers
        main, model = await _attach(options, place, stack, told)
        own, names = await _attach_stages(options, place, keys, {**models, "model": model}, stack, report)
        backend = StagedRouter(main, own)
        sizes += [START_CONCURRENCY] * (len(backend.backends) - len(sizes))
        serving = Serving(backend, names, sizes, fleet, _connections(options.speed, len(sizes), file_limit, report))
        backend.set_limits(_shares(options.speed.concurrency, sizes))
        await serving.begin()
        yield serving


@dataclass(frozen=True, slots=True)
class _Place:
    """Servers of one kind: what their options begin with, where they are, their key, their model if it is known."""

    prefix: str
    urls: tuple[str, ...]
    key: str | None = field(repr=False)
    model: str | None


async def _attach_stages(
    options: Options, main: _Place, keys: Keys, models: Mapping[str, str], stack: AsyncExitStack, report: Report
) -> tuple[dict[Stage, Router], dict[str, str]]:
    """Routers of the stages that have servers or a model of their own, and all models' names."""
    own: dict[Stage, Router] = {}
    names = {"model": models["model"]}
    for stage in STAGES_WITH_SERVERS:
        urls, model = options.server.of_stage(stage).base_url, models.get(f"{stage}_model")
        if not urls and model in (None, models["model"]):
            continue
        key = keys.by_stage.get(stage) if urls else main.key
        place = _Place(f"{stage}-", urls or main.urls, key, model)
        own[Stage(stage)], names[f"{stage}_model"] = await _attach(options, place, stack, report)
    return own, names


async def _attach(options: Options, place: _Place, stack: AsyncExitStack, report: Report) -> tuple[Router, str]:
    """A router over servers of which one answers, closed with ``stack``, and the name of their model."""
    asking = _router(options, place, "")
    try:
        info = await asking.wait_until_answering(options.server.server_timeout, report)
        absent = [one.url for one in asking.statistics().endpoints if not one.healthy]
    finally:
        await asking.close()
    name = _model_name(place, info)
    router = _router(options, place, name)
    stack.push_async_callback(router.close)
    router.begin_without(absent)
    return router, name


def _router(options: Options, place: _Place, model: str) -> Router:
    timeout = TimeoutPolicy(total_s=options.speed.request_timeout)
    api, extra = options.server.api, options.server.extra_fields()
    return Router([OpenAIBackend(Endpoint(url, model, api, place.key, extra, timeout)) for url in place.urls])


def _connections(speed: SpeedOptions, servers: int, file_limit: int, report: Report) -> int:
    """How many requests can have a connection; said where that is less than may be asked for."""
    most = most_connections(file_limit)
    wanted = speed.max_concurrency * servers if speed.concurrency == "auto" else speed.concurrency
    if wanted > most:
        report(
            f"at most {most} requests in flight: this process may open {file_limit} files; raise the hard limit "
            "(ulimit -Hn) for more"
        )
    return most


def _nothing_more(_: str) -> None:
    """Say nothing."""


def _shares(asked: object, sizes: Sequence[int]) -> list[int]:
    """Each server's limit until somebody knows better: its size, or its part of a total that the user gave."""
    if not isinstance(asked, int):
        return list(sizes)
    return [max(1, -(-asked * size // sum(sizes))) for size in sizes]


def _model_name(place: _Place, info: ModelInfo) -> str:
    flag = f"--{place.prefix}model"
    if place.model is not None:
        if info.ids and place.model not in info.ids:
            raise InputError(f"{flag} {place.model}: the server does not have it; it offers {', '.join(info.ids[:8])}")
        return place.model
    if len(info.ids) != 1:
        offered = f"it offers {', '.join(info.ids[:8])}" if info.ids else "the server does not list its models"
        raise InputError(f"{flag}: name the model to use; {offered}")
    return info.ids[0]


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, where the system lets us; return the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def most_connections(limit: int) -> int:
    """Connections that fit beside what is open already, at least 1, where ``limit`` files may be open."""
    folders = (Path("/proc/self/fd"), Path("/dev/fd"))
    used = next((len(list(folder.iterdir())) for folder in folders if folder.is_dir()), 0)
    return max(1, int(_SHARE_OF_FILES * (min(limit, _MOST_FILES) - used)))
