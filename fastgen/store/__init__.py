"""What is on disk: run folders, the append-only log, checkpoints, tables (JSON lines, Parquet) and safe output files.

A run is read back through `store.reader`.
"""

PUBLIC = ("files", "ledger", "log", "output", "reader", "run_folder", "tables")
"""Modules that other rooms may import."""
