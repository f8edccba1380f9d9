"""What a run does with the C library's memory, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
from fastgen.generate.runtime import return_large_blocks
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

return_large_blocks()
bytearray(24 << 20)  # freed at once: from now on glibc keeps what is smaller
blocks = [bytearray(1 << 20) for _ in range(64)]
keeper = [bytearray(100_000) for _ in range(8)]  # above them in the heap
held = resident()
del blocks
print((held - resident()) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_blocks_go_back_to_the_system_though_others_lie_above_them() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 60
