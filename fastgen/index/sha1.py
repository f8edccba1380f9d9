"""SHA-1's first 32 bits in compiled code: the element hash that ``datasketch.MinHash`` uses unless told otherwise.

Guarantees: ``sha1_hash32(bytes) == datasketch.hashfunc.sha1_hash32(bytes)``. A fingerprint, not a security measure.
Source: FIPS 180-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.index.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@kernel
def _rotl(value: int, by: int) -> int:
    value &= 0xFFFFFFFF
    return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF


@kernel
def _compress(state: NDArray[np.int64], words: NDArray[np.int64]) -> None:
    for i in range(16, 80):
        words[i] = _rotl(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1)
    a, b, c, d, e = state[0], state[1], state[2], state[3], state[4]
    for i in range(80):
        if i < 20:
            f, k = (b & c) | ((b ^ 0xFFFFFFFF) & d), 0x5A827999
        elif i < 40:
            f, k = b ^ c ^ d, 0x6ED9EBA1
        elif i < 60:
            f, k = (b & c) | (b & d) | (c & d), 0x8F1BBCDC
        else:
            f, k = b ^ c ^ d, 0xCA62C1D6
        mixed = (_rotl(a, 5) + f + e + k + words[i]) & 0xFFFFFFFF
        e, d, c, b, a = d, c, _rotl(b, 30), a, mixed
    state[0] = (state[0] + a) & 0xFFFFFFFF
    state[1] = (state[1] + b) & 0xFFFFFFFF
    state[2] = (state[2] + c) & 0xFFFFFFFF
    state[3] = (state[3] + d) & 0xFFFFFFFF
    state[4] = (state[4] + e) & 0xFFFFFFFF


@kernel
def sha1_hash32(data: NDArray[np.uint8]) -> int:
    """First four bytes of the SHA-1 digest of ``data``, little-endian, as an int in 0 .. 2**32 - 1."""
    size = data.size
    state = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], dtype=np.int64)
    words = np.empty(80, np.int64)
    blocks = (size + 8) // 64 + 1
    for block in range(blocks):
        for i in range(16):
            word = 0
            for byte in range(4):
                at = block * 64 + i * 4 + byte
                value = 0
                if at < size:
                    value = np.int64(data[at])
                elif at == size:
                    value = 0x80
                word = (word << 8) | value
            words[i] = word
        if block == blocks - 1:
            words[14] = (size * 8) >> 32
            words[15] = (size * 8) & 0xFFFFFFFF
        _compress(state, words)
    first = state[0]
    return ((first & 0xFF) << 24) | ((first & 0xFF00) << 8) | ((first >> 8) & 0xFF00) | (first >> 24)
