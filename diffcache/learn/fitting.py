"""A polynomial through measured points, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

#: below this share of explained variance a fit is called poor
POOR = 0.5
#: degree of TeaCache's released polynomials
DEGREE = 4
#: highest that is fitted: beyond, powers of numbers in (0, 1] can hardly be told apart
MOST_DEGREE = 10


@dataclass(frozen=True)
class PolynomialFit:
    """``y = c_0 x^d + ... + c_d`` in the range that it was fitted to.

    Attributes:
        coefficients: highest power first.
        fitted: smallest and largest x.
        r2: share of the variance of y that it predicts for points that were left out of the fit, one at a time
            (1 is perfect; 0 no better than the mean; negative is worse).
        error: root mean square of those residuals, in units of y.
        mean: mean of y.
        points: number of points.
    """

    coefficients: tuple[float, ...]
    fitted: tuple[float, float]
    r2: float
    error: float
    mean: float
    points: int

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    @property
    def poor(self) -> bool:
        return not self.r2 >= POOR


def fit_polynomial(points: Sequence[tuple[float, float]], degree: int = DEGREE) -> PolynomialFit:
    """Least squares; of the degrees 1 to ``degree`` the one that predicts left-out points best.

    A high degree through few points passes near all of them and is wild in between: leaving one out shows it.

    Args:
        points: (x, y), finite, x >= 0.
        degree: highest degree, >= 1.

    Raises:
        ConfigError: too few points, or all at one x.
    """
    x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    distinct = len(np.unique(x))
    if distinct < 4:
        raise ConfigError(f"steps: too few for a fit, they gave {distinct} different points, must be at least 4")
    fits = [_fit(x, y, d) for d in range(1, min(degree, distinct - 3) + 1)]
    return max(fits, key=lambda fit: fit.r2 if np.isfinite(fit.r2) else -np.inf)


def _fit(x: np.ndarray, y: np.ndarray, degree: int) -> PolynomialFit:
    high = x.max()
    powers = np.vander(x / high, degree + 1)  # scaled: powers of small numbers are badly conditioned
    inverse = np.linalg.pinv(powers)
    coefficients = inverse @ y
    leverage = np.einsum("ij,ji->i", powers, inverse)
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (y - powers @ coefficients) / (1 - leverage)
        r2 = 1 - np.sum(left_out**2) / np.sum((y - y.mean()) ** 2)
    scaled = coefficients / high ** np.arange(degree, -1, -1)
    error = float(np.sqrt(np.mean(left_out**2)))
    fitted = (float(x.min()), float(high))
    return PolynomialFit(tuple(scaled.tolist()), fitted, float(r2), error, float(y.mean()), len(x))
