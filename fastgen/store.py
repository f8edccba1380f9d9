"""The run folder: everything a run is, in one place that can be copied, moved and read while it is written.

::

    run.json             format, run id, the run's meaning (what resume must not change) and its options; no secrets
    seed_tasks.jsonl     the seeds as they were, so that the folder stands alone
    prompts/             the prompts and demonstrations as they were
    log/                 the truth (see `fastgen.log`)
    ledger.json          a snapshot of the counts with its log position; rebuilt from the log when it does not fit
    lock                 held by the process that writes
    server.log           output of a server that fastgen started

`RunFolder` reads; `Store` is the one writer. Both speak of commits, not of bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastgen.commits import Commit, decode, encode
from fastgen.errors import DamagedLogError, DiskError, RunFolderError
from fastgen.ledger import Ledger
from fastgen.log import LogWriter, Position, TornTail, compress_segment, read_log, segment_files

RUN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunHeader:
    """The content of ``run.json``."""

    run_id: str
    version: str
    meaning: dict[str, Any]
    options: dict[str, Any]


class RunFolder:
    """A run folder for reading; needs no lock and works while another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path / "log"
        self.seeds_path = path / "seed_tasks.jsonl"
        self.prompts_path = path / "prompts"
        self.server_log_path = path / "server.log"
        self._header_path = path / "run.json"
        self._ledger_path = path / "ledger.json"

    def exists(self) -> bool:
        """Whether a run was begun here.

        :raises RunFolderError: the path is a file, or a folder of something else.
        """
        if self._header_path.exists():
            return True
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--run-dir {self.path}: is a file; name a folder")
        if self.path.is_dir() and any(p.name not in {"lock", "server.log"} for p in self.path.iterdir()):
            raise RunFolderError(f"--run-dir {self.path}: holds files but no run; name a new or empty folder")
        return False

    def header(self) -> RunHeader:
        """What the run is.

        :raises RunFolderError: no run here, unreadable, or written by a newer version.
        """
        if not self.exists():
            raise RunFolderError(f"--run-dir {self.path}: there is no run here; 'fastgen generate' starts one")
        try:
            data = orjson.loads(self._header_path.read_bytes())
            run_format = data["format"]
            if run_format > RUN_FORMAT:
                raise RunFolderError(
                    f"{self._header_path}: written by fastgen {data['fastgen']} (run format {run_format}, this version "
                    f"reads {RUN_FORMAT}); upgrade fastgen"
                )
            return RunHeader(data["run"], data["fastgen"], data["meaning"], data["options"])
        except OSError as error:
            raise RunFolderError(f"{self._header_path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise RunFolderError(f"{self._header_path}: damaged; restore it from a copy") from None

    def write_header(self, header: RunHeader) -> None:
        """Create or replace ``run.json``, atomically."""
        data = {
            "format": RUN_FORMAT,
            "run": header.run_id,
            "fastgen": header.version,
            "meaning": header.meaning,
            "options": header.options,
        }
        _write_atomically(self._header_path, orjson.dumps(data, option=orjson.OPT_INDENT_2))

    def commits(self, start: Position | None = None) -> Iterator[tuple[Commit, Position] | TornTail]:
        """All commits in order, each with the log position after it; then the torn tail, if there is one.

        :raises DamagedLogError: the log is damaged, with file and line.
        """
        for item in read_log(self.log_path, run_id=self.header().run_id, start=start):
            if isinstance(item, TornTail):
                yield item
                continue
            body, position = item
            try:
                yield decode(body), position
            except (KeyError, TypeError, ValueError) as error:
                raise DamagedLogError(
                    f"{self.log_path}: segment {position.segment:06d}, line ending at byte {position.offset}: "
                    f"not a commit that this version of fastgen can read ({error!r}); upgrade fastgen"
                ) from None

    def keep(self, seeds: bytes, prompts: Mapping[str, bytes]) -> None:
        """Keep the seed file and the prompt files (name to content) that a new run is made with.

        :raises DiskError: the folder cannot be written.
        """
        try:
            self.prompts_path.mkdir(exist_ok=True)
        except OSError as error:
            raise DiskError(f"{self.prompts_path}: cannot be made ({error.strerror})") from error
        _write_atomically(self.seeds_path, seeds)
        for name, content in prompts.items():
            _write_atomically(self.prompts_path / name, content)

    def ledger(self) -> Ledger:
        """The counts as of now, from the snapshot and what the log has beyond it."""
        ledger, position = self.ledger_snapshot()
        try:
            return self._catch_up(ledger, position)
        except DamagedLogError:
            if position is None:
                raise
            return self._catch_up(Ledger(), None)  # a snapshot of another log; real damage is met again

    def _catch_up(self, ledger: Ledger, position: Position | None) -> Ledger:
        for item in self.commits(position):
            if not isinstance(item, TornTail):
                ledger.apply(item[0])
        return ledger

    def ledger_snapshot(self) -> tuple[Ledger, Position | None]:
        """The last saved counts and their log position; empty ones where there is no usable snapshot."""
        try:
            data = orjson.loads(self._ledger_path.read_bytes())
            if data["run"] == self.header().run_id:
                return Ledger.from_dict(data["counts"]), Position(*data["position"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return Ledger(), None

    def server_figures(self) -> dict[str, Any]:
        """What the servers said of themselves when the snapshot was saved."""
        with contextlib.suppress(OSError, ValueError):
            figures = orjson.loads(self._ledger_path.read_bytes()).get("server")
            return figures if isinstance(figures, dict) else {}
        return {}

    def save_ledger(self, ledger: Ledger, position: Position, run_id: str, server: Mapping[str, Any]) -> None:
        """Replace the snapshot, atomically; not synced, since the log can always rebuild it."""
        data = {"run": run_id, "position": list(position), "counts": ledger.as_dict(), "server": server}
        _write_atomically(self._ledger_path, orjson.dumps(data, option=orjson.OPT_INDENT_2), durable=False)


class Store:
    """The one writer of a run folder, holding its lock from construction to `close`.

    Use: construct, `replay` to the end once, then `append` as often as needed and apply to `ledger` what was appended.
    `append`, `sync` and `compress_closed` may run in worker threads, one call of each at a time.

    :raises RunFolderError: another process writes here.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._lock = _acquire_lock(folder.path)
        self._run_id = ""
        self._end: Position | None = None
        self._writer: LogWriter | None = None
        self.torn: TornTail | None = None
        self.ledger = Ledger()
        self.server_figures: dict[str, Any] = folder.server_figures()

    def begin(self, meaning: dict[str, Any], options: dict[str, Any], version: str) -> None:
        """Start a new run here."""
        self.folder.write_header(RunHeader(uuid.uuid4().hex, version, meaning, options))

    def replay(self) -> Iterator[Commit]:
        """Every committed commit in order; afterwards the store is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end.
        """
        self._run_id = self.folder.header().run_id
        for item in self.folder.commits():
            if isinstance(item, TornTail):
                self.torn = item
                continue
            commit, self._end = item
            self.ledger.apply(commit)
            yield commit
        self._writer = LogWriter(self.folder.log_path, run_id=self._run_id, end=self._end)

    def append(self, commits: Sequence[Commit]) -> None:
        """Write the commits as one block.

        :raises DiskError: none of them was kept.
        """
        writer = self._open_writer()
        if writer.segment_full:
            writer.roll()
        writer.append(map(encode, commits))

    def sync(self) -> None:
        """Make everything appended durable.

        :raises DiskError: the disk refused.
        """
        self._open_writer().sync()

    def save_ledger(self) -> None:
        """Save the counts for quick readers. Call it between appends, when the ledger has all of them."""
        self.folder.save_ledger(self.ledger, self._open_writer().position, self._run_id, self.server_figures)

    def compress_closed(self) -> None:
        """Compress closed segments that are still plain."""
        current = self._open_writer().position.segment
        for number, path in segment_files(self.folder.log_path):
            if number < current and path.suffix == ".jsonl":
                compress_segment(path)

    def close(self) -> None:
        """Sync, close and let go of the lock. Safe to call twice."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
                self.folder.save_ledger(self.ledger, writer.position, self._run_id, self.server_figures)
        finally:
            with contextlib.suppress(OSError):
                os.close(self._lock)

    def _open_writer(self) -> LogWriter:
        if self._writer is None:
            raise RuntimeError("replay() must run to its end before the store can write")
        return self._writer


def _acquire_lock(path: Path) -> int:
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError):
        raise RunFolderError(f"--run-dir {path}: is, or lies under, a file; name a folder") from None
    except OSError as error:
        raise DiskError(
            f"--run-dir {path}: cannot be written ({error.strerror}); mend that or name another folder"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise RunFolderError(
            f"--run-dir {path}: in use by {holder or 'another process'}; wait for it, stop it, or name another folder"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as sink:
            sink.write(content)
            sink.flush()
            if durable:
                os.fsync(sink.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror}); make room or mend the permissions, then "
            f"run the same command again"
        ) from error
