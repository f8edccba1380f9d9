"""The commands on one run: `generate` with its dry run, `refilter` and `audit`.

Other commands ask batches of questions through `batch`. `run.py` shows the whole loop.
"""

PUBLIC = ("audit", "batch", "model_presets", "options", "refilter", "run", "serving", "session", "runtime")
"""Modules that other rooms may import."""
