"""Measures a run and shows it.

Progress display, figures, `metrics.jsonl`, the Prometheus page and the process of the live page. Only `yields` can end
a run. The rest reads.
"""

PUBLIC = ("display", "figures", "instruments", "live_page", "monitor", "progress", "prometheus", "series", "yields")
"""Modules that other rooms may import."""
