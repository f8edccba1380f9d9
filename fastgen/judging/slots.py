"""Numbers the answers of a judge: instruction, instance, vote and attempt as one whole number, readable in decimal.

``12_0003_02_1``: machine instruction 12, its instance 3, vote 2, second attempt (all but the instruction from 0). A
number means the same in every session, whatever else is judged.
"""

from __future__ import annotations

from typing import NamedTuple, Self

MAX_INSTANCES = 10_000
MAX_VOTES = 100
_ATTEMPTS = 10
_VOTES = MAX_VOTES * _ATTEMPTS


class Slot(NamedTuple):
    """Who is judged, and for the which time."""

    number: int
    """Machine instruction number."""
    instance: int
    """Instance of the instruction (0 to 9,999)."""
    vote: int
    """0 to 99."""
    attempt: int
    """0, or 1 after an answer that could not be read."""

    def pack(self) -> int:
        """The slot as one number (below 2**63 for up to 9e11 instructions)."""
        return ((self.number * MAX_INSTANCES + self.instance) * MAX_VOTES + self.vote) * _ATTEMPTS + self.attempt

    @classmethod
    def unpack(cls, packed: int) -> Self:
        """The slot of a number that `pack` gave."""
        key, rest = divmod(packed, _VOTES)
        return cls(*divmod(key, MAX_INSTANCES), *divmod(rest, _ATTEMPTS))


def instance_key(number: int, instance: int) -> int:
    """One number for an instance; sorts by instruction, then by instance."""
    return number * MAX_INSTANCES + instance
