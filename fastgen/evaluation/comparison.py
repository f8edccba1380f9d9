"""Two models on the same instances: paired differences with their intervals, overall and per category.

A difference is B minus A; pairs are resampled together, so what makes an instance hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastgen.errors import InputError
from fastgen.evaluation.results import Prediction, Results, markdown, plain_interval, write_file
from fastgen.evaluation.scoring import Interval, interval, interval_of_difference

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
