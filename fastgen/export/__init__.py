"""The `export` command: a run as training data in every supported format, with a data card.

Exports of the same run are byte-identical, and a longer run extends them.
"""

PUBLIC = ("entries", "export", "method", "options", "rows")
"""Modules that other rooms may import."""
