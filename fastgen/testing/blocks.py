"""A key-value cache in blocks, shared by prompts with a common beginning: vLLM's block pool and prefix cache.

Guarantees: no more blocks are held than there are; a block of a prompt is found again by the hash of everything up to
its end as long as no room was needed for others (least recently used first); a block that somebody holds is never
evicted. Knows nothing of time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def block_hashes(text: str, characters: int) -> tuple[int, ...]:
    """Return one number for each whole block of ``characters``: equal numbers mean equal texts up to the block's end.

    (Up to a chance of about 2**-61, and within one process.)
    """
    hashes, chain = [], 0
    for end in range(characters, len(text) + 1, characters):
        chain = hash((chain, text[end - characters : end]))
        hashes.append(chain)
    return tuple(hashes)


class BlockPool:
    """``total`` blocks: private ones are only counted, those of prompts are known by hash and counted by holder."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0  # private, or of a prompt that somebody holds
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept, held by nobody; the least recently used first

    @property
    def free(self) -> int:
        """Blocks that can be had: empty ones and those that are only kept; below 0 after `total` was lowered."""
        return self.total - self.used

    def known(self, hashes: Sequence[int]) -> int:
        """Return how many blocks from the first on are in the cache."""
        holders, idle = self._holders, self._idle
        for count, block in enumerate(hashes):
            if block not in holders and block not in idle:
                return count
        return len(hashes)

    def unheld(self, hashes: Sequence[int]) -> int:
        """Return how many blocks `hold` of these would take from the free ones."""
        holders = self._holders
        return sum(block not in holders for block in hashes)

    def hold(self, hashes: Sequence[int]) -> None:
        """Share or fill these blocks; the caller has seen to it that `free` suffices."""
        holders, idle = self._holders, self._idle
        for block in hashes:
            count = holders.get(block, 0)
            holders[block] = count + 1
            if not count:
                self.used += 1
                idle.pop(block, None)
        self._evict()

    def release(self, hashes: Sequence[int]) -> None:
        """Let go of held blocks, the last of a prompt to be evicted first."""
        holders, idle = self._holders, self._idle
        for block in reversed(hashes):
            count = holders[block] - 1
            if count:
                holders[block] = count
            else:
                del holders[block]
                idle[block] = None
                self.used -= 1

    def take(self, blocks: int) -> None:
        """Take private blocks (give them back if negative)."""
        self.used += blocks
        if blocks > 0:
            self._evict()

    def _evict(self) -> None:
        while self._idle and len(self._idle) > self.total - self.used:
            self._idle.popitem(last=False)
