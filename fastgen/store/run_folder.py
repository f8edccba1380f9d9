"""The run folder: everything that a run is, in one place that can be copied, moved and read while it is written.

::

    file                   written by      content
    ---------------------  --------------  -----------------------------------------------------------------------------
    run.json               generate        format, run id, version, configuration (JSON key "meaning": what a resume
                                           must not change), options and a checksum; no secrets
    seed_tasks.jsonl       generate        the seed tasks, byte for byte as they were loaded
    prompts/*              generate        the prompts and demonstrations, byte for byte as they were loaded
    decontaminate.json     generate        texts that no kept instruction may resemble; only with --decontaminate
    documents.json         generate        the texts of --documents; topics.json and personas.json likewise
    log/NNNNNN.jsonl       generate        the commits, the only source of truth (see `fastgen.store.log`)
    log/NNNNNN.jsonl.zst   generate        a closed segment of the log, compressed
    ledger.json            generate        [derived] counts of the log up to a position, the position up to which the
                                           log was synced, and the servers' own figures
    checkpoint.npz         generate        [derived] state of a large run at a log position
                                           (see `fastgen.generate.checkpoint`)
    metrics.jsonl          generate        [derived] figures over time, for plots (see `fastgen.telemetry.series`)
    server.log             generate        output of the server that fastgen started
    server-N.log           generate        output of each of several servers, N from 1
    lock                   generate        names the process that writes; locked while it runs
    unfinished-run.json    refilter        what becomes run.json when a refilter to this folder is complete
    judgements/server.log  judge           output of a server that fastgen started to judge (or server-N.log)
    judgements/NAME/       judge           one judge's answers (``answers/``), ``lock`` and ``summary.json``
                                           (see `fastgen.judge.judgements`)
    .NAME.tmp              any             a file while it is replaced; one that a killed process left is removed later

Files marked [derived] may be deleted at any time. One that cannot be read or written, or has another form, stops no
command. ``refilter`` writes what ``generate`` writes, except figures over time and server output. Other commands
(``export``, ``report``, ``dashboard``, ``evaluate``, ``tune``) only read a run folder.

`RunFolder` reads. `Store` is the one writer of the log. Both deal in commits, not in bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from fastgen.errors import DamagedLogError, DiskError, InputError, RunFolderError
from fastgen.methods.base import Commit
from fastgen.store.files import check_storable, disk_errors, replacing, sync_directory, write_file
from fastgen.store.job_folder import JobFolder
from fastgen.store.ledger import Ledger
from fastgen.store.log import Position, TornTail, read_log, seal, unseal
from fastgen.store.records import decode, encode

log = logging.getLogger(__name__)
RUN_FORMAT = 1
_UNFINISHED = "unfinished-run.json"
_SERVER_LOG = re.compile(r"server(-\d+)?\.log")
_BEGINNING = Position(0, 0, 0)
TEXTS = ("decontaminate", "documents", "topics", "personas")
"""The lists of texts that a run folder keeps, each in a file of that name."""


@dataclass(frozen=True, slots=True)
class RunHeader:
    """The content of ``run.json``."""

    run_id: str
    version: str
    configuration: dict[str, Any]
    options: dict[str, Any]

    @property
    def configuration_fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the configuration."""
        return hashlib.sha256(orjson.dumps(self.configuration, option=orjson.OPT_SORT_KEYS)).hexdigest()


class _Section(dict[str, Any]):
    """A part of ``run.json`` in which a value that every run has may be missing, in a file that was edited by hand."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        raise RunFolderError(f"{self._path}: lacks {name!r}; restore it from a copy")


@dataclass(frozen=True, slots=True)
class SavedCounts:
    """The content of ``ledger.json``: what the log said up to ``position``.

    ``synced`` is the position up to which the log was on the disk by then, ``None`` where the file does not say.
    """

    ledger: Ledger = field(default_factory=Ledger)
    position: Position | None = None
    synced: Position | None = None
    server: Mapping[str, float] = field(default_factory=dict)


class Progress(NamedTuple):
    """How far a run's log was read, and the counts up to there."""

    position: Position
    ledger: Ledger


class RunFolder:
    """A run folder for reading. Needs no lock and works while another process writes.

    ``unfinished``: the folder is being rebuilt. Until `finish`, its header has another name, so that no other command
    uses it as a run.
    """

    def __init__(self, path: Path, *, unfinished: bool = False) -> None:
        self.path = path
        self.log_path = path / "log"
        self.seeds_path = path / "seed_tasks.jsonl"
        self.prompts_path = path / "prompts"
        self.server_log_path = path / "server.log"
        self.checkpoint_path = path / "checkpoint.npz"
        self._header_path = path / (_UNFINISHED if unfinished else "run.json")
        self.ledger_path = path / "ledger.json"
        self._warned_loss = False

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
        if _UNFINISHED in names:
            raise RunFolderError(
                f"--run-dir {self.path}: holds a refilter that did not finish; run that command again, or remove the "
                f"folder"
            )
        if not _before_a_run(names):
            raise RunFolderError(f"--run-dir {self.path}: holds files but no run; name a new or empty folder")
        return False

    def header(self) -> RunHeader:
        """The content of ``run.json``.

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
            sections = (_Section(data[name], self._header_path) for name in ("meaning", "options"))
            header = RunHeader(data["run"], data["fastgen"], *sections)
            whole = data["crc"] == _checksum(header) and type(header.run_id) is type(header.version) is str
        except OSError as error:
            raise RunFolderError(f"{self._header_path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):  # also a list where an object should be
            whole = False
        if not whole:
            raise RunFolderError(f"{self._header_path}: damaged; restore it from a copy")
        return header

    def write_header(self, header: RunHeader) -> None:
        """Create or replace ``run.json``, atomically.

        :raises InputError: an option's value has no place in JSON. :raises DiskError: the folder cannot be written.
        """
        check_storable(header.options)
        data = {
            "format": RUN_FORMAT,
            "run": header.run_id,
            "fastgen": header.version,
            "meaning": header.configuration,
            "options": header.options,
            "crc": _checksum(header),
        }
        write_file(self._header_path, orjson.dumps(data, option=orjson.OPT_INDENT_2))

    def clear_unfinished(self) -> None:
        """Remove what an earlier attempt to rebuild a run left here. The lock stays.

        :raises DiskError: it cannot be removed.
        """
        try:
            self.ledger_path.unlink(missing_ok=True)
            if self.log_path.is_dir():
                shutil.rmtree(self.log_path)
            self._header_path.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"{self.path}: cannot be cleared ({error.strerror}); remove it") from error

    def finish(self) -> None:
        """Make an unfinished run, which is closed and whole, a run: one atomic rename.

        :raises DiskError: the folder cannot be written.
        """
        final = self.path / "run.json"
        with disk_errors(final):
            self._header_path.replace(final)
            sync_directory(self.path)
        self._header_path = final

    def commits(self, start: Position | None = None) -> Iterator[tuple[Commit, Position] | TornTail]:
        """All commits in order, each with the log position after it. Then the torn tail, if there is one.

        :raises DamagedLogError: the log is damaged, with file and line.
        """
        saved = self.saved_counts()  # read first: the log of a run in progress may only be further
        at_least = saved.position.segment + 1 if saved.position and saved.position.offset else 0
        run_id = self.header().run_id
        for item in read_log(self.log_path, run_id=run_id, start=start, at_least=at_least, durable=saved.synced):
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

    def whole_commits(self, start: Position | None = None) -> Iterator[Commit]:
        """All commits in order, without a torn tail.

        :raises DamagedLogError: the log is damaged, with file and line.
        """
        return (item[0] for item in self.commits(start) if not isinstance(item, TornTail))

    def save_inputs(
        self, seeds: bytes, prompts: Mapping[str, bytes], texts: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Write the seed file, prompt files (name to content) and lists of texts (of `TEXTS`) of a new run.

        :raises DiskError: the folder cannot be written.
        """
        with disk_errors(self.prompts_path):
            self.prompts_path.mkdir(exist_ok=True)
        if self.prompts_path.is_symlink():
            raise DiskError(f"{self.prompts_path}: cannot be written (it is a symbolic link, remove it)")
        write_file(self.seeds_path, seeds)
        for name, content in prompts.items():
            write_file(self.prompts_path / name, content)
        for name in TEXTS:
            path = self.path / f"{name}.json"
            if given := (texts or {}).get(name):
                write_file(path, json.dumps(list(given)).encode())
            else:  # a start with other flags may have crashed before run.json was written
                with contextlib.suppress(OSError):
                    path.unlink()

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts that the run was given (of `TEXTS`). Empty for none.

        :raises RunFolderError: the file is damaged.
        """
        path = self.path / f"{name}.json"
        if not path.exists():
            return ()
        try:
            return tuple(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            raise RunFolderError(f"{path}: damaged; restore it from a copy") from None

    def ledger(self) -> Ledger:
        """The counts as of now: those saved, and what the log has after them.

        :raises DamagedLogError: the log is damaged, with file and line.
        """
        saved = self.saved_counts()
        if saved.position is not None:
            with contextlib.suppress(DamagedLogError):  # of another log; real damage is found again below
                return self._counted(saved.ledger, saved.position)
        ledger = self._counted(self.new_ledger(), None)
        lost = saved.ledger.commits - ledger.commits
        if lost > 0 and not self._warned_loss:
            self._warned_loss = True
            log.warning("%s", self.loss_line(lost))
        return ledger

    def new_ledger(self) -> Ledger:
        """Counts of nothing, for this run's seed tasks."""
        try:
            lines = self.seeds_path.read_bytes().splitlines()
        except OSError:
            lines = []  # what needs the seeds says so
        return Ledger(seeds=sum(1 for line in lines if line.strip()))

    def _counted(self, ledger: Ledger, position: Position | None) -> Ledger:
        for commit in self.whole_commits(position):
            ledger.apply(commit)
        return ledger

    def loss(self, ledger: Ledger, end: Position) -> tuple[int, int]:
        """What was counted once and is missing from a log that ends at ``end``: commits, bytes of the last segment."""
        saved = self.saved_counts()
        position = saved.position or end
        commits = max(0, saved.ledger.commits - ledger.commits)
        if position.segment == end.segment:
            return commits, max(0, position.offset - end.offset)
        return commits, position.offset if position.segment > end.segment else 0

    def loss_line(self, commits: int) -> str:
        """A line for users about lost commits."""
        return (
            f"{self.log_path}: the end of the log is gone, as after a power cut or in an incomplete copy: {commits} "
            f"commits that ledger.json counted are missing; if there is a whole copy, restore the log from it, else "
            f"'fastgen generate' asks for them again"
        )

    def saved_counts(self) -> SavedCounts:
        """The content of ``ledger.json``. Empty where it is damaged, of another run or of another form.

        The log has everything in it, so a file that cannot be used is never an error.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            line = self.ledger_path.read_bytes().removesuffix(b"\n")
            data = orjson.loads(line)
            if unseal(line, 0) is not None and data["run"] == self.header().run_id:
                synced, nothing = data.get("synced"), Ledger().as_dict()
                # Counts that lack a field are of an older version. They still say how long the log was.
                is_complete = data["counts"].keys() >= nothing.keys()
                return SavedCounts(
                    Ledger.from_dict(nothing | data["counts"]),
                    _position(data["position"]) if is_complete else None,
                    None if synced is None else _position(synced),
                    _figures(data["server"]),
                )
        return SavedCounts()

    def save_counts(self, counts: SavedCounts, run_id: str, *, durable: bool = False) -> None:
        """Replace ``ledger.json``, atomically. Not synced by default, since the log can always rebuild it.

        :raises OSError: it cannot be written.
        """
        data = {
            "run": run_id,
            "position": None if counts.position is None else tuple(counts.position),
            "synced": None if counts.synced is None else tuple(counts.synced),
            "counts": counts.ledger.as_dict(),
            "server": _figures(counts.server),
        }
        with replacing(self.ledger_path, durable=durable) as sink:
            sink.write(seal(data, 0)[0])


def _position(values: Any) -> Position:  # noqa: ANN401 - any JSON value
    """:raises ValueError, TypeError: it is no position."""
    segment, offset, crc = values
    if any(type(one) is not int or one < 0 for one in values):
        raise TypeError("a position")
    return Position(segment, offset, crc)


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers which JSON can hold. They come from servers."""
    return {
        name: value
        for name, value in values.items()
        if type(value) in {int, float} and math.isfinite(value) and abs(value) < 1 << 53
    }


def _before_a_run(names: list[str]) -> bool:
    """Whether a folder holds nothing, or only what a crash before ``run.json`` was written leaves."""
    begun = {"seed_tasks.jsonl", "prompts", "decontaminate.json"}
    begun |= {f".{name}.tmp" for name in (*begun, "run.json", _UNFINISHED)}
    left = {name for name in names if not _SERVER_LOG.fullmatch(name)}
    return left <= {"lock"} | (begun if "lock" in names else set())


def _checksum(header: RunHeader) -> int:
    """Of the content, whatever the layout of the file."""
    content = (header.run_id, header.version, header.configuration, header.options)
    return zlib.crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


class Store:
    """The one writer of a run folder, holding its lock from construction to `close`.

    Use: construct, iterate `replay` to its end once, then `append` as often as needed, and apply to `ledger` what was
    appended. `append`, `sync` and `compress_closed` may run in worker threads, one call of each at a time.

    ``torn`` is the unfinished line that `replay` dropped. ``lost_commits`` and ``lost_bytes`` were in the log when the
    counts were last saved and are missing since, as after a power cut.

    :raises FolderInUse: another process writes here. :raises RunFolderError, DiskError: as `JobFolder`.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.job = JobFolder(folder.path, named=f"--run-dir {folder.path}", instead="name another folder")
        self._run_id = ""
        self._end: Position | None = None
        self._commits = 0
        self.torn: TornTail | None = None
        self.lost_bytes = self.lost_commits = 0
        self.ledger = Ledger()
        self._warned_unsaved = False
        self.server_figures: dict[str, Any] = dict(folder.saved_counts().server)

    def begin(self, configuration: dict[str, Any], options: dict[str, Any], version: str) -> None:
        """Start a new run here."""
        self.folder.write_header(RunHeader(uuid.uuid4().hex, version, configuration, options))

    def replay(self, known: Progress | None = None) -> Iterator[Commit]:
        """Every commit of the log after ``known``, in order. Then the store is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end. :raises DiskError: it cannot be written.
        """
        self._run_id = self.folder.header().run_id
        if known is None:
            self.ledger = self.folder.new_ledger()
        else:
            self._end, self.ledger = known
            self._commits = self.ledger.commits
        for item in self.folder.commits(self._end):
            if isinstance(item, TornTail):
                self.torn = item
                continue
            commit, self._end = item
            self._commits += 1
            self.ledger.apply(commit)
            yield commit
        self.lost_commits, self.lost_bytes = self.folder.loss(self.ledger, self.position)
        with self.job.closing:
            if self.job.open_log(self._run_id, self._end) and (self.lost_bytes or self.lost_commits):
                self._forget_lost_counts()

    @property
    def position(self) -> Position:
        """The log's end."""
        return self._end or _BEGINNING

    @property
    def is_counted(self) -> bool:
        """Whether the ledger has everything that was appended."""
        return self.ledger.commits == self._commits

    def append(self, commits: Sequence[Commit]) -> None:
        """Write the commits as one block.

        :raises DiskError: none of them was kept.
        """
        self.job.append(map(encode, commits))
        self._end = self.job.log.position
        self._commits += len(commits)

    def sync(self) -> None:
        """See `JobFolder.sync`."""
        self.job.sync()

    def save_ledger(self) -> None:
        """Save the counts for quick readers. Does nothing while the ledger lacks some of what was appended.

        Counts that cannot be saved are one warning: the log has them.
        """
        if not self.is_counted:
            return
        try:
            self._save_counts(durable=False)
        except OSError as error:
            if not self._warned_unsaved:
                path = self.folder.ledger_path
                log.warning("%s: cannot be saved (%s); the run continues, the log has its counts", path, error.strerror)
            self._warned_unsaved = True

    def _forget_lost_counts(self) -> None:
        """Replace counts of lost commits before other lines take their place in the log.

        :raises DiskError: they cannot be replaced, so the next reader would take the new lines for damage.
        """
        try:
            self._save_counts(durable=True)
        except OSError as error:
            path = self.folder.ledger_path
            raise DiskError(
                f"{path}: counts more than the log has and cannot be replaced ({error.strerror}); remove it, then run "
                f"the same command again"
            ) from error

    def _save_counts(self, *, durable: bool) -> None:
        counts = SavedCounts(self.ledger, self.position, self.job.log.durable, self.server_figures)
        self.folder.save_counts(counts, self._run_id, durable=durable)

    def compress_closed(self) -> None:
        """Compress closed segments that are still plain."""
        self.job.compress_closed()

    def close(self) -> None:
        """Sync, close and release the lock. Safe to call twice."""
        with self.job.closing:
            try:
                if self.job.close_log() and self.job.is_held:  # else another process may have the folder by now
                    self.save_ledger()
            finally:
                self.job.close()
