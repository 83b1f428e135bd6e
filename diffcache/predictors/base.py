"""The shape of every predictor: fit once at a computed step, then one slope per token and velocity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .moments import Moments

#: a number; one for each token (a tensor that broadcasts); or one for each sample, on the host
Slope = float | Tensor | list[float]


@dataclass(frozen=True)
class Horizon:
    """How far ahead of the last computed step. Floats, or tensors with one leading entry per horizon.

    Attributes:
        steps: sampler steps ahead (k >= 1).
        time: the same on the predictor's time axis.
        limit: longest run of predicted steps (n), where a predictor blends over the run.
        whole: whether the leading axis counts 1, 2, 3, ... and time counts sampler steps, too.
    """

    steps: Slope
    time: Slope
    limit: int
    whole: bool = False


class Fit(ABC):
    """A predictor with its coefficients fixed by the stored outputs."""

    @abstractmethod
    def slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        """``(b1, b2, ...)`` with prediction ``y0 + b1*v1 + b2*v2 + ...``; an empty tuple means reuse.

        Of a horizon of floats, axis 0 counts samples where a slope is a tensor.
        """

    def rows(self, start: int, count: int) -> Fit:
        """The same for ``count`` samples from ``start`` on (views)."""
        return self


class Predictor(ABC):
    """Turns computed outputs into a prediction.

    Attributes:
        depth: computed outputs that it keeps.
        least: fewest outputs with which it can predict.
        static: whether its coefficients follow from times alone, without moments: see
            :class:`~diffcache.predictors.static.Static`.
        knows_error: whether :meth:`refit` tells the error.
        hosted: whether its coefficients follow from sums over whole samples, which the host reads: see
            :class:`~diffcache.predictors.sample_trend.SampleTrend`.
        independent: whether each sample is fitted from its own moments alone, so that branches can be fitted together.
    """

    depth: int = 1
    least: int = 1
    static: bool = False
    knows_error: bool = False
    hosted: bool = False
    independent: bool = True

    def scalars(self, tokens: int, samples: int) -> int:
        """How many fp32 numbers a fit holds besides the stored outputs.

        Args:
            tokens: of all samples together.
            samples: rows of the batch, times modalities.
        """
        return 0

    @abstractmethod
    def fit(self, moments: Moments) -> Fit:
        """Fix the coefficients. Tensor maths only: no host synchronisation."""

    def refit(self, moments: Moments, before: Fit) -> tuple[Fit, Tensor | None]:
        """As :meth:`fit`, knowing the fit of the computed step before; and what that one was wrong by here.

        Returns:
            The fit, and the squared relative error (RMS over RMS) of the prediction that ``before`` would have made
            for the newest value, shape ``[samples]``. None if the predictor cannot tell from moments.
        """
        return self.fit(moments), None


def weights(slopes: Sequence[Slope], gaps: Sequence[float]) -> list[Slope]:
    """Coefficients over the stored outputs (newest first) that equal the slopes over their velocities.

    ``y0 + sum_j b[j] * (y[j-1] - y[j]) / d[j]`` = ``sum_j c[j] * y[j]``.
    """
    scaled = [b / d for b, d in zip(slopes, gaps, strict=False)]
    left = [1.0, *(-s for s in scaled)]
    return [c + s for c, s in zip(left, [*scaled, 0.0], strict=True)]
