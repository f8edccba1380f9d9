"""The section on overlap with evaluation data."""

from __future__ import annotations

from pathlib import Path

from fastgen.evaluation.leakage import SIMILAR, Leakage, leakage
from fastgen.evaluation.superni import load_superni
from fastgen.evaluation.tasks import EvaluationTask
from fastgen.evaluation.user_oriented import load_user_oriented
from fastgen.report.charts import Axis, Table, chart, histogram, table_of
from fastgen.report.figures import ROUGE_BINS, RougeSpread
from fastgen.report.markup import Html, element
from fastgen.report.sections import section

_SHOWN = 20


def measure_leakage(run_dir: Path, data: Path) -> Leakage:
    """Compare the run with the benchmark that lies at ``data``.

    :raises InputError: it is neither a folder in the layout of Super-NaturalInstructions nor the user-oriented tasks.
    """
    return leakage(run_dir, _tasks(data))


def _tasks(data: Path) -> list[EvaluationTask]:
    is_superni = (data / "splits").is_dir() or (data / "tasks").is_dir()
    return load_superni(data) if is_superni else load_user_oriented(data)


def leakage_section(found: Leakage) -> Html:
    """How near the evaluation tasks are to the training text."""
    spread = RougeSpread()
    for one in found.nearest:
        spread.add(one.rouge_l)
    width = 1 / ROUGE_BINS
    names = [f"{i * width:.2f} to {(i + 1) * width:.2f}" for i in range(ROUGE_BINS)]
    bars = [(f"{name}: {count:,} tasks", count) for name, count in zip(names, spread.bins, strict=True)]
    drawing = histogram(
        f"Histogram of the ROUGE-L of each evaluation task to the nearest instruction: mean {found.mean_rouge_l:.2f}",
        bars,
        Axis("ROUGE-L F1"),
        Axis("tasks"),
        ("0", "0.2", "0.4", "0.6", "0.8", "1"),
        mark=SIMILAR,
    )
    rows = [(name, str(count)) for name, count in zip(names, spread.bins, strict=True)]
    seeds = found.mean_seed_rouge_l
    told = f"Mean {found.mean_rouge_l:.3f}" + (
        f" ({seeds:.3f} to the nearest seed task)." if seeds is not None else "."
    )
    nearest = sorted(zip(found.tasks, found.nearest, strict=True), key=lambda pair: -pair[1].rouge_l)[:_SHOWN]
    table = Table(
        ("Task", "ROUGE-L", "Nearest instruction"), [(t, f"{n.rouge_l:.3f}", (n.text or "")[:300]) for t, n in nearest]
    )
    grams = [(f"{g.n} words in a row", f"{len(g.shared):,} of {g.long_enough:,} ({g.share:.1%})") for g in found.ngrams]
    return section(
        "leakage",
        "Overlap with evaluation data",
        element(
            "div",
            chart(
                "Evaluation tasks and their nearest instruction", told, drawing, Table(("ROUGE-L F1", "Tasks"), rows)
            ),
            element(
                "div",
                element("h3", "Inputs that share words with the training text"),
                table_of(Table(("Shared", "Instances"), grams), "Shared words"),
                class_="chart",
            ),
            class_="grid-2",
        ),
        element("h3", "The nearest"),
        table_of(table, "Evaluation tasks with the most similar instructions"),
        lead=f"{len(found.tasks):,} evaluation tasks against {found.instructions:,} instructions; "
        f"{len(found.similar)} tasks have one above {SIMILAR}.",
    )
