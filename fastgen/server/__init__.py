"""Servers that fastgen starts itself: which ones, with what flags, started, watched, started again and stopped.

`choose_servers` says what fits this machine, `start_fleet` runs them for as long as a ``with`` block lasts;
`start_server` runs a single one, once. Everything that was started is gone when the block ends, and also when fastgen
is killed. Knows nothing of what is asked of the servers.
"""

from fastgen.server.choose import (
    DEFAULT_GPU_MODEL,
    choose_servers,
    default_model,
    embedded_server_specs,
    gpu_server_specs,
)
from fastgen.server.fleet import Fleet, RestartPolicy, start_fleet
from fastgen.server.gpus import Gpu, visible_gpus
from fastgen.server.process import ManagedServer, start_server
from fastgen.server.spec import Layout, ServerSpec

__all__ = [
    "DEFAULT_GPU_MODEL",
    "Fleet",
    "Gpu",
    "Layout",
    "ManagedServer",
    "RestartPolicy",
    "ServerSpec",
    "choose_servers",
    "default_model",
    "embedded_server_specs",
    "gpu_server_specs",
    "start_fleet",
    "start_server",
    "visible_gpus",
]
