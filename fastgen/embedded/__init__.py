"""The embedded CPU server: vLLM built for CPUs and a small model, in an environment of their own, made on first use.

Guarantees: what `ensure_embedded` returns was built completely and seen to work; a set-up that was stopped leaves
nothing that a later one could mistake for it; nothing is written outside the cache folder it is given. Knows nothing of
how the server is started.
"""

from fastgen.embedded.cache import EmbeddedServerSpec, EmbeddedStatus, embedded_status, remove_embedded
from fastgen.embedded.install import ensure_embedded
from fastgen.embedded.recipe import EMBEDDED_MODEL

__all__ = [
    "EMBEDDED_MODEL",
    "EmbeddedServerSpec",
    "EmbeddedStatus",
    "embedded_status",
    "ensure_embedded",
    "remove_embedded",
]
