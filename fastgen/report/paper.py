"""The figures of the original study, beside those of a run.

Source: Wang et al., "Self-Instruct", ACL 2023 (arXiv 2212.10560): table 1, section 3.3 and figure 5. Its data came from
a model of 175B parameters and 52K instructions, so a difference is no verdict; what a figure means is told beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastgen.report.figures import RunFigures
from fastgen.report.verbs import VerbFigures

SOURCE: Final = "Wang et al., ACL 2023 (arXiv 2212.10560)"


def compared(figures: RunFigures, verbs: VerbFigures | None) -> Iterator[tuple[str, str, str]]:
    """Rows of (what, the original, here)."""
    complete, ledger = figures.complete, figures.ledger
    yield "Instructions", "52,445", f"{complete:,}"
    yield "of them classification tasks", "11,584 (22.1%)", _part(figures.classification, complete)
    yield "Instances", "82,439", f"{ledger.instances:,}"
    yield "of them with an empty input", "35,878 (43.5%)", _part(figures.empty_inputs, ledger.instances)
    yield "Instances an instruction", "1.57", f"{ledger.instances / complete:.2f}" if complete else "none yet"
    yield "Mean words of an instruction", "15.9", f"{figures.instruction_words.mean:.1f}"
    yield "Mean words of an input that is not empty", "12.7", f"{figures.input_words.mean:.1f}"
    yield "Mean words of an output", "18.9", f"{figures.output_words.mean:.1f}"
    if verbs is None:
        yield "Instructions with a root verb and a noun object", "26,559 (50.6%)", "not parsed"
        yield "Top 20 verbs with their 4 top nouns", "14%", "not parsed"
    else:
        told = f"{verbs.share_with_pair:.1%} of {verbs.parsed:,}"
        yield "Instructions with a root verb and a noun object", "26,559 (50.6%)", told
        yield "Top 20 verbs with their 4 top nouns", "14%", f"{verbs.share_shown:.1%} of {verbs.parsed:,}"


def _part(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"
