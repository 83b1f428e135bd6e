"""HiCache: Taylor's finite differences with scaled Hermite polynomials in place of the powers of the step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import factorial

from .base import Horizon, Slope
from .static import Static


class ScaledHermite(Static):
    """``y0 + sum_i D_i / i! * h_i(k)``, k steps after the last computed one (HiCache, arXiv 2508.16984).

    ``h_n(k) = sigma^n H_n(sigma k)`` with the physicists' Hermite polynomials; ``sigma`` < 1 holds the input and the
    coefficients down. ``D_i`` are TaylorSeer's backward differences over computed steps, per sampler step. Unlike
    Taylor it is exact on no line: at order 1 it goes ``2 sigma^2`` of the way that linear extrapolation goes. While
    fewer outputs are stored the order is lower.

    The polynomials are not homogeneous, so k counts sampler steps on every time axis: gaps are measured in units of
    ``horizon.time / horizon.steps``.

    Args:
        order: 0 to 4. The paper's FLUX setting is 2.
        sigma: contraction factor, in (0, 1].
    """

    least = 1

    def __init__(self, order: int = 2, sigma: float = 0.5) -> None:
        if not 0 <= order <= 4:
            raise ValueError(f"order: {order} is out of range, must be 0 to 4")
        if not 0 < sigma <= 1:
            raise ValueError(f"sigma: {sigma} is out of range, must be in (0, 1]")
        self.order, self.sigma = order, sigma
        self.depth = order + 1

    def slopes(self, gaps: Sequence[float], horizon: Horizon) -> tuple[Slope, ...]:
        step = horizon.time / horizon.steps
        differences = backward_differences([gap / step for gap in gaps[: self.order]])
        basis = scaled_hermite(len(differences), horizon.steps, self.sigma)[1:]
        scaled = [h / factorial(i) for i, h in enumerate(basis, 1)]
        # A velocity per unit of time, times the time of a step, is a velocity per step.
        return tuple(
            step * sum(s * row[j] for s, row in zip(scaled, differences, strict=True)) for j in range(len(differences))
        )


def scaled_hermite(order: int, x: Slope, sigma: float) -> list[Slope]:
    """``sigma^n H_n(sigma x)`` for n = 0 to ``order``; with sigma = 1/sqrt(2) the probabilists' ``He_n(x)``.

    >>> scaled_hermite(2, 3.0, 0.5)
    [1.0, 1.5, 1.75]
    """
    values: list[Slope] = [1.0]
    before: Slope = 0.0
    for n in range(order):
        # sigma^(n+1) times H_(n+1)(z) = 2 z H_n(z) - 2 n H_(n-1)(z) at z = sigma x
        values.append(2.0 * sigma**2 * (x * values[-1] - n * before))
        before = values[-2]
    return values


def backward_differences(gaps: Sequence[Slope]) -> list[list[Slope]]:
    """``D_1, D_2, ...`` as coefficients over the velocities, newest first.

    ``D_1`` is the newest velocity; ``D_(i+1)`` is the change of ``D_i`` since the computed step before, divided by
    the gap to it.

    >>> backward_differences([2.0, 2.0])
    [[1.0, 0.0], [0.5, -0.5]]
    """
    count = len(gaps)
    level: list[list[Slope]] = [[float(i == j) for j in range(count)] for i in range(count)]
    rows = []
    while level:
        rows.append(level[0])
        level = [
            [(new - old) / gap for new, old in zip(*pair, strict=True)]
            for pair, gap in zip(pairwise(level), gaps, strict=False)
        ]
    return rows
