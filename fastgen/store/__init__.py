"""What is on disk: job folders, run folders, the append-only log, checkpoints, tables and safe output files.

A run is read back through `store.reader`.
"""

PUBLIC = ("files", "job_folder", "ledger", "log", "output", "reader", "run_folder", "tables")
"""Modules that other rooms may import."""
