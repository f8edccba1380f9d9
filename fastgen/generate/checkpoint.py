"""A run's state at a position of its log, saved beside it, so that a start reads the end of the log only.

What is saved is the fold of the log: the run's state (texts and states of the pool, figures, the similarity index as it
stands in memory) and the ledger. With it goes what it belongs to: run, fastgen version, the run's meaning, and the log
it was made from: position, checksum there, and a digest of every segment up to there.

Guarantees: the log stays the only truth. `take_up` compares every byte of the log before the position with the digests,
and a snapshot that does not fit, or is not whole, is ignored with one line; the whole log is read instead, and what is
wrong with it is found there. A snapshot that is older than the log is brought up to date from the log's end. An index
that cannot be saved, or was saved by other code, is built anew from the texts.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fastgen import __version__
from fastgen.errors import FastgenError, InputError
from fastgen.methods.self_instruct.plan import Plan
from fastgen.methods.self_instruct.state import InstructionPool, RunState
from fastgen.similarity.novelty import IndexSource
from fastgen.store.ledger import Ledger
from fastgen.store.log import Digest, Position, digest_log
from fastgen.store.run_folder import Progress, RunFolder, Store
from fastgen.store.snapshot import (
    Abandoned,
    Part,
    SnapshotReader,
    SnapshotUnusable,
    align,
    forget_unfinished,
    write_snapshot,
)

if TYPE_CHECKING:
    from fastgen.similarity.layout import CandidateIndex


log = logging.getLogger(__name__)
_INDEX = "index"
_PIECE_BYTES = 16 << 20


class State(NamedTuple):
    """A run's state at ``position``: ``facts`` and ``parts`` as a snapshot has them, but for the log's digests."""

    position: Position
    facts: dict[str, Any]
    parts: tuple[Part, ...]


class Saved(NamedTuple):
    """What a snapshot has: a position in the log, and so many instructions."""

    position: Position
    instructions: int


class Room:
    """Memory for a copy of ``size`` bytes, touched beforehand, so that the copy itself runs at memory speed.

    First touching a page costs tens of times what copying it does; whoever makes the room need not be in a hurry.
    """

    def __init__(self, size: int) -> None:
        import numpy as np

        self.size = size
        space = mmap.mmap(-1, max(size, mmap.PAGESIZE))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            space.madvise(mmap.MADV_HUGEPAGE)
        self._array = np.frombuffer(space, np.uint8)
        for begin in range(0, size, _PIECE_BYTES):
            self._array[begin : begin + _PIECE_BYTES] = 0

    def copy(self, state: State) -> State | None:
        """The state with copies of its parts, in this memory; ``None`` if they do not fit. Releases the GIL."""
        import numpy as np

        if sum(align(part.data.nbytes) for part in state.parts) > self.size:
            return None
        copied, offset = [], 0
        for part in state.parts:
            target = self._array[offset : offset + part.data.nbytes]
            target[:] = np.frombuffer(part.data, np.uint8) if part.data.nbytes else 0
            copied.append(part._replace(data=target.data))
            offset += align(part.data.nbytes)
        return state._replace(parts=tuple(copied))


def look_at(run: RunState, store: Store, *, with_index: bool = True) -> State:
    """The state as it is, not copied: valid until the next commit is judged or applied.

    Everything appended must have been applied, to the run's state and to the ledger.
    """
    header = store.folder.header()
    values, index = _index_parts(run) if with_index else (None, ())
    facts = {
        "run": header.run_id,
        "fastgen": __version__,
        "meaning": header.meaning_fingerprint,
        "position": tuple(store.position),
        "ledger": store.ledger.as_dict(),
        "plan": run.folded(),
        "index": values,
    }
    shown = run.shown_counts()
    pool = [_flat(f"pool/{column.name}", column.dtype, column.data) for column in run.pool.columns()]
    return State(store.position, facts, (*pool, _flat("shown", "|u1", memoryview(shown)), *index))


def _flat(name: str, dtype: str, data: memoryview) -> Part:
    return Part(name, dtype, (data.nbytes // int(dtype[2:]),), data)


def _index_parts(run: RunState) -> tuple[dict[str, Any] | None, Sequence[Part]]:
    from fastgen.similarity.saved import Unsavable, make_of_index

    try:
        saved = run.save_index()
    except Unsavable as reason:
        log.debug("the similarity index is not saved: %s", reason)
        return None, ()
    parts = [
        Part(_INDEX + path, array.dtype.str, array.shape, array.reshape(-1).view("u1").data)
        for path, array in saved.arrays.items()
    ]
    return {"make": make_of_index(), "values": saved.values}, parts


class Writer:
    """Writes states of one run into its folder; one thread at a time. Digests of closed segments are computed once."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._closed: list[Digest] = []

    def write(self, state: State, *, sync_log: Callable[[], None], go_on: Callable[[], bool]) -> int:
        """Replace the snapshot; returns its size in bytes.

        :raises OSError, DiskError, DamagedLogError, Abandoned: it stayed as it was.
        """
        digests = digest_log(self._folder.log_path, state.position, self._closed)
        self._closed = digests[:-1]  # the last segment may grow
        sync_log()  # a snapshot must never know more than the disk
        facts = state.facts | {"log": [tuple(digest) for digest in digests]}
        return write_snapshot(self._folder.snapshot_path, facts, state.parts, go_on=go_on)


def take_up(store: Store, plan: Plan) -> Saved | None:
    """Bring a fresh plan and store to the log's end; returns the snapshot that this began with, if one was used.

    :raises DamagedLogError: the log is damaged other than at its torn end. :raises DiskError: it cannot be written.
    """
    path = store.folder.snapshot_path
    forget_unfinished(path)
    known = None
    if path.exists():
        try:
            known = _restore(store.folder, plan.state)
        except SnapshotUnusable as reason:
            log.warning("%s: not used, since %s; the whole log is read instead", path, reason)
    saved = None if known is None else Saved(known.position, len(plan.state.pool))
    plan.resume(store.replay(known))
    return saved


def _restore(folder: RunFolder, run: RunState) -> Progress:
    """:raises SnapshotUnusable: and the run's state is as it was."""
    with SnapshotReader(folder.snapshot_path) as snapshot, ThreadPoolExecutor(max_workers=1) as beside:
        facts = snapshot.facts
        _check_belongs(facts, folder)
        try:
            _check_form(facts["plan"], run.folded())
            position, ledger = Position(*facts["position"]), Ledger.from_dict(facts["ledger"])
            log_as_it_is = beside.submit(digest_log, folder.log_path, position)
            pool = InstructionPool.from_columns(*(snapshot.read(f"pool/{n}") for n in ("texts", "ends", "states")))
            shown = bytes(snapshot.read("shown"))
            array("I").frombytes(shown)
            index = _load_index(snapshot, run, len(run.seeds) + len(pool))
            if log_as_it_is.result() != [tuple(digest) for digest in facts["log"]]:
                raise SnapshotUnusable("the log it was made from was another")
        except InputError as error:  # of the log: read as a whole, it tells what is wrong with it
            raise SnapshotUnusable(str(error)) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SnapshotUnusable(f"it has another form ({error!r})") from None
        run.restore(facts["plan"], pool, shown, index)
    return Progress(position, ledger)


def _check_belongs(facts: Mapping[str, Any], folder: RunFolder) -> None:
    header = folder.header()
    if facts.get("run") != header.run_id:
        raise SnapshotUnusable("it is of another run")
    if facts.get("fastgen") != __version__:
        raise SnapshotUnusable(f"it was made by fastgen {facts.get('fastgen')}")
    if facts.get("meaning") != header.meaning_fingerprint:
        raise SnapshotUnusable("it is of a run with other options")


def _check_form(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Of the run's figures, since `RunState.restore` takes them as they are.

    :raises ValueError, TypeError, AttributeError: they have another form than this version's ``own``.
    """
    if saved.keys() != own.keys():
        raise ValueError(f"fields {sorted(saved.keys() ^ own.keys())}")
    for name, value in saved.items():
        like, is_right = own[name], True
        if isinstance(like, int):
            is_right = type(value) is int and value >= 0
        elif isinstance(like, str):
            is_right = isinstance(value, str)
        elif isinstance(like, tuple):  # a running mean
            is_right = len(value) == len(like) and all(isinstance(one, int | float) for one in value)
        elif name == "failures":
            is_right = all(type(number) is type(count) is int for number, count in value)
        else:
            is_right = isinstance(value, list) and all(type(one) is int for one in value)
        if not is_right:
            raise ValueError(f"{name} is {value!r:.60}")


def _load_index(snapshot: SnapshotReader, run: RunState, entries: int) -> CandidateIndex | None:
    """The saved index, or ``None`` where it has to be built anew."""
    from fastgen.similarity.saved import Unsavable, make_of_index

    saved = snapshot.facts["index"]
    if saved is None:
        return None
    layout = {
        name.removeprefix(_INDEX): (part.dtype, part.shape)
        for name, part in snapshot.parts.items()
        if name.startswith(_INDEX)
    }
    if saved["make"] != make_of_index():
        log.warning("%s: its index was saved by other code; it is built anew", snapshot.path)
        return None
    try:
        source = IndexSource(saved["values"], layout, lambda path, target: snapshot.read_into(_INDEX + path, target))
        index = run.load_index(source)
    except Unsavable as reason:
        log.warning("%s: its index is not used (%s); it is built anew", snapshot.path, reason)
        return None
    if len(index) != entries:
        raise SnapshotUnusable("its index and its texts do not fit together")
    return index


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
