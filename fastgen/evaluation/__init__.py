"""``evaluate``: what a model does on held-out tasks. Siblings: the benchmarks' data, their scoring, the comparison."""
