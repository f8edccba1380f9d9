"""``fastgen dedup``: a data set without the rows that are too similar to an earlier row or to another data set.

The decisions go, batch by batch, into a log next to the output, which is the only state. A run that was killed
reads its input again, repeats the logged decisions, and decides the rest. The outputs are written from the
beginning each time, as ``NAME.partial``, and get their names when both are whole.

Guarantees: the decisions are those of `NoveltyFilter`, one text at a time. Every row comes out exactly once, whole, in
order. A run that was killed any number of times writes the same bytes as one that was not. An existing file is replaced
only with ``overwrite``. Memory is bounded by the index, one batch of rows and 16 bytes for each text compared with.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from fastgen.errors import DamagedLogError, DiskError, InputError, RunFolderError, flag_name
from fastgen.similarity.novelty import NoveltyFilter, warm_up
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.files import disk_errors, write_file
from fastgen.store.job_folder import JobFolder, check_configuration, read_object
from fastgen.store.output import check_output, is_same_file
from fastgen.store.tables import Rejected, Rows, Sink, Table, is_parquet, open_table, read_texts
from fastgen.telemetry.progress import Reporter

_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz"})
_JSON = frozenset({".jsonl", ".json", ".ndjson"})
_JOURNAL_FORMAT = 1
_TICK_S = 1.0
_WINDOW_TICKS = 60

_Rejections = list[tuple[int, int, float]]
"""Of each rejected row of a batch: its place in the batch, pool index of the neighbour, ROUGE-L with it."""


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
    """Write each row of ``source`` to ``output``, or to ``rejected`` with the reason if it is too similar.

    A row is too similar if its text breaks the rule of ``similarity`` against a row kept before it or any text of the
    ``against`` files. ``field`` is the text's key, or a path to it (`fastgen.store.tables.value_at`). The same call
    resumes a run that was killed. ``overwrite`` replaces existing outputs, and an unfinished run of another job.

    :raises InputError: a file cannot be read or used, an output exists, or an unfinished run had another job.
    :raises DiskError: an output cannot be written; the same call resumes.
    """
    rule = asdict(similarity)
    NoveltyFilter(**rule)  # raises for an unusable rule before anything is written
    table = open_table(source, field)
    outputs = Outputs(output, rejected, overwrite=overwrite)
    outputs.check_names(source, against)
    job = {
        "INPUT": _utf8_name(source.resolve()),
        "--rejected": _utf8_name(rejected.resolve()),
        "--against": [_utf8_name(path.resolve()) for path in against],
        "--field": field,
        **{flag_name(name): value for name, value in rule.items()},
    }

    def run_once() -> Counts:
        with _Run(table, field, NoveltyFilter(**rule), journal, outputs, reporter) as run:
            return run.decide_all(against)

    warm_up(similarity.index)
    with Journal(outputs.journal_path, job, start_anew=overwrite) as journal:
        counts = journal.counts() if outputs.whole() else None
        if counts is None:
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


def _utf8_name(path: Path) -> str:
    """A file name as UTF-8 text, which not every file name is."""
    return os.fsencode(path).decode(errors="backslashreplace")


class _ChangedInput(InputError):
    """A file is not what it was when the run began."""


class _Run:
    """One pass over the pools and the input."""

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
        self._shown = deque([(time.monotonic(), 0)], maxlen=_WINDOW_TICKS)  # (time, rows) of each progress report
        self._pool = _PoolTexts(journal.path)
        self._replay: Iterator[dict[str, Any]] = iter(())
        self._sink: Sink[Any] | None = None
        self._decided = journal.begun

    def decide_all(self, against: Sequence[Path]) -> Counts:
        """Read the pools, decide every row, and leave both outputs whole under their unfinished names."""
        self._outputs.refuse_existing()
        self._journal.unmark_done()
        if (bands := self._novelty.bands) is not None:
            self._reporter.say(
                f"similarity index: {bands.bands} MinHash bands of {bands.rows} rows, expected to find "
                f"{bands.recall:.4%} of all true neighbours ({bands.at_bound:.2%} at the lowest possible overlap)"
            )
        self._replay = self._journal.decisions()
        self._load_pools(against)
        counts = self._filter_rows()
        self._outputs.refuse_existing()
        self._journal.mark_done(counts)
        return counts

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
        before = next(self._replay, None)
        if before is None:
            self._journal.append([{"against": checksums}])
        elif before["against"] != checksums:
            path = next(p for p, old, new in zip(against, before["against"], checksums, strict=True) if old != new)
            raise self._changed(path, "its texts differ")

    def _filter_rows(self) -> Counts:
        self._sink = self._table.sink(*self._outputs.partials)
        self._pool.begin_file(self._table.path)
        against, rows = len(self._pool), 0
        for batch in self._table.batches():
            kept, found = self._decisions(batch)
            self._pool.extend([batch.lines[place] for place in kept], [batch.texts[place] for place in kept])
            self._sink.write(batch, {place: self._pool.reason(entry, score) for place, entry, score in found})
            rows += len(batch.texts)
            if time.monotonic() - self._shown[-1][0] >= _TICK_S:
                self._show(rows, kept=len(self._pool) - against)
                self._journal.sync()
        if next(self._replay, None) is not None:
            raise self._changed(self._table.path, "it ends earlier")
        self._sink.finish()
        kept_rows = len(self._pool) - against
        return Counts(rows, kept_rows, rows - kept_rows, against)

    def _decisions(self, batch: Rows[Any]) -> tuple[list[int], _Rejections]:
        """Places of the rows to keep, and the others: from the journal as far as it reaches, else decided now."""
        checksum = _checksum(batch.texts, 0)
        before = next(self._replay, None)
        if before is None:
            verdicts = self._novelty.filter(batch.texts)
            found = [
                (p, v.neighbour, v.score) for p, v in enumerate(verdicts) if not v.novel and v.neighbour is not None
            ]
            self._journal.append([{"rows": len(batch.texts), "texts": checksum, "rejected": found}])
            self._decided = True
        elif before["rows"] != len(batch.texts) or before["texts"] != checksum:
            raise self._changed(self._table.path, f"something differs in lines {batch.lines[0]} to {batch.lines[-1]}")
        else:
            found = [(place, entry, score) for place, entry, score in before["rejected"]]
        rejected = {place for place, _, _ in found}
        kept = [place for place in range(len(batch.texts)) if place not in rejected]
        if before is not None:
            self._novelty.add([batch.texts[place] for place in kept])
        return kept, found

    def _show(self, rows: int, *, kept: int) -> None:
        now_s, (then_s, then_rows) = time.monotonic(), self._shown[0]
        self._shown.append((now_s, rows))
        share = self._table.share_read()
        progress = DedupProgress(
            complete=rows,
            target=max(rows, round(rows / share)) if share else rows,
            kept=kept,
            rejected=rows - kept,
            rows_per_s=(rows - then_rows) / (now_s - then_s),
        )
        self._reporter.show(progress)

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
            self._reporter.say("interrupted; everything decided is kept, and the same command resumes")
        if error is not None and not self._decided:  # there is nothing to resume, so nothing is left behind
            with contextlib.suppress(OSError, DiskError):
                self._outputs.discard()
                self._journal.remove()


def _checksum(texts: Sequence[str], previous: int) -> int:
    return zlib.crc32("\0".join((*texts, "")).encode("utf-8", "surrogatepass"), previous)


class _PoolTexts:
    """File, line and text of each pool member. The texts are on disk, so that an entry takes 16 bytes of memory.

    :raises DiskError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = array("q")
        self._starts = array("q", [0])
        self._files: list[tuple[int, str]] = []  # (first pool index, file), in order
        with disk_errors(folder):
            self._texts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    def __len__(self) -> int:
        """Texts so far."""
        return len(self._lines)

    def begin_file(self, path: Path) -> None:
        """The texts that follow are of this file."""
        self._files.append((len(self), str(path)))

    def extend(self, lines: Sequence[int], texts: Sequence[str]) -> None:
        """Append texts in the order of the pool."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        with disk_errors(self._folder):
            self._texts.write(b"".join(encoded))
            self._texts.flush()
        self._lines.extend(lines)
        for text in encoded:
            self._starts.append(self._starts[-1] + len(text))

    def reason(self, entry: int, score: float) -> Rejected:
        """The reason to reject a row whose neighbour is this pool member."""
        start, end = self._starts[entry], self._starts[entry + 1]
        text = os.pread(self._texts.fileno(), end - start, start).decode("utf-8", "surrogatepass")
        _, file = self._files[bisect_right(self._files, entry, key=lambda begun: begun[0]) - 1]
        return Rejected(score, file, self._lines[entry], text)

    def close(self) -> None:
        """Free the disk space. Never raises: what a full disk refused is written again by the next run."""
        with contextlib.suppress(OSError):
            self._texts.close()


class Journal(JobFolder):
    """The decisions of an unfinished run, in a folder next to its output.

    ::

        KEPT.dedup/job.json     what was asked; a run that asks something else is refused
        KEPT.dedup/log/         checksums of the ``--against`` files, then the decisions of each batch
        KEPT.dedup/done.json    the counts; written once both outputs are whole and durable, before they get their names
        KEPT.dedup/lock         names the process that works on it

    Use: construct, read `decisions` to the end, then `append`. No other file in the folder is ever removed.

    :param job: what is asked, as JSON values by flag name. :param start_anew: drop the decisions of another job
        instead of refusing.
    :raises InputError: in use, of another job, or the folder cannot be made. :raises DiskError: it cannot be written.
    """

    def __init__(self, path: Path, job: dict[str, Any], *, start_anew: bool = False) -> None:
        self._job = orjson.dumps({"format": _JOURNAL_FORMAT, **job}, option=orjson.OPT_INDENT_2)
        try:
            path.mkdir(exist_ok=True)  # not its parents: an output belongs into a folder that exists
        except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(
                f"{path}: the folder for unfinished work cannot be made ({error.strerror}); fix the permissions of the "
                f"folder above, make it, or name another --output"
            ) from None
        except OSError:
            pass  # the next line raises it with a remedy
        super().__init__(path, named=str(path), instead="name another --output")
        try:
            self.begun = self._is_begun(job, start_anew=start_anew)
            if not self.begun:
                self.begin_anew()
        except BaseException:
            self.close()
            raise

    def _is_begun(self, job: dict[str, Any], *, start_anew: bool) -> bool:
        """Whether this job was begun here. An unreadable beginning counts as none."""
        try:
            before = read_object(self.path / "job.json") or {}
            if before.pop("format") > _JOURNAL_FORMAT:
                raise InputError(
                    f"{self.path}: written by a newer fastgen; upgrade fastgen, or begin anew: --overwrite"
                )
        except (RunFolderError, KeyError, TypeError):
            return False
        if not start_anew:
            remedy = "repeat its command to finish it, or begin anew with --overwrite"
            check_configuration(before, job, holds=f"{self.path}: holds an unfinished dedup with", remedy=remedy)
        return before == job

    def begin_anew(self) -> None:
        """Drop every decision.

        :raises DiskError: the folder cannot be written.
        """
        self._clear()
        write_file(self.path / "job.json", self._job)

    def decisions(self) -> Iterator[dict[str, Any]]:
        """Everything appended so far. After that the log is ready to append.

        :raises DamagedLogError: the log is damaged other than at its torn end.
        """
        try:
            yield from self.replay(hashlib.sha256(self._job).hexdigest())
        except DamagedLogError as error:
            raise DamagedLogError(f"{self.path}: damaged; remove this folder to begin anew ({error})") from None

    def counts(self) -> Counts | None:
        """The counts of `mark_done`, if it was called."""
        try:
            counts = read_object(self.path / "done.json")
        except RunFolderError:
            return None
        return None if counts is None else Counts(**counts)

    def mark_done(self, counts: Counts) -> None:
        """Note that the outputs are whole."""
        write_file(self.path / "done.json", orjson.dumps(asdict(counts)))

    def unmark_done(self) -> None:
        """Undo `mark_done`, before the outputs are written again."""
        with disk_errors(self.path):
            (self.path / "done.json").unlink(missing_ok=True)

    def remove(self) -> None:
        """Close the journal and remove its files, and the folder if nothing else is in it."""
        self._clear()
        self.close(remove_lock=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _clear(self) -> None:
        """Remove all but the lock. The log goes first, so that the rest is never read as a whole one."""
        with disk_errors(self.path):
            self.clear_log()
            for name in ("job.json", "done.json"):
                (self.path / name).unlink(missing_ok=True)


class Outputs:
    """The two files that are written: ``NAME.partial`` until both are whole. ``journal_path`` is ``KEPT.dedup``.

    With ``overwrite``, existing files of these names are replaced, at the very end.
    """

    def __init__(self, kept: Path, rejected: Path, *, overwrite: bool) -> None:
        self._finals = {"--output": kept.resolve(), "--rejected": rejected.resolve()}
        self._overwrite = overwrite
        self.journal_path = self._finals["--output"].with_name(f"{self._finals['--output'].name}.dedup")
        self.partials = tuple(path.with_name(f"{path.name}.partial") for path in self._finals.values())

    def check_names(self, source: Path, against: Sequence[Path]) -> None:
        """:raises InputError: one file in two roles, not a regular file, or a name of another format."""
        for pool in against:
            if pool.resolve() == source.resolve():
                raise InputError(f"--against {pool}: is the input itself, so no row would be kept; name another file")
        taken = {source.resolve(), *(pool.resolve() for pool in against)}
        parquet = is_parquet(source)
        for flag, path in self._finals.items():
            if any(is_same_file(path, other) for other in taken):
                raise InputError(f"{flag} {path}: is already the name of another file here; name a new one")
            check_output(flag, path)
            taken.add(path)
            if path.exists() and not path.is_file():
                raise InputError(f"{flag} {path}: is not a regular file; name a new one")
            _check_suffix(flag, path, parquet=parquet)
        for flag, partial in zip(self._finals, self.partials, strict=True):
            if any(is_same_file(partial, other) for other in taken):
                raise InputError(
                    f"{flag}: fastgen writes {partial} first, which is another file of this command; name another"
                )

    def refuse_existing(self) -> None:
        """:raises InputError: an output exists and ``overwrite`` was not given."""
        for flag, path in self._finals.items():
            if path.exists() and not self._overwrite:
                raise InputError(f"{flag} {path}: is already there; name another file, or replace it with --overwrite")

    def whole(self) -> bool:
        """Whether each file exists, under one name or the other."""
        return all(p.exists() or f.exists() for p, f in zip(self.partials, self._finals.values(), strict=True))

    def publish(self) -> None:
        """Give the finished files their names."""
        for partial, final in zip(self.partials, self._finals.values(), strict=True):
            with disk_errors(final), contextlib.suppress(FileNotFoundError):  # has its name already
                partial.replace(final)

    def discard(self) -> None:
        """Remove unfinished files."""
        for partial in self.partials:
            partial.unlink(missing_ok=True)


def _check_suffix(flag: str, path: Path, *, parquet: bool) -> None:
    if path.suffix in _COMPRESSED:
        raise InputError(f"{flag} {path}: would not be compressed; leave out {path.suffix} and compress it afterwards")
    if path.suffix == ".parquet" and not parquet:
        raise InputError(f"{flag} {path}: the input is JSON lines, and so is what is written; name it .jsonl")
    if path.suffix in _JSON and parquet:
        raise InputError(f"{flag} {path}: the input is Parquet, and so is what is written; name it .parquet")


@dataclass(frozen=True, slots=True)
class DedupProgress:
    """Rows decided, rows in the whole input as estimated from the share that was read, rate over the last minute."""

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
