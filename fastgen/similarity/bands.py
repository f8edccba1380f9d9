"""How many bands of how many rows: chosen from the recall wanted over true neighbours, never from an LSH threshold.

ROUGE-L F1 >= t implies LCS >= t (m + n) / 2 for m and n tokens, the LCS is at most the multiset overlap, and so the
multiset Jaccard is at least ``t / (2 - t)`` (0.538 for t = 0.7; :func:`jaccard_bound`). Two texts at Jaccard J share at
least one of b bands of r rows with probability ``1 - (1 - J**r) ** b``. A candidate is lost only if its nearest
true neighbour is missed with all others, so the recall is averaged over the Jaccard of the nearest true neighbour,
given here by quantiles of its place ``(J - bound) / (1 - bound)``. They were measured with the exhaustive scan: 8,000
candidates against a filtered pool of 130,000 instructions and synthetic ones with their token statistics, for the
thresholds 0.6, 0.7 and 0.85 (12,000 against a pool of 29,000 for 0.5). Between them, the next lower one is used, which
lies closer to the bound. Below 0.5 every neighbour is taken to lie at the bound itself: no distribution can do worse.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.errors import InputError

MAX_BANDS = 72
MAX_ROWS = 8
# Quantiles 1/40, 3/40 ... 39/40, by threshold.
_PLACES = {
    0.0: (0.0,),
    0.5: (
        0.03, 0.04, 0.05, 0.06, 0.06, 0.08, 0.10, 0.10, 0.13, 0.14,
        0.15, 0.18, 0.19, 0.25, 0.25, 0.30, 0.36, 0.46, 0.60, 0.83,
    ),
    0.6: (
        0.03, 0.04, 0.06, 0.08, 0.09, 0.10, 0.12, 0.14, 0.17, 0.19,
        0.25, 0.25, 0.29, 0.34, 0.40, 0.48, 0.57, 0.67, 0.79, 1.0,
    ),
    0.7: (
        0.01, 0.04, 0.07, 0.13, 0.13, 0.18, 0.21, 0.28, 0.28, 0.36,
        0.38, 0.46, 0.52, 0.57, 0.61, 0.67, 0.78, 1.0, 1.0, 1.0,
    ),
    0.85: (
        0.04, 0.04, 0.11, 0.15, 0.15, 0.23, 0.23, 0.30, 0.36, 0.41,
        0.49, 0.57, 0.73, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
    ),
}  # fmt: skip


def jaccard_bound(threshold: float) -> float:
    """Smallest multiset Jaccard of two texts whose ROUGE-L F1 is ``threshold``."""
    return threshold / (2 - threshold)


@dataclass(frozen=True, slots=True)
class Bands:
    """A banding and what it finds.

    ``recall``: expected share of candidates with a true neighbour whose nearest one is met; ``at_bound``: probability
    for a pair at the lowest Jaccard that a true neighbour can have. Both 0..1.
    """

    bands: int
    rows: int
    threshold: float

    def probability(self, jaccard: float) -> float:
        """Probability that a pair at this Jaccard shares a band."""
        return float(1 - (1 - jaccard**self.rows) ** self.bands)

    @property
    def at_bound(self) -> float:
        """:meth:`probability` at ``t / (2 - t)``."""
        return self.probability(jaccard_bound(self.threshold))

    @property
    def recall(self) -> float:
        """Mean :meth:`probability` over the Jaccard distribution of nearest true neighbours."""
        bound = jaccard_bound(self.threshold)
        places = _PLACES[max(measured for measured in _PLACES if measured <= self.threshold)]
        return sum(self.probability(bound + place * (1 - bound)) for place in places) / len(places)


def choose_bands(threshold: float, recall: float) -> Bands:
    """Most rows (the fewest false candidates) that reach ``recall`` with at most 72 bands, and the fewest bands for it.

    :raises InputError: ``recall`` is not in 0.5 .. 0.999999.
    """
    if not 0.5 <= recall <= 0.999999:  # noqa: PLR2004 - the range the message states
        raise InputError(f"LSH recall {recall} is not in 0.5 .. 0.999999: use 0.9998, or the exact index for no miss")
    for rows in range(MAX_ROWS, 1, -1):
        if Bands(MAX_BANDS, rows, threshold).recall >= recall:
            return next(
                banding
                for bands in range(1, MAX_BANDS + 1)
                if (banding := Bands(bands, rows, threshold)).recall >= recall
            )
    return next(
        (banding for bands in range(1, 1024) if (banding := Bands(bands, 1, threshold)).recall >= recall),
        Bands(1024, 1, threshold),
    )
