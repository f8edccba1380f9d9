"""Brings up what `generate` asks: the servers a user named, or one that fastgen starts and stops with the run.

Yields a `Serving`: a backend that answers, the model's name, and how many requests in flight fit it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen.backends.endpoint import Endpoint, TimeoutPolicy
from fastgen.backends.openai import ModelInfo, OpenAIBackend
from fastgen.backends.prometheus import ServerMetrics
from fastgen.backends.router import Router
from fastgen.errors import InputError
from fastgen.options import Options
from fastgen.server import ManagedServer, choose_server, start_server
from fastgen.store import RunFolder

REMOTE_CONCURRENCY = 256  # vLLM's own default of max_num_seqs on most GPUs
Report = Callable[[str], None]


@dataclass(slots=True)
class Serving:
    """Servers that answer; close to the run, since `figures` counts from here on."""

    backend: Router
    model: str
    concurrency: int
    managed: ManagedServer | None
    _before: tuple[ServerMetrics | None, ...] = ()

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
        return {"prefix_cache_hit_rate": round(hits / queries, 4)} if queries else {}

    async def watch(self) -> None:
        """Runs until cancelled.

        :raises ServerError: a server that fastgen started died.
        """
        if self.managed is None:
            await asyncio.Event().wait()
        else:
            await self.managed.watch()


@asynccontextmanager
async def serve(
    options: Options, folder: RunFolder, cache_dir: Path, api_key: str | None, model: str | None, report: Report
) -> AsyncIterator[Serving]:
    """The servers that the options ask for, answering; ``model`` is what a resumed run was made with.

    :raises InputError: unknown model, refused key, wrong API, or nothing here can serve.
    :raises StoppedError: nothing answered in time, or the server that was started died.
    """
    if options.server.base_url:
        async with _attached(
            options, options.server.base_url, options.server.model or model, api_key, None, report
        ) as serving:
            yield serving
        return
    spec = await choose_server(options.server.model, options.server.server_args, cache_dir=cache_dir, report=report)
    timeout_s = options.server.server_timeout
    async with (
        start_server(spec, folder.server_log_path, timeout_s=timeout_s, report=report) as server,
        _attached(options, (server.base_url,), server.model, None, server, report) as serving,
    ):
        serving.concurrency = spec.concurrency
        yield serving


@asynccontextmanager
async def _attached(
    options: Options,
    base_urls: tuple[str, ...],
    model: str | None,
    api_key: str | None,
    managed: ManagedServer | None,
    report: Report,
) -> AsyncIterator[Serving]:
    info = await _probe(_router(options, base_urls, "", api_key), options.server.server_timeout, report)
    name = _model_name(model, info)
    backend = _router(options, base_urls, name, api_key)
    try:
        serving = Serving(backend, name, REMOTE_CONCURRENCY, managed)
        await serving.begin()
        yield serving
    finally:
        await backend.close()


async def _probe(router: Router, timeout_s: float, report: Report) -> ModelInfo:
    try:
        return await router.wait_until_answering(timeout_s, report)
    finally:
        await router.close()


def _router(options: Options, base_urls: tuple[str, ...], model: str, api_key: str | None) -> Router:
    timeout = TimeoutPolicy(total_s=options.speed.request_timeout)
    endpoints = [
        Endpoint(url, model, options.server.api, api_key, options.server.extra_fields(), timeout) for url in base_urls
    ]
    return Router([OpenAIBackend(endpoint) for endpoint in endpoints])


def _model_name(asked: str | None, info: ModelInfo) -> str:
    if asked is not None:
        if info.ids and asked not in info.ids:
            raise InputError(f"--model {asked}: the server does not have it; it offers {', '.join(info.ids[:8])}")
        return asked
    if len(info.ids) != 1:
        offered = f"it offers {', '.join(info.ids[:8])}" if info.ids else "the server does not list its models"
        raise InputError(f"--model: name the model to use; {offered}")
    return info.ids[0]
