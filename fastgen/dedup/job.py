"""``fastgen dedup``: a data set without the rows that are too similar to an earlier row or to another data set.

The decisions go, batch by batch, into a journal beside the output, and they alone are the state: a run that was killed
reads its input again, takes the journal's word as far as it goes, and decides on. The outputs are written from the
beginning each time and get their names only when both are whole.

Guarantees: the decisions are those of `NoveltyFilter`, one text at a time; every row comes out exactly once, whole, in
order; a run that was killed any number of times writes the same bytes as one that was not; memory is bounded by the
index, one batch of rows and 16 bytes for each text compared with. Knows nothing of file formats
(`fastgen.tables.table`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastgen.dedup.journal import Journal
from fastgen.dedup.outputs import Outputs
from fastgen.dedup.progress import DedupMeter
from fastgen.errors import DiskError, InputError
from fastgen.method.novelty import NoveltyFilter, warm_up
from fastgen.options import SimilarityOptions
from fastgen.progress import Reporter
from fastgen.tables.table import Rejected, Rows, Sink, Table, as_disk_error, open_table, read_texts


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
