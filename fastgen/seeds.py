"""Seed tasks: the human-made start of a pool, read from JSON lines and checked to the last field.

Guarantees: a task that is returned is complete (texts are not blank, encode as UTF-8 and hold no NUL; at least one
instance; ids are unique), and every defect is an :class:`~fastgen.errors.InputError` of one line that names file, line
and field and says what to do. The schema is the one of Self-Instruct (Wang et al., ACL 2023), so the authors' own file
loads too. Knows nothing of prompts, the pool or run folders; what a good set of seeds is belongs to
:mod:`fastgen.seed_report`'s figures, computed here by :func:`check_seed_tasks`.
"""
