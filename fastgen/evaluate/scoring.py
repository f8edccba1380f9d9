"""ROUGE-L and exact match of predictions, as the benchmark's own scorer computes them, and bootstrap intervals.

For each prediction the scorer of Super-NaturalInstructions takes the best ROUGE-L F1 (rouge_score, with Porter
stemming) and the best exact match (lower-cased, without ASCII punctuation, white space collapsed) over all references,
and averages them in percent. Intervals are percentile bootstraps (Efron, 1979) over instances within tasks, so that
every task keeps its weight. Tasks of one instance are resampled as tasks.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from fastgen.errors import InputError, how_to_install

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
_SEED: Final = 0
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The prediction's best ROUGE-L F1 (0..1) over the references (at least one)."""
    f1 = _rouge_l_f1()
    return max(f1(reference, prediction) for reference in references)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction is one of the references (at least one) after `normalise`, else 0.0."""
    return float(normalise(prediction) in map(normalise, references))


def normalise(text: str) -> str:
    """The form of a text that exact match compares."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def require_scorer() -> None:
    """Check early that the scorer is installed.

    :raises InputError: the extra ``evaluate`` is missing.
    """
    _rouge_l_f1()


@cache
def _rouge_l_f1() -> Callable[[str, str], float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError(f"evaluate needs rouge-score, which is not installed: {how_to_install('evaluate')}") from None
    scorer: Any = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda reference, prediction: float(scorer.score(reference, prediction)["rougeL"].fmeasure)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean in percent and its interval of the confidence `CONFIDENCE`."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    def signed(self) -> str:
        """As a difference."""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def interval(groups: Sequence[Sequence[float]]) -> Interval:
    """The mean of all values of all groups, in percent. Instances are resampled within their group (task).

    ``groups``: values 0..1 (or -1..1 for differences), one group per task, none of them empty.
    """
    import numpy as np

    alone = [group[0] for group in groups if len(group) == 1]  # resampled together: alone, each would seem certain
    strata = [group for group in groups if len(group) > 1] + ([alone] if alone else [])
    draw = np.random.default_rng(_SEED)
    totals = np.zeros(RESAMPLES)
    for stratum in strata:
        array = np.asarray(stratum, np.float64)
        totals += array[draw.integers(0, array.size, (RESAMPLES, array.size))].sum(axis=1)
    values = [value for group in groups for value in group]
    low, high = np.quantile(totals / len(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(100 * sum(values) / len(values), 100 * float(low), 100 * float(high))


def interval_of_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Interval:
    """``b`` minus ``a``. Both have the same instances in the same order, and pairs are resampled together."""
    return interval([[y - x for x, y in zip(xs, ys, strict=True)] for xs, ys in zip(a, b, strict=True)])
