"""A folder of results: predictions.jsonl, scores.json and scores.md, written together and read by ``--compare``.

Guarantees: each file is replaced as a whole; predictions are in the order of the benchmark, so two folders of the same
benchmark are the same up to the model. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastgen.errors import DiskError, InputError
from fastgen.evaluate.scoring import Interval, Score, interval, interval_of_difference, score
from fastgen.evaluate.tasks import Case, Row, read_rows, text_of
from fastgen.store.files import replacing
from fastgen.store.output import json_line
from fastgen.text import printable

PREDICTIONS, SCORES, TABLE = "predictions.jsonl", "scores.json", "scores.md"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer with its scores. ``raw`` is what the model wrote, ``text`` what of it counts."""

    id: str
    task: str
    category: str
    definition: str
    input: str
    text: str
    raw: str
    score: Score
    is_classification: bool = False
    failure: str | None = None
    shortened: bool = False
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Means in percent with their intervals over the instances of some tasks."""

    name: str
    instances: int
    rouge_l: Interval
    exact_match: Interval
    is_classification: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """What a folder holds; ``about`` says of which model and benchmark (model, benchmark, data, max_tokens ...)."""

    about: Mapping[str, Any]
    predictions: Sequence[Prediction]

    @property
    def model(self) -> str:
        """Whose answers they are."""
        return printable(str(self.about["model"]))


def predict(case: Case, text: str, raw: str, *, failure: str | None = None, shortened: bool = False) -> Prediction:
    """Score one answer; a failed one counts as empty."""
    task, instance = case.task, case.instance
    return Prediction(
        id=instance.id,
        task=task.name,
        category=task.category,
        definition=task.definition,
        input=instance.input,
        text=text,
        raw=raw,
        score=score(text, instance.references),
        is_classification=task.is_classification,
        failure=failure,
        shortened=shortened,
        references=instance.references,
    )


def overall(predictions: Sequence[Prediction]) -> GroupScores:
    """All of them; instances are resampled within their tasks."""
    return _group("all", predictions)


def by_category(predictions: Sequence[Prediction]) -> list[GroupScores]:
    """One group for each category, by name."""
    groups = _grouped(predictions, lambda p: p.category)
    return [_group(name, groups[name]) for name in sorted(groups)]


def by_task(predictions: Sequence[Prediction]) -> list[GroupScores]:
    """One group for each task, in their order."""
    return [_group(name, members) for name, members in _grouped(predictions, lambda p: p.task).items()]


def _grouped(predictions: Iterable[Prediction], key: Any) -> dict[str, list[Prediction]]:  # noqa: ANN401 - a function
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(key(prediction), []).append(prediction)
    return groups


def _group(name: str, members: Sequence[Prediction]) -> GroupScores:
    tasks = _grouped(members, lambda p: p.task).values()
    return GroupScores(
        name=name,
        instances=len(members),
        rouge_l=interval([[p.score.rouge_l for p in task] for task in tasks]),
        exact_match=interval([[p.score.exact_match for p in task] for task in tasks]),
        is_classification=all(p.is_classification for p in members),
    )


def write_results(folder: Path, results: Results, more: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Write the three files; the table, as Markdown. ``more`` goes into scores.json, ``notes`` below the table.

    :raises DiskError: the folder cannot be written.
    """
    table = render(results, notes)
    write_file(folder / PREDICTIONS, b"".join(json_line(_row(p)) for p in results.predictions))
    figures = {**results.about, **_figures(results.predictions), **more}
    write_file(folder / SCORES, orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    write_file(folder / TABLE, (table + "\n").encode())
    return table


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a file as a whole.

    :raises DiskError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as sink:
            sink.write(content)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror}); mend that and run it again") from None


def read_results(folder: Path) -> Results:
    """What `write_results` wrote.

    :raises InputError: nothing finished is there, or a file is damaged.
    """
    path = folder / SCORES
    try:
        about = orjson.loads(path.read_bytes())
    except OSError:
        raise InputError(f"{folder}: has no {SCORES}; 'fastgen evaluate --output {folder}' finishes it") from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: broken JSON ({error.msg}); run its 'fastgen evaluate' again") from None
    if not isinstance(about, dict) or not {"model", "benchmark"} <= about.keys():
        raise InputError(f"{path}: is not of 'fastgen evaluate'; name a folder that it wrote")
    rows = list(read_rows(folder / PREDICTIONS))
    if not rows:
        raise InputError(f"{folder / PREDICTIONS}: is empty; run its 'fastgen evaluate' again")
    return Results(about, [_prediction(row, f"{folder / PREDICTIONS}:{number}") for number, row in rows])


def render(results: Results, notes: Sequence[str] = ()) -> str:
    """The table for people: overall, categories, tasks."""
    head = f"{results.model} on {results.about['benchmark']}, {len(results.predictions):,} instances"
    groups = [overall(results.predictions), *by_category(results.predictions)]
    lines = [head, "", *_table("category", groups), ""]
    tasks = by_task(results.predictions)
    if any(task.instances > 1 for task in tasks):
        lines += [*_table("task", tasks), ""]
    lines.append(
        "Means in percent with 95 % bootstrap intervals over instances within tasks. * classification: exact match is "
        "the measure its authors give."
    )
    return "\n".join([*lines, *(f"Note: {note}" for note in notes)])


def _table(kind: str, groups: Sequence[GroupScores]) -> list[str]:
    rows = [
        (f"{g.name}{' *' if g.is_classification else ''}", str(g.instances), str(g.rouge_l), str(g.exact_match))
        for g in groups
    ]
    return markdown((kind, "instances", "ROUGE-L", "exact match"), rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are aligned as plain text too."""
    cells = [head, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {
        "instances": len(predictions),
        "failed": sum(p.failure is not None for p in predictions),
        "shortened": sum(p.shortened for p in predictions),
        "overall": _plain(overall(predictions)),
        "categories": {group.name: _plain(group) for group in by_category(predictions)},
        "tasks": {group.name: _plain(group) for group in by_task(predictions)},
    }


def _plain(group: GroupScores) -> dict[str, Any]:
    return {
        "instances": group.instances,
        "rouge_l": plain_interval(group.rouge_l),
        "exact_match": plain_interval(group.exact_match),
        "is_classification": group.is_classification,
    }


def plain_interval(value: Interval) -> dict[str, float]:
    """As JSON values."""
    return {"mean": value.mean, "low": value.low, "high": value.high}


def _row(p: Prediction) -> Row:
    row = {
        "id": p.id,
        "task": p.task,
        "category": p.category,
        "instruction": p.definition,
        "input": p.input,
        "prediction": p.text,
        "raw": p.raw,
        "references": list(p.references),
        "rouge_l": p.score.rouge_l,
        "exact_match": p.score.exact_match,
        "is_classification": p.is_classification,
    }
    return row | ({"failure": p.failure} if p.failure else {}) | ({"shortened": True} if p.shortened else {})


def _prediction(row: Row, where: str) -> Prediction:
    references, failure = row.get("references", []), row.get("failure")
    if not isinstance(references, list) or not isinstance(failure, str | None):
        raise InputError(f"{where}: 'references' or 'failure' is damaged; run its 'fastgen evaluate' again")
    return Prediction(
        id=text_of(row, "id", where),
        task=text_of(row, "task", where),
        category=text_of(row, "category", where),
        definition=text_of(row, "instruction", where),
        input=text_of(row, "input", where),
        text=text_of(row, "prediction", where),
        raw=str(row.get("raw", "")),
        score=Score(_share(row, "rouge_l", where), _share(row, "exact_match", where)),
        is_classification=bool(row.get("is_classification")),
        failure=failure,
        shortened=bool(row.get("shortened")),
        references=tuple(map(str, references)),
    )


def _share(row: Row, field: str, where: str) -> float:
    value = row.get(field)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{where}: {field!r} is no figure of 0 to 1; run its 'fastgen evaluate' again")
    return float(value)


_MEASURES = ("rouge_l", "exact_match")
_SETTINGS = ("benchmark", "data", "prompt", "api", "max_tokens")
_MUST_AGREE = ("benchmark", "data")
_NAMES = {"rouge_l": "ROUGE-L", "exact_match": "exact match"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure (``rouge_l`` or ``exact_match``) over a group: both means and B minus A, in percentage points."""

    group: str
    measure: str
    instances: int
    a: Interval
    b: Interval
    difference: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves zero out."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models; ``differing`` are settings that were not the same."""

    model_a: str
    model_b: str
    differences: tuple[Difference, ...]
    differing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "a": self.model_a,
            "b": self.model_b,
            "differing_settings": list(self.differing),
            "differences": [
                {
                    "group": d.group,
                    "measure": d.measure,
                    "instances": d.instances,
                    "a": plain_interval(d.a),
                    "b": plain_interval(d.b),
                    "difference": plain_interval(d.difference),
                }
                for d in self.differences
            ],
        }

    def __str__(self) -> str:
        rows = [
            (d.group, _NAMES[d.measure], str(d.instances), f"{d.a.mean:.1f}", f"{d.b.mean:.1f}", _signed(d))
            for d in self.differences
        ]
        lines = [f"A: {self.model_a}", f"B: {self.model_b}", ""]
        lines += markdown(("group", "measure", "instances", "A", "B", "B - A"), rows)
        lines += ["", "Percentage points; 95 % bootstrap interval of the paired difference; (!) it leaves out zero."]
        lines += [f"Note: the two differ in {name}." for name in self.differing]
        return "\n".join(lines)


def _signed(one: Difference) -> str:
    d = one.difference
    return f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]{' (!)' if one.is_clear else ''}"


def compare(a: Results, b: Results) -> Comparison:
    """Overall and per category, for both measures.

    :raises InputError: the two are not of the same instances of the same benchmark.
    """
    pairs = pair(a, b)
    groups = {"all": pairs}
    for name in sorted({one.category for one, _ in pairs}):
        groups[name] = [(x, y) for x, y in pairs if x.category == name]
    differences = [_difference(name, measure, members) for name, members in groups.items() for measure in _MEASURES]
    differing = tuple(name for name in _SETTINGS if a.about.get(name) != b.about.get(name))
    return Comparison(a.model, b.model, tuple(differences), differing)


def write_comparison(folder: Path, found: Comparison) -> None:
    """comparison.json and comparison.md.

    :raises DiskError: the folder cannot be written.
    """
    write_file(folder / "comparison.json", orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2))
    write_file(folder / "comparison.md", f"{found}\n".encode())


def pair(a: Results, b: Results) -> list[tuple[Prediction, Prediction]]:
    """Both predictions of every instance, in A's order.

    :raises InputError: see `compare`.
    """
    of_a = {(p.task, p.id): p for p in a.predictions}
    of_b = {(p.task, p.id): p for p in b.predictions}
    only_a, only_b = of_a.keys() - of_b.keys(), of_b.keys() - of_a.keys()
    if only_a or only_b:
        raise InputError(
            f"--compare: the two have not the same instances ({len(only_a)} only in the first, {len(only_b)} only in "
            f"the second, such as {min(only_a | only_b)[1]}); evaluate both with the same --data, --task and --per-task"
        )
    for name in _MUST_AGREE:
        if a.about.get(name) != b.about.get(name):
            raise InputError(
                f"--compare: the two differ in {name} ({a.about.get(name)!r:.40}, {b.about.get(name)!r:.40}); evaluate "
                f"both on the same"
            )
    return [(one, of_b[key]) for key, one in of_a.items()]


def _difference(group: str, measure: str, pairs: Sequence[tuple[Prediction, Prediction]]) -> Difference:
    tasks: dict[str, tuple[list[float], list[float]]] = {}
    for x, y in pairs:
        xs, ys = tasks.setdefault(x.task, ([], []))
        xs.append(getattr(x.score, measure))
        ys.append(getattr(y.score, measure))
    of_a, of_b = [xs for xs, _ in tasks.values()], [ys for _, ys in tasks.values()]
    return Difference(*(group, measure, len(pairs)), interval(of_a), interval(of_b), interval_of_difference(of_a, of_b))
