"""The `evaluate` command: benchmarks a model, compares results and looks for leaked benchmark tasks.

It keeps raw answers and scores in a folder of results.
"""

PUBLIC = ("leakage", "options", "results", "run", "tasks", "user_comparison")
"""Modules that other rooms may import."""
