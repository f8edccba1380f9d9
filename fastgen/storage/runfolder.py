"""The run folder: everything a run is, in one place that can be copied, moved and read while it is written.

::

    run.json             format, run id, the run's meaning (what resume must not change) and its options; no secrets
    seed_tasks.jsonl     the seeds as they were, so that the folder stands alone prompts/             the prompts and
    demonstrations as they were decontaminate.json   the texts that no kept instruction may resemble, if there are any
    log/                 the truth (see `fastgen.storage.log`) ledger.json          a snapshot of the counts with its
    log position; rebuilt from the log when it does not fit snapshot.bin         the state of a large run at a log
    position (see `fastgen.generation.checkpoint`); may always be deleted lock                 held by the process that
    writes server.log           output of a server that fastgen started (of several: server-1.log, server-2.log ...)

`RunFolder` reads, `fastgen.storage.store.Store` is the one writer of the log. Both speak of commits, not of bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastgen.commits import Commit, decode
from fastgen.errors import DamagedLogError, DiskError, InputError, RunFolderError
from fastgen.ledger import Ledger
from fastgen.storage.log.format import Position, TornTail, seal, unseal
from fastgen.storage.log.reader import read_log
from fastgen.storage.log.segments import sync_directory

RUN_FORMAT = 1
_SERVER_LOG = re.compile(r"server(-\d+)?\.log")


@dataclass(frozen=True, slots=True)
class RunHeader:
    """The content of ``run.json``."""

    run_id: str
    version: str
    meaning: dict[str, Any]
    options: dict[str, Any]

    @property
    def meaning_fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of what the run means."""
        return hashlib.sha256(orjson.dumps(self.meaning, option=orjson.OPT_SORT_KEYS)).hexdigest()


class RunFolder:
    """A run folder for reading; needs no lock and works while another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path / "log"
        self.seeds_path = path / "seed_tasks.jsonl"
        self.prompts_path = path / "prompts"
        self.server_log_path = path / "server.log"
        self.snapshot_path = path / "snapshot.bin"
        self._forbidden_path = path / "decontaminate.json"
        self._header_path = path / "run.json"
        self._ledger_path = path / "ledger.json"

    def exists(self) -> bool:
        """Whether a run was begun here.

        :raises RunFolderError: the path is a file, or a folder of something else.
        """
        try:
            if self._header_path.exists():
                return True
            if self.path.exists() and not self.path.is_dir():
                raise RunFolderError(f"--run-dir {self.path}: is a file; name a folder")
            names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        except OSError as error:
            raise RunFolderError(f"--run-dir {self.path}: cannot be used ({error.strerror}); name another") from None
        if not _before_a_run(names):
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
            header = RunHeader(data["run"], data["fastgen"], data["meaning"], data["options"])
            whole = data["crc"] == _checksum(header)
        except OSError as error:
            raise RunFolderError(f"{self._header_path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise RunFolderError(f"{self._header_path}: damaged; restore it from a copy")
        return header

    def write_header(self, header: RunHeader) -> None:
        """Create or replace ``run.json``, atomically.

        :raises InputError: an option's value has no place in JSON. :raises DiskError: the folder cannot be written.
        """
        _check_storable(header.options)
        data = {
            "format": RUN_FORMAT,
            "run": header.run_id,
            "fastgen": header.version,
            "meaning": header.meaning,
            "options": header.options,
            "crc": _checksum(header),
        }
        _write_atomically(self._header_path, orjson.dumps(data, option=orjson.OPT_INDENT_2))

    def commits(self, start: Position | None = None) -> Iterator[tuple[Commit, Position] | TornTail]:
        """All commits in order, each with the log position after it; then the torn tail, if there is one.

        :raises DamagedLogError: the log is damaged, with file and line.
        """
        known = self.ledger_snapshot()[1]  # read first: the log of a run that goes on may only be further
        at_least = known.segment + 1 if known and known.offset else 0
        for item in read_log(self.log_path, run_id=self.header().run_id, start=start, at_least=at_least):
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

    def keep(self, seeds: bytes, prompts: Mapping[str, bytes], forbidden: Sequence[str] = ()) -> None:
        """Keep the seed file, prompt files (name to content) and forbidden texts that a new run is made with.

        :raises DiskError: the folder cannot be written.
        """
        try:
            self.prompts_path.mkdir(exist_ok=True)
        except OSError as error:
            raise DiskError(f"{self.prompts_path}: cannot be made ({error.strerror})") from error
        _write_atomically(self.seeds_path, seeds)
        for name, content in prompts.items():
            _write_atomically(self.prompts_path / name, content)
        if forbidden:
            _write_atomically(self._forbidden_path, json.dumps(list(forbidden)).encode())
        else:  # what a crash left of a beginning with other flags
            with contextlib.suppress(OSError):
                self._forbidden_path.unlink()

    def forbidden(self) -> tuple[str, ...]:
        """The texts that no kept instruction may resemble.

        :raises RunFolderError: the file is damaged.
        """
        if not self._forbidden_path.exists():
            return ()
        try:
            return tuple(json.loads(self._forbidden_path.read_bytes()))
        except (OSError, ValueError):
            raise RunFolderError(f"{self._forbidden_path}: damaged; restore it from a copy") from None

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
        data = self._snapshot()
        if data is None:
            return Ledger(), None
        return Ledger.from_dict(data["counts"]), Position(*data["position"])

    def server_figures(self) -> dict[str, Any]:
        """What the servers said of themselves when the snapshot was saved."""
        data = self._snapshot()
        return {} if data is None else dict(data["server"])

    def _snapshot(self) -> dict[str, Any] | None:
        """The content of ``ledger.json``, if it is whole and of this run."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError):
            line = self._ledger_path.read_bytes().removesuffix(b"\n")
            data: dict[str, Any] = orjson.loads(line)
            if unseal(line, 0) is not None and data["run"] == self.header().run_id:
                return data
        return None

    def save_ledger(self, ledger: Ledger, position: Position, run_id: str, server: Mapping[str, Any]) -> None:
        """Replace the snapshot, atomically; not synced, since the log can always rebuild it."""
        data = {"run": run_id, "position": list(position), "counts": ledger.as_dict(), "server": server}
        _write_atomically(self._ledger_path, seal(data, 0)[0], durable=False)


def _before_a_run(names: list[str]) -> bool:
    """Whether a folder holds nothing, or what a crash leaves there that came before ``run.json``."""
    begun = {"seed_tasks.jsonl", "prompts", "decontaminate.json"}
    begun |= {f".{name}.tmp" for name in (*begun, "run.json")}
    left = {name for name in names if not _SERVER_LOG.fullmatch(name)}
    return left <= {"lock"} | (begun if "lock" in names else set())


def _checksum(header: RunHeader) -> int:
    """Over what the run is and was told, however the file is laid out."""
    content = (header.run_id, header.version, header.meaning, header.options)
    return zlib.crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def _check_storable(options: Mapping[str, Any]) -> None:
    """:raises InputError: a number of more than 64 bits, or text that is not Unicode."""
    for name, value in options.items():
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise InputError(f"--{name.replace('_', '-')}: {value!r:.60} cannot be kept ({error}); change it") from None


def _write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as sink:
            sink.write(content)
            sink.flush()
            if durable:
                os.fsync(sink.fileno())
        temporary.replace(path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise DiskError(
            f"{path}: cannot be written ({error.strerror}); make room or mend the permissions, then "
            f"run the same command again"
        ) from error
