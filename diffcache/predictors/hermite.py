"""WorldCache's predictors: the smoothstep blend of two velocities, and the one that picks a rule per token.

Source: WorldCache, arXiv 2603.06331, Eqs. 5-11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fit, Horizon, Predictor, Slope
from .moments import Moments
from .scores import curvature, pooled_quantiles
from .static import Static


def smoothstep(steps: Slope, limit: int) -> Slope:
    """``3x^2 - 2x^3`` with ``x = min(steps / limit, 1)``: the cubic Hermite basis function h01."""
    x = (steps / limit).clamp(max=1.0) if isinstance(steps, Tensor) else min(steps / limit, 1.0)
    return x * x * (3.0 - 2.0 * x)


class Hermite(Static):
    """Blend of the two newest velocities, weight moving to the older one: ``k*((1-a)*v1 + a*v2)`` (Eq. 11)."""

    depth = 3
    least = 3

    def slopes(self, gaps: Sequence[float], horizon: Horizon) -> tuple[Slope, ...]:
        return blended(horizon)


def blended(horizon: Horizon) -> tuple[Slope, Slope]:
    """The slopes of Eq. 11."""
    alpha = smoothstep(horizon.steps, horizon.limit)
    return horizon.time * (1.0 - alpha), horizon.time * alpha


class Heterogeneous(Predictor):
    """Curvature-guided heterogeneous token prediction: reuse / linear / Hermite blend, chosen per token (Eqs. 9-11).

    Tokens are ranked by curvature over all rows and modalities together, as the released method does: below the
    ``stable`` quantile a token is reused, from the ``chaotic`` quantile on it is blended, between them it is linear.

    Args:
        stable: quantile in [0, 1].
        chaotic: quantile in [stable, 1].
    """

    depth = 3
    least = 3
    independent = False  # the quantiles are pooled

    def __init__(self, stable: float = 0.3, chaotic: float = 0.6) -> None:
        self.levels = (stable, chaotic)

    def scalars(self, tokens: int, samples: int) -> int:
        return 3 * tokens

    def fit(self, moments: Moments) -> HeterogeneousFit:
        score = curvature(moments)
        low, high = pooled_quantiles(score, self.levels).unbind()
        return HeterogeneousFit(score, (score >= low).float(), (score >= high).float())


@dataclass(frozen=True)
class HeterogeneousFit(Fit):
    """Groups: ``moving`` is 0 for stable tokens, ``chaotic`` 1 for blended ones."""

    score: Tensor
    moving: Tensor
    chaotic: Tensor

    def slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        blend = smoothstep(horizon.steps, horizon.limit) * self.chaotic
        reach = horizon.time * self.moving
        return reach * (1.0 - blend), reach * blend

    def chaotic_slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        """The blend for every token: what the drift is measured with."""
        return blended(horizon)


def group_names(fit: HeterogeneousFit) -> Tensor:
    """0 stable, 1 linear, 2 chaotic, per token (for pictures and tests)."""
    return (fit.moving + fit.chaotic).to(torch.uint8)
