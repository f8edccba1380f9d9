"""A run's state at a position of its log, saved next to it, so that a start reads only the end of the log.

``checkpoint.npz`` is an uncompressed archive of arrays, which `numpy.load` opens, with one more file, ``facts.json``.
It holds what a replay of the log up to the position gives: the run's state (texts and states of the pool, figures, the
similarity index as it is in memory) and the ledger. The facts also say what it belongs to: the run, the version of
fastgen, the configuration, and the log: the position, the checksum there, and a digest of every segment up to there.

Guarantees:

- A checkpoint is derived from the log. `load_checkpoint` compares every byte of the log before the position with the
  digests. A checkpoint that does not fit or is not whole is ignored with one line. The whole log is read instead, which
  finds any damage.
- A file that was begun and not finished never has the checkpoint's name. A change of any byte that matters is found, at
  the latest when the array in question is read (the archive has a CRC-32 of each file in it).
- A checkpoint that is older than the log is brought up to date from the log's end. An index that other code saved is
  built again from the texts.
- A checkpoint is written whenever the pool has grown by a share, and when the run ends. While the run continues, the
  thread that decides copies the state between two batches into memory that was made ready before, and another thread
  writes it. A batch waits only for the copy, and the event loop never waits. If the disk has no room, there is one
  warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import mmap
import shutil
import threading
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from fastgen import __version__
from fastgen.errors import FastgenError, InputError
from fastgen.methods.plan import Plan
from fastgen.methods.state import InstructionPool, Notes, RunState
from fastgen.store.files import replacing, temporary_for
from fastgen.store.ledger import Ledger
from fastgen.store.log import Digest, Position, digest_log
from fastgen.store.run_folder import Progress, RunFolder, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.pool import CandidateIndex


log = logging.getLogger(__name__)

ROOM_LEFT_BYTES = 256 << 20
"""Of the disk, for the log, which a checkpoint must not crowd out."""
GROWTH = 0.2
"""Of the pool since the last checkpoint: a start replays at most this share."""
LEAST_GROWTH = 10_000
"""Instructions; fewer are replayed in a second."""
MOST_COPIED_BYTES = 3 << 29
"""A larger copy would delay a batch of decisions by more than 250 ms where memory is slow (6.5 GB/s)."""
_SPARE = 1.15  # memory for what is decided between making it and copying
_SPARE_BYTES = 32 << 20
_ALIGNMENT = 64
_PIECE_BYTES = 1 << 20  # read or written at once; fits a processor's cache
_TOUCHED_BYTES = 16 << 20  # at once
_FACTS = "facts.json"
_INDEX = "index/"
_EARLIER_NAME = "snapshot.bin"  # a checkpoint of an earlier version, which is not read


class CheckpointUnusable(Exception):
    """The checkpoint is damaged or of something else. ``str`` says which."""


class Abandoned(Exception):
    """Writing was abandoned on request."""


class CheckpointEnd(NamedTuple):
    """How far a checkpoint reaches: a position in the log, and the instructions kept up to there."""

    position: Position
    instructions: int


class Checkpoint(NamedTuple):
    """A checkpoint in memory: ``facts`` (JSON values, without the log's digests) and flat arrays by name."""

    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def size(self) -> int:
        """Bytes that a copy needs."""
        return sum(_aligned(values.nbytes) for values in self.arrays.values())

    def copy_into(self, memory: NDArray[Any]) -> Checkpoint | None:
        """Copy the arrays into ``memory`` (bytes). Returns ``None`` if they do not fit. Releases the GIL."""
        if self.size > len(memory):
            return None
        arrays, offset = {}, 0
        for name, values in self.arrays.items():
            arrays[name] = memory[offset : offset + values.nbytes].view(values.dtype)
            arrays[name][:] = values
            offset += _aligned(values.nbytes)
        return Checkpoint(self.facts, arrays)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def make_copy_memory(size: int) -> NDArray[Any]:
    """Memory of ``size`` bytes for `Checkpoint.copy_into`, already touched, so that the copy runs at memory speed.

    The first touch of a page costs tens of times what copying it does. This may take its time.
    """
    import numpy as np

    space = mmap.mmap(-1, max(size, mmap.PAGESIZE))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        space.madvise(mmap.MADV_HUGEPAGE)
    memory: NDArray[Any] = np.frombuffer(space, np.uint8)
    for begin in range(0, size, _TOUCHED_BYTES):
        memory[begin : begin + _TOUCHED_BYTES] = 0
    return memory[:size]


def capture(run: RunState, store: Store, *, with_index: bool = True) -> Checkpoint:
    """The state as it is, not copied: valid until the next commit is judged or applied.

    Everything appended must have been applied to the run's state and to the ledger.
    """
    import numpy as np

    from fastgen.similarity.jit import source_checksum

    header = store.folder.header()
    facts = {
        "run": header.run_id,
        "fastgen": __version__,
        "meaning": header.configuration_fingerprint,
        "position": tuple(store.position),
        "ledger": store.ledger.as_dict(),
        "plan": run.folded(),
        "index": source_checksum() if with_index else None,
    }
    pool = {f"pool/{column.name}": np.frombuffer(column.data, column.dtype) for column in run.pool.columns()}
    shown = np.frombuffer(run.shown_counts(), np.uint8)
    index = {_INDEX + name: values for name, values in run.save_index().items()} if with_index else {}
    return Checkpoint(facts, {**pool, "shown": shown, **index})


# -- the file ----------------------------------------------------------------------------------------------------------


def write_checkpoint(
    store: Store, checkpoint: Checkpoint, closed: list[Digest], *, is_abandoned: Callable[[], bool] = lambda: False
) -> int:
    """Replace the run's checkpoint and return its size in bytes. ``closed`` keeps the digests of closed segments.

    :raises OSError, DiskError, DamagedLogError, Abandoned: the file was not changed.
    """
    folder = store.folder
    digests = digest_log(folder.log_path, Position(*checkpoint.facts["position"]), closed)
    closed[:] = digests[:-1]  # the last segment may grow
    store.sync()  # a checkpoint must never know more than the disk
    facts = checkpoint.facts | {"log": [tuple(digest) for digest in digests]}
    write_archive(folder.checkpoint_path, facts, checkpoint.arrays, is_abandoned=is_abandoned)
    earlier = folder.path / _EARLIER_NAME
    for path in (earlier, temporary_for(earlier)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return folder.checkpoint_path.stat().st_size


def write_archive(
    path: Path,
    facts: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    is_abandoned: Callable[[], bool] = lambda: False,
) -> None:
    """Replace the file atomically and durably, as ``numpy.savez`` writes it. An exception leaves the old one.

    ``is_abandoned`` is called for every piece.

    :raises Abandoned: it returned true.
    :raises OSError: the disk refused, or would be left with less than `ROOM_LEFT_BYTES`.
    """
    from numpy.lib import format as npy

    size = sum(values.nbytes for values in arrays.values())
    if shutil.disk_usage(path.parent).free < size + ROOM_LEFT_BYTES:
        raise OSError(errno.ENOSPC, f"a checkpoint of {size / 1e6:,.0f} MB would leave too little room for the log")
    with replacing(path) as sink, zipfile.ZipFile(sink, "w") as archive:
        # The default time of a ZipInfo, since a clock before 1980 has no place in an archive.
        archive.writestr(zipfile.ZipInfo(_FACTS), orjson.dumps({**facts, "arrays": [*arrays]}))
        for name, values in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                npy.write_array_header_1_0(entry, npy.header_data_from_array_1_0(values))
                data = values.view("u1").data
                for begin in range(0, len(data), _PIECE_BYTES):
                    if is_abandoned():
                        raise Abandoned
                    entry.write(data[begin : begin + _PIECE_BYTES])


class CheckpointFile:
    """An open checkpoint: its ``facts``, and the length of each array by name, ``rows``. A context manager that closes.

    :raises CheckpointUnusable: the file is missing, damaged, or has another form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _damage_named():
            self._archive = zipfile.ZipFile(path)
            try:
                self.facts: dict[str, Any] = {**orjson.loads(self._archive.read(_FACTS))}
                self.rows = {name: self._rows(name) for name in self.facts["arrays"]}
            except BaseException:
                self._archive.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def _rows(self, name: str) -> int:
        entry = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(entry) as content:
            (rows,), dtype = _read_header(content)
            if entry.compress_type != zipfile.ZIP_STORED or content.tell() + rows * dtype.itemsize != entry.file_size:
                raise zipfile.BadZipFile(f"{name} has another size")
        return rows

    def read_into(self, name: str, target: NDArray[Any]) -> None:
        """Fill a flat array.

        :raises ValueError: the stored array has another length or dtype.
        :raises CheckpointUnusable: it is missing or damaged; ``target`` then holds anything.
        """
        data = target.view("u1").data
        with _damage_named(), self._archive.open(f"{name}.npy") as entry:
            is_alike = _read_header(entry) == (target.shape, target.dtype)
            for begin in range(0, len(data) if is_alike else 0, _PIECE_BYTES):
                piece = data[begin : begin + _PIECE_BYTES]
                if entry.readinto(piece) != len(piece):  # type: ignore[attr-defined]  # every buffered file has it
                    raise EOFError  # with the last byte, `zipfile` has compared the checksum
        if not is_alike:
            raise ValueError(f"{name} has another length or dtype")

    def read(self, name: str, dtype: str) -> bytearray:
        """The bytes of an array.

        :raises ValueError: it has another dtype. :raises CheckpointUnusable: it is missing or damaged.
        """
        import numpy as np

        if name not in self.rows:
            raise CheckpointUnusable(f"it lacks {name}")
        content = bytearray(self.rows[name] * np.dtype(dtype).itemsize)
        self.read_into(name, np.frombuffer(content, dtype))
        return content


def _read_header(entry: Any) -> tuple[tuple[int, ...], Any]:  # noqa: ANN401 - a file in an archive, and a dtype
    from numpy.lib import format as npy

    npy.read_magic(entry)
    shape, _, dtype = npy.read_array_header_1_0(entry)
    return shape, dtype


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """:raises CheckpointUnusable: whatever `zipfile`, `numpy` and `orjson` raise over a file that is not whole."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointUnusable("there is none") from None
    except OSError as error:
        raise CheckpointUnusable(f"it cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - of many kinds, none of which may stop a start
        raise CheckpointUnusable(f"it is damaged ({str(error) or 'cut short'})") from None


# -- a start -----------------------------------------------------------------------------------------------------------


def load_checkpoint(store: Store, plan: Plan) -> CheckpointEnd | None:
    """Bring a fresh plan and store to the log's end. Returns how far the checkpoint reached, if one was used.

    :raises DamagedLogError: the log is damaged other than at its torn end. :raises DiskError: it cannot be written.
    """
    path = store.folder.checkpoint_path
    with contextlib.suppress(OSError):
        temporary_for(path).unlink(missing_ok=True)  # a process was killed while it wrote
    known = None
    if path.exists():
        try:
            known = _restore(store.folder, plan.state)
        except CheckpointUnusable as reason:
            log.warning("%s: not used, since %s; the whole log is read instead", path, reason)
    end = None if known is None else CheckpointEnd(known.position, len(plan.state.pool))
    plan.resume(store.replay(known))
    return end


def _restore(folder: RunFolder, run: RunState) -> Progress:
    """:raises CheckpointUnusable: and the run's state is as it was."""
    with CheckpointFile(folder.checkpoint_path) as file, ThreadPoolExecutor(max_workers=1) as background:
        facts = file.facts
        _check_belongs(facts, folder)
        try:
            _check_form(facts["plan"], run.folded())
            position, ledger = Position(*facts["position"]), Ledger.from_dict(facts["ledger"])
            current_log = background.submit(digest_log, folder.log_path, position)
            columns = {"texts": "u1", "ends": "u8", "states": "u1", "depths": "u1"}
            pool = InstructionPool.from_columns(*(file.read(f"pool/{name}", kind) for name, kind in columns.items()))
            shown = bytes(file.read("shown", "u1"))
            array("I").frombytes(shown)
            index = _load_index(file, run, run.seeds + len(pool))
            if current_log.result() != [tuple(digest) for digest in facts["log"]]:
                raise CheckpointUnusable("the log it was made from was another")
        except InputError as error:  # of the log: read as a whole, it tells what is wrong with it
            raise CheckpointUnusable(str(error)) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointUnusable(f"it has another form ({error!r})") from None
        run.restore(facts["plan"], pool, shown, index)
    return Progress(position, ledger)


def _check_belongs(facts: Mapping[str, Any], folder: RunFolder) -> None:
    header = folder.header()
    if facts.get("run") != header.run_id:
        raise CheckpointUnusable("it is of another run")
    if facts.get("fastgen") != __version__:
        raise CheckpointUnusable(f"it was made by fastgen {facts.get('fastgen')}")
    if facts.get("meaning") != header.configuration_fingerprint:
        raise CheckpointUnusable("it is of a run with other options")


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
        elif name in {"failures", "lost_sources"}:
            is_right = all(type(number) is type(count) is int for number, count in value)
        elif name == "notes":  # of subjects on their way
            is_right = all(type(number) is int and Notes.is_form_of(values) for number, values in value)
        else:
            is_right = isinstance(value, list) and all(type(one) is int for one in value)
        if not is_right:
            raise ValueError(f"{name} is {value!r:.60}")


def _load_index(file: CheckpointFile, run: RunState, entries: int) -> CandidateIndex | None:
    """The saved index, or ``None`` where it has to be built again."""
    from fastgen.similarity.jit import source_checksum
    from fastgen.similarity.layout import StoredArrays

    if file.facts["index"] is None:
        return None
    if file.facts["index"] != source_checksum():
        log.warning("%s: its index was saved by other code; it is built again", file.path)
        return None
    rows = {name.removeprefix(_INDEX): rows for name, rows in file.rows.items() if name.startswith(_INDEX)}
    try:
        index = run.load_index(StoredArrays(rows, lambda name, target: file.read_into(_INDEX + name, target)))
    except ValueError as reason:
        log.warning("%s: its index is not used (%s); it is built again", file.path, reason)
        return None
    if len(index) != entries:
        raise CheckpointUnusable("its index and its texts do not fit together")
    return index


# -- while a run continues ---------------------------------------------------------------------------------------------


class Checkpointer:
    """Call it after every batch, when everything appended is applied, and `finish` at the end. A context manager.

    ``judge`` is the thread that decides, ``last`` the end of the newest checkpoint.
    """

    def __init__(
        self,
        store: Store,
        run: RunState,
        judge: ThreadPoolExecutor,
        *,
        last: CheckpointEnd | None = None,
        growth: float = GROWTH,
        least_growth: int = LEAST_GROWTH,
        most_copied_bytes: int = MOST_COPIED_BYTES,
    ) -> None:
        self._store = store
        self._run = run
        self._judge = judge
        self._growth = growth
        self._least_growth = least_growth
        self._most_copied_bytes = most_copied_bytes
        self._last = last or CheckpointEnd(Position(0, 0, 0), 0)
        self._closed: list[Digest] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._making: Future[NDArray[Any]] | None = None
        self._writing: Future[None] | None = None
        self._memory_bytes = 0
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
        """Save if it is time. Returns when the state may change again."""
        if self._writing is not None and not self._writing.done():
            return
        if self._making is None:
            if self._is_due():
                needed = self._with_spare(self._run.memory_bytes())
                self._making = self._thread.submit(make_copy_memory, max(self._memory_bytes, needed))
        elif self._making.done():
            making, self._making = self._making, None
            await self._copy(making)

    async def finish(self) -> None:
        """Save the last state, without a copy. When cancelled, abandon it."""
        self._making = None
        if len(self._run.pool) < self._least_growth or not self._store.is_counted:
            return
        if self._last.position == self._store.position:
            if self._writing is not None:  # a copy of this state, which may still be on its way to the disk
                await asyncio.wrap_future(self._writing)
            return
        self._writing = self._thread.submit(lambda: self._write(capture(self._run, self._store)))
        await asyncio.wrap_future(self._writing)

    def _is_due(self) -> bool:
        grown = len(self._run.pool) - self._last.instructions
        return grown >= max(self._least_growth, self._growth * self._last.instructions)

    def _with_spare(self, size: int) -> int:
        return int(_SPARE * min(size, self._most_copied_bytes)) + _SPARE_BYTES

    async def _copy(self, making: Future[NDArray[Any]]) -> None:
        now = CheckpointEnd(self._store.position, len(self._run.pool))
        try:
            memory = making.result()
            checkpoint = await asyncio.get_running_loop().run_in_executor(self._judge, self._copy_now, memory)
        except (OSError, MemoryError, FastgenError) as error:  # no memory to spare, or no folder any more
            self._last = now
            self._warn(error)
            return
        if checkpoint is not None:
            self._last = now
            self._writing = self._thread.submit(self._write, checkpoint)

    def _copy_now(self, memory: NDArray[Any]) -> Checkpoint | None:
        """In the judging thread: make a consistent copy. If it does not fit, get more memory and return none."""
        if not self._store.is_counted:
            return None
        checkpoint = capture(self._run, self._store)
        size = checkpoint.size
        if size > self._most_copied_bytes:
            checkpoint = capture(self._run, self._store, with_index=False)
        copied = checkpoint.copy_into(memory)
        self._memory_bytes = 0 if copied is not None else self._with_spare(size)
        return copied

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            size = write_checkpoint(self._store, checkpoint, self._closed, is_abandoned=self._abandoned.is_set)
        except Abandoned:
            pass
        except (OSError, MemoryError, FastgenError) as error:
            self._warn(error)
        else:
            log.info("checkpoint saved, %.0f MB", size / 1e6)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            path = self._store.folder.checkpoint_path
            log.warning("%s: cannot be saved (%s); the run continues, its next start takes longer", path, error)
