"""Intervals over seeds, ties, fronts, and who is best at equal time or fastest at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

#: 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
#: samples that differ in nothing have infinite PSNR; in means they count as this many dB
EQUAL = 100.0


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the half width of its 95 % confidence interval, NaN where there is one seed."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t, by the Cornish-Fisher expansion beyond 30 degrees of freedom (error < 1e-3).

    >>> quantile(7), round(quantile(60), 2)
    (2.365, 2.0)
    """
    if freedom < 1:
        return math.nan
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval of the mean, from Student's t."""
    if len(values) < 2:
        return Interval(values[0] if values else math.nan, math.nan, len(values))
    return Interval(mean(values), quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values)), len(values))


def bounded(psnr: float) -> float:
    """PSNR for means: equal pictures count as :data:`EQUAL` dB."""
    return min(psnr, EQUAL)


@dataclass(frozen=True)
class Difference:
    """Paired difference a - b over the seeds that both have."""

    over: Interval
    verdict: str  # "more", "less", "tie", or "one seed"


def compare(a: dict[int, float], b: dict[int, float]) -> Difference:
    """Whether two methods differ: seed -> value of each. A difference within its 95 % interval is a tie."""
    over = interval([a[seed] - b[seed] for seed in a if seed in b])
    if over.count < 2:
        return Difference(over, "one seed")
    if abs(over.mean) <= over.half:
        return Difference(over, "tie")
    return Difference(over, "more" if over.mean > 0 else "less")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front, larger being better on both axes, by the first axis.

    >>> front([(1, 9), (2, 5), (2, 7), (3, 7), (1.5, 6)])
    [0, 3]
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    found, best = [], -math.inf
    for i in order:
        if points[i][1] > best:
            found.append(i)
            best = points[i][1]
    return found[::-1]


def between(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """Value of a curve at ``x``, linear between its points; None outside of them.

    >>> between([(1, 10), (3, 0)], 2), between([(1, 10), (3, 0)], 4)
    (5.0, None)
    """
    points = sorted(curve)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return (ordered[-1] - ordered[0]) / middle if middle else 0.0
