"""One file per question; ``harness`` is what they share.

A figure is never given without command, commit, hardware and date.
"""
