"""When a run's state is saved: whenever its pool has grown by a share, and when it ends.

While the run goes on, the state is copied into memory between two batches of decisions, in the thread that decides, and
written in another; the memory was made ready before. Guarantees: a batch waits for the copy only, which is left without
the index where that is larger than `MOST_COPIED_BYTES`; the event loop waits for nothing; a disk that cannot take the
snapshot is one warning and no more. See `fastgen.generation.checkpoint` for what is saved.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from fastgen.errors import FastgenError
from fastgen.generation.checkpoint import Room, Saved, State, Writer, look_at
from fastgen.method.run_state import RunState
from fastgen.storage.log.format import Position
from fastgen.storage.snapshot import Abandoned
from fastgen.storage.store import Store

log = logging.getLogger(__name__)
GROWTH = 0.2  # of the pool since the last snapshot: a start replays at most this share
LEAST_GROWTH = 10_000  # instructions; fewer are replayed in a second
MOST_COPIED_BYTES = 3 << 29
"""More would hold up a batch of decisions for longer than 250 ms where memory is slow (6.5 GB/s)."""
_SPARE = 1.15  # room for what is decided between making room and copying
_SPARE_BYTES = 32 << 20


class Checkpointer:
    """Call it after every batch, when everything appended is applied; `finish` at the end. A context manager.

    ``judge`` is the thread that decides, ``last`` the newest snapshot.
    """

    def __init__(
        self,
        store: Store,
        run: RunState,
        judge: ThreadPoolExecutor,
        *,
        last: Saved | None = None,
        growth: float = GROWTH,
        least_growth: int = LEAST_GROWTH,
    ) -> None:
        self._store = store
        self._run = run
        self._judge = judge
        self._growth = growth
        self._least_growth = least_growth
        self._last = last or Saved(Position(0, 0, 0), 0)
        self._writer = Writer(store.folder)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._making: Future[Room] | None = None
        self._writing: Future[None] | None = None
        self._room_bytes = 0
        self._abandoned = threading.Event()
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned.set()
        self._thread.shutdown(wait=True)

    async def __call__(self) -> None:
        """Save, if it is time; returns when the run may go on."""
        if self._writing is not None and not self._writing.done():
            return
        if self._making is None:
            if self._is_due():
                self._making = self._thread.submit(Room, self._room_needed())
        elif self._making.done():
            room, self._making = self._making, None
            await self._copy(room)

    async def finish(self) -> None:
        """Save the last state, directly from where it is; when cancelled, give that up."""
        self._making = None
        if len(self._run.pool) < self._least_growth or not self._store.is_counted:
            return
        if self._last.position == self._store.position:
            return
        self._writing = self._thread.submit(self._write_last)
        await asyncio.wrap_future(self._writing)

    def _now(self) -> Saved:
        return Saved(self._store.position, len(self._run.pool))

    def _is_due(self) -> bool:
        grown = len(self._run.pool) - self._last.instructions
        return grown >= max(self._least_growth, self._growth * self._last.instructions)

    def _room_needed(self) -> int:
        return max(self._room_bytes, int(_SPARE * min(self._run.memory_bytes(), MOST_COPIED_BYTES)) + _SPARE_BYTES)

    async def _copy(self, making: Future[Room]) -> None:
        now = self._now()
        try:
            room = making.result()
            state = await asyncio.get_running_loop().run_in_executor(self._judge, self._copy_now, room)
        except (OSError, MemoryError, FastgenError) as error:  # no memory to spare, or no folder any more
            self._last = now
            self._warn(error)
            return
        if state is not None:
            self._last = now
            self._writing = self._thread.submit(self._write, state)

    def _copy_now(self, room: Room) -> State | None:
        """In the judge's thread: a consistent copy, or none where it did not fit (then a larger room is made)."""
        if not self._store.is_counted:
            return None
        state = look_at(self._run, self._store)
        size = sum(part.data.nbytes for part in state.parts)
        if size > MOST_COPIED_BYTES:
            state = look_at(self._run, self._store, with_index=False)
        copied = room.copy(state)
        self._room_bytes = 0 if copied is not None else int(_SPARE * min(size, MOST_COPIED_BYTES)) + _SPARE_BYTES
        return copied

    def _write_last(self) -> None:
        self._write(look_at(self._run, self._store))

    def _write(self, state: State) -> None:
        try:
            size = self._writer.write(state, sync_log=self._store.sync, go_on=lambda: not self._abandoned.is_set())
        except Abandoned:
            pass
        except (OSError, MemoryError, FastgenError) as error:
            self._warn(error)
        else:
            log.info("snapshot saved, %.0f MB", size / 1e6)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            path = self._store.folder.snapshot_path
            log.warning("%s: cannot be saved (%s); the run goes on, its next start takes longer", path, error)
