"""The kept machine instructions of a run in memory: texts packed end to end and one state byte each.

A million instructions take about 100 MB here, where Python strings and objects would take several times that.
"""

from __future__ import annotations

from array import array
from enum import IntEnum


class State(IntEnum):
    """Where a kept instruction stands."""

    KEPT = 0  # not yet classified
    GENERATION = 1  # not a classification task; instances to come
    CLASSIFICATION = 2  # a classification task; instances to come
    COMPLETE = 3  # has instances
    EMPTY = 4  # settled without instances


class InstructionPool:
    """Append-only texts with a mutable state; index = machine instruction number."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])
        self._states = bytearray()

    def __len__(self) -> int:
        return len(self._states)

    def append(self, text: str) -> None:
        """Add one instruction in state KEPT; lone surrogates survive."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))
        self._states.append(State.KEPT)

    def text(self, number: int) -> str:
        """The instruction's text.

        :raises IndexError: no such number.
        """
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def memory_bytes(self) -> int:
        """Bytes in use."""
        return len(self._bytes) + self._ends.itemsize * len(self._ends) + len(self._states)

    def state(self, number: int) -> State:
        """Where the instruction stands."""
        return State(self._states[number])

    def set_state(self, number: int, state: State) -> None:
        """Move the instruction on."""
        self._states[number] = state
