"""Scores of given predictions: ROUGE-L and exact match, equal to the reference scorer's, with bootstrap intervals.

The benchmark's own scorer takes, for each prediction, the best ROUGE-L F1 (rouge_score, with Porter stemming) and the
best exact match (lower-cased, without ASCII punctuation, white space collapsed) over all references, and averages them
in percent. Intervals are percentile bootstraps (Efron, 1979) over instances within tasks, so that every task keeps its
weight; tasks of one instance are resampled as tasks. Knows nothing of models or files.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from fastgen.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


RESAMPLES = 2000
CONFIDENCE = 0.95
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Score:
    """A prediction's two figures, each 0..1."""

    rouge_l: float
    exact_match: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean in percent and the interval that holds it with the confidence stated."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def score(prediction: str, references: Sequence[str]) -> Score:
    """The best of the prediction's scores over the references (at least one)."""
    rouge_l = _rouge_l()
    return Score(
        max(rouge_l(reference, prediction) for reference in references),
        max(float(normalise(prediction) == normalise(reference)) for reference in references),
    )


def normalise(text: str) -> str:
    """What exact match compares."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def require_scorer() -> None:
    """Say early that the scorer is missing.

    :raises InputError: the extra ``evaluate`` is not installed.
    """
    _rouge_l()


@cache
def _rouge_l() -> Callable[[str, str], float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("evaluate needs the extra 'evaluate': pip install 'fastgen[evaluate]'") from None
    scorer: Any = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda reference, prediction: float(scorer.score(reference, prediction)["rougeL"].fmeasure)


def interval(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """The mean over all values of all groups, in percent; instances are resampled within their group (task).

    ``groups``: values 0..1 (or -1..1 for differences), one group per task, none of them empty.
    """
    means = _resampled_means([_array(group) for group in _strata(groups)], seed)
    return _summary(groups, means)


def interval_of_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """``b`` minus ``a``, paired: both have the same instances in the same order, and pairs are resampled together."""
    return interval([[y - x for x, y in zip(xs, ys, strict=True)] for xs, ys in zip(a, b, strict=True)], seed=seed)


def _strata(groups: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Tasks of a single instance are resampled together: by itself, such a one would seem to be certain."""
    alone = [group[0] for group in groups if len(group) == 1]
    return [group for group in groups if len(group) > 1] + ([alone] if alone else [])


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    import numpy as np

    return np.asarray(values, np.float64)


def _resampled_means(groups: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    import numpy as np

    draw = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for group in groups:
        total += group[draw.integers(0, group.size, (RESAMPLES, group.size))].sum(axis=1)
    means: NDArray[np.float64] = total / sum(group.size for group in groups)
    return means


def _summary(groups: Sequence[Sequence[float]], means: NDArray[np.float64]) -> Interval:
    import numpy as np

    values = [value for group in groups for value in group]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(100 * sum(values) / len(values), 100 * float(low), 100 * float(high))
