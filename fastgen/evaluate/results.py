"""Results of an evaluation: predictions.jsonl, scores.json and scores.md in one folder, and the comparison of two.

Guarantees: each file is replaced as a whole. Predictions are in the order of the benchmark, so two folders of the same
benchmark differ only by the model.

A comparison pairs the predictions instance by instance. A difference is B minus A. Pairs are resampled together, so
what makes an instance hard for both models cancels out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import InputError
from fastgen.evaluate.scoring import Interval, exact_match, interval, interval_of_difference, rouge_l
from fastgen.evaluate.tasks import Case, Row, read_rows, text_of
from fastgen.store import files
from fastgen.store.files import disk_errors
from fastgen.store.output import json_line
from fastgen.text import printable

PREDICTIONS, SCORES, TABLE = "predictions.jsonl", "scores.json", "scores.md"
_COLUMNS: Final = {"definition": "instruction", "text": "prediction"}
_TEXTS: Final = ("id", "task", "category", "definition", "input", "text")
_ONLY_IF_SET: Final = ("failure", "shortened")
_MEASURES: Final = {"rouge_l": "ROUGE-L", "exact_match": "exact match"}
_SETTINGS: Final = ("benchmark", "data", "prompt", "api", "max_tokens")
_MUST_AGREE: Final = ("benchmark", "data")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer with its scores (0..1 each). ``raw`` is the model's text, ``text`` the part of it that counts.

    The fields are those of predictions.jsonl in their order, but for the names in `_COLUMNS`.
    """

    id: str
    task: str
    category: str
    definition: str
    input: str
    text: str
    raw: str
    references: tuple[str, ...]
    rouge_l: float
    exact_match: float
    is_classification: bool = False
    failure: str | None = None
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """The content of a folder. ``about`` is the model and the settings (model, benchmark, data, max_tokens ...)."""

    about: Mapping[str, Any]
    predictions: Sequence[Prediction]

    @property
    def model(self) -> str:
        """The name of the model."""
        return printable(str(self.about["model"]))


def score_answer(case: Case, text: str, raw: str, *, failure: str | None = None, shortened: bool = False) -> Prediction:
    """Score one answer. A failed one counts as empty."""
    task, instance = case.task, case.instance
    return Prediction(
        id=instance.id,
        task=task.name,
        category=task.category,
        definition=task.definition,
        input=instance.input,
        text=text,
        raw=raw,
        references=instance.references,
        rouge_l=rouge_l(text, instance.references),
        exact_match=exact_match(text, instance.references),
        is_classification=task.is_classification,
        failure=failure,
        shortened=shortened,
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """Means with their intervals over the instances of some tasks. Its fields are those of scores.json."""

    instances: int
    rouge_l: Interval
    exact_match: Interval
    is_classification: bool

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Scores:
        """The scores of at least one prediction."""
        tasks = _grouped(predictions, "task").values()
        return cls(
            instances=len(predictions),
            rouge_l=interval([[p.rouge_l for p in task] for task in tasks]),
            exact_match=interval([[p.exact_match for p in task] for task in tasks]),
            is_classification=all(p.is_classification for p in predictions),
        )


def _grouped(predictions: Iterable[Prediction], field: str) -> dict[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups[getattr(prediction, field)].append(prediction)
    return groups


def write_results(folder: Path, results: Results, more: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Write the three files and return the table. ``more`` goes into scores.json, ``notes`` below the table.

    :raises DiskError: the folder cannot be written.
    """
    predictions = results.predictions
    overall = Scores.of(predictions)
    categories = {name: Scores.of(members) for name, members in sorted(_grouped(predictions, "category").items())}
    tasks = {name: Scores.of(members) for name, members in _grouped(predictions, "task").items()}
    figures = {
        **results.about,
        "instances": len(predictions),
        "failed": sum(p.failure is not None for p in predictions),
        "shortened": sum(p.shortened for p in predictions),
        "overall": overall,
        "categories": categories,
        "tasks": tasks,
        **more,
    }
    lines = [f"{results.model} on {results.about['benchmark']}, {len(predictions):,} instances", ""]
    lines += [*_table("category", [("all", overall), *categories.items()]), ""]
    if any(task.instances > 1 for task in tasks.values()):
        lines += [*_table("task", tasks.items()), ""]
    lines.append(
        "Means in percent with 95 % bootstrap intervals over instances within tasks. * classification: exact match is "
        "the measure its authors give."
    )
    table = "\n".join([*lines, *(f"Note: {note}" for note in notes)])
    write_file(folder / PREDICTIONS, b"".join(json_line(_row(p)) for p in predictions))
    write_json(folder / SCORES, figures)
    write_file(folder / TABLE, (table + "\n").encode())
    return table


def _table(kind: str, groups: Iterable[tuple[str, Scores]]) -> list[str]:
    rows = [
        (f"{name}{' *' if s.is_classification else ''}", str(s.instances), str(s.rouge_l), str(s.exact_match))
        for name, s in groups
    ]
    return markdown((kind, "instances", *_MEASURES.values()), rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are aligned as plain text too."""
    cells = [head, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - JSON values and dataclasses of them
    """Create or replace a JSON file as a whole.

    :raises DiskError: it cannot be written.
    """
    write_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a file as a whole.

    :raises DiskError: it cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, content)


def _row(prediction: Prediction) -> Row:
    values = asdict(prediction).items()
    return {_COLUMNS.get(field, field): value for field, value in values if value or field not in _ONLY_IF_SET}


def read_results(folder: Path) -> Results:
    """The results that `write_results` wrote.

    :raises InputError: there is no finished evaluation, or a file is damaged.
    """
    path = folder / SCORES
    try:
        about = orjson.loads(path.read_bytes())
    except OSError:
        raise InputError(f"{folder}: has no {SCORES}; 'fastgen evaluate --output {folder}' finishes it") from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: broken JSON ({error.msg}); run the same 'fastgen evaluate' again") from None
    if not isinstance(about, dict) or not {"model", "benchmark"} <= about.keys():
        raise InputError(f"{path}: was not written by 'fastgen evaluate'; name a folder that was")
    rows = list(read_rows(folder / PREDICTIONS))
    if not rows:
        raise InputError(f"{folder / PREDICTIONS}: is empty; run the same 'fastgen evaluate' again")
    return Results(about, [_prediction(row, f"{folder / PREDICTIONS}:{number}") for number, row in rows])


def _prediction(row: Row, where: str) -> Prediction:
    references, failure = row.get("references", []), row.get("failure")
    if not isinstance(references, list) or not isinstance(failure, str | None):
        raise InputError(f"{where}: 'references' or 'failure' is damaged; run the same 'fastgen evaluate' again")
    texts = {field: text_of(row, _COLUMNS.get(field, field), where) for field in _TEXTS}
    return Prediction(
        **texts,
        raw=str(row.get("raw", "")),
        references=tuple(map(str, references)),
        rouge_l=_share(row, "rouge_l", where),
        exact_match=_share(row, "exact_match", where),
        is_classification=bool(row.get("is_classification")),
        failure=failure,
        shortened=bool(row.get("shortened")),
    )


def _share(row: Row, field: str, where: str) -> float:
    value = row.get(field)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{where}: {field!r} is not a number from 0 to 1; run the same 'fastgen evaluate' again")
    return float(value)


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure (``rouge_l`` or ``exact_match``) over a group: both means and B minus A, in percentage points."""

    group: str
    measure: str
    instances: int
    a: Interval
    b: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models by name. Its fields are those of comparison.json. The text is for people."""

    a: str
    b: str
    differing_settings: tuple[str, ...]
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        rows = [
            (d.group, _MEASURES[d.measure], str(d.instances), f"{d.a.mean:.1f}", f"{d.b.mean:.1f}", _shown(d))
            for d in self.differences
        ]
        lines = [f"A: {self.a}", f"B: {self.b}", ""]
        lines += markdown(("group", "measure", "instances", "A", "B", "B - A"), rows)
        lines += ["", "Percentage points; 95 % bootstrap interval of the paired difference; (!) it leaves out zero."]
        return "\n".join([*lines, *(f"Note: the two differ in {name}." for name in self.differing_settings)])


def _shown(d: Difference) -> str:
    is_clear = d.difference.low > 0 or d.difference.high < 0
    return f"{d.difference.signed()}{' (!)' if is_clear else ''}"


def compare(a: Results, b: Results) -> Comparison:
    """Compare overall and per category, by both measures.

    :raises InputError: the two are not of the same instances of the same benchmark.
    """
    pairs = pair(a, b)
    groups = {"all": pairs}
    for name in sorted({one.category for one, _ in pairs}):
        groups[name] = [(x, y) for x, y in pairs if x.category == name]
    return Comparison(
        a=a.model,
        b=b.model,
        differing_settings=tuple(name for name in _SETTINGS if a.about.get(name) != b.about.get(name)),
        differences=tuple(_difference(name, field, members) for name, members in groups.items() for field in _MEASURES),
    )


def pair(a: Results, b: Results) -> list[tuple[Prediction, Prediction]]:
    """Both predictions of every instance, in A's order.

    :raises InputError: as `compare`.
    """
    of_a = {(p.task, p.id): p for p in a.predictions}
    of_b = {(p.task, p.id): p for p in b.predictions}
    only_a, only_b = of_a.keys() - of_b.keys(), of_b.keys() - of_a.keys()
    if only_a or only_b:
        raise InputError(
            f"--compare: the two do not have the same instances ({len(only_a)} only in the first, {len(only_b)} only "
            f"in the second, such as {min(only_a | only_b)[1]}); evaluate both with the same --data, --task and "
            f"--per-task"
        )
    for name in _MUST_AGREE:
        if a.about.get(name) != b.about.get(name):
            raise InputError(
                f"--compare: the two differ in {name} ({a.about.get(name)!r:.40}, {b.about.get(name)!r:.40}); evaluate "
                f"both on the same data"
            )
    return [(one, of_b[key]) for key, one in of_a.items()]


def _difference(group: str, measure: str, pairs: Sequence[tuple[Prediction, Prediction]]) -> Difference:
    value = attrgetter(measure)
    of_a: dict[str, list[float]] = defaultdict(list)
    of_b: dict[str, list[float]] = defaultdict(list)
    for x, y in pairs:
        of_a[x.task].append(value(x))
        of_b[x.task].append(value(y))
    a, b = list(of_a.values()), list(of_b.values())
    return Difference(group, measure, len(pairs), interval(a), interval(b), interval_of_difference(a, b))


def write_comparison(folder: Path, found: Comparison) -> None:
    """Write comparison.json and comparison.md.

    :raises DiskError: the folder cannot be written.
    """
    write_json(folder / "comparison.json", found)
    write_file(folder / "comparison.md", f"{found}\n".encode())
