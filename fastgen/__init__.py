"""Generates training data for language models with vLLM servers, by Self-Instruct, Magpie and other methods.

====================================  ==================================================================================
name                                  what it is
====================================  ==================================================================================
`generate`, `agenerate`               make a run, or resume it, and return it; for a running event loop with ``await``
`stream`, `astream`                   the same, giving the rows while they are made; with ``async for``
`open_run`, `list_runs`, `Run`        read a run, or all runs below a folder: counts, rows, data frames, exports
`Progress`                            what a function that is given as ``progress=`` gets
`Deduplicator`, `Decision`            the similarity filter for texts in memory
`NoveltyFilter`                       the same with its pool, seeds and scores in the caller's hands
`errors`                              the errors that all of them raise
====================================  ==================================================================================

docs/python.md shows them at work. Each is loaded when it is first asked for, so that ``import fastgen`` stays light.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgen import errors
    from fastgen.api import Run, agenerate, astream, generate, list_runs, open_run, stream
    from fastgen.dedup.deduplicator import Decision, Deduplicator
    from fastgen.similarity.novelty import NoveltyFilter
    from fastgen.telemetry.progress import Progress

__version__ = "0.1.0"
__all__ = [
    "Decision",
    "Deduplicator",
    "NoveltyFilter",
    "Progress",
    "Run",
    "__version__",
    "agenerate",
    "astream",
    "errors",
    "generate",
    "list_runs",
    "open_run",
    "stream",
]

_HOMES = MappingProxyType(
    {
        "Decision": "fastgen.dedup.deduplicator",
        "Deduplicator": "fastgen.dedup.deduplicator",
        "NoveltyFilter": "fastgen.similarity.novelty",
        "Progress": "fastgen.telemetry.progress",
        **dict.fromkeys(("Run", "agenerate", "astream", "list_runs", "open_run", "stream"), "fastgen.api"),
    }
)


def __getattr__(name: str) -> object:
    """The public names, loaded when first asked for."""
    if name == "errors":
        return importlib.import_module("fastgen.errors")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, in which ``generate`` is the function, also once the room ``fastgen/generate/`` is loaded.

    Python puts a subpackage that it loads into the package under its name. Modules of that room are imported with
    ``from fastgen.generate import ...``, which does not look at this name.
    """

    @property
    def generate(self) -> Callable[..., Any]:
        return importlib.import_module("fastgen.api").generate  # type: ignore[no-any-return]

    @generate.setter
    def generate(self, _room: ModuleType) -> None:
        """Keep the function."""


sys.modules[__name__].__class__ = _Package
