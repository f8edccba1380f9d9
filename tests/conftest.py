"""A real server for the tests that are marked ``real_server``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from fastgen.servers.choose import choose_servers
from fastgen.servers.fleet import start_server


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The user's own cache, so that the set-up is paid once on a machine."""
    given = os.environ.get("FASTGEN_CACHE_DIR")
    return Path(given) if given else user_cache_path("fastgen")


@pytest.fixture(scope="session")
def embedded_endpoint(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(base_url, model) of a running embedded server, one for the whole session."""
    log_path = tmp_path_factory.mktemp("embedded") / "server.log"
    with asyncio.Runner() as runner:
        (spec,) = runner.run(
            choose_servers(None, "", cache_dir=cache_dir, report=print, gpus=lambda: ())  # the CPU one everywhere
        )
        running = start_server(spec, log_path, timeout_s=600, report=print)
        server = runner.run(running.__aenter__())
        yield server.base_url, server.model
        runner.run(running.__aexit__(None, None, None))
