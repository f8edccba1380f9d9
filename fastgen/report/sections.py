"""The sections that show a run by itself: counts, verbs, novelty, lengths, course over time, rejections, the sample.

Each function takes figures and gives HTML, by a macro of ``templates/sections.html``. Text of a run is made printable
and escaped there. The sample to search in is JSON, which the page's script turns into text nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from markupsafe import Markup

from fastgen.export.entries import InstanceScores
from fastgen.export.method import StepFacts, used_settings
from fastgen.report.charts import Axis, Chart, Line, histogram, lines, short, strip, sunburst
from fastgen.report.diversity import HOW_TO_GET, VerbFigures
from fastgen.report.figures import ROUGE_BINS, RougeSpread, RunFigures, Spread, Timeline
from fastgen.report.page import render
from fastgen.store.reader import FinishedInstruction, OpenRun, RejectedInstruction, pool_id
from fastgen.telemetry.figures import Limit, Sample
from fastgen.telemetry.progress import duration
from fastgen.text import AnswerKind, printable
from fastgen.types import Neighbour

_EXAMPLE_LETTERS: Final = 400
_VALUES: Final = 20  # of a label, or of what was drawn
_SAMPLE_LETTERS: Final = 1_500  # of a text on the page; longer ones are cut, and say so
_ROUGE_EDGES: Final = ("0", "0.2", "0.4", "0.6", "0.8", "1")
_LENGTH_BINS: Final = 20
_DRAWN_BINS: Final = 120
_SMOOTH_BINS: Final = 5  # of them; less is mostly the rhythm of answers
_SMOOTH_WRITTEN: Final = 50  # instructions: a share of fewer says little
_MAX_WINDOWS: Final = 480
_LIMIT_COLOURS: Final = {limit: f"limit-{number}" for number, limit in enumerate(Limit, 1)}


def overview_section(figures: RunFigures, target: int | None) -> Markup:
    """The figures that a person asks for first, and a notice where the run is not finished."""
    ledger, working_s = figures.ledger, figures.timeline.working_s
    notices = []
    if not figures.complete:
        notices.append("No instruction is complete yet, so there is little to show.")
    if target is not None and figures.complete < target:
        notices.append(
            f"The run is not finished: {figures.complete:,} of {target:,} instructions. This page shows the state "
            "when it was made."
        )
    per_s = ledger.generated_tokens / working_s if working_s else 0.0
    each = f"{ledger.instances / ledger.complete:.2f} each" if ledger.complete else ""
    asked = f"of {target:,} asked for" if target else "kept with instances"
    if figures.is_self_instruct:
        kind: tuple[tuple[str, str, str], ...] = (
            ("Instances", f"{ledger.instances:,}", each),
            ("Classification", share(figures.classification, ledger.complete), "of the complete instructions"),
        )
    else:
        asked = f"of {target:,} asked for" if target else "kept and answered"
        kind = _method_tiles(figures)
    tiles = (
        ("Instructions complete", f"{ledger.complete:,}", asked),
        ("Acceptance", f"{ledger.acceptance:.1%}", f"{ledger.kept:,} kept of {figures.written:,} written"),
        *kind,
        ("Yield", f"{ledger.yield_per_1000_tokens:.2f}", "complete per 1,000 generated tokens"),
        ("Tokens generated", short(ledger.generated_tokens), f"{short(ledger.prompt_tokens.total())} read"),
        ("Working time", duration(working_s), f"{short(per_s)} generated tokens/s"),
    )
    return render("overview", notices, tiles)


def _method_tiles(figures: RunFigures) -> tuple[tuple[str, str, str], ...]:
    """What the tiles say of a method other than Self-Instruct: its name, and what its answers are."""
    method = ("Method", figures.method, "how the data was made")
    if figures.has_documents:
        return (method,)
    answers, complete = figures.ledger.instances, figures.complete
    if figures.turns.highest > 1:
        return method, ("Turns", f"{figures.turns.mean:.2f}", f"each on average, {figures.turns.highest} at most")
    return method, ("Answers", f"{answers:,}", f"{answers / complete:.2f} each" if complete else "")


def step_section(figures: RunFigures, steps: Sequence[StepFacts]) -> Markup:
    """What each step of a method was asked and brought, how it labelled, and what its prompts drew.

    ``steps`` are those whose sampling is known.
    """
    ledger = figures.ledger
    asked = {step.name: f"{step.sampling.temperature:g}, {step.sampling.top_p:g}" for step in steps}
    rows = []
    for name in dict.fromkeys([*asked, *ledger.completions]):
        kinds = {kind: ledger.answers[f"{name}.{kind}"] for kind in AnswerKind}
        found = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items() if count)
        tokens = ledger.completion_tokens[name]
        rows.append(
            (name.replace("_", " "), f"{ledger.completions[name]:,}", found, f"{tokens:,}", asked.get(name, "-"))
        )
    tables = [
        *((f"Labels of the step {name.replace('_', ' ')}", "Label", counts) for name, counts in figures.labels.items()),
        *((f"Kept by {name.replace('_', ' ')}", name.capitalize(), counts) for name, counts in figures.drawn.items()),
    ]
    shown = [
        (title, column, [(cut(value, _EXAMPLE_LETTERS), f"{count:,}") for value, count in counts.most_common(_VALUES)])
        for title, column, counts in tables
    ]
    return render("steps", rows, shown)


def verb_section(verbs: VerbFigures | None, sampled: int, complete: int, *, beside_paper: bool = True) -> Markup:
    """Sunburst and list, or how to get them."""
    if verbs is None:
        return render("verbs_missing", HOW_TO_GET)
    original = " (the original study: 14%)" if beside_paper else ""
    lead = (
        f"Root verb and direct noun object, parsed with {verbs.model}: {verbs.with_pair:,} of {verbs.parsed:,} "
        f"instructions have such a pair ({verbs.share_with_pair:.1%}). The {len(verbs.verbs)} most frequent verbs with "
        f"their 4 most frequent objects are {verbs.share_shown:.1%} of all parsed{original}."
    )
    if sampled < complete:
        lead += f" Parsed is a random sample of {sampled:,} of the {complete:,} complete instructions."
    rows = [
        (verb, f"{count:,}", count / verbs.verbs[0][1], ", ".join(f"{noun} {times:,}" for noun, times in nouns))
        for verb, count, nouns in verbs.verbs
    ]
    return render("verbs", lead, rows, sunburst(verbs))


def novelty_section(figures: RunFigures, threshold: float) -> Markup:
    """ROUGE-L to the nearest seed and to the nearest of the pool. ``threshold`` is the run's."""
    to_seed = (
        "How much each kept instruction resembles the most similar seed task (0: no common word, or none found by the "
        "similarity index)."
    )
    to_any = (
        "The same with the most similar of the seed tasks and the instructions kept before it that the similarity "
        "check looked at."
    )
    if not figures.seeds:
        to_any = "How much each kept instruction resembles the most similar of those kept before it."
    both = (
        ("ROUGE-L to the nearest seed task", figures.nearest_seed, to_seed),
        ("ROUGE-L to the nearest of all", figures.nearest_any, to_any),
    )
    charts = []
    for title, spread, description in both if figures.seeds else both[1:]:
        label = f"Histogram of {title}: mean {spread.mean:.2f} over {spread.total:,} kept instructions"
        told = f"{description} Mean {spread.mean:.3f}."
        charts.append(rouge_chart(title, told, label, spread, "instructions", threshold))
    return render("novelty", charts, f"{threshold:g}")


def rouge_chart(title: str, description: str, label: str, spread: RougeSpread, what: str, mark: float) -> Chart:
    """The histogram of ROUGE-L values of ``what``, with a dashed line at ``mark``."""
    width = 1 / ROUGE_BINS
    names = [f"{i * width:.2f} to {(i + 1) * width:.2f}" for i in range(ROUGE_BINS)]
    bins = [
        (name, count, f"{name}: {count:,} {what} ({share(count, spread.total)})")
        for name, count in zip(names, spread.bins, strict=True)
    ]
    x = Axis("ROUGE-L F1")
    return histogram(title, description, label, bins, x, Axis(what), column=x.label, edges=_ROUGE_EDGES, mark=mark)


def length_section(figures: RunFigures) -> Markup:
    """Words of instructions, inputs and outputs."""
    empty = share(figures.empty_inputs, figures.ledger.instances)
    if not figures.is_self_instruct:
        return render("lengths", _method_lengths(figures), of_instances=False)
    note = f"Inputs that are not empty; {empty} of the instances have an empty one. "
    charts = (
        _lengths("Instruction", figures.instruction_words, "instructions"),
        _lengths("Input", figures.input_words, "instances", note),
        _lengths("Output", figures.output_words, "instances"),
    )
    return render("lengths", charts)


def _method_lengths(figures: RunFigures) -> Iterable[Chart]:
    """The same of another method: inputs where there are any, and what its answers are."""
    yield _lengths("Instruction", figures.instruction_words, "instructions")
    if figures.input_words.total:
        yield _lengths("Input", figures.input_words, "instructions")
    if figures.has_documents:
        yield _lengths("Document", figures.output_words, "documents")
    elif figures.turns.highest > 1:
        yield _lengths("First answer", figures.output_words, "answers")
    else:
        yield _lengths("Answer", figures.output_words, "answers")


def length_charts(titles: Sequence[str], spreads: Sequence[Spread], what: str) -> list[Chart]:
    """Words of one thing in several runs, with the same bins."""
    width = max(map(_bin_width, spreads))
    return [_lengths(title, spread, what, width=width) for title, spread in zip(titles, spreads, strict=True)]


def _bin_width(spread: Spread) -> int:
    return max(1, -(-(spread.quantile(0.98) + 1) // _LENGTH_BINS))


def _lengths(title: str, spread: Spread, what: str, note: str = "", *, width: int | None = None) -> Chart:
    width = width or _bin_width(spread)
    names = [str(i) if width == 1 else f"{i * width} to {i * width + width - 1}" for i in range(_LENGTH_BINS)]
    names[-1] = f"{(_LENGTH_BINS - 1) * width}+"
    bins = [
        (name, count, f"{name} words: {count:,} ({share(count, spread.total)})")
        for name, count in zip(names, spread.bins(width, _LENGTH_BINS), strict=True)
    ]
    edges = [*(str(width * i) for i in range(0, _LENGTH_BINS, 5)), names[-1]]
    description = (
        f"{note}Mean {spread.mean:.1f}, median {spread.quantile(0.5)}, 95 % up to {spread.quantile(0.95)}, "
        f"longest {spread.highest:,} words."
    )
    label = f"Histogram of words: {title}. {description}"
    x, y = Axis("words"), Axis(what)
    return histogram(f"{title} length", description, label, bins, x, y, column="Words", edges=edges)


def time_section(title: str, lead: str, timeline: Timeline, measured: Sequence[Chart] | None = None) -> Markup:
    """Acceptance, yield, growth and throughput over working time, and what limited the run where that was asked for."""
    return render("time", title, lead, _time_charts(timeline), measured)


def _time_charts(timeline: Timeline) -> Iterable[Chart]:
    drawn = timeline.joined(_DRAWN_BINS)
    unit_s, unit = time_unit(drawn.working_s)
    x = Axis(f"working time ({unit})")
    ends = [min((i + 1) * drawn.width_s, max(drawn.working_s, drawn.width_s)) / unit_s for i in range(len(drawn.bins))]
    places = range(len(drawn.bins))
    by_time = [drawn.trailing(place, 0, _SMOOTH_BINS) for place in places]
    by_written = [drawn.trailing(place, _SMOOTH_WRITTEN, _SMOOTH_BINS)[0] for place in places]

    def line(name: str, colour: str, values: Iterable[float | None]) -> Line:
        return Line(name, colour, list(zip(ends, values, strict=True)))

    yield over_time(
        "Instructions kept and complete",
        "How many there are after each stretch of working time.",
        (
            line("kept", "series-1", accumulate(one.kept for one in drawn.bins)),
            line("complete", "series-2", accumulate(one.complete for one in drawn.bins)),
        ),
        x,
        Axis("instructions"),
    )
    yield over_time(
        "Throughput",
        f"Generated tokens a second, of all stages, as they were committed; mean of {_SMOOTH_BINS} stretches.",
        (line("generated tokens/s", "series-1", (one.generated_tokens / s for one, s in by_time)),),
        x,
        Axis("tokens/s"),
    )
    yield over_time(
        "Acceptance",
        f"Kept share of the last {_SMOOTH_WRITTEN} or more instructions that the model wrote.",
        (line("kept share", "series-1", (one.acceptance for one in by_written)),),
        x,
        Axis("kept share", percent=True),
        highest=1.0,
    )
    yield over_time(
        "Yield",
        f"Kept per 1,000 generated tokens of all stages, over the last {_SMOOTH_WRITTEN} or more written.",
        (line("kept per 1,000 tokens", "series-1", (one.kept_per_1000_tokens for one in by_written)),),
        x,
        Axis("kept per 1,000"),
    )


def over_time(
    title: str, description: str, series: Sequence[Line], x: Axis, y: Axis, *, highest: float | None = None
) -> Chart:
    """Lines over working time. All series have points at the same times."""
    values = [value for one in series for _, value in one.points if value is not None]
    if not values:
        return Chart(title, "Nothing yet.")
    label = f"Line chart: {title} over the run's working time, at last {y.text(round(values[-1], 4))}"
    return lines(title, description, label, series, x, y, highest=highest)


def time_unit(working_s: float) -> tuple[float, str]:
    """The unit in which a working time is shown: its seconds, and its name."""
    if working_s < 180:  # noqa: PLR2004 - three minutes
        return 1.0, "s"
    return (60.0, "min") if working_s < 3 * 3600 else (3600.0, "h")


@dataclass(slots=True)
class _Window:
    """Measured time: seconds by limit; slots in flight, and allowed, times seconds."""

    limits: dict[Limit, float]
    in_flight: float
    concurrency: float

    @property
    def seconds(self) -> float:
        return sum(self.limits.values())


def limit_charts(samples: Iterable[Sample]) -> list[Chart]:
    """What limited the run over its time, and how full the servers were kept. Empty where nothing was measured.

    Neighbouring windows are joined as they become many, so memory does not grow with the run.
    """
    windows: list[_Window] = []
    for sample in samples:
        if (s := sample.window_s) > 0:
            windows.append(_Window({sample.limit: s}, sample.in_flight * s, sample.concurrency * s))
        if len(windows) >= 2 * _MAX_WINDOWS:
            windows = [_joined(windows[i : i + 2]) for i in range(0, len(windows), 2)]
    return [_limits(windows), _in_flight(windows)] if windows else []


def _joined(windows: Sequence[_Window]) -> _Window:
    limits: dict[Limit, float] = {}
    for window in windows:
        for limit, seconds in window.limits.items():
            limits[limit] = limits.get(limit, 0.0) + seconds
    return _Window(limits, sum(w.in_flight for w in windows), sum(w.concurrency for w in windows))


def _limits(windows: Sequence[_Window]) -> Chart:
    whole = _joined(windows)
    ordered = sorted(whole.limits.items(), key=lambda item: -item[1])
    rows = [(limit.value, f"{seconds / whole.seconds:.1%}", duration(seconds)) for limit, seconds in ordered]
    parts = []
    for window in windows:
        longest = max(window.limits, key=lambda limit: window.limits[limit])
        parts.append((_LIMIT_COLOURS[longest], window.seconds, f"{longest.value}, {duration(window.seconds)}"))
    listed = ", ".join(f"{name} {part}" for name, part, _ in rows)
    drawing = strip(f"What limited the run, from its beginning to its end: {listed}", parts)
    legend = [(_LIMIT_COLOURS[limit], limit.value) for limit, _ in ordered]
    told = f"Of the measured time: {listed}."
    return Chart("What limited the run", told, drawing, ("Limit", "Share", "Time"), rows, legend)


def _in_flight(windows: Sequence[_Window]) -> Chart:
    ends = [at / 60 for at in accumulate(window.seconds for window in windows)]
    used = [window.in_flight / window.seconds for window in windows]
    allowed = [window.concurrency / window.seconds for window in windows]
    return lines(
        "Completions in flight",
        "How many the servers had at once, and how many were allowed.",
        "Line chart: completions in flight and their limit over the measured time",
        (
            Line("in flight", "series-1", list(zip(ends, used, strict=True))),
            Line("limit", "series-2", list(zip(ends, allowed, strict=True))),
        ),
        Axis("measured time (min)"),
        Axis("completions"),
    )


def rejection_section(figures: RunFigures) -> Markup:
    """Bars by rule with examples of each."""
    ledger, written = figures.ledger, figures.written
    most = max(ledger.rejected.values(), default=1)
    rules = [
        {
            "name": _rule_name(rule),
            "share": count / most,
            "count": f"{count:,} ({share(count, written)})",
            "examples": [
                (cut(one.instruction, _EXAMPLE_LETTERS), _nearness(one.neighbour, figures))
                for one in figures.examples.get(rule, ())
            ],
        }
        for rule, count in ledger.rejected.most_common()
    ]
    instances = [(_rule_name(rule), f"{count:,}") for rule, count in ledger.rejected_instances.most_common()]
    lead = (
        f"{ledger.rejected.total():,} of {written:,} written instructions were rejected. Open a rule for examples."
        if rules
        else "No instruction was rejected."
    )
    later = "instances" if figures.is_self_instruct else "by later steps"
    return render("rejections", lead, rules, instances, later)


def _nearness(neighbour: Neighbour | None, figures: RunFigures) -> str:
    if neighbour is None:
        return ""
    index, score = neighbour
    seeds = figures.seeds
    near = f": “{cut(seeds[index].instruction, _EXAMPLE_LETTERS)}”" if index < len(seeds) else ""
    return f"ROUGE-L {score:.2f} with {pool_id(index, seeds)}{near}"


def browse_section(figures: RunFigures, scores: InstanceScores | None = None) -> Markup:
    """Search box, filters and list, with the sample as JSON. ``scores`` are a judge's, shown next to the instances."""
    kept, rejected = len(figures.kept), len(figures.rejected)
    what = "instances" if figures.is_self_instruct else "documents" if figures.has_documents else "answers"
    lead = (
        f"{_of(kept, figures.ledger.complete)} complete instructions with their {what}. "
        f"Of what was rejected, {_of(rejected, figures.ledger.rejected.total()).lower()}."
    )
    rules = {"": "all"} | {rule: _rule_name(rule) for rule in sorted(figures.examples)}
    data = {
        "kept": [_kept(one, figures, scores) for one in figures.kept],
        "rejected": [_rejected(one, figures) for one in figures.rejected],
    }
    is_judged, has_kinds = scores is not None, figures.is_self_instruct
    return render("browse", lead, f"{kept:,}", f"{rejected:,}", rules, is_judged, data, has_kinds=has_kinds)


def _of(sampled: int, whole: int) -> str:
    return f"All {whole:,}" if sampled == whole else f"A random sample of {sampled:,} of {whole:,}"


def _kept(one: FinishedInstruction, figures: RunFigures, scores: InstanceScores | None) -> dict[str, Any]:
    neighbours = [*one.nearest_checked, *([one.nearest_seed] if one.nearest_seed else [])]
    shown: dict[str, Any] = {
        "id": pool_id(len(figures.seeds) + one.number, figures.seeds),
        "text": _cut_text(one.instruction),
        **({"c": one.is_classification} if figures.is_self_instruct else {}),
        **_nearest(max(neighbours, key=lambda neighbour: neighbour[1], default=None), figures),
        "made": [[_cut_text(instance.input), _cut_text(instance.output)] for instance in one.instances],
    }
    if one.turns:
        shown["made"] += [[_cut_text(turn.user), _cut_text(turn.assistant)] for turn in one.turns[1:]]
        shown["turns"] = True
    if scores is not None:
        shown["judged"] = [scores.score(one.number, index) for index in range(len(one.instances))]
        shown["judged"] += [None] * (len(shown["made"]) - len(one.instances))
    return shown


def _rejected(one: RejectedInstruction, figures: RunFigures) -> dict[str, Any]:
    return {"text": _cut_text(one.instruction), "rule": one.rule, **_nearest(one.neighbour, figures)}


def _nearest(neighbour: Neighbour | None, figures: RunFigures) -> dict[str, Any]:
    if neighbour is None:
        return {"near": None, "to": None}
    index, score = neighbour
    text = f": {_cut_text(figures.seeds[index].instruction)}" if index < len(figures.seeds) else ""
    return {"near": round(score, 3), "to": pool_id(index, figures.seeds) + text}


def _cut_text(text: str) -> str:
    whole = printable(text, lines=True)
    return whole if len(whole) <= _SAMPLE_LETTERS else whole[:_SAMPLE_LETTERS] + " … (cut)"


def making_section(run: OpenRun) -> Markup:
    """The settings that the run's data depends on."""
    header = run.folder.header()
    seeds = f"{len(run.seeds):,} seed tasks; " if run.seeds or run.is_self_instruct else ""
    origin = f"{seeds}run {header.run_id[:12]}, fastgen {header.version}."
    origin = origin if run.is_self_instruct else f"Method {run.method}; {origin}"
    settings = [
        (name.replace("_", " "), (", ".join(map(repr, value)) or "none") if isinstance(value, list) else str(value))
        for name, value in used_settings(run).items()
    ]
    return render("making", origin, settings)


def cut(text: str, letters: int) -> str:
    """The text, or the first letters of a longer one."""
    return text if len(text) <= letters else text[:letters] + " …"


def share(part: int, whole: int) -> str:
    """As a percentage. A hyphen where there is no whole."""
    return f"{part / whole:.1%}" if whole else "-"


def _rule_name(rule: str) -> str:
    return rule.replace("_", " ")
