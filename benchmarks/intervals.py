"""95 % intervals for a handful of repeats. Pure; knows nothing of what is measured."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1 on (any table of the distribution).
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_BEYOND = 2.086  # for more repeats than anyone makes here: a little too wide


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval around it; not finite where one repeat says nothing of the spread."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_list(self) -> list[float | None]:
        """Estimate, low, high for JSON; ``None`` for what is not finite."""
        return [value if math.isfinite(value) else None for value in (self.estimate, self.low, self.high)]


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval.

    :raises ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    freedom = len(values) - 1
    half = _quantile(freedom) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def pooled_intervals(groups: Sequence[Sequence[float]]) -> list[Interval]:
    """Geometric mean of each group of positive values, and its interval by the relative spread of all groups together.

    A few repeats say little of their own spread; several groups of them that were measured in turn say more.

    :raises ValueError: a group without values, or one that is not positive.
    """
    logs = [[math.log(value) for value in group] for group in groups]
    means = [mean_interval(group).estimate for group in logs]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - mean) ** 2 for group, mean in zip(logs, means, strict=True) for value in group)
    spread = _quantile(freedom) * math.sqrt(squares / freedom) if freedom else math.inf
    halves = [spread / math.sqrt(len(group)) for group in groups]
    return [
        Interval(math.exp(mean), _exp(mean - half), _exp(mean + half)) for mean, half in zip(means, halves, strict=True)
    ]


def _quantile(freedom: int) -> float:
    return _T_95[freedom - 1] if freedom <= len(_T_95) else _BEYOND


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Median of paired ratios, and the t interval of their geometric mean (ratios are symmetric in their logarithm).

    :raises ValueError: no ratios, or one that is not positive.
    """
    of_logs = mean_interval([math.log(ratio) for ratio in ratios])
    return Interval(statistics.median(ratios), _exp(of_logs.low), _exp(of_logs.high))


def _exp(value: float) -> float:
    return math.exp(value) if value < math.inf else math.inf
