"""The shape of every predictor: fit once at a computed step, then one slope per token and velocity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .moments import Moments

Slope = float | Tensor


@dataclass(frozen=True)
class Horizon:
    """How far ahead of the last computed step. Floats, or tensors with one leading entry per horizon.

    Attributes:
        steps: sampler steps ahead (k >= 1).
        time: the same on the predictor's time axis.
        limit: longest run of predicted steps (n), where a predictor blends over the run.
    """

    steps: Slope
    time: Slope
    limit: int


class Fit(ABC):
    """A predictor with its coefficients fixed by the stored outputs."""

    @abstractmethod
    def slopes(self, modality: int, horizon: Horizon) -> tuple[Slope, ...]:
        """``(b1, b2, ...)`` with prediction ``y0 + b1*v1 + b2*v2 + ...``; an empty tuple means reuse."""


class Predictor(ABC):
    """Turns computed outputs into a prediction.

    Attributes:
        depth: computed outputs that it keeps.
        least: fewest outputs with which it can predict.
        static: whether its coefficients follow from times alone, without moments: see
            :class:`~diffcache.predictors.static.Static`.
        knows_error: whether :meth:`refit` tells the error.
    """

    depth: int = 1
    least: int = 1
    static: bool = False
    knows_error: bool = False

    @abstractmethod
    def fit(self, moments: Sequence[Moments]) -> Fit:
        """Fix the coefficients from the moments of each modality. Tensor maths only: no host synchronisation."""

    def refit(self, moments: Sequence[Moments], before: Fit) -> tuple[Fit, Tensor | None]:
        """As :meth:`fit`, knowing the fit of the computed step before; and what that one was wrong by here.

        Returns:
            The fit, and the relative error (RMS over RMS, the worst sample and modality; a scalar) of the prediction
            that ``before`` would have made for the newest value. None if the predictor cannot tell from moments.
        """
        return self.fit(moments), None


def weights(slopes: Sequence[Slope], gaps: Sequence[float]) -> list[Slope]:
    """Coefficients over the stored outputs (newest first) that equal the slopes over their velocities.

    ``y0 + sum_j b[j] * (y[j-1] - y[j]) / d[j]`` = ``sum_j c[j] * y[j]``.
    """
    scaled = [b / d for b, d in zip(slopes, gaps, strict=False)]
    left = [1.0, *(-s for s in scaled)]
    return [c + s for c, s in zip(left, [*scaled, 0.0], strict=True)]
