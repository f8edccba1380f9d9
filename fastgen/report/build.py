"""``fastgen report``: the whole story. Open the run, read it once, measure the samples, write one page.

Works on a run that goes on or never ended, and says so on the page; memory does not grow with the run.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen import __version__
from fastgen.judge.readings import instance_scores, judge_names
from fastgen.judge.summary import summarise
from fastgen.report import diversity, sections
from fastgen.report import sections as measured
from fastgen.report.charts import Html, Table, element, joined, table_of
from fastgen.report.comparisons import (
    diversity_section,
    judged_section,
    leakage_section,
    measure_leakage,
    paper_section,
)
from fastgen.report.diversity import HOW_TO_GET, Diversity, VerbFigures, count_verbs, find_parser
from fastgen.report.figures import RunFigures, gather
from fastgen.report.options import ReportOptions
from fastgen.report.page import Document, render
from fastgen.report.sections import browse_section, nothing_yet, time_charts
from fastgen.store.output import check_output, one_file
from fastgen.store.reader import OpenRun, open_run, unfinished
from fastgen.telemetry.series import read_metrics

_MENU = (
    ("overview", "Overview"),
    ("verbs", "Verbs"),
    ("novelty", "Novelty"),
    ("lengths", "Lengths"),
    ("time", "Over time"),
    ("rejections", "Rejected"),
    ("diversity", "Diversity"),
    ("paper", "The original"),
    ("judged", "Judged"),
    ("leakage", "Overlap"),
    ("browse", "Read them"),
    ("making", "How it was made"),
)
_NO_PARSER = (
    f"Not measured: no parser is installed. {HOW_TO_GET} brings spaCy with a small English model; --spacy-model names "
    f"another one."
)


@dataclass(frozen=True, slots=True)
class Reported:
    """What was written, and what a person should know of it."""

    complete: int
    target: int | None
    parsed: int | None
    """Instructions that were parsed; ``None``: there is no parser."""

    @property
    def unfinished(self) -> str:
        """See `fastgen.store.reader.unfinished`."""
        return unfinished(self.complete, self.target)


def report(run_dir: Path, output: Path, options: ReportOptions = ReportOptions()) -> Reported:  # noqa: B008 - frozen
    """Write the page for the run to the file ``output`` (``-``: standard output).

    A file that is there is replaced only with ``--overwrite``, and only when the new one is whole.

    :raises InputError: no run there, a damaged one, a model or evaluation data that cannot be read, no such place.
    :raises DiskError: the output cannot be written.
    """
    evaluation = [path for path in (options.evaluation_data,) if path is not None and path.is_file()]
    check_output("--output", output, [run_dir, *evaluation], overwrite=options.overwrite)
    run = open_run(run_dir)
    parser = find_parser(options.spacy_model)
    figures = gather(run, options.sizes, options.seed)
    instructions = list(figures.measured)
    verbs = None if parser is None else count_verbs(*parser, instructions)
    target = run.folder.header().options.get("num_instructions")
    parts = [
        _overview(figures, target),
        *_contents(run, figures, verbs, instructions),
        *_judged(run_dir),
        *_overlap(run_dir, options, figures),
        browse_section(figures, instance_scores(run_dir)),
        _making(run),
    ]
    document = Document(f"Report of {run_dir.resolve().name}", _subtitle(run), _menu_of(parts), joined(parts))
    with one_file(output, overwrite=options.overwrite) as (sink, _):
        sink.write(render(document).encode())
    return Reported(figures.complete, target, None if verbs is None else verbs.parsed)


def _contents(run: OpenRun, figures: RunFigures, verbs: VerbFigures | None, instructions: list[str]) -> list[Html]:
    if not figures.ledger.commits:
        return []
    limits = measured.limit_charts(measured.collect(read_metrics(run.folder.path)))
    return [
        sections.verb_section(verbs, len(instructions), figures.complete, _NO_PARSER),
        sections.novelty_section(figures, run.meaning["threshold"]),
        sections.length_section(figures),
        sections.section(
            "time",
            "How it went",
            time_charts(figures.timeline),
            measured.empty_note() if limits is None else limits,
            lead="Working time: pauses of more than a minute between two answers (a stopped run) are left out.",
        ),
        sections.rejection_section(figures),
        diversity_section(_diversities(figures, instructions)),
        paper_section(figures, verbs),
    ]


def _diversities(figures: RunFigures, instructions: list[str]) -> list[tuple[str, Diversity]]:
    seeds = [seed.instruction for seed in figures.seeds]
    words = min(diversity.measure(seeds).words, diversity.measure(instructions).words)
    named = f"{'Sample of ' if len(instructions) < figures.complete else 'All '}generated"
    return [
        ("Seed tasks", diversity.measure(diversity.of_words(seeds, words))),
        ("Generated, as many words", diversity.measure(diversity.of_words(instructions, words))),
        (named, diversity.measure(instructions)),
    ]


def _judged(run_dir: Path) -> list[Html]:
    return [judged_section(summarise(run_dir))] if judge_names(run_dir) else []


def _overlap(run_dir: Path, options: ReportOptions, figures: RunFigures) -> list[Html]:
    if options.evaluation_data is None or not figures.complete:
        return []
    return [leakage_section(measure_leakage(run_dir, options.evaluation_data))]


def _overview(figures: RunFigures, target: int | None) -> Html:
    notices: list[Html] = []
    if not figures.complete:
        notices.append(nothing_yet())
    if target is not None and figures.complete < target:
        count = f"{figures.complete:,} of {target:,} instructions"
        told = f"The run is not finished: {count}. This is what was there when the page was made."
        notices.append(element("p", told, class_="notice"))
    return sections.section("overview", "Overview", *notices, sections.tiles(figures, target))


def _making(run: OpenRun) -> Html:
    rows = [(name.replace("_", " "), _shown(value)) for name, value in run.meaning.items()]
    details = element(
        "details",
        element("summary", f"All {len(rows)} settings that the run's data depends on"),
        table_of(Table(("Setting", "Value"), rows), "Settings"),
    )
    header = run.folder.header()
    seeds = f"{len(run.seeds):,} seed tasks by people; run {header.run_id[:12]}, fastgen {header.version}."
    return sections.section("making", "How it was made", element("p", seeds), details)


def _shown(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        return ", ".join(map(repr, value)) or "none"
    return str(value)


def _subtitle(run: OpenRun) -> Html:
    made = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return joined(
        "written by ",
        element("strong", str(run.meaning["model"])),
        f", preset {run.meaning['preset']}; page of {made} by fastgen {__version__}",
    )


def _menu_of(parts: list[Html]) -> list[tuple[str, str]]:
    page = "".join(parts)
    return [(name, title) for name, title in _MENU if f'<section id="{name}"' in page]
