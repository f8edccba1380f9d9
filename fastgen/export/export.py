"""Writes a run's instructions as files that other tools read. Streams: memory does not grow with the run.

A plain reader of the run folder: works while the run goes on, on a read-only folder, and on a run that never ended.
What is written is chosen in `fastgen.export.entries`, shaped in `fastgen.export.rows`, put down by
`fastgen.export.writers`; this module puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from fastgen.errors import InputError
from fastgen.export.card import CardFacts, Figures, write_card
from fastgen.export.entries import Entry, InstanceScores, entries
from fastgen.export.hub import Hub, connect
from fastgen.export.options import CardOptions, ChoiceOptions, Format
from fastgen.export.rows import Row, rejected_row, rows_of
from fastgen.export.writers import ENDINGS, RowWriter, open_writer
from fastgen.store.log import TornTail
from fastgen.store.output import check_folder, check_output, folder, one_file
from fastgen.store.reader import OpenRun, open_run, rejected_instructions, unfinished

CARD: Final = "README.md"
_MAY_BE_EMPTY: Final = {"raw", "instances", "rejected"}  # lists that somebody watches grow; the others are for training


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: rows by split, and where it was uploaded to.

    ``complete`` of the ``target`` instructions (``None``: not known) were there, so the run may not be at its end.
    """

    rows: Mapping[str, int]
    complete: int
    target: int | None
    url: str | None = None

    @property
    def total(self) -> int:
        """Rows of all splits."""
        return sum(self.rows.values())

    @property
    def unfinished(self) -> str:
        """See `fastgen.store.reader.unfinished`."""
        return unfinished(self.complete, self.target)


@dataclass(frozen=True, slots=True)
class _Job:
    """An export that was asked for, with everything that it reads."""

    run: OpenRun
    form: Format
    choice: ChoiceOptions
    scores: InstanceScores | None
    figures: Figures = field(default_factory=Figures)

    def split_rows(self) -> Iterator[tuple[str, Row]]:
        """All rows, each with its split; the figures are counted on the way."""
        if self.form == "rejected":
            commits = (item[0] for item in self.run.folder.commits() if not isinstance(item, TornTail))
            for rejected in rejected_instructions(commits, self.run.rules):
                yield "train", rejected_row(rejected, self.run.seeds)
            return
        splits, rows = self.choice.splits(), rows_of(self.form, self.run, self.choice.seed)
        for entry in self._entries():
            split = splits.of(entry.instruction, self.choice.seed)
            self.figures.add(entry, split)
            for row in rows(entry):
                yield split, row

    def _entries(self) -> Iterator[Entry]:
        return entries(self.run, self.choice, self.scores)


def export(
    run_dir: Path,
    form: Format,
    output: Path,
    choice: ChoiceOptions = ChoiceOptions(),  # noqa: B008 - frozen
    card: CardOptions = CardOptions(),  # noqa: B008 - frozen
    *,
    scores: InstanceScores | None = None,
) -> Exported:
    """Write the run to the file ``output`` (``-`` is standard output), or into it as a folder for splits and a card.

    A file that is there is replaced only where ``choice`` says so, and only when the new one is whole. Rows are in the
    order of settling, so a later export of the same run begins with the same rows; only ``prompt-completion`` is
    shuffled. ``scores`` are a judge's, if there are any.

    :raises InputError: no run there, a damaged one, no such place, nothing to write, or options that do not fit.
    :raises DiskError: the output cannot be written.
    """
    choice.check_format(form)
    card.check_format(form)
    to_file = choice.split is None and not card.wanted
    if to_file:
        check_output("--output", output, [run_dir], overwrite=choice.overwrite)
    else:
        check_folder(output, _names(form, choice, card), [run_dir], overwrite=choice.overwrite)
    run = open_run(run_dir)
    if choice.min_judge_score is not None and scores is None:
        raise InputError(
            f"--min-judge-score: {run_dir} has no judgements; 'fastgen judge --run-dir {run_dir}' makes them"
        )
    hub = None if card.push_to_hub is None else connect(card.push_to_hub)
    job = _Job(run, form, choice, scores)
    rows = _to_file(job, output) if to_file else _to_folder(job, output, card)
    url = None if hub is None else _upload(hub, job, output, card)
    return Exported(rows, run.folder.ledger().complete, run.folder.header().options.get("num_instructions"), url)


def _to_file(job: _Job, output: Path) -> dict[str, int]:
    if job.form == "parquet" and str(output) == "-":
        raise InputError("--output -: Parquet is not written in one go; name a file")
    with (
        one_file(output, overwrite=job.choice.overwrite) as (sink, scratch),
        _writer(job, sink, scratch / "rows") as writer,
    ):
        for _, row in job.split_rows():
            writer.write(row)
        rows = {"train": writer.finish()}
        if job.form not in _MAY_BE_EMPTY:
            _check_not_empty(job, rows)
    return rows


def _to_folder(job: _Job, output: Path, card: CardOptions) -> dict[str, int]:
    files = _file_names(job.form, job.choice)
    with folder(output, _names(job.form, job.choice, card), overwrite=job.choice.overwrite) as scratch:
        rows = _write_files(job, files, scratch)
        _check_not_empty(job, rows)
        if card.wanted:
            ledger = job.run.folder.ledger()
            facts = CardFacts(job.run, ledger, job.form, files, rows, job.figures, job.choice, card)
            (scratch / CARD).write_text(write_card(facts), encoding="utf-8")
    return rows


def _write_files(job: _Job, files: Mapping[str, str], scratch: Path) -> dict[str, int]:
    with ExitStack() as stack:
        writers: dict[str, RowWriter] = {}
        for split, name in files.items():
            sink = stack.enter_context((scratch / name).open("wb"))
            writers[split] = stack.enter_context(_writer(job, sink, scratch / f"{split}.rows"))
        for split, row in job.split_rows():
            writers[split].write(row)
        return {split: writer.finish() for split, writer in writers.items()}


def _writer(job: _Job, sink: IO[bytes], scratch: Path) -> AbstractContextManager[RowWriter]:
    return closing(open_writer(job.form, sink, scratch, job.choice.seed))


def _file_names(form: Format, choice: ChoiceOptions) -> dict[str, str]:
    return {split: split + ENDINGS.get(form, ".jsonl") for split in choice.splits().names}


def _names(form: Format, choice: ChoiceOptions, card: CardOptions) -> list[str]:
    """What is written into a folder; the card last."""
    return [*_file_names(form, choice).values(), *([CARD] if card.wanted else [])]


def _check_not_empty(job: _Job, rows: Mapping[str, int]) -> None:
    """:raises InputError: nothing to train on, which is nothing that a loader reads either."""
    if not sum(rows.values()):
        least = job.choice.min_judge_score
        if least is not None:
            raise InputError(f"--min-judge-score {least:g}: leaves no instance; lower it, or judge more of them")
        path = job.run.folder.path
        raise InputError(f"--run-dir {path}: no instruction has an instance yet; 'fastgen generate' goes on with it")
    if empty := [split for split, count in rows.items() if not count]:
        raise InputError(f"--split {job.choice.split}: {empty[0]} would be empty; give it more or export more")


def _upload(hub: Hub, job: _Job, output: Path, card: CardOptions) -> str:
    return hub.upload(output, _names(job.form, job.choice, card), private=card.private)
