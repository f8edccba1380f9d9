"""``fastgen report``: opens the run, reads it once, measures the samples and writes one page.

It works on a run that is running or never ended, and says so on the page. Memory does not grow with the run.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup

from fastgen import __version__
from fastgen.export.method import method_facts
from fastgen.judge.judgements import instance_scores, judge_names
from fastgen.judge.summary import summarise
from fastgen.report import comparisons, sections
from fastgen.report.diversity import VerbFigures, count_verbs, find_parser
from fastgen.report.figures import RunFigures, gather
from fastgen.report.options import ReportOptions
from fastgen.report.page import render, render_page
from fastgen.store.output import check_output, output_file
from fastgen.store.reader import OpenRun, open_run, unfinished
from fastgen.telemetry.series import read_metrics

_MENU: Final = {
    "overview": "Overview",
    "verbs": "Verbs",
    "novelty": "Novelty",
    "lengths": "Lengths",
    "time": "Over time",
    "steps": "Steps",
    "rejections": "Rejected",
    "diversity": "Diversity",
    "paper": "The original",
    "judged": "Judged",
    "leakage": "Overlap",
    "browse": "Read them",
    "making": "How it was made",
}
_WORKING_TIME: Final = "Working time: pauses of more than a minute between two answers (a stopped run) are left out."


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
    figures = gather(run, options)
    verbs = None if parser is None else count_verbs(*parser, list(figures.measured))
    target = run.folder.header().options.get("num_instructions")
    parts = {"overview": sections.overview_section(figures, target)}
    if figures.ledger.commits:
        parts |= _contents(run, figures, verbs)
    if judge_names(run_dir):
        parts["judged"] = comparisons.judged_section(summarise(run_dir))
    if options.evaluation_data is not None and figures.complete:
        parts["leakage"] = comparisons.leakage_section(run_dir, options.evaluation_data)
    parts["browse"] = sections.browse_section(figures, instance_scores(run_dir))
    parts["making"] = sections.making_section(run)
    menu = {name: _MENU[name] for name in parts}
    page = render_page(f"Report of {run_dir.resolve().name}", _subtitle(run), menu, list(parts.values()))
    with output_file(output, overwrite=options.overwrite) as (sink, _):
        sink.write(page.encode())
    return Reported(figures.complete, target, None if verbs is None else verbs.parsed)


def _contents(run: OpenRun, figures: RunFigures, verbs: VerbFigures | None) -> dict[str, Markup]:
    measured = sections.limit_charts(read_metrics(run.folder.path))
    is_original = run.is_self_instruct
    verb_section = sections.verb_section(verbs, len(figures.measured), figures.complete, beside_paper=is_original)
    own = {} if is_original else {"steps": sections.step_section(figures, method_facts(run).steps)}
    compared = {"paper": comparisons.paper_section(figures, verbs)} if is_original else {}
    return {
        "verbs": verb_section,
        "novelty": sections.novelty_section(figures, run.configuration["threshold"]),
        "lengths": sections.length_section(figures),
        "time": sections.time_section("How it went", _WORKING_TIME, figures.timeline, measured),
        **own,
        "rejections": sections.rejection_section(figures),
        "diversity": comparisons.diversity_section(figures),
        **compared,
    }


def _subtitle(run: OpenRun) -> Markup:
    made = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    preset = f"preset {run.configuration['preset']}"
    how = preset if run.is_self_instruct else f"method {run.method}"
    return render("written_by", str(run.configuration["model"]), how, made, __version__)
