"""What a run does with the C library's memory, in a separate process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
from fastgen.generate.runtime import return_large_blocks

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Mallinfo2

return_large_blocks()
bytearray(24 << 20)  # without the call, glibc takes smaller blocks from its heap once this one is freed
before = library.mallinfo2().hblks
blocks = [bytearray(1 << 20) for _ in range(64)]
print(library.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer"
)
def test_large_blocks_are_mapped_one_by_one_so_that_each_goes_back_when_it_is_freed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 64
