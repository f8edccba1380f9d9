"""The sections that put a run beside something else: its seed tasks' variety, the original study's figures."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen.report.charts import Table, table_of
from fastgen.report.diversity import Diversity
from fastgen.report.figures import RunFigures
from fastgen.report.markup import Html, element, joined
from fastgen.report.paper import SOURCE, compared
from fastgen.report.sections import section
from fastgen.report.verbs import VerbFigures


def diversity_section(rows: Sequence[tuple[str, Diversity]]) -> Html:
    """A table of the measures, with their sources."""
    header = ("Texts", "texts", "words", "distinct-1", "distinct-2", "distinct-3", "compression ratio", "self-BLEU")
    cells = [
        (
            name,
            f"{one.texts:,}",
            f"{one.words:,}",
            *(_number(value) for value in one.distinct),
            _number(one.compression_ratio),
            "-" if one.self_bleu is None else f"{one.self_bleu:.3f} (of {one.self_bleu_texts:,})",
        )
        for name, one in rows
    ]
    sources = (
        (
            "distinct-n",
            "distinct n-grams by all of them, higher is more varied; compare equal words (Li et al., NAACL 2016)",
        ),
        (
            "compression ratio",
            "bytes by zlib-compressed bytes, lower is more varied; compare rows of equal words (Shaib et al., 2024)",
        ),
        (
            "self-BLEU",
            "mean BLEU-4 with all others as references, smoothed; lower is more varied (Zhu et al., SIGIR 2018)",
        ),
    )
    notes = [joined(element("dt", name), element("dd", text)) for name, text in sources]
    return section(
        "diversity",
        "How varied they are",
        table_of(Table(header, cells), "Diversity of the instructions"),
        element("dl", *notes, class_="sources"),
        lead="Of the instructions' words, beside the seed tasks that people wrote.",
    )


def paper_section(figures: RunFigures, verbs: VerbFigures | None) -> Html:
    """The original's table beside ours."""
    return section(
        "paper",
        "Beside the original study",
        table_of(
            Table(("Of the data", "Original", "This run"), list(compared(figures, verbs))),
            "The original's figures beside this run's",
        ),
        lead=f"{SOURCE}: 52K instructions by a model of 175B parameters, another parser. A difference is no verdict.",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
