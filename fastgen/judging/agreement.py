"""How far raters agree: Krippendorff's alpha and the share of agreeing pairs, with a bootstrap interval.

Alpha after K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): 1 - observed / expected disagreement,
for any number of raters and with missing ratings; 1 is perfect agreement, 0 what chance gives. Items are held as
patterns (how many raters gave each value) with their frequency, so neither time nor memory of the bootstrap grows with
the number of items. The bootstrap (percentile) draws items, not ratings. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, np.dtype[np.float64]]

Level = Literal["nominal", "interval"]
_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How ``items`` with two or more ratings were rated.

    ``alpha`` (at most 1) is ``None`` where nothing varies, so that nothing can be said; ``low`` and ``high`` bound it
    at 95 %. ``percent`` (0..1) is the share of equal pairs of ratings of one item, every item counting the same.
    """

    items: int
    alpha: float | None
    low: float | None
    high: float | None
    percent: float | None


class Ratings:
    """Collects items; ``values`` are all that a rating can be, in order."""

    def __init__(self, values: Sequence[float], level: Level) -> None:
        self._values = list(values)
        self._level = level
        self._place = {value: place for place, value in enumerate(values)}
        self._patterns: Counter[tuple[int, ...]] = Counter()

    def add(self, ratings: Iterable[float]) -> None:
        """One item's ratings; one with fewer than two says nothing of agreement."""
        pattern = [0] * len(self._values)
        for rating in ratings:
            pattern[self._place[rating]] += 1
        if sum(pattern) > 1:
            self._patterns[tuple(pattern)] += 1

    def agreement(self, *, seed: int = 0) -> Agreement:
        """The figures; the same ratings and seed give the same interval."""
        import numpy as np

        if not self._patterns:
            return Agreement(0, None, None, None, None)
        patterns = sorted(self._patterns)
        counts = np.array(patterns, dtype=np.float64)
        items = np.array([[self._patterns[pattern] for pattern in patterns]], dtype=np.float64)
        total = int(items.sum())
        alpha = self._alphas(counts, items)[0]
        raters = counts.sum(axis=1)
        equal = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
        percent = float(items[0] @ equal / total)
        if np.isnan(alpha):
            return Agreement(total, None, None, None, percent)
        draws = np.random.default_rng(seed).multinomial(total, items[0] / total, size=_RESAMPLES)
        drawn = self._alphas(counts, draws.astype(np.float64))
        drawn = drawn[~np.isnan(drawn)]
        low, high = (float(bound) for bound in np.percentile(drawn, _PERCENTILES)) if drawn.size else (None, None)
        return Agreement(total, float(alpha), low, high, percent)

    def _alphas(self, counts: _Array, items: _Array) -> _Array:
        """Alpha for each row of item frequencies (rows x patterns); NaN where nothing varies."""
        import numpy as np

        values = np.array(self._values, dtype=np.float64)
        difference = values[:, None] - values[None, :]
        distance = (difference != 0).astype(np.float64) if self._level == "nominal" else difference**2
        raters = counts.sum(axis=1)
        observed = items @ (np.einsum("pc,ck,pk->p", counts, distance, counts) / (raters - 1))
        totals = items @ counts
        ratings = totals.sum(axis=1)
        expected = np.einsum("rc,ck,rk->r", totals, distance, totals) / (ratings - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            alphas: _Array = np.where(expected > 0, 1 - observed / expected, np.nan)
        return alphas
