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
        chain, hits = 0, 0
        for start in range(0, len(prompt) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
            chain = hash((chain, prompt[start : start + BLOCK_CHARACTERS]))
            if chain in self._seen:
                hits += 1
            else:
                self._seen.add(chain)
        self.queries_tokens += len(prompt) // BLOCK_CHARACTERS * BLOCK_TOKENS
        self.hits_tokens += hits * BLOCK_TOKENS
        if len(self._seen) > CAPACITY_BLOCKS:
            self._seen.clear()
