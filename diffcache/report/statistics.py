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


@dataclass(frozen=True)
class Proportion:
    """A share of yes among ``count`` trials, or a difference of two shares, with its 95% confidence interval."""

    mean: float
    low: float
    high: float
    count: int


_Z = 1.959964  # 97.5 % quantile of the normal distribution


def proportion(yes: int, count: int) -> Proportion:
    """Wilson's interval of a share (J. Am. Stat. Assoc. 22, 1927); it does not shrink to nothing at 0 and 1.

    >>> found = proportion(8, 10)
    >>> round(found.low, 2), round(found.high, 2)
    (0.49, 0.94)
    """
    share, z2 = yes / count, _Z * _Z
    middle, room = share + z2 / (2 * count), _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    low, high = ((middle + side * room) / (1 + z2 / count) for side in (-1, 1))
    return Proportion(share, max(low, 0.0), min(high, 1.0), count)


def paired_shares(a: Sequence[bool], b: Sequence[bool]) -> tuple[Proportion, str]:
    """Difference a - b of two shares of the same trials, and ``more``, ``less`` or ``tie``.

    Agresti and Min's interval for matched pairs (Stat. Med. 24, 2005): half a pair more in each of the four cells.

    >>> difference, word = paired_shares([True] * 9 + [False], [True] * 10)
    >>> round(difference.mean, 2), word
    (-0.1, 'tie')
    """
    count, won = len(a), sum(x and not y for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for x, y in zip(a, b, strict=True))
    size, up, down = count + 2, won + 0.5, lost + 0.5
    middle = (up - down) / size
    room = _Z * math.sqrt(up + down - (up - down) ** 2 / size) / size
    found = Proportion((won - lost) / count, middle - room, middle + room, count)
    return found, "more" if found.low > 0 else "less" if found.high < 0 else "tie"


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
