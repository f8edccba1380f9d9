"""The `dedup` command and `Deduplicator`, the Python API of the same filter.

It removes near-duplicates from files of any size.
"""

PUBLIC = ("deduplicator", "job")
"""Modules that other rooms may import."""
