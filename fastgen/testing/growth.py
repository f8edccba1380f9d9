"""When decoding sequences need their next block, without looking at each of them. Pure.

A sequence gains one token a step, so it needs a block every ``block_tokens`` steps, always at the same remainder. A
sequence is known by its offset: the tokens it has in the cache are the offset and the number of steps so far.
"""

from __future__ import annotations


class BlockGrowth:
    """Counts decoding sequences by the remainder at which they need a block."""

    def __init__(self, block_tokens: int) -> None:
        self._period = block_tokens
        self._needs = [0] * block_tokens
        self._sequences = 0

    def add(self, offset: int) -> None:
        """A sequence begins to decode."""
        self._needs[-offset % self._period] += 1
        self._sequences += 1

    def drop(self, offset: int) -> None:
        """A sequence decodes no more."""
        self._needs[-offset % self._period] -= 1
        self._sequences -= 1

    def at(self, step: int) -> int:
        """Return the blocks needed in a step."""
        return self._needs[step % self._period]

    def within(self, step: int, steps: int) -> int:
        """Return the blocks needed in so many steps, from ``step`` on."""
        rounds, rest = divmod(steps, self._period)
        return rounds * self._sequences + sum(self.at(step + i) for i in range(rest))

    def steps_for(self, step: int, free: int) -> int:
        """Return for how many steps, from ``step`` on, ``free`` blocks suffice; at least 1, with sequences at all."""
        rounds, free = divmod(max(0, free), self._sequences)
        steps = rounds * self._period
        for i in range(self._period):
            free -= self.at(step + i)
            if free < 0:
                break
            steps += 1
        return max(1, steps)
