"""Servers that fastgen starts itself: which one, with what flags, started, watched and stopped.

`choose_server` says what fits this machine, `start_server` runs it for as long as a ``with`` block lasts. Everything
that was started is gone when the block ends, and also when fastgen is killed. Knows nothing of what is asked of the
server.
"""

from fastgen.server.choose import DEFAULT_GPU_MODEL, choose_server, embedded_server_spec, gpu_server_spec
from fastgen.server.process import ManagedServer, start_server
from fastgen.server.spec import ServerSpec

__all__ = [
    "DEFAULT_GPU_MODEL",
    "ManagedServer",
    "ServerSpec",
    "choose_server",
    "embedded_server_spec",
    "gpu_server_spec",
    "start_server",
]
