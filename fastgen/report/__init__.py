"""Shows a run: the `report` command (HTML), the `status` command and the live page.

It reads a run folder and changes nothing.
"""

PUBLIC = ("build", "live", "options", "status")
"""Modules that other rooms may import."""
