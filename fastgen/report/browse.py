"""The section to search in: a bounded random sample of what was kept and rejected, as data for the page's script."""

from __future__ import annotations

from typing import Any, Final

from fastgen.exporting.entries import InstanceScores
from fastgen.report.figures import RunFigures
from fastgen.report.markup import Html, data_block, element, joined
from fastgen.report.sections import section
from fastgen.settled import RejectedInstruction, Settled, pool_id
from fastgen.untrusted import printable

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
        "text": _cut(one.instruction),
        "c": one.is_classification,
        "near": nearest and round(nearest[1], 3),
        "to": nearest and _named(nearest[0], figures),
        "made": [[_cut(instance.input), _cut(instance.output)] for instance in one.instances],
    }
    if scores is not None:
        shown["judged"] = [scores.score(one.number, index) for index in range(len(one.instances))]
    return shown


def _rejected(one: RejectedInstruction, figures: RunFigures) -> dict[str, Any]:
    return {
        "text": _cut(one.instruction),
        "rule": one.rule,
        "near": one.neighbour and round(one.neighbour[1], 3),
        "to": one.neighbour and _named(one.neighbour[0], figures),
    }


def _named(index: int, figures: RunFigures) -> str:
    name = pool_id(index, figures.seeds)
    return f"{name}: {_cut(figures.seeds[index].instruction)}" if index < len(figures.seeds) else name


def _cut(text: str) -> str:
    whole = printable(text, lines=True)
    return whole if len(whole) <= _MOST_LETTERS else whole[:_MOST_LETTERS] + " … (cut)"


def nothing_yet() -> Html:
    """In the place of everything, for a run without any complete instruction."""
    return joined(element("p", "No instruction is complete yet, so there is little to show.", class_="notice"))
