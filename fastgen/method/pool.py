"""The kept machine instructions of a run in memory: texts packed end to end and one state byte each.

A million instructions take about 100 MB here, where Python strings and objects would take several times that.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, Self


class State(IntEnum):
    """Where a kept instruction stands."""

    KEPT = 0  # not yet classified
    GENERATION = 1  # not a classification task; instances to come
    CLASSIFICATION = 2  # a classification task; instances to come
    COMPLETE = 3  # has instances
    EMPTY = 4  # settled without instances


_UNSETTLED = re.compile(rb"[\x00-\x02]")


class PoolColumn(NamedTuple):
    """One of the three arrays that a pool is: its name, dtype in numpy's notation, and flat memory."""

    name: str
    dtype: str
    data: memoryview


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
        encoded = text.encode("utf-8", "surrogatepass")
        try:
            self._bytes += encoded
            self._ends.append(len(self._bytes))
            self._states.append(State.KEPT)
        except BufferError:  # somebody still holds `columns`: they keep the memory, the pool goes on in a copy
            count = len(self._states)
            self._bytes = self._bytes[: self._ends[count]] + encoded
            self._ends = self._ends[: count + 1]
            self._ends.append(len(self._bytes))
            self._states = self._states[:count] + bytes([State.KEPT])

    def text(self, number: int) -> str:
        """The instruction's text.

        :raises IndexError: no such number.
        """
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def memory_bytes(self) -> int:
        """Bytes held, room to grow included."""
        return sum(map(sys.getsizeof, (self._bytes, self._ends, self._states)))

    def state(self, number: int) -> State:
        """Where the instruction stands."""
        return State(self._states[number])

    def set_state(self, number: int, state: State) -> None:
        """Move the instruction on."""
        self._states[number] = state

    def unsettled(self) -> Iterator[tuple[int, State]]:
        """Number and state of every instruction that waits for something, in ascending order."""
        return ((found.start(), State(self._states[found.start()])) for found in _UNSETTLED.finditer(self._states))

    def columns(self) -> tuple[PoolColumn, PoolColumn, PoolColumn]:
        """The pool as flat memory, not copied; while it is held, growing costs a copy. `from_columns` reads it."""
        wide = "<u8" if sys.byteorder == "little" else ">u8"
        return (
            PoolColumn("texts", "|u1", memoryview(self._bytes)),
            PoolColumn("ends", wide, memoryview(self._ends).cast("B")),
            PoolColumn("states", "|u1", memoryview(self._states)),
        )

    @classmethod
    def from_columns(cls, texts: bytearray, ends: bytearray, states: bytearray) -> Self:
        """:raises ValueError: the three do not fit together."""
        pool = cls()
        pool._bytes, pool._states, pool._ends = texts, states, array("Q")
        pool._ends.frombytes(ends)
        if len(pool._ends) != len(states) + 1 or pool._ends[-1] != len(texts):
            raise ValueError("the columns of a pool do not fit together")
        return pool
