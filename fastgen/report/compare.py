"""``fastgen report --compare A B``: two runs side by side, as figures and as a page.

Each run is read once, with the memory of one report. Measures of variety are of as many words of each run, since they
depend on the amount of text. A difference is no verdict: the runs may differ in target, seeds and models, and the
settings that differ are listed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from fastgen.errors import InputError, flag_name
from fastgen.export.method import used_settings
from fastgen.judge.summary import saved_summaries
from fastgen.report import diversity, sections
from fastgen.report.charts import Axis, Chart, Line
from fastgen.report.diversity import Diversity
from fastgen.report.figures import RougeSpread, RunFigures, Spread, gather
from fastgen.report.options import ReportOptions
from fastgen.report.page import render, render_page
from fastgen.store.output import check_output, output_file
from fastgen.store.reader import OpenRun, open_run

_MENU = {
    "counts": "Counts",
    "rejections": "Rejected",
    "lengths": "Lengths",
    "novelty": "Novelty",
    "diversity": "Diversity",
    "settings": "Settings",
}
_OF_ONE_RUN = ("sample", "rejected_sample", "spacy_model", "evaluation_data")
_SETTING_LETTERS = 200
_STEPS = 120
"""Of the lines over time."""


class Comparison:
    """Two runs, read once.

    :raises InputError: one of them is not there or is damaged.
    """

    def __init__(self, a: Path, b: Path, options: ReportOptions = ReportOptions()) -> None:  # noqa: B008 - frozen
        self.paths = (a, b)
        self.runs = (open_run(a), open_run(b))
        read = ReportOptions(sample=0, rejected_sample=0, parse_sample=options.parse_sample, seed=options.seed)
        self.figures = tuple(gather(run, read) for run in self.runs)
        texts = [list(one.measured) for one in self.figures]
        self.words = min(diversity.measure(one).words for one in texts)
        self.variety = tuple(diversity.measure(diversity.of_words(one, self.words)) for one in texts)

    @property
    def names(self) -> tuple[str, str]:
        """The names of the folders, or their paths where those are the same."""
        first, second = (path.resolve() for path in self.paths)
        return (first.name, second.name) if first.name != second.name else (str(first), str(second))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: the ``runs``, and by name the ``settings`` that differ, each with both values."""
        parts = zip(self.paths, self.runs, self.figures, self.variety, strict=True)
        return {"runs": [_side(*part) for part in parts], "settings": dict(self.differences())}

    def differences(self) -> Iterator[tuple[str, list[Any]]]:
        """The settings that the two do not share."""
        a, b = (used_settings(run) for run in self.runs)
        for name in dict.fromkeys((*a, *b)):
            if a.get(name) != b.get(name):
                yield name, [a.get(name), b.get(name)]


def compare(a: Path, b: Path) -> dict[str, Any]:
    """The figures of two runs, as plain JSON values.

    :raises InputError: one of them is not there or is damaged.
    """
    return Comparison(a, b).as_dict()


def write_comparison(a: Path, b: Path, output: Path, options: ReportOptions = ReportOptions()) -> None:  # noqa: B008
    """Write the page to the file ``output`` (``-``: standard output).

    :raises InputError: a run is not there or damaged, no such place, or a flag that is about one run.
    :raises DiskError: the output cannot be written.
    """
    check_options(options)
    check_output("--output", output, [a, b], overwrite=options.overwrite)
    page = _page(Comparison(a, b, options))
    with output_file(output, overwrite=options.overwrite) as (sink, _):
        sink.write(page.encode())


def check_options(options: ReportOptions) -> None:
    """:raises InputError: a flag that a comparison has no use for."""
    for name in _OF_ONE_RUN:
        if getattr(options, name) != getattr(ReportOptions(), name):
            raise InputError(f"{flag_name(name)}: belongs to the report of one run; leave it out with --compare")


# -- figures -----------------------------------------------------------------------------------------------------------


def _side(path: Path, run: OpenRun, figures: RunFigures, variety: Diversity) -> dict[str, Any]:
    ledger, working_s = figures.ledger, figures.timeline.working_s
    return {
        "run_dir": str(path),
        "method": run.method,
        "model": str(run.configuration["model"]),
        "target": run.folder.header().options.get("num_instructions"),
        "complete": ledger.complete,
        "kept": ledger.kept,
        "written": figures.written,
        "instances": ledger.instances,
        "acceptance": _rounded(ledger.acceptance),
        "yield_per_1000_tokens": _rounded(ledger.yield_per_1000_tokens),
        "generated_tokens": ledger.generated_tokens,
        "working_s": round(working_s, 1),
        "complete_per_min": _rounded(60 * ledger.complete / working_s) if working_s else None,
        "classification_share": _part(figures.classification, ledger.complete),
        "empty_input_share": _part(figures.empty_inputs, ledger.instances),
        "mean_turns": _rounded(figures.turns.mean),
        "rejected": dict(ledger.rejected.most_common()),
        "rejected_later": dict(ledger.rejected_instances.most_common()),
        "words": {
            "instruction": _lengths(figures.instruction_words),
            "input": _lengths(figures.input_words),
            "output": _lengths(figures.output_words),
        },
        "rouge_l": {"nearest_seed": _mean(figures.nearest_seed), "nearest_any": _mean(figures.nearest_any)},
        "diversity": {
            "texts": variety.texts,
            "words": variety.words,
            **{f"distinct_{n}": _rounded(value) for n, value in enumerate(variety.distinct, 1)},
            "compression_ratio": _rounded(variety.compression_ratio),
            "self_bleu": _rounded(variety.self_bleu),
        },
        "judges": {one["name"]: one["mean_score"] for one in saved_summaries(path)},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _part(part: int, whole: int) -> float | None:
    return _rounded(part / whole) if whole else None


def _mean(spread: RougeSpread) -> float | None:
    return _rounded(spread.mean) if spread.total else None


def _lengths(spread: Spread) -> dict[str, float | int] | None:
    if not spread.total:
        return None
    median, high = spread.quantile(0.5), spread.quantile(0.95)
    return {"mean": round(spread.mean, 2), "median": median, "p95": high, "longest": spread.highest}


# -- the page ----------------------------------------------------------------------------------------------------------


def _page(found: Comparison) -> str:
    sides, names, figures = found.as_dict()["runs"], found.names, found.figures
    lengths, novelty = list(_length_charts(names, figures)), list(_novelty_charts(names, found))
    settings = [(name.replace("_", " "), *(_setting(value) for value in both)) for name, both in found.differences()]
    body = [
        render("compared_counts", names, list(_count_rows(sides)), list(_growth(names, figures))),
        render("compared_rejections", names, list(_rejection_rows(sides))),
        render("compared_charts", "lengths", "How long they are", "Words between whitespace.", lengths),
        render("compared_charts", "novelty", "How new they are", "Every kept instruction when it was kept.", novelty),
        render("compared_diversity", names, list(_diversity_rows(sides)), f"{found.words:,}"),
        render("compared_settings", names, settings),
    ]
    models = render("compared_runs", *(side["model"] for side in sides), *(side["method"] for side in sides))
    return render_page(f"{names[0]} and {names[1]}", models, _MENU, body)


def _count_rows(sides: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    kinds: tuple[tuple[str, str, str], ...] = (
        ("Instructions complete", "complete", "{:,}"),
        ("asked for", "target", "{:,}"),
        ("Instructions kept", "kept", "{:,}"),
        ("Acceptance", "acceptance", "{:.1%}"),
        ("Complete per 1,000 generated tokens", "yield_per_1000_tokens", "{:.2f}"),
        ("Complete a minute of working time", "complete_per_min", "{:,.1f}"),
        ("Generated tokens", "generated_tokens", "{:,}"),
        ("Instances", "instances", "{:,}"),
        ("Classification tasks", "classification_share", "{:.1%}"),
        ("Instances with an empty input", "empty_input_share", "{:.1%}"),
        ("Mean turns", "mean_turns", "{:.2f}"),
    )
    for title, name, form in kinds:
        yield (title, *(_text(side[name], form) for side in sides))
    for title, kind in (("instruction", "instruction"), ("input that is not empty", "input"), ("output", "output")):
        yield f"Mean words of an {title}", *(_text((side["words"][kind] or {}).get("mean"), "{:.1f}") for side in sides)
    for judge in dict.fromkeys(name for side in sides for name in side["judges"]):
        yield f"Mean score of judge {judge}", *(_text(side["judges"].get(judge), "{:.2f}") for side in sides)


def _rejection_rows(sides: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for rule in dict.fromkeys(rule for side in sides for rule in side["rejected"]):
        counts = ((side["rejected"].get(rule, 0), side["written"]) for side in sides)
        yield (rule.replace("_", " "), *(f"{n:,} ({sections.share(n, of)})" if n else "0" for n, of in counts))
    for rule in dict.fromkeys(rule for side in sides for rule in side["rejected_later"]):
        yield (f"{rule.replace('_', ' ')} (later)", *(f"{side['rejected_later'].get(rule, 0):,}" for side in sides))


def _diversity_rows(sides: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name in sides[0]["diversity"]:
        form = "{:,}" if name in ("texts", "words") else "{:.3f}"
        title = name.replace("_", "-" if name.startswith(("distinct", "self")) else " ")
        yield (title, *(_text(side["diversity"][name], form) for side in sides))


def _length_charts(names: Sequence[str], figures: Sequence[RunFigures]) -> Iterator[Chart]:
    for title, what in (("instruction", "instructions"), ("input", "instances"), ("output", "instances")):
        spreads = [getattr(one, f"{title}_words") for one in figures]
        if any(spread.total for spread in spreads):
            yield from sections.length_charts([f"{name}: {title}" for name in names], spreads, what)


def _novelty_charts(names: Sequence[str], found: Comparison) -> Iterator[Chart]:
    told = "How much each kept instruction resembles the most similar of those before it that the check looked at."
    for name, run, one in zip(names, found.runs, found.figures, strict=True):
        spread, threshold = one.nearest_any, float(run.configuration["threshold"])
        label = f"Histogram of the ROUGE-L of the kept instructions of {name}: mean {spread.mean:.2f}"
        told_of = f"{told} Mean {spread.mean:.3f}. Above {threshold:g} (dashed) it is rejected."
        yield sections.rouge_chart(name, told_of, label, spread, "instructions", threshold)


def _growth(names: Sequence[str], figures: Sequence[RunFigures]) -> Iterator[Chart]:
    """Complete instructions over what they took: working time, and generated tokens."""
    longest_s = max(one.timeline.working_s for one in figures)
    unit_s, unit = sections.time_unit(longest_s)
    times = [accumulate(one.timeline.seconds_of(i) / unit_s for i in range(len(one.timeline.bins))) for one in figures]
    told = "How many there are after each stretch of working time."
    yield _over("Complete over time", told, names, figures, times, Axis(f"working time ({unit})"))
    tokens = [accumulate(bin_.generated_tokens for bin_ in one.timeline.bins) for one in figures]
    told = "How many there are for the tokens that were generated until then, which is what they cost."
    yield _over("Complete over tokens", told, names, figures, tokens, Axis("generated tokens"))


def _over(
    title: str,
    told: str,
    names: Sequence[str],
    figures: Sequence[RunFigures],
    spent: Sequence[Iterable[float]],
    x: Axis,
) -> Chart:
    """A line for each run, at the same places of the axis. It ends where the run does."""
    taken = [[0.0, *one] for one in spent]
    step = max(one[-1] for one in taken) / _STEPS
    series = []
    for number, (name, one, ends) in enumerate(zip(names, figures, taken, strict=True), 1):
        counts = [0, *accumulate(bin_.complete for bin_ in one.timeline.bins)]
        places = (i * step for i in range(_STEPS + 1))
        points = [(at, counts[bisect_right(ends, at) - 1] if at < ends[-1] + step else None) for at in places]
        series.append(Line(name, f"series-{number}", points))
    return sections.over_time(title, told, series, x, Axis("instructions"))


def _setting(value: object) -> str:
    if value is None:
        return "-"
    return sections.cut(str(value), _SETTING_LETTERS) or "empty"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
