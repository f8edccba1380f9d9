"""SHA-1's first 32 bits in compiled code: the element hash that ``datasketch.MinHash`` uses unless told otherwise.

Guarantees: ``sha1_hash32(bytes) == datasketch.hashfunc.sha1_hash32(bytes)``. A fingerprint, not a security measure.
Source: FIPS 180-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgen.index.jit import kernel, signed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORK_WORDS = 85
_MAJORITY = 2  # the quarter of the rounds that mixes by majority


@kernel
def _rotl(value: int, by: int) -> int:
    value &= 0xFFFFFFFF
    return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF


@kernel
def _compress(work: NDArray[np.int64]) -> None:
    """One block: ``work`` holds 80 words of the message schedule (16 given), then the five of the state."""
    for i in range(16, 80):
        work[i] = _rotl(work[i - 3] ^ work[i - 8] ^ work[i - 14] ^ work[i - 16], 1)
    a, b, c, d, e = work[80], work[81], work[82], work[83], work[84]
    for i in range(80):
        quarter = i // 20
        if quarter == 0:
            f, k = (b & c) | ((b ^ 0xFFFFFFFF) & d), 0x5A827999
        elif quarter == 1:
            f, k = b ^ c ^ d, 0x6ED9EBA1
        elif quarter == _MAJORITY:
            f, k = (b & c) | (b & d) | (c & d), 0x8F1BBCDC
        else:
            f, k = b ^ c ^ d, 0xCA62C1D6
        mixed = (_rotl(a, 5) + f + e + k + work[i]) & 0xFFFFFFFF
        e, d, c, b, a = d, c, _rotl(b, 30), a, mixed
    work[80] = (work[80] + a) & 0xFFFFFFFF
    work[81] = (work[81] + b) & 0xFFFFFFFF
    work[82] = (work[82] + c) & 0xFFFFFFFF
    work[83] = (work[83] + d) & 0xFFFFFFFF
    work[84] = (work[84] + e) & 0xFFFFFFFF


@kernel
def _padded_byte(data: NDArray[np.uint8], begin: int, end: int, at: int) -> int:
    if begin + at < end:
        return signed(data[begin + at])
    return 0x80 if begin + at == end else 0


@kernel
def sha1_hash32(data: NDArray[np.uint8], begin: int, end: int, work: NDArray[np.int64]) -> int:
    """First four bytes of the SHA-1 digest of ``data[begin:end]``, little-endian, as an int in 0 .. 2**32 - 1.

    ``work`` is scratch of :data:`WORK_WORDS`.
    """
    size = end - begin
    work[80], work[81], work[82] = 0x67452301, 0xEFCDAB89, 0x98BADCFE
    work[83], work[84] = 0x10325476, 0xC3D2E1F0
    blocks = (size + 8) // 64 + 1
    for block in range(blocks):
        for i in range(16):
            word = 0
            for byte in range(4):
                word = (word << 8) | _padded_byte(data, begin, end, block * 64 + i * 4 + byte)
            work[i] = word
        if block == blocks - 1:
            work[14] = (size * 8) >> 32
            work[15] = (size * 8) & 0xFFFFFFFF
        _compress(work)
    first = signed(work[80])
    return ((first & 0xFF) << 24) | ((first & 0xFF00) << 8) | ((first >> 8) & 0xFF00) | (first >> 24)
