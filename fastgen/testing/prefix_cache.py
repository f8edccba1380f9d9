"""A model of vLLM's prefix cache that is only there to be counted: which blocks of a prompt have been seen before."""

from __future__ import annotations

BLOCK_CHARACTERS = 256
BLOCK_TOKENS = 64
CAPACITY_BLOCKS = 100_000


class PrefixCache:
    """Counts queried and hit tokens in whole blocks; forgets everything when it is full."""

    def __init__(self) -> None:
        self.queries_tokens = 0
        self.hits_tokens = 0
        self._seen: set[int] = set()

    def look_up(self, prompt: str) -> None:
        """Count the blocks of ``prompt`` that continue a known prefix, and remember the others."""
        blocks = len(prompt) // BLOCK_CHARACTERS
        self.queries_tokens += blocks * BLOCK_TOKENS
        if len(self._seen) > CAPACITY_BLOCKS:
            self._seen.clear()
        for count in range(blocks, 0, -1):
            prefix = hash(prompt[: count * BLOCK_CHARACTERS])
            if prefix in self._seen:
                self.hits_tokens += count * BLOCK_TOKENS
                return
            self._seen.add(prefix)
