"""Reuse, linear and Taylor: the polynomial through the last ``order + 1`` computed outputs."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Horizon, Slope
from .static import Static


class Taylor(Static):
    """Taylor expansion of the interpolating polynomial, by divided differences on the actual (non-uniform) times.

    Order 0 is reuse, order 1 is linear; order o is exact for trajectories that are polynomials of degree o in time.
    While fewer outputs are stored the order is lower.

    Args:
        order: degree, 0 to 4.
    """

    least = 1

    def __init__(self, order: int = 1) -> None:
        if not 0 <= order <= 4:
            raise ValueError(f"order: {order} is out of range, must be 0 to 4")
        self.order = order
        self.depth = order + 1

    def slopes(self, gaps: Sequence[float], horizon: Horizon) -> tuple[Slope, ...]:
        gaps = gaps[: self.order]
        return _to_slopes(_lagrange(gaps, horizon.time), gaps)


def _lagrange(gaps: Sequence[float], time: Slope) -> list[Slope]:
    """Lagrange weights over the stored outputs, newest first, at ``time`` after the newest."""
    knots = [0.0]
    for gap in gaps:
        knots.append(knots[-1] - gap)
    result = []
    for j, here in enumerate(knots):
        weight: Slope = 1.0
        for m, other in enumerate(knots):
            if m != j:
                weight = weight * (time - other) / (here - other)
        result.append(weight)
    return result


def _to_slopes(lagrange: Sequence[Slope], gaps: Sequence[float]) -> tuple[Slope, ...]:
    """The inverse of :func:`diffcache.predictors.base.weights`."""
    tails = [sum(lagrange[j + 1 :]) for j in range(len(gaps))]
    return tuple(-gap * tail for gap, tail in zip(gaps, tails, strict=True))
