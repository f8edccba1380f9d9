"""The two files that ``fastgen dedup`` writes: names that make sense, never replaced unasked, named when whole.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import zlib
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from fastgen.errors import DamagedLogError, DiskError, InputError
from fastgen.similarity.novelty import NoveltyFilter, warm_up
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.files import Lock, replacing
from fastgen.store.log import LogWriter, Position, TornTail, read_log
from fastgen.store.output import check_output, is_same_file
from fastgen.store.tables import Rejected, Rows, Sink, Table, as_disk_error, is_parquet, open_table, read_texts
from fastgen.telemetry.progress import Reporter

_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz"})
_JSON = frozenset({".jsonl", ".json", ".ndjson"})


class Outputs:
    """The two files: ``NAME.partial`` while they are written; ``journal_path`` is ``KEPT.dedup``.

    With ``overwrite`` finished files of these names are replaced, at the very end.
    """

    def __init__(self, kept: Path, rejected: Path, *, overwrite: bool) -> None:
        self._finals = {"--output": kept.resolve(), "--rejected": rejected.resolve()}
        self._overwrite = overwrite
        self.journal_path = self._finals["--output"].with_name(f"{self._finals['--output'].name}.dedup")
        self.partials = tuple(path.with_name(f"{path.name}.partial") for path in self._finals.values())

    def check_names(self, source: Path, against: Sequence[Path]) -> None:
        """Refuse names that cannot be meant.

        :raises InputError: one file in two roles, not a regular file, or a name of another format than is written.
        """
        for pool in against:
            if pool.resolve() == source.resolve():
                raise InputError(f"--against {pool}: is the input itself, so no row would be kept; name another file")
        taken = {source.resolve(), *(pool.resolve() for pool in against)}
        parquet = is_parquet(source)
        for flag, path in self._finals.items():
            if path in taken or any(is_same_file(path, other) for other in taken):
                raise InputError(f"{flag} {path}: is already the name of another file here; name a new one")
            check_output(flag, path)
            taken.add(path)
            if path.exists() and not path.is_file():
                raise InputError(f"{flag} {path}: is not a regular file; name a new one")
            _check_ending(flag, path, parquet=parquet)
        for flag, partial in zip(self._finals, self.partials, strict=True):
            if partial in taken or any(is_same_file(partial, other) for other in taken):
                raise InputError(
                    f"{flag}: fastgen writes {partial} first, which is another file of this command; name another"
                )

    def refuse_existing(self) -> None:
        """Never replace what nobody said could be replaced.

        :raises InputError: an output is there and ``overwrite`` was not given.
        """
        for flag, path in self._finals.items():
            if path.exists() and not self._overwrite:
                raise InputError(f"{flag} {path}: is already there; name another file, or replace it with --overwrite")

    def whole(self) -> bool:
        """Whether each file is there, under one name or the other."""
        return all(p.exists() or f.exists() for p, f in zip(self.partials, self._finals.values(), strict=True))

    def publish(self) -> None:
        """Give the finished files their names."""
        for partial, final in zip(self.partials, self._finals.values(), strict=True):
            with as_disk_error(final), contextlib.suppress(FileNotFoundError):  # has its name already
                partial.replace(final)

    def discard(self) -> None:
        """Remove what was begun."""
        for partial in self.partials:
            partial.unlink(missing_ok=True)


def _check_ending(flag: str, path: Path, *, parquet: bool) -> None:
    if path.suffix in _COMPRESSED:
        raise InputError(f"{flag} {path}: would not be compressed; leave out {path.suffix} and compress it afterwards")
    if path.suffix == ".parquet" and not parquet:
        raise InputError(f"{flag} {path}: the input is JSON lines, and so is what is written; name it .jsonl")
    if path.suffix in _JSON and parquet:
        raise InputError(f"{flag} {path}: the input is Parquet, and so is what is written; name it .parquet")


_TICK_S = 1.0
_WINDOW_TICKS = 60


@dataclass(frozen=True, slots=True)
class DedupProgress:
    """One look: rows decided, rows there will be by the share of the input read, rate over the last minute."""

    complete: int
    target: int
    kept: int
    rejected: int
    rows_per_s: float

    @property
    def eta(self) -> str:
        """Time to the end, as hours:minutes:seconds, or a dash."""
        if self.rows_per_s <= 0:
            return "-"
        return str(timedelta(seconds=round((self.target - self.complete) / self.rows_per_s)))

    def details(self) -> str:
        """Everything but the count and the ETA, for people."""
        return f"{self.rows_per_s:,.0f} rows/s · kept {self.kept:,} · rejected {self.rejected:,}"

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.complete:,} of about {self.target:,} rows · {self.details()} · ETA {self.eta}"


class DedupMeter:
    """Shows figures about once a second; ``share_read`` tells how much of the input has been read, 0..1."""

    def __init__(self, reporter: Reporter, share_read: Callable[[], float]) -> None:
        self._reporter = reporter
        self._share_read = share_read
        self._past = deque([(time.monotonic(), 0)], maxlen=_WINDOW_TICKS)

    def tick(self, rows: int, *, kept: int) -> bool:
        """Show the figures if it is time; whether it was."""
        now_s = time.monotonic()
        if now_s - self._past[-1][0] < _TICK_S:
            return False
        then_s, then_rows = self._past[0]
        self._past.append((now_s, rows))
        share = self._share_read()
        progress = DedupProgress(
            complete=rows,
            target=max(rows, round(rows / share)) if share else rows,
            kept=kept,
            rejected=rows - kept,
            rows_per_s=(rows - then_rows) / (now_s - then_s),
        )
        self._reporter.show(progress)
        return True


_FORMAT = 1


class Journal:
    """The folder, locked from construction to `close`; a context manager that closes.

    Use: construct, run `replay` to its end, then `append`.

    :param path: the folder. :param job: what is asked, as JSON values by flag name. :param start_anew: forget what
        there is of another job instead of refusing.
    :raises InputError: in use, meant for another job, or the folder cannot be made.
    :raises DiskError: it cannot be written.
    """

    def __init__(self, path: Path, job: dict[str, Any], *, start_anew: bool = False) -> None:
        self.path = path
        self._log_path = path / "log"
        self._job_path = path / "job.json"
        self._done_path = path / "done.json"
        self._writer: LogWriter | None = None
        self._job = orjson.dumps({"format": _FORMAT, **job}, option=orjson.OPT_INDENT_2)
        self._run_id = hashlib.sha256(self._job).hexdigest()
        self._lock = _acquire_lock(path)
        try:
            self.begun = self._is_of_this_job(job, start_anew=start_anew)
            if not self.begun:
                self.begin_anew()
        except BaseException:
            self._lock.release()
            raise

    def _is_of_this_job(self, job: dict[str, Any], *, start_anew: bool) -> bool:
        """Whether this job was begun here; an unreadable beginning counts as none."""
        try:
            before = orjson.loads(self._job_path.read_bytes())
            if before.pop("format") > _FORMAT:
                raise InputError(
                    f"{self.path}: written by a newer fastgen; upgrade fastgen, or begin anew: --overwrite"
                )
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False
        if before == job:
            return True
        if not start_anew:
            flag = next(flag for flag in {**job, **before} if before.get(flag) != job.get(flag))
            was, now = _shown(before.get(flag)), _shown(job.get(flag))
            raise InputError(
                f"{self.path}: holds an unfinished dedup with {flag} {was}, not {now}; repeat its command to finish "
                f"it, or begin anew with --overwrite"
            )
        return False

    def counts(self) -> dict[str, int] | None:
        """What `mark_done` was given, if it came to that."""
        try:
            counts: dict[str, int] = orjson.loads(self._done_path.read_bytes())
        except (OSError, ValueError):
            return None
        return counts

    def begin_anew(self) -> None:
        """Forget every decision.

        :raises DiskError: the folder cannot be written.
        """
        self._forget()
        _write_atomically(self._job_path, self._job)

    def replay(self) -> Iterator[dict[str, Any]]:
        """Everything appended so far; afterwards the journal is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end.
        """
        end: Position | None = None
        try:
            for item in read_log(self._log_path, run_id=self._run_id):
                if not isinstance(item, TornTail):
                    body, end = item
                    yield body
        except DamagedLogError as error:
            raise DamagedLogError(f"{self.path}: damaged; remove this folder to begin anew ({error})") from None
        self._writer = LogWriter(self._log_path, run_id=self._run_id, end=end)

    def append(self, body: dict[str, Any]) -> None:
        """Add one entry.

        :raises DiskError: it was not kept.
        """
        writer = self._open_writer()
        if writer.segment_full:
            writer.roll()
        writer.append([body])

    def sync(self) -> None:
        """Make what was appended, if anything was, outlive a power cut and not only this process.

        :raises DiskError: the disk refused.
        """
        if self._writer is not None:
            self._writer.sync()

    def mark_done(self, counts: dict[str, int]) -> None:
        """Note that the outputs are whole."""
        _write_atomically(self._done_path, orjson.dumps(counts))

    def unmark_done(self) -> None:
        """Take `mark_done` back, before the outputs are touched again."""
        with as_disk_error(self._done_path):
            self._done_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, unless something else was put into it; the journal is closed then."""
        self._forget()
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _forget(self) -> None:
        """Remove all but the lock; the log first, so that what is left is never taken for less than it was."""
        self._close_writer()
        with as_disk_error(self.path):
            for segment in self._log_path.glob("[0-9]*.jsonl*"):
                segment.unlink()
            with contextlib.suppress(OSError):
                self._log_path.rmdir()
            self._job_path.unlink(missing_ok=True)
            self._done_path.unlink(missing_ok=True)

    def _open_writer(self) -> LogWriter:
        if self._writer is None:
            raise RuntimeError("replay() must run to its end before the journal can write")
        return self._writer

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Let go of the folder."""
        try:
            self._close_writer()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shown(value: object) -> str:
    return "none" if value in (None, []) else str(value)


def _acquire_lock(path: Path) -> Lock:
    try:
        path.mkdir(exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"{path}: the folder for unfinished work cannot be made ({error.strerror}); mend the permissions of the "
            f"folder above, make it, or name another --output"
        ) from None
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be made ({error.strerror}); make room, then run the same command again"
        ) from error
    return Lock(path / "lock", named=str(path), instead="name another --output")


def _write_atomically(path: Path, content: bytes) -> None:
    with as_disk_error(path), replacing(path) as sink:
        sink.write(content)


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of the input (``kept`` + ``rejected``) and texts of the ``--against`` files."""

    rows: int
    kept: int
    rejected: int
    against: int


def dedup(
    source: Path,
    output: Path,
    rejected: Path,
    similarity: SimilarityOptions,
    reporter: Reporter,
    *,
    field: str = "instruction",
    against: Sequence[Path] = (),
    overwrite: bool = False,
) -> Counts:
    """Write each row of ``source`` to ``output``, or with the reason to ``rejected`` if it is too similar.

    Too similar is a row whose text (the top-level ``field``) breaks the rule of ``similarity`` against a row kept
    before it or any text of the ``against`` files. The same call goes on with a run that was killed; ``overwrite``
    replaces outputs that are there, and an unfinished run of another job.

    :raises InputError: a file cannot be read or used, an output is there, or an unfinished run had another job.
    :raises DiskError: an output cannot be written; the same call goes on.
    """
    NoveltyFilter(**asdict(similarity))  # says what is wrong with the rule before anything is written
    table = open_table(source, field)
    outputs = Outputs(output, rejected, overwrite=overwrite)
    outputs.check_names(source, against)
    job = _job(source, rejected, similarity, field, against)

    def run_once() -> Counts:
        with _Run(table, field, NoveltyFilter(**asdict(similarity)), journal, outputs, reporter) as run:
            return run.carry_out(against)

    warm_up(similarity.index)
    with Journal(outputs.journal_path, job, start_anew=overwrite) as journal:
        if outputs.whole() and (before := journal.counts()) is not None:
            counts = Counts(**before)
        else:
            try:
                counts = run_once()
            except _ChangedInput:
                if not overwrite:
                    raise
                journal.begin_anew()
                counts = run_once()
        outputs.publish()
        journal.remove()
    return counts


def _job(
    source: Path, rejected: Path, similarity: SimilarityOptions, field: str, against: Sequence[Path]
) -> dict[str, Any]:
    """What an unfinished run must have in common with the one that goes on with it."""
    rule = {"--" + name.replace("_", "-"): value for name, value in asdict(similarity).items()}
    pools = [_name(path.resolve()) for path in against]
    files = {"INPUT": _name(source.resolve()), "--rejected": _name(rejected.resolve()), "--against": pools}
    return {**files, "--field": field, **rule}


def _name(path: Path) -> str:
    """A file name as UTF-8 text, which not every file name is."""
    return os.fsencode(path).decode(errors="backslashreplace")


class _ChangedInput(InputError):
    """A file is not what it was when the run began."""


class _Run:
    """One pass over the input."""

    def __init__(
        self,
        table: Table[Any],
        field: str,
        novelty: NoveltyFilter,
        journal: Journal,
        outputs: Outputs,
        reporter: Reporter,
    ) -> None:
        self._table = table
        self._field = field
        self._novelty = novelty
        self._journal = journal
        self._outputs = outputs
        self._reporter = reporter
        self._meter = DedupMeter(reporter, table.share_read)
        self._pool = _PoolTexts(journal.path)
        self._replay: Iterator[dict[str, Any]] = iter(())
        self._sink: Sink[Any] | None = None
        self._decided = journal.begun

    def carry_out(self, against: Sequence[Path]) -> Counts:
        """Read the pools, decide every row, and leave both outputs whole under their unfinished names."""
        self._outputs.refuse_existing()
        self._journal.unmark_done()
        self._say_index()
        self._replay = self._journal.replay()
        self._load_pools(against)
        counts = self._filter()
        self._outputs.refuse_existing()
        self._journal.mark_done(asdict(counts))
        return counts

    def _say_index(self) -> None:
        if (bands := self._novelty.bands) is not None:
            self._reporter.say(
                f"similarity index: {bands.bands} MinHash bands of {bands.rows} rows, expected to meet "
                f"{bands.recall:.4%} of all true neighbours ({bands.at_bound:.2%} at the lowest possible overlap)"
            )

    def _load_pools(self, against: Sequence[Path]) -> None:
        checksums = []
        for path in against:
            self._pool.begin_file(path)
            checksum = 0
            for lines, texts in read_texts(path, self._field):
                checksum = _checksum(texts, checksum)
                self._novelty.add(texts)
                self._pool.extend(lines, texts)
            checksums.append(checksum)
        mine = {"against": checksums}
        before = next(self._replay, None)
        if before is None:
            self._journal.append(mine)
        elif before["against"] != checksums:
            path = next(p for p, old, new in zip(against, before["against"], checksums, strict=True) if old != new)
            raise self._changed(path, "its texts differ")

    def _filter(self) -> Counts:
        self._sink = self._table.sink(*self._outputs.partials)
        self._pool.begin_file(self._table.path)
        against, rows = len(self._pool), 0
        for batch in self._table.batches():
            kept, found = self._decisions(batch)
            self._pool.extend([batch.lines[place] for place in kept], [batch.texts[place] for place in kept])
            self._sink.write(batch, {place: self._pool.why(entry, score) for place, entry, score in found})
            rows += len(batch.texts)
            if self._meter.tick(rows, kept=len(self._pool) - against):
                self._journal.sync()
        if next(self._replay, None) is not None:
            raise self._changed(self._table.path, "it ends earlier")
        self._sink.finish()
        kept_rows = len(self._pool) - against
        return Counts(rows, kept_rows, rows - kept_rows, against)

    def _decisions(self, batch: Rows[Any]) -> tuple[list[int], list[tuple[int, int, float]]]:
        """Places of the rows to keep; place, pool index of the neighbour and score of the others."""
        checksum = _checksum(batch.texts, 0)
        before = next(self._replay, None)
        if before is None:
            return self._decide(batch, checksum)
        if before["rows"] != len(batch.texts) or before["texts"] != checksum:
            raise self._changed(self._table.path, f"something differs in lines {batch.lines[0]} to {batch.lines[-1]}")
        found = [(place, entry, score) for place, entry, score in before["rejected"]]
        kept = _without(len(batch.texts), found)
        self._novelty.add([batch.texts[place] for place in kept])
        return kept, found

    def _decide(self, batch: Rows[Any], checksum: int) -> tuple[list[int], list[tuple[int, int, float]]]:
        verdicts = self._novelty.filter(batch.texts)
        found = [(p, v.neighbour, v.score) for p, v in enumerate(verdicts) if not v.novel and v.neighbour is not None]
        self._journal.append({"rows": len(batch.texts), "texts": checksum, "rejected": found})
        self._decided = True
        return _without(len(batch.texts), found), found

    def _changed(self, path: Path, how: str) -> _ChangedInput:
        return _ChangedInput(
            f"{path}: is not what the unfinished dedup in {self._journal.path} began with ({how}); restore it, or "
            f"begin anew with --overwrite"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        if self._sink is not None:
            self._sink.close()
        if kind is KeyboardInterrupt and self._decided:
            self._reporter.say("interrupted; everything decided is kept, and the same command goes on")
        if error is not None and not self._decided:  # there is nothing to go on with, so nothing stays behind
            with contextlib.suppress(OSError, DiskError):
                self._outputs.discard()
                self._journal.remove()


def _without(rows: int, found: Sequence[tuple[int, int, float]]) -> list[int]:
    rejected = {place for place, _, _ in found}
    return [place for place in range(rows) if place not in rejected]


def _checksum(texts: Sequence[str], previous: int) -> int:
    return zlib.crc32("\0".join((*texts, "")).encode("utf-8", "surrogatepass"), previous)


class _PoolTexts:
    """Where each text of the pool stands, and the texts themselves on disk: 16 bytes of memory an entry.

    :raises DiskError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = array("q")
        self._starts = array("q", [0])
        self._files: list[tuple[int, str]] = []  # (first pool index, file), in order
        with as_disk_error(folder):
            self._texts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    def __len__(self) -> int:
        """Texts so far."""
        return len(self._lines)

    def begin_file(self, path: Path) -> None:
        """What follows is of this file."""
        self._files.append((len(self), str(path)))

    def extend(self, lines: Sequence[int], texts: Sequence[str]) -> None:
        """Append texts in the order of the pool."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        with as_disk_error(self._folder):
            self._texts.write(b"".join(encoded))
            self._texts.flush()
        self._lines.extend(lines)
        for text in encoded:
            self._starts.append(self._starts[-1] + len(text))

    def why(self, entry: int, score: float) -> Rejected:
        """The reason that a pool member is."""
        start, end = self._starts[entry], self._starts[entry + 1]
        text = os.pread(self._texts.fileno(), end - start, start).decode("utf-8", "surrogatepass")
        _, file = self._files[bisect_right(self._files, entry, key=lambda begun: begun[0]) - 1]
        return Rejected(score, file, self._lines[entry], text)

    def close(self) -> None:
        """Let go of the disk space. Never fails: what a full disk refused is written again by the next try."""
        with contextlib.suppress(OSError):
            self._texts.close()
