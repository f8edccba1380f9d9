"""Data sets as rows: JSON lines and Parquet, plain or compressed."""
