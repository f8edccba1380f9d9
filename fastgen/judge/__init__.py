"""The `judge` command: a language model answers questions about generated instances.

It keeps the answers in the run folder and summarises them.
"""

PUBLIC = ("options", "readings", "session", "summary")
"""Modules that other rooms may import."""
