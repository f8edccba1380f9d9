"""A model judges a run's instances: asks, logs, reads back, sums up.

`options` is what can be told, `prompts` what the judge sees, `verdicts` what its answers mean, `slots` how they are
numbered, `session` asks, `readings` reads the logs back, `agreement` and `summary` count. Nothing here touches the
run's own log.
"""
