"""The sections of the page: each takes figures and gives HTML, or ``None`` where there is nothing to show.

What every section says stands in the text as well as in its chart, and every chart has its figures as a table. Text of
a run enters only as `markup` text. Knows nothing of files and of the page around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastgen.progress import duration
from fastgen.report.charts import Axis, Table, bar, chart, histogram, short, table_of
from fastgen.report.figures import ROUGE_BINS, RougeSpread, RunFigures
from fastgen.report.markup import Html, element, joined
from fastgen.report.sampling import Spread
from fastgen.report.sunburst import pairs, sunburst
from fastgen.report.verbs import VerbFigures
from fastgen.settled import RejectedInstruction, pool_id

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
