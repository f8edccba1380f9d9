"""The `judge` command: a language model answers questions about generated instances.

It keeps the answers in the run folder and summarises them.
"""

PUBLIC = ("judgements", "options", "session", "summary")
"""Modules that other rooms may import."""
