"""The sections of the page: each takes figures and gives HTML, or ``None`` where there is nothing to show.

What every section says stands in the text as well as in its chart, and every chart has its figures as a table. Text of
a run enters only as `markup` text. Knows nothing of files and of the page around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

from fastgen.export.entries import InstanceScores
from fastgen.report.charts import (
    Axis,
    Html,
    Line,
    Table,
    bar,
    chart,
    data_block,
    element,
    histogram,
    joined,
    lines,
    pairs,
    short,
    strip,
    sunburst,
    table_of,
)
from fastgen.report.diversity import VerbFigures
from fastgen.report.figures import ROUGE_BINS, RougeSpread, RunFigures, Spread, Timeline
from fastgen.store.reader import RejectedInstruction, Settled, pool_id
from fastgen.telemetry.figures import Limit, Sample
from fastgen.telemetry.progress import duration
from fastgen.text import printable

_EXAMPLE_LETTERS: Final = 400
_COUNT: Final = Axis("instructions")


def section(name: str, title: str, *children: object, lead: str | None = None) -> Html:
    """A landmark with a heading; ``name`` is what links point to."""
    return element(
        "section",
        element("h2", title, id=f"{name}-title"),
        element("p", lead, class_="lead") if lead else None,
        *children,
        id=name,
        aria_labelledby=f"{name}-title",
    )


def tiles(figures: RunFigures, target: int | None) -> Html:
    """The few figures that a person asks for first."""
    ledger = figures.ledger
    written = ledger.kept + ledger.rejected.total()
    per_s = ledger.generated_tokens / figures.timeline.working_s if figures.timeline.working_s else 0.0
    shown = (
        (
            "Instructions complete",
            f"{ledger.complete:,}",
            f"of {target:,} asked for" if target else "kept with instances",
        ),
        ("Acceptance", f"{ledger.acceptance:.1%}", f"{ledger.kept:,} kept of {written:,} written"),
        (
            "Instances",
            f"{ledger.instances:,}",
            f"{ledger.instances / ledger.complete:.2f} each" if ledger.complete else "",
        ),
        ("Classification", _share(figures.classification, ledger.complete), "of the complete instructions"),
        ("Yield", f"{ledger.yield_per_1000_tokens:.2f}", "complete per 1,000 generated tokens"),
        ("Tokens generated", short(ledger.generated_tokens), f"{short(ledger.prompt_tokens.total())} read"),
        ("Working time", duration(figures.timeline.working_s), f"{short(per_s)} generated tokens/s"),
    )
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), element("dd", note, class_="note"))
            for name, value, note in shown
        ),
        class_="tiles",
    )


def verb_section(verbs: VerbFigures | None, sampled: int, complete: int, missing: str) -> Html:
    """Sunburst and list, or how to get them."""
    if verbs is None:
        return section("verbs", "What the instructions ask for", element("p", missing, class_="notice"))
    lead = (
        f"Root verb and direct noun object, parsed with {verbs.model}: {verbs.with_pair:,} of {verbs.parsed:,} "
        f"instructions have such a pair ({verbs.share_with_pair:.1%}). The {len(verbs.verbs)} most frequent verbs with "
        f"their 4 most frequent objects are {verbs.share_shown:.1%} of all parsed (the original study: 14%)."
    )
    if sampled < complete:
        lead += f" Parsed is a random sample of {sampled:,} of the {complete:,} complete instructions."
    if not verbs.verbs:
        return section("verbs", "What the instructions ask for", lead=lead)
    most = verbs.verbs[0].count
    rows = [
        element(
            "li",
            element("span", verb, class_="verb-name"),
            bar(count / most),
            element("span", f"{count:,}", class_="number"),
            element("span", nouns, class_="nouns"),
        )
        for verb, count, nouns in pairs(verbs)
    ]
    body = element(
        "div",
        element("div", sunburst(verbs), class_="burst-box"),
        element("ol", *rows, class_="verbs"),
        class_="beside",
    )
    return section("verbs", "What the instructions ask for", body, lead=lead)


def novelty_section(figures: RunFigures, threshold: float) -> Html:
    """ROUGE-L to the nearest seed and to the nearest of the pool."""
    return section(
        "novelty",
        "How new they are",
        element(
            "div",
            _rouge(
                "ROUGE-L to the nearest seed task",
                figures.nearest_seed,
                threshold,
                "How much each kept instruction resembles the most similar seed task (0: no common word, or none met "
                "by the similarity index).",
            ),
            _rouge(
                "ROUGE-L to the nearest of all",
                figures.nearest_any,
                threshold,
                "The same with the most similar of the seed tasks and the instructions kept before it that the "
                "similarity check looked at.",
            ),
            class_="grid-2",
        ),
        lead=f"Every kept instruction against what was there before it. Above {threshold:g} (dashed) it is rejected.",
    )


def _rouge(title: str, spread: RougeSpread, threshold: float, description: str) -> Html:
    width = 1 / ROUGE_BINS
    ranges = [f"{i * width:.2f} to {(i + 1) * width:.2f}" for i in range(ROUGE_BINS)]
    bars = [
        (f"{name}: {count:,} ({_share(count, spread.total)})", count)
        for name, count in zip(ranges, spread.bins, strict=True)
    ]
    edges = ("0", "0.2", "0.4", "0.6", "0.8", "1")
    label = f"Histogram of {title}: mean {spread.mean:.2f} over {spread.total:,} kept instructions"
    drawing = histogram(label, bars, Axis("ROUGE-L F1"), _COUNT, edges, mark=threshold)
    rows = [(name, f"{count:,}") for name, count in zip(ranges, spread.bins, strict=True)]
    return chart(title, f"{description} Mean {spread.mean:.3f}.", drawing, Table(("ROUGE-L F1", "Instructions"), rows))


def length_section(figures: RunFigures) -> Html:
    """Words of instructions, inputs and outputs."""
    empty = _share(figures.empty_inputs, figures.ledger.instances)
    return section(
        "lengths",
        "How long they are",
        element(
            "div",
            _lengths("Instruction", figures.instruction_words, "instructions", ""),
            _lengths(
                "Input",
                figures.input_words,
                "instances",
                f"Inputs that are not empty; {empty} of the instances have an empty one. ",
            ),
            _lengths("Output", figures.output_words, "instances", ""),
            class_="grid-3",
        ),
        lead="Words between whitespace, of every complete instruction and all its instances.",
    )


def _lengths(title: str, spread: Spread, what: str, note: str) -> Html:
    bins = 20
    width = max(1, -(-(spread.quantile(0.98) + 1) // bins))
    counts = spread.bins(width, bins)
    names = [_range(i, width, last=i == bins - 1) for i in range(bins)]
    bars = [
        (f"{name} words: {count:,} ({_share(count, spread.total)})", count)
        for name, count in zip(names, counts, strict=True)
    ]
    edges = [str(width * i) for i in range(0, bins, 5)] + [f"{width * (bins - 1)}+"]
    description = (
        f"{note}Mean {spread.mean:.1f}, median {spread.quantile(0.5)}, 95 % up to {spread.quantile(0.95)}, "
        f"longest {spread.highest:,} words."
    )
    drawing = histogram(f"Histogram of words: {title}. {description}", bars, Axis("words"), Axis(what), edges)
    rows = [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)]
    return chart(f"{title} length", description, drawing, Table(("Words", what.capitalize()), rows))


def _range(number: int, width: int, *, last: bool) -> str:
    low = number * width
    if last:
        return f"{low}+"
    return str(low) if width == 1 else f"{low} to {low + width - 1}"


def rejection_section(figures: RunFigures) -> Html:
    """Bars by rule with examples of each."""
    ledger = figures.ledger
    written = ledger.kept + ledger.rejected.total()
    most = max(ledger.rejected.values(), default=1)
    rules = [
        _rule(rule, count, most, written, tuple(figures.examples.get(rule, ())), figures)
        for rule, count in ledger.rejected.most_common()
    ]
    instances = [(rule.replace("_", " "), f"{count:,}") for rule, count in ledger.rejected_instances.most_common()]
    below = (
        joined(
            element("h3", "Rejected instances"),
            table_of(Table(("Rule", "Count"), instances), "Rejected instances by rule"),
        )
        if instances
        else None
    )
    lead = (
        f"{ledger.rejected.total():,} of {written:,} written instructions were rejected. Open a rule for examples."
        if rules
        else "No instruction was rejected."
    )
    return section(
        "rejections",
        "What was rejected, and why",
        element("ul", *rules, class_="rules") if rules else None,
        below,
        lead=lead,
    )


def _rule(
    rule: str, count: int, most: int, written: int, examples: Sequence[RejectedInstruction], figures: RunFigures
) -> Html:
    summary = element(
        "summary",
        element("span", rule.replace("_", " "), class_="rule-name"),
        bar(count / most, "series-3"),
        element("span", f"{count:,} ({_share(count, written)})", class_="number"),
    )
    shown = [element("li", element("q", _cut(one.instruction)), _neighbour(one, figures)) for one in examples]
    return element("li", element("details", summary, element("ul", *shown, class_="examples")))


def _neighbour(one: RejectedInstruction, figures: RunFigures) -> Html | None:
    if one.neighbour is None:
        return None
    index, score = one.neighbour
    seed = figures.seeds[index] if index < len(figures.seeds) else None
    near = f": “{_cut(seed.instruction)}”" if seed is not None else ""
    return element("p", f"ROUGE-L {score:.2f} with {pool_id(index, figures.seeds)}{near}", class_="note")


def _cut(text: str) -> str:
    return text if len(text) <= _EXAMPLE_LETTERS else text[:_EXAMPLE_LETTERS] + " …"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


_MOST_LETTERS: Final = 1_500  # of a text on the page; longer ones are cut, and say so


def browse_section(figures: RunFigures, scores: InstanceScores | None = None) -> Html:
    """Search box, filters and list, with the sample as JSON; the script fills the list by ``textContent`` only.

    ``scores`` are a judge's, shown beside the instances.
    """
    kept, rejected = len(figures.kept), len(figures.rejected)
    lead = (
        f"{_of(kept, figures.ledger.complete)} complete instructions with their instances. "
        f"Of what was rejected, {_of(rejected, figures.ledger.rejected.total()).lower()}."
    )
    rules = sorted(figures.examples)
    controls = element(
        "form",
        element(
            "div",
            element("label", "Search", for_="query"),
            element("input", type="search", id="query", autocomplete="off", placeholder="words in any text"),
            class_="field wide",
        ),
        _choice("which", "Show", (("kept", f"kept ({kept:,})"), ("rejected", f"rejected ({rejected:,})"))),
        _choice("kind", "Kind", (("", "all"), ("c", "classification"), ("o", "not classification"))),
        _choice("rule", "Rule", (("", "all"), *((rule, rule.replace("_", " ")) for rule in rules))),
        _choice(
            "order",
            "Order",
            (
                ("", "as made"),
                ("near", "most similar first"),
                ("new", "least similar first"),
                ("long", "longest first"),
                ("short", "shortest first"),
                *((("best", "highest score first"), ("worst", "lowest score first")) if scores is not None else ()),
            ),
        ),
        id="browse-form",
        role="search",
        aria_label="Search the sample",
    )
    return section(
        "browse",
        "Read them",
        controls,
        element("p", "", id="found", role="status", aria_live="polite"),
        element("ol", id="results", class_="results"),
        element(
            "nav",
            element("button", "Previous", type="button", id="previous"),
            element("span", "", id="page"),
            element("button", "Next", type="button", id="next"),
            class_="pager",
            aria_label="Pages of the results",
        ),
        element("noscript", element("p", "Searching needs JavaScript; everything above does not.", class_="notice")),
        data_block("data", _data(figures, scores)),
        lead=lead,
    )


def _of(sampled: int, whole: int) -> str:
    return f"All {whole:,}" if sampled == whole else f"A random sample of {sampled:,} of {whole:,}"


def _choice(name: str, label: str, values: tuple[tuple[str, str], ...]) -> Html:
    options = [element("option", text, value=value) for value, text in values]
    return element(
        "div",
        element("label", label, for_=name),
        element("select", *options, id=name),
        class_="field",
        id=f"field-{name}",
    )


def _data(figures: RunFigures, scores: InstanceScores | None) -> dict[str, Any]:
    return {
        "kept": [_kept(one, figures, scores) for one in figures.kept],
        "rejected": [_rejected(one, figures) for one in figures.rejected],
    }


def _kept(one: Settled, figures: RunFigures, scores: InstanceScores | None) -> dict[str, Any]:
    nearest = max(
        (*one.nearest_checked, *([one.nearest_seed] if one.nearest_seed else [])), key=lambda n: n[1], default=None
    )
    shown: dict[str, Any] = {
        "id": pool_id(len(figures.seeds) + one.number, figures.seeds),
        "text": _cut_text(one.instruction),
        "c": one.is_classification,
        "near": nearest and round(nearest[1], 3),
        "to": nearest and _named(nearest[0], figures),
        "made": [[_cut_text(instance.input), _cut_text(instance.output)] for instance in one.instances],
    }
    if scores is not None:
        shown["judged"] = [scores.score(one.number, index) for index in range(len(one.instances))]
    return shown


def _rejected(one: RejectedInstruction, figures: RunFigures) -> dict[str, Any]:
    return {
        "text": _cut_text(one.instruction),
        "rule": one.rule,
        "near": one.neighbour and round(one.neighbour[1], 3),
        "to": one.neighbour and _named(one.neighbour[0], figures),
    }


def _named(index: int, figures: RunFigures) -> str:
    name = pool_id(index, figures.seeds)
    return f"{name}: {_cut(figures.seeds[index].instruction)}" if index < len(figures.seeds) else name


def _cut_text(text: str) -> str:
    whole = printable(text, lines=True)
    return whole if len(whole) <= _MOST_LETTERS else whole[:_MOST_LETTERS] + " … (cut)"


def nothing_yet() -> Html:
    """In the place of everything, for a run without any complete instruction."""
    return joined(element("p", "No instruction is complete yet, so there is little to show.", class_="notice"))


_DRAWN_BINS: Final = 120
_SMOOTH_BINS: Final = 5  # of them; less is mostly the rhythm of answers
_SMOOTH_WRITTEN: Final = 50  # instructions: a share of fewer says little


def time_charts(timeline: Timeline) -> Html:
    """Acceptance, yield, growth and throughput over working time."""
    drawn = timeline.joined(_DRAWN_BINS)
    unit_s, unit = _unit(drawn.working_s)
    x = Axis(f"working time ({unit})")
    ends = [min((i + 1) * drawn.width_s, max(drawn.working_s, drawn.width_s)) / unit_s for i in range(len(drawn.bins))]
    places = range(len(drawn.bins))
    by_time = [drawn.trailing(place, 0, _SMOOTH_BINS) for place in places]
    by_written = [drawn.trailing(place, _SMOOTH_WRITTEN, _SMOOTH_BINS)[0] for place in places]
    tokens = [(end, one.generated_tokens / s) for end, (one, s) in zip(ends, by_time, strict=True)]
    acceptance = [(end, one.acceptance) for end, one in zip(ends, by_written, strict=True)]
    worth = [(end, one.kept_per_1000_tokens) for end, one in zip(ends, by_written, strict=True)]
    kept, complete = accumulate(b.kept for b in drawn.bins), accumulate(b.complete for b in drawn.bins)
    growth = (
        Line("kept", "series-1", list(zip(ends, kept, strict=True))),
        Line("complete", "series-2", list(zip(ends, complete, strict=True))),
    )
    charts = (
        _over_time(
            "Instructions kept and complete",
            growth,
            x,
            Axis("instructions"),
            "How many there are after each stretch of working time.",
        ),
        _over_time(
            "Throughput",
            (Line("generated tokens/s", "series-1", tokens),),
            x,
            Axis("tokens/s"),
            f"Generated tokens a second, of all stages, as they were committed; mean of {_SMOOTH_BINS} stretches.",
        ),
        _over_time(
            "Acceptance",
            (Line("kept share", "series-1", acceptance),),
            x,
            Axis("kept share", percent=True),
            f"Kept share of the last {_SMOOTH_WRITTEN} or more instructions that the model wrote.",
            1.0,
        ),
        _over_time(
            "Yield",
            (Line("kept per 1,000 tokens", "series-1", worth),),
            x,
            Axis("kept per 1,000"),
            f"Kept per 1,000 generated tokens of all stages, over the last {_SMOOTH_WRITTEN} or more written.",
        ),
    )
    return element("div", *charts, class_="grid-2")


def _over_time(
    title: str, series: Sequence[Line], x: Axis, y: Axis, description: str, highest: float | None = None
) -> Html:
    points = [value for one in series for _, value in one.points if value is not None]
    if not points:
        return element(
            "figure", element("figcaption", element("h3", title), element("p", "Nothing yet.")), class_="chart"
        )
    label = f"Line chart: {title} over the run's working time, at last {y.text(round(points[-1], 4))}"
    rows = [
        (f"{row[0][0]:.2f}", *("-" if value is None else y.text(round(value, 4)) for _, value in row))
        for row in zip(*(one.points for one in series), strict=True)
    ]
    legend = [(one.colour, one.name) for one in series] if len(series) > 1 else []
    drawing = lines(label, series, x, y, highest)
    return chart(title, description, drawing, Table((x.label, *(one.name for one in series)), rows), legend)


def _unit(working_s: float) -> tuple[float, str]:
    if working_s < 180:  # noqa: PLR2004 - three minutes
        return 1.0, "s"
    return (60.0, "min") if working_s < 3 * 3600 else (3600.0, "h")


_MOST: Final = 480
_COLOURS: Final = {limit: f"limit-{number}" for number, limit in enumerate(Limit, 1)}


@dataclass(slots=True)
class MeasuredSeries:
    """Windows in order, at most twice `_MOST` of them: (seconds by limit, slots in flight times seconds, limit ...)."""

    windows: list[_Window] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Take in the next sample."""
        self.windows.append(
            _Window(
                sample.window_s,
                {sample.limit: sample.window_s},
                sample.in_flight * sample.window_s,
                sample.concurrency * sample.window_s,
            )
        )
        if len(self.windows) >= 2 * _MOST:
            self.windows = [_join(self.windows[i : i + 2]) for i in range(0, len(self.windows), 2)]


@dataclass(slots=True)
class _Window:
    seconds: float
    limits: dict[Limit, float]
    in_flight: float
    concurrency: float

    @property
    def limit(self) -> Limit:
        """The one that was binding for longest."""
        return max(self.limits, key=lambda limit: self.limits[limit])


def _join(windows: list[_Window]) -> _Window:
    limits: dict[Limit, float] = {}
    for one in windows:
        for limit, seconds in one.limits.items():
            limits[limit] = limits.get(limit, 0.0) + seconds
    return _Window(
        sum(w.seconds for w in windows), limits, sum(w.in_flight for w in windows), sum(w.concurrency for w in windows)
    )


def collect(samples: Iterable[Sample]) -> MeasuredSeries:
    """Everything that a run folder has."""
    series = MeasuredSeries()
    for sample in samples:
        if sample.window_s > 0:
            series.add(sample)
    return series


def limit_charts(series: MeasuredSeries) -> Html | None:
    """What limited the run over its time, and how full the servers were kept; ``None``: nothing was measured."""
    if not series.windows:
        return None
    return element("div", _limits(series), _in_flight(series), class_="grid-2")


def _limits(series: MeasuredSeries) -> Html:
    whole: dict[Limit, float] = {}
    for window in series.windows:
        for limit, seconds in window.limits.items():
            whole[limit] = whole.get(limit, 0.0) + seconds
    total = sum(whole.values())
    ordered = sorted(whole.items(), key=lambda item: -item[1])
    rows = [(limit.value, f"{seconds / total:.1%}", duration(seconds)) for limit, seconds in ordered]
    parts = [(_COLOURS[w.limit], w.seconds, f"{w.limit.value}, {duration(w.seconds)}") for w in series.windows]
    listed = ", ".join(f"{name} {share}" for name, share, _ in rows)
    drawing = strip(f"What limited the run, from its beginning to its end: {listed}", parts)
    legend = [(_COLOURS[limit], limit.value) for limit, _ in ordered]
    return chart(
        "What limited the run",
        f"Of the measured time: {listed}.",
        drawing,
        Table(("Limit", "Share", "Time"), rows),
        legend,
    )


def _in_flight(series: MeasuredSeries) -> Html:
    at, used, allowed, rows = 0.0, [], [], []
    for window in series.windows:
        at += window.seconds
        used.append((at / 60, window.in_flight / window.seconds))
        allowed.append((at / 60, window.concurrency / window.seconds))
        rows.append((f"{at / 60:.2f}", f"{used[-1][1]:.1f}", f"{allowed[-1][1]:.1f}"))
    both = (Line("in flight", "series-1", used), Line("limit", "series-2", allowed))
    drawing = lines(
        "Line chart: completions in flight and their limit over the measured time",
        both,
        Axis("measured time (min)"),
        Axis("completions"),
    )
    table = Table(("Measured time (min)", "In flight", "Limit"), rows)
    return chart(
        "Completions in flight",
        "How many the servers had at once, and how many were allowed.",
        drawing,
        table,
        [(one.colour, one.name) for one in both],
    )


def empty_note() -> Html:
    """What stands in its place."""
    return joined(
        element("p", "What limited the run was not measured (the run folder has no metrics.jsonl).", class_="note")
    )
