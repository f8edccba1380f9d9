"""Seeded chance without a state: what is drawn for a thing depends on the seed, the purpose and the thing alone.

So a draw is the same whatever else is exported, in whatever order, and stays the same while the run grows.
"""

from __future__ import annotations

from hashlib import blake2b


def draw(seed: int, purpose: str, thing: str) -> int:
    """64 bits, uniform over things and independent between purposes (at most 16 ASCII characters)."""
    return int.from_bytes(_digest(seed, purpose, thing.encode(errors="surrogatepass"), 8))


def digest(seed: int, purpose: str, content: bytes) -> bytes:
    """16 bytes: equal for equal content and, for any number of rows that fits a disk, for no other."""
    return _digest(seed, purpose, content, 16)


def _digest(seed: int, purpose: str, content: bytes, size: int) -> bytes:
    return blake2b(content, digest_size=size, key=str(seed).encode()[:64], person=purpose.encode()).digest()
