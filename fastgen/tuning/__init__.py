"""Supervised tuning of a language model on what a run has written: data, training, and the model folder that results.

Knows nothing of how runs are made. torch and what belongs to it are imported only by `tuning.model` and
`tuning.training`, and these only once they are needed.
"""
