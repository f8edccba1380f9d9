"""The append-only, checksummed, segmented log under a run folder: the only truth of a run.

A segment is ``log/NNNNNN.jsonl`` while it is written and ``log/NNNNNN.jsonl.zst`` once it is closed. Every line is a
JSON object whose first key is ``crc``: eight hex digits of CRC-32 over the rest of the line, chained with the line
before it, so a flipped byte, a lost line or two swapped ones are all found. The first line of a segment is a header
that names the run, the segment and the checksum that the chain starts from.

Guarantees:

- one ``append`` is one ``write``: after a crash, a line is there whole or is the torn end of the last segment;
- the torn end (no newline) is dropped on opening; damage anywhere else raises `DamagedLogError` with file and line;
- a write that fails (disk full) is taken back before `DiskError` is raised.

`format` is the form of a line, `segments` the files, `reader` and `writer` what their names say, `digest` a quick
comparison of whole logs. None of them knows what the lines mean.
"""
