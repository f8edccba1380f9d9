"""Commands on data: write a run out, filter any data set, check seed tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fastgen.display import put, tell
from fastgen.exporting.options import CardOptions, ChoiceOptions, Format
from fastgen.options import SimilarityOptions


def export(
    *,
    run_dir: Path,
    output: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    format: Format = "raw",  # noqa: A002 - the flag's name
    choice: ChoiceOptions = ChoiceOptions(),  # noqa: B008 - frozen
    card: CardOptions = CardOptions(),  # noqa: B008 - frozen
) -> int:
    """Write a run's instructions for people, trainers and the hub; works while the run goes on.

    Parameters
    ----------
    run_dir
        Folder of the run.
    output
        File to write (- is standard output), or the folder, with --split, --card or --push-to-hub.
    format
        raw: one instruction with its instances and provenance a line; instances: one flat instruction, input, output
        a line; rejected: what the filters rejected, with rule, neighbour and ROUGE-L; alpaca: the flat ones as one
        JSON array; messages: chats; prompt-completion: the paper's templates, shuffled; parquet: flat, with provenance.
    """
    from fastgen.exporting.export import export as write
    from fastgen.judging.readings import instance_scores

    scores = None if format == "rejected" else instance_scores(run_dir)
    done = write(run_dir, format, output, choice, card, scores=scores)
    notes = [] if done.total else ["warning: the run has none yet"]
    notes += [done.unfinished] if done.unfinished else []
    shown = f" ({'; '.join(notes)})" if notes else ""
    tell(f"{_rows(done.rows)} written to {output}{shown}")
    if done.url is not None:
        tell(f"uploaded to {done.url}")
    return 0


def _rows(rows: Mapping[str, int]) -> str:
    by_split = f" ({', '.join(f'{split} {count}' for split, count in rows.items())})" if len(rows) > 1 else ""
    return f"{sum(rows.values())} rows{by_split}"


def dedup(
    source: Path,
    /,
    *,
    output: Path,
    rejected: Path,
    field: str = "instruction",
    against: tuple[Path, ...] = (),
    overwrite: bool = False,
    quiet: bool = False,
    similarity: SimilarityOptions = SimilarityOptions(),  # noqa: B008 - frozen
) -> int:
    """Filter any JSON-lines or Parquet data set by ROUGE-L: whole rows, in order; goes on when it was killed.

    Parameters
    ----------
    source
        Data set to filter: JSON lines (also .gz, .zst) or Parquet.
    output
        File for the rows that are kept, just as they are.
    rejected
        File for the others, each with its neighbour and ROUGE-L.
    field
        Top-level key (column) whose text is compared.
    against
        Data sets that rows are compared with but that are not written; may be given several times.
    overwrite
        Replace outputs that are there.
    quiet
        Say nothing but errors and the last line.
    """
    from fastgen.dedup.job import dedup as run_dedup
    from fastgen.progress import choose_reporter

    reporter = choose_reporter(quiet=quiet, log_json=False)
    try:
        counts = run_dedup(
            source, output, rejected, similarity, reporter, field=field, against=against, overwrite=overwrite
        )
    finally:
        reporter.close()
    tell(f"{counts.kept} of {counts.rows} rows kept in {output}, {counts.rejected} rejected")
    return 0


def check(file: Path, /, *, preset: Literal["default", "paper"] = "default") -> int:
    """Validate a seed file: schema with line and field, duplicates, near-duplicates, what the filters would reject.

    Parameters
    ----------
    file
        Seed tasks as JSON lines.
    preset
        Rules of the run that the seeds are for: they count the words and say what the filters would reject.
    """
    from fastgen.seeds import check_seed_tasks

    put(str(check_seed_tasks(file, preset)))
    return 0
