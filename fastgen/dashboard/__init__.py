"""The live page of a run: the report's charts while it goes, over server-sent events, on this machine only.

`live` folds commits into the report's figures, `follow` reads them from the run's log as it grows, `view` turns them
into pieces of HTML, `server` serves these, `page` is the process that all of this runs in. A run itself has only
`activation`: a listening socket, and that process once somebody looks. Reads only; nothing that a viewer does reaches
the run.
"""
