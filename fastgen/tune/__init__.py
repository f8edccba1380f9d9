"""The `tune` command: fine-tunes a small model on exported data, resumably.

Heavy libraries are imported only when a training starts.
"""

PUBLIC = ("folder", "options", "tune")
"""Modules that other rooms may import."""
