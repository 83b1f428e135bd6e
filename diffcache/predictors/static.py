"""Predictors whose coefficients follow from times alone: one number for every token, known without any tensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Fit, Horizon, Predictor, Slope, weights
from .moments import Moments


class Static(Predictor):
    """A predictor that needs no moments, so that hundreds of histories can share one set of coefficients.

    Subclasses give :meth:`slopes`; the fit of measured moments and :meth:`weights` are both made of it.
    """

    static = True

    @abstractmethod
    def slopes(self, gaps: Sequence[float], horizon: Horizon) -> tuple[Slope, ...]:
        """``(b1, b2, ...)`` over the velocities, at most one for each gap; an empty tuple means reuse."""

    def weights(self, gaps: Sequence[float], horizon: Horizon) -> list[Slope]:
        """Coefficients over the stored values, newest first; floats for a horizon of floats.

        They sum to 1. Where the predictor uses fewer values than are stored, the list is shorter.

        Args:
            gaps: ``times[j] - times[j + 1]`` of the stored values, newest first, on the axis of ``horizon.time``.
            horizon: how far ahead.

        Raises:
            ValueError: fewer values are stored than the predictor needs.
        """
        if len(gaps) + 1 < self.least:
            raise ValueError(f"gaps: {type(self).__name__} needs {self.least} stored values, got {len(gaps) + 1}")
        return weights(self.slopes(gaps, horizon), gaps)

    def fit(self, moments: Moments) -> Fit:
        return self.fit_at(moments.gaps)

    def fit_at(self, gaps: Sequence[float]) -> Fit:
        """The fit of values that were stored at these distances."""
        return _StaticFit(self, tuple(gaps))


@dataclass(frozen=True)
class _StaticFit(Fit):
    predictor: Static
    gaps: tuple[float, ...]

    def slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        return self.predictor.slopes(self.gaps, horizon)
