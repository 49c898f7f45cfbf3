"""The plain statistics that the metrics need: percentiles, rank correlation, inversions, confidence."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

#: Two-sided 95 % quantiles of Student's t by degrees of freedom, 1 to 30; beyond, the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share (0 to 1) lies, linear between neighbours; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    if ordered[low] == ordered[high]:
        return ordered[low]
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else math.nan


def interval95(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % confidence interval (Student's t); nan of fewer than two."""
    count = len(values)
    if count < 2:
        return math.nan
    middle = mean(values)
    deviation = math.sqrt(sum((value - middle) ** 2 for value in values) / (count - 1))
    t = _T95[count - 2] if count - 2 < len(_T95) else 1.96
    return t * deviation / math.sqrt(count)


def jain(values: Sequence[float]) -> float:
    """Jain's index `(Σx)² / (n·Σx²)`: 1 where all are equal, 1/n where one has everything; 1 of nothing."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0.0 else 1.0


def rank_correlation(places: Sequence[int]) -> float:
    """Spearman's ρ between the places `0..n−1` and distinct `places`; 1 for n < 2."""
    count = len(places)
    if count < 2:
        return 1.0
    ranks = {place: rank for rank, place in enumerate(sorted(places))}
    distance = sum((index - ranks[place]) ** 2 for index, place in enumerate(places))
    return 1.0 - 6.0 * distance / (count * (count**2 - 1))


def inversions(places: Sequence[int]) -> int:
    """Pairs whose order in `places` is not that of their numbers."""
    seen: list[int] = []
    count = 0
    for index, place in enumerate(places):
        count += index - bisect_left(seen, place)
        insort(seen, place)
    return count
