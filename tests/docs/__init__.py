"""The documentation: its commands, messages, flags, links and language."""
