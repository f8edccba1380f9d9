"""What a run does with the C library's memory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from fastgen.memory import return_large_blocks
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

{set_it}
bytearray(24 << 20)  # freed at once: from now on glibc keeps what is smaller
blocks = [bytearray(1 << 20) for _ in range(64)]
keeper = [bytearray(100_000) for _ in range(8)]  # above them in the heap
held = resident()
del blocks
print((held - resident()) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_large_blocks_go_back_to_the_system_though_others_lie_above_them() -> None:
    given_back = {}
    for set_it in ("return_large_blocks()", ""):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(set_it=set_it)], capture_output=True, text=True, check=True
        )
        given_back[set_it] = int(done.stdout)
    assert given_back["return_large_blocks()"] >= 60
    assert given_back[""] <= 4  # or the C library has learnt it, and the module can go
