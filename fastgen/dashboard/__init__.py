"""The live page of a run: the report's charts while it goes, over server-sent events, on this machine only.

`live` folds commits into the report's figures, `view` turns them into pieces of HTML, `server` serves them from the
run's own event loop. Reads only; nothing that a viewer does reaches the run.
"""
