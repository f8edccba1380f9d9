"""The sections that compare a run with something else: seed tasks, the original study, judge models, evaluation data.

The original study's figures are from Wang et al., "Self-Instruct", ACL 2023 (arXiv 2212.10560): table 1, section 3.3
and figure 5. Its data came from a model of 175B parameters and 52K instructions, so a difference is no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from fastgen.evaluate.leakage import SIMILAR, leakage
from fastgen.evaluate.tasks import load_superni, load_user_oriented
from fastgen.judge.summary import ASKED
from fastgen.report import diversity
from fastgen.report.charts import Axis, Chart, histogram, share_bar, share_plot
from fastgen.report.diversity import Diversity, VerbFigures
from fastgen.report.figures import RougeSpread, RunFigures
from fastgen.report.page import render
from fastgen.report.sections import rouge_chart

_SHOWN: Final = 20  # evaluation tasks
_SHOWN_LETTERS: Final = 300


def diversity_section(figures: RunFigures) -> Markup:
    """The measures of the sampled instructions, and of as many words of them and of the seed tasks."""
    seeds, texts = [seed.instruction for seed in figures.seeds], list(figures.measured)
    of_all = diversity.measure(texts)
    if not seeds:
        name = f"{'Sample of ' if len(texts) < figures.complete else 'All '}generated"
        return render("diversity", [_measures(name, of_all)], has_seeds=False)
    words = min(diversity.measure(seeds).words, of_all.words)
    rows = (
        ("Seed tasks", diversity.measure(diversity.of_words(seeds, words))),
        ("Generated, as many words", diversity.measure(diversity.of_words(texts, words))),
        (f"{'Sample of ' if len(texts) < figures.complete else 'All '}generated", of_all),
    )
    return render("diversity", [_measures(*row) for row in rows])


def _measures(name: str, one: Diversity) -> tuple[str, ...]:
    numbers = ("-" if value is None else f"{value:.3f}" for value in (*one.distinct, one.compression_ratio))
    bleu = "-" if one.self_bleu is None else f"{one.self_bleu:.3f} (of {one.self_bleu_texts:,})"
    return (name, f"{one.texts:,}", f"{one.words:,}", *numbers, bleu)


def paper_section(figures: RunFigures, verbs: VerbFigures | None) -> Markup:
    """The original's table next to the run's."""
    return render("paper", list(_beside_the_paper(figures, verbs)))


def _beside_the_paper(figures: RunFigures, verbs: VerbFigures | None) -> Iterator[tuple[str, str, str]]:
    complete, ledger = figures.complete, figures.ledger
    yield "Instructions", "52,445", f"{complete:,}"
    yield "of them classification tasks", "11,584 (22.1%)", _part(figures.classification, complete)
    yield "Instances", "82,439", f"{ledger.instances:,}"
    yield "of them with an empty input", "35,878 (43.5%)", _part(figures.empty_inputs, ledger.instances)
    yield "Instances an instruction", "1.57", f"{ledger.instances / complete:.2f}" if complete else "none yet"
    yield "Mean words of an instruction", "15.9", f"{figures.instruction_words.mean:.1f}"
    yield "Mean words of an input that is not empty", "12.7", f"{figures.input_words.mean:.1f}"
    yield "Mean words of an output", "18.9", f"{figures.output_words.mean:.1f}"
    pairs = shown = "not parsed"
    if verbs is not None:
        pairs, shown = (f"{part:.1%} of {verbs.parsed:,}" for part in (verbs.share_with_pair, verbs.share_shown))
    yield "Instructions with a root verb and a noun object", "26,559 (50.6%)", pairs
    yield "Top 20 verbs with their 4 top nouns", "14%", shown


def _part(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def judged_section(figures: Mapping[str, Any]) -> Markup:
    """All judges of a run, one after the other. ``figures`` are those of `fastgen.judge.summary.summarise`."""
    judges = [
        {
            "name": one["name"],
            "summary": f"{one['judged']:,} of {one['instances']:,} instances judged by {one['model']}."
            + _unreadable(one),
            "charts": [_questions(one), *([] if one["mean_score"] is None else [_scores(one)])],
        }
        for one in figures["judges"]
    ]
    agreements = {f"Agreement between the votes of {one['name']}": one["vote_agreement"] for one in figures["judges"]}
    agreements["Agreement between the judges"] = figures["between_judges"]
    tables = [(title, _agreement(found)) for title, found in agreements.items() if found is not None]
    return render("judged", judges, tables)


def _unreadable(one: Mapping[str, Any]) -> str:
    unreadable, failed = sum(one["unreadable"].values()), sum(one["failed_requests"].values())
    counts = f" {unreadable:,} of {one['answers']:,} answers could not be read" if unreadable else ""
    counts += f"{';' if counts else ''} {failed:,} requests failed" if failed else ""
    if not counts:
        return ""
    left = f", which left {one['unjudged']:,} instances without a verdict" if one["unjudged"] else ""
    return f"{counts}{left}."


def _questions(one: Mapping[str, Any]) -> Chart:
    bars, tips, rows = [], [], []
    for name, found in one["questions"].items():
        question, share, low, high = ASKED[name].capitalize(), found["share"], found["low"], found["high"]
        yes = "-" if share is None else f"{share:.1%}"
        interval = "-" if low is None else f"{low:.1%} to {high:.1%}"
        tip = f"{question}: {yes} yes ({interval}), original {found['paper']:.0%}"
        tips.append(tip)
        bars.append(share_bar(question, share, None if low is None else (low, high), found["paper"], tip))
        rows.append((question, yes, interval, f"{found['paper']:.0%}"))
    drawing = share_plot(f"Shares of yes of judge {one['name']}: {'; '.join(tips)}", bars)
    told = (
        "Share of yes, with the line as its 95% interval. The upright mark is what people said of the original's data."
    )
    return Chart("Answers", told, drawing, ("Question", "Yes here", "95% interval", "Original"), rows)


def _scores(one: Mapping[str, Any]) -> Chart:
    counts: dict[str, int] = {f"{half / 2:g}": 0 for half in range(2, 11)} | one["scores"]
    bins = [
        (score, count, f"score {score}: {count:,} ({count / one['judged']:.1%})") for score, count in counts.items()
    ]
    mean = f"Mean {one['mean_score']:.2f} of 5."
    return histogram(
        "Scores from 1 to 5",
        f"{mean} Bars in steps of a half.",
        f"Histogram of the scores of judge {one['name']}. {mean}",
        bins,
        Axis("score (median of the votes)"),
        Axis("instances"),
        column="Score",
        edges=tuple(counts),
    )


def _agreement(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            ASKED.get(name, name).capitalize(),
            _alpha(one),
            "-" if one["percent"] is None else f"{one['percent']:.1%}",
            f"{one['items']:,}",
        )
        for name, one in found.items()
    ]


def _alpha(one: Mapping[str, Any]) -> str:
    if one["alpha"] is None:
        return "nothing varies"
    interval = "" if one["low"] is None else f" ({one['low']:.2f} to {one['high']:.2f})"
    return f"{one['alpha']:.2f}{interval}"


def leakage_section(run_dir: Path, data: Path) -> Markup:
    """How near the evaluation tasks at ``data`` are to the training text of the run.

    :raises InputError: it is neither a folder in the layout of Super-NaturalInstructions nor the user-oriented tasks.
    """
    is_superni = (data / "splits").is_dir() or (data / "tasks").is_dir()
    found = leakage(run_dir, load_superni(data) if is_superni else load_user_oriented(data))
    spread = RougeSpread()
    for one in found.nearest:
        spread.add(one.rouge_l)
    seeds = found.mean_seed_rouge_l
    to_seeds = "" if seeds is None else f" ({seeds:.3f} to the nearest seed task)"
    chart = rouge_chart(
        "Evaluation tasks and their nearest instruction",
        f"Mean {found.mean_rouge_l:.3f}{to_seeds}.",
        f"Histogram of the ROUGE-L of each evaluation task to the nearest instruction: mean {found.mean_rouge_l:.2f}",
        spread,
        "tasks",
        SIMILAR,
    )
    nearest = sorted(zip(found.tasks, found.nearest, strict=True), key=lambda pair: -pair[1].rouge_l)[:_SHOWN]
    lead = (
        f"{len(found.tasks):,} evaluation tasks against {found.instructions:,} instructions; "
        f"{len(found.similar)} tasks have one above {SIMILAR}."
    )
    shared = [
        (f"{one.n} words in a row", f"{len(one.shared):,} of {one.long_enough:,} ({one.share:.1%})")
        for one in found.ngrams
    ]
    rows = [(task, f"{one.rouge_l:.3f}", (one.text or "")[:_SHOWN_LETTERS]) for task, one in nearest]
    return render("leakage", lead, chart, shared, rows)
