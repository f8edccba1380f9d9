"""Generates training data for language models with vLLM servers, by Self-Instruct, Magpie and other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgen.dedup.deduplicator import Decision, Deduplicator

__version__ = "0.1.0"
__all__ = ["Decision", "Deduplicator", "__version__"]


def __getattr__(name: str) -> object:
    """The public classes, loaded when first asked for, so that ``import fastgen`` stays light."""
    if name in {"Decision", "Deduplicator"}:
        from fastgen.dedup import deduplicator

        return getattr(deduplicator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
