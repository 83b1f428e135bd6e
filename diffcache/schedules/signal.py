"""Schedules that decide a step when they have heard its signal: FBCache, TeaCache, EasyCache.

What each signal is and how it is measured is said in :mod:`diffcache.schedules.change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from .base import NEVER, Schedule
from .bound import Bound

#: TeaCache's rescaling where none was fitted: the distance itself.
IDENTITY = (1.0, 0.0)


class FirstBlock(Schedule):
    """Compute when the first block's residual moved by more than ``threshold`` since the last computed step.

    FBCache (ParaAttention), DBCache (cache-dit) for more than one first block. A step whose residual moved by exactly
    ``threshold`` is predicted, as in diffusers; cache-dit computes it.

    Args:
        threshold: relative L1 change. diffusers' default is 0.05, cache-dit's 0.08.
        inclusive: compute at exactly ``threshold`` too, so that 0 computes every step, and listens to nothing.
    """

    signal = "first"

    def __init__(
        self, threshold: float, warmup: int = 0, cooldown: int = 1, max_skip: int = NEVER, inclusive: bool = False
    ) -> None:
        self.threshold, self.inclusive = threshold, inclusive
        super().__init__(warmup, cooldown, 0 if inclusive and threshold <= 0 else max_skip)

    def judge(self, step: int, drift: float) -> bool:
        self.heard[step] = drift
        if not isfinite(drift):
            return True
        return drift >= self.threshold if self.inclusive else drift > self.threshold


class Accumulated(Schedule):
    """Sums what it hears since the last computed step; compute when the sum reaches ``threshold``.

    Args:
        threshold: in units of the signal after :meth:`rescale`; 0 computes every step, and so listens to nothing.
    """

    def __init__(self, threshold: float, warmup: int = 0, cooldown: int = 1, max_skip: int = NEVER) -> None:
        self.threshold = threshold
        super().__init__(warmup, cooldown, max_skip if threshold > 0 else 0)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        self.sum = 0.0

    def computed(self, step: int) -> None:
        super().computed(step)
        self.sum = 0.0

    def rescale(self, drift: float) -> float:
        """What one step adds to the sum."""
        return drift

    def judge(self, step: int, drift: float) -> bool:
        self.sum += self.rescale(drift)
        self.heard[step] = self.sum
        return not (isfinite(self.sum) and self.sum < self.threshold)


class TeaCache(Bound, Accumulated):
    """Timestep-embedding-aware caching (arXiv 2411.19108, section 3: caching strategy).

    The relative L1 change of the modulated input, rescaled by a polynomial that was fitted to the change of the
    output, is summed over the steps; the step at which the sum reaches ``threshold`` is computed and the sum starts
    again. A polynomial may be negative in places and then lowers the sum, as in the release. Beyond the distances that
    it was fitted to it may fall steeply (Mochi's from 0.15 on): only ``max_skip`` bounds a run there.

    Args:
        threshold: delta, in units of the polynomial. The release names 0.25 to 0.8 for FLUX, 0.1 and 0.15 for
            HunyuanVideo.
        polynomial: coefficients, highest power first; fitted ones are in :data:`.published.POLYNOMIALS`.
        fitted: smallest and largest distance that the polynomial was fitted to. Given, nothing is extrapolated: a
            larger distance computes, a smaller one counts like the smallest, and no step lowers the sum.
    """

    signal = "modulated"

    def __init__(
        self,
        threshold: float,
        warmup: int = 1,
        cooldown: int = 1,
        max_skip: int = NEVER,
        polynomial: Sequence[float] = IDENTITY,
        fitted: tuple[float, float] | None = None,
    ) -> None:
        if not polynomial:
            raise ValueError("polynomial: needs at least one coefficient")
        self.polynomial, self.fitted = tuple(polynomial), fitted
        super().__init__(threshold, warmup, cooldown, max_skip)

    def rescale(self, drift: float) -> float:
        if self.fitted is None:
            return self._value(drift)
        low, high = self.fitted
        # "not <=" so that a NaN computes as well
        return inf if not drift <= high else max(self._value(max(drift, low)), 0.0)

    def _value(self, drift: float) -> float:
        value = 0.0
        for coefficient in self.polynomial:
            value = value * drift + coefficient
        return value


class EasyCache(Accumulated):
    """Runtime-adaptive caching (arXiv 2507.02860).

    The output's expected relative change of each step, ``eps = k * |x_t - x_(t-1)| / |v_(t-1)|``, is summed since the
    last computed step i, with the transformation rate k measured there; compute when the sum reaches ``threshold``.

    Args:
        threshold: tau as a fraction (0.05 for 5 %); the release takes 0.025 for HunyuanVideo.
        warmup: R; the release takes 5 for HunyuanVideo. The first prediction needs two computed steps.
    """

    signal = "rate"

    def __init__(self, threshold: float, warmup: int = 5, cooldown: int = 1, max_skip: int = NEVER) -> None:
        super().__init__(threshold, warmup, cooldown, max_skip)
