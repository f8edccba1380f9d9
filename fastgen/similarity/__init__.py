"""Finds texts that are too similar to a pool of texts: tokenisers, ROUGE-L, candidate indexes and the novelty filter.

It computes only: no files, no asyncio.
"""

PUBLIC = ("bands", "jit", "layout", "novelty", "options", "pool", "rouge")
"""Modules that other rooms may import."""
