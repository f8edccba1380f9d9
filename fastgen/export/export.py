"""``fastgen export``: writes a run's instructions as files that other tools read.

It reads the run folder and changes nothing, so it works while the run is running, on a read-only folder, and on a run
that never ended. It streams: memory does not grow with the run. `fastgen.export.entries` chooses the instructions,
`fastgen.export.rows` has the formats, and `fastgen.export.writers` writes files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from fastgen.errors import InputError
from fastgen.export.card import CardFacts, Figures, write_card
from fastgen.export.entries import InstanceScores, entries, machine_entry
from fastgen.export.hub import connect, upload
from fastgen.export.method import method_facts
from fastgen.export.options import CardOptions, ChoiceOptions, Format
from fastgen.export.rows import (
    FORMATS_WITH_TURNS,
    INSTRUCTION_FORMATS,
    REJECTED_COLUMNS,
    Feature,
    FormatSpec,
    format_spec,
    rejected_row,
)
from fastgen.export.writers import Csv, JsonLines, Row, RowWriter
from fastgen.store.log import Position, TornTail
from fastgen.store.output import check_output, check_output_folder, output_file, output_folder
from fastgen.store.reader import Finishing, OpenRun, open_run, rejected_instructions, unfinished

CARD: Final = "README.md"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: rows by split, and where it was uploaded to.

    ``complete`` of the ``target`` instructions (``None``: not known) were there, so the run may not be at its end.
    ``first_turns`` of the rows are only the first turn of a conversation, since the format has no place for more.
    ``formulas`` is the number of cells of a CSV file that a spreadsheet would take for a formula.
    """

    rows: Mapping[str, int]
    complete: int
    target: int | None
    url: str | None = None
    first_turns: int = 0
    formulas: int = 0

    @property
    def total(self) -> int:
        """Rows of all splits."""
        return sum(self.rows.values())

    @property
    def unfinished(self) -> str:
        """See `fastgen.store.reader.unfinished`."""
        return unfinished(self.complete, self.target)


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

    An existing file is replaced only if ``choice`` says so, and only when the new one is whole. Rows are in the order
    in which the instructions were finished, so a later export of the same run begins with the same rows. Only
    ``prompt-completion`` is shuffled. ``scores`` are a judge's, if there are any.

    :raises InputError: no run there, a damaged one, no such place, nothing to write, or options that do not fit.
    :raises DiskError: the output cannot be written.
    """
    choice.check_format(form)
    card.check_format(form)
    to_file = choice.split is None and not card.wanted
    files = _file_names(form, choice)
    names = [*files.values(), *([CARD] if card.wanted else [])]  # the card last
    if to_file:
        check_output("--output", output, [run_dir], overwrite=choice.overwrite)
    else:
        check_output_folder(output, names, [run_dir], overwrite=choice.overwrite)
    run = open_run(run_dir)
    _check_scores(run, choice, scores)
    hub = None if card.push_to_hub is None else connect(card.push_to_hub)
    job = _Job(run, form, choice, scores)
    if to_file:
        rows = job.write_file(output)
    else:
        with output_folder(output, names, overwrite=choice.overwrite) as scratch:
            rows = job.write_files(files, scratch)
            if card.wanted:
                facts = CardFacts(
                    *(run, run.folder.ledger(), form, files, rows, job.figures, choice, card), method_facts(run)
                )
                (scratch / CARD).write_text(write_card(facts), encoding="utf-8")
    url = None
    if hub is not None and card.push_to_hub is not None:
        url = upload(hub, card.push_to_hub, output, names, private=card.private)
    target = run.folder.header().options.get("num_instructions")
    return Exported(rows, run.folder.ledger().complete, target, url, job.figures.first_turns, job.formulas)


class _Job:
    """An export of a run. ``figures`` and ``formulas`` count what was written."""

    def __init__(self, run: OpenRun, form: Format, choice: ChoiceOptions, scores: InstanceScores | None) -> None:
        self.figures = Figures()
        self.formulas = 0
        self._run = run
        is_rejected = form not in INSTRUCTION_FORMATS
        self._spec = None if is_rejected else spec_of(form, run, choice)
        self._form = form
        self._choice = choice
        self._scores = scores

    def write_file(self, output: Path) -> dict[str, int]:
        """Write one file and return the number of rows."""
        if self._form == "parquet" and str(output) == "-":
            raise InputError("--output -: Parquet is not written in one go; name a file")
        with (
            output_file(output, overwrite=self._choice.overwrite) as (sink, scratch),
            closing(self._writer(sink, scratch / "rows")) as writer,
        ):
            for _, row in self._split_rows():
                writer.write(row)
            rows = {"train": self._finish(writer)}
            if self._spec is not None and not self._spec.may_be_empty:
                self._check_not_empty(rows)
        return rows

    def write_files(self, files: Mapping[str, str], scratch: Path) -> dict[str, int]:
        """Write a file for each split into the folder and return the number of rows of each."""
        with ExitStack() as stack:
            writers: dict[str, RowWriter] = {}
            for split, name in files.items():
                sink = stack.enter_context((scratch / name).open("wb"))
                writers[split] = stack.enter_context(closing(self._writer(sink, scratch / f"{split}.rows")))
            for split, row in self._split_rows():
                writers[split].write(row)
            rows = {split: self._finish(writer) for split, writer in writers.items()}
        self._check_not_empty(rows)
        return rows

    def _writer(self, sink: IO[bytes], scratch: Path) -> RowWriter:
        make = JsonLines if self._spec is None else self._spec.writer
        return make(sink, scratch, self._choice.seed)

    def _finish(self, writer: RowWriter) -> int:
        rows = writer.finish()
        self.formulas += writer.formulas if isinstance(writer, Csv) else 0
        return rows

    def _split_rows(self) -> Iterator[tuple[str, Row]]:
        """All rows, each with its split. The figures are counted in passing."""
        run, choice, spec = self._run, self._choice, self._spec
        if spec is None:
            commits = run.folder.whole_commits()
            for rejected in rejected_instructions(commits, run):
                yield "train", rejected_row(rejected, run.seeds)
            return
        splits = choice.splits()
        for entry in entries(run, choice, self._scores):
            split = splits.of(entry.instruction, choice.seed)
            self.figures.add(entry, split, has_turns=self._form in FORMATS_WITH_TURNS)
            for row in spec.rows(entry, run, choice.seed):
                yield split, row

    def _check_not_empty(self, rows: Mapping[str, int]) -> None:
        """:raises InputError: there is nothing to train on, which no loader reads either."""
        if not sum(rows.values()):
            least = self._choice.min_judge_score
            if least is not None:
                raise InputError(f"--min-judge-score {least:g}: leaves no instance; lower it, or judge more of them")
            path = self._run.folder.path
            raise InputError(f"--run-dir {path}: no instruction has an instance yet; 'fastgen generate' resumes it")
        if empty := [split for split, count in rows.items() if not count]:
            raise InputError(f"--split {self._choice.split}: {empty[0]} would be empty; give it more or export more")


def spec_of(form: Format, run: OpenRun, choice: ChoiceOptions) -> FormatSpec:
    """How a format of instructions is written for a run, with what the options add to it."""
    return format_spec(form, run, with_reasoning=choice.with_reasoning, for_spreadsheets=choice.for_spreadsheets)


def _check_scores(run: OpenRun, choice: ChoiceOptions, scores: InstanceScores | None) -> None:
    if choice.min_judge_score is not None and scores is None:
        path = run.folder.path
        raise InputError(f"--min-judge-score: {path} has no judgements; 'fastgen judge --run-dir {path}' makes them")


def rows_of(
    run: OpenRun, form: Format, choice: ChoiceOptions, scores: InstanceScores | None = None
) -> tuple[Mapping[str, Feature], Iterator[Row]]:
    """The columns and the rows of a format, as they are written, in the order of the run. Nothing is shuffled.

    :raises InputError: options that do not fit the format, or there are no judgements to choose by.
    """
    choice.check_format(form)
    _check_scores(run, choice, scores)
    if form == "rejected":
        rejected = rejected_instructions(run.folder.whole_commits(), run)
        return REJECTED_COLUMNS, (rejected_row(one, run.seeds) for one in rejected)
    spec = spec_of(form, run, choice)
    found = entries(run, choice, scores)
    return spec.columns, (row for entry in found for row in spec.rows(entry, run, choice.seed))


class RowsWhileWritten:
    """The rows of a run that is being written, in the order of the run. Each `read` begins where the last one ended.

    :raises InputError: options that do not fit the format.
    """

    def __init__(self, run: OpenRun, form: Format, choice: ChoiceOptions) -> None:
        choice.check_format(form)
        self._run = run
        self._choice = choice
        self._spec = spec_of(form, run, choice)
        self._finishing = Finishing(run)
        self._position: Position | None = None

    def read(self) -> Iterator[Row]:
        """The rows that the log has now and that no earlier call has read. Read them to the end.

        :raises DamagedLogError: the run's log is damaged.
        """
        for item in self._run.folder.commits(self._position):
            if isinstance(item, TornTail):  # a line that is being written
                return
            commit, self._position = item
            finished = self._finishing.add(commit)
            entry = finished and machine_entry(finished, self._run, self._choice, None)
            if entry:
                yield from self._spec.rows(entry, self._run, self._choice.seed)


def _file_names(form: Format, choice: ChoiceOptions) -> dict[str, str]:
    ending = INSTRUCTION_FORMATS[form].ending if form in INSTRUCTION_FORMATS else ".jsonl"
    return {split: split + ending for split in choice.splits().names}
