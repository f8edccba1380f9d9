"""The figures of the original study, beside those of a run.

Source: Wang et al., "Self-Instruct", ACL 2023 (arXiv 2212.10560): table 1, section 3.3 and figure 5. Its data came from
a model of 175B parameters and 52K instructions, so a difference is no verdict; what a figure means is told beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastgen.evaluate.leakage import SIMILAR, Leakage, leakage
from fastgen.evaluate.tasks import EvaluationTask, load_superni, load_user_oriented
from fastgen.judge.summary import ASKED
from fastgen.report.charts import Axis, Html, Share, Table, chart, element, histogram, joined, shares, table_of
from fastgen.report.diversity import Diversity, VerbFigures
from fastgen.report.figures import ROUGE_BINS, RougeSpread, RunFigures
from fastgen.report.sections import section

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


def judged_section(figures: Mapping[str, Any]) -> Html:
    """All judges of a run, one after the other; ``figures`` are those of `fastgen.judge.summary.summarise`."""
    agreements = [(f"Agreement between the votes of {one['name']}", one["vote_agreement"]) for one in figures["judges"]]
    agreements.append(("Agreement between the judges", figures["between_judges"]))
    cards = [_agreement(found, title) for title, found in agreements if found is not None]
    return section(
        "judged",
        "What judge models say",
        *(_judge(one) for one in figures["judges"]),
        element("div", element("div", *cards, class_="grid-2"), class_="judge") if cards else None,
        lead="The original study's three questions, there answered by its authors for 200 instances. A model's word.",
    )


def _judge(one: Mapping[str, Any]) -> Html:
    told = f"{one['judged']:,} of {one['instances']:,} instances judged by {one['model']}."
    return element(
        "div",
        element("h3", f"Judge {one['name']}"),
        element("p", told, _unreadable(one), class_="note"),
        element("div", _questions(one), _scores(one), class_="grid-2"),
        class_="judge",
    )


def _questions(one: Mapping[str, Any]) -> Html:
    asked = [(ASKED[name].capitalize(), found) for name, found in one["questions"].items()]
    bars = [
        Share(
            *(name, found["share"], found["low"], found["high"], found["paper"]),
            f"{name}: {_share(found['share'])} yes ({_interval(found)}), original {found['paper']:.0%}",
        )
        for name, found in asked
    ]
    rows = [(name, _share(found["share"]), _interval(found), f"{found['paper']:.0%}") for name, found in asked]
    told = (
        "Share of yes, with the line as its 95% interval. The upright mark is what people said of the original's data."
    )
    drawing = shares(f"Shares of yes of judge {one['name']}: {'; '.join(bar.told for bar in bars)}", bars)
    return chart("Answers", told, drawing, Table(("Question", "Yes here", "95% interval", "Original"), rows))


def _unreadable(one: Mapping[str, Any]) -> str:
    unreadable, failed = sum(one["unreadable"].values()), sum(one["failed_requests"].values())
    counts = f" {unreadable:,} of {one['answers']:,} answers could not be read" if unreadable else ""
    counts += f"{';' if counts else ''} {failed:,} requests failed" if failed else ""
    if not counts:
        return ""
    left = f", which left {one['unjudged']:,} instances without a verdict" if one["unjudged"] else ""
    return f"{counts}{left}."


def _agreement(found: Mapping[str, Any], title: str) -> Html:
    rows = [
        (
            ASKED.get(name, name).capitalize(),
            _alpha(one),
            "-" if one["percent"] is None else f"{one['percent']:.1%}",
            f"{one['items']:,}",
        )
        for name, one in found.items()
    ]
    note = "Krippendorff's alpha with its 95% interval: 1 is perfect agreement, 0 what chance gives."
    return element(
        "div",
        element("h3", title),
        element("p", note, class_="note"),
        table_of(Table(("Question", "Alpha", "Equal pairs", "Instances"), rows), title),
        class_="chart",
    )


def _alpha(one: Mapping[str, Any]) -> str:
    if one["alpha"] is None:
        return "nothing varies"
    interval = "" if one["low"] is None else f" ({one['low']:.2f} to {one['high']:.2f})"
    return f"{one['alpha']:.2f}{interval}"


def _scores(one: Mapping[str, Any]) -> Html | None:
    if one["mean_score"] is None:
        return None
    counts: dict[str, int] = {f"{half / 2:g}": 0 for half in range(2, 11)} | one["scores"]
    bars = [(f"score {score}: {count:,} ({count / one['judged']:.1%})", count) for score, count in counts.items()]
    mean = f"Mean {one['mean_score']:.2f} of 5."
    label = f"Histogram of the scores of judge {one['name']}. {mean}"
    drawing = histogram(label, bars, Axis("score (median of the votes)"), Axis("instances"), tuple(counts))
    rows = [(score, f"{count:,}") for score, count in counts.items()]
    return chart("Scores from 1 to 5", f"{mean} Bars in steps of a half.", drawing, Table(("Score", "Instances"), rows))


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _interval(asked: Mapping[str, Any]) -> str:
    return "-" if asked["low"] is None else f"{asked['low']:.1%} to {asked['high']:.1%}"


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
