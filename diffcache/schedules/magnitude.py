"""MagCache: the placement follows from how fast the residual's magnitude changes, measured once per model."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from .bound import Bound


class MagCache(Bound):
    """Magnitude-aware caching (arXiv 2506.09045): predict while the modelled error of reuse stays small.

    The error of reusing step ``last`` at step t is modelled as ``|1 - gamma_(last+1) * ... * gamma_t|``, and summed
    over the run; a step is computed when the sum, itself included, exceeds ``threshold``. The branches of a step are
    decided together, so with ratios of several the step is computed as soon as one of them wants it.

    Args:
        ratios: gamma of each step, of any number of steps: see :func:`ratios` and :data:`.published.RATIOS`; or one
            such sequence for each branch.
        threshold: delta. The release takes 0.24 for FLUX and Wan2.1-14B, 0.12 for Wan2.1-1.3B; diffusers 0.06.
        max_skip: K. The release takes 5 for FLUX, 6 and 4 for Wan2.1; diffusers 3.
        retention: share of the steps, from the first on, that are always computed (rounded, halves up). The
            release takes 0.1 for FLUX and 0.2 for Wan2.1; diffusers 0.2.
        warmup: the same as a number of steps; the larger of the two holds.
    """

    def __init__(
        self,
        ratios: Sequence[float] | Sequence[Sequence[float]],
        threshold: float,
        warmup: int = 1,
        cooldown: int = 1,
        max_skip: int = 3,
        retention: float = 0.2,
    ) -> None:
        if not ratios:
            raise ValueError("ratios: needs the magnitude ratio of at least one step")
        several = isinstance(ratios[0], Sequence)
        self.ratios = tuple(tuple(row) for row in (ratios if several else [ratios]))
        self.threshold, self.retention = threshold, retention
        self._least = warmup
        super().__init__(warmup, cooldown, max_skip)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        self.warmup = max(self._least, int(self.retention * (total or 0) + 0.5))
        self._gammas = [resample(row, total or 0) for row in self.ratios]

    def placed(self, step: int) -> bool:
        if self.last < 0:
            return True
        errors = [skip_error(row[self.last + 1 : step + 1]) for row in self._gammas]
        return not all(isfinite(error) and error <= self.threshold for error in errors)


def skip_error(gammas: Sequence[float]) -> float:
    """``sum_t |1 - gamma_1 * ... * gamma_t|`` over a run of predicted steps: the accumulated skip error of MagCache.

    >>> skip_error([0.5, 0.5])
    1.25
    """
    product, error = 1.0, 0.0
    for gamma in gammas:
        product *= gamma
        error += abs(1.0 - product)
    return error


def resample(ratios: Sequence[float], total: int) -> list[float]:
    """``ratios`` for another number of steps: that of the nearest step, first and last kept; one step takes the last.

    >>> resample([1.0, 2.0, 3.0, 4.0, 5.0], 3)
    [1.0, 3.0, 5.0]
    """
    if total <= 1:
        return [ratios[-1]] * total
    stride = (len(ratios) - 1) / (total - 1)
    return [ratios[round(step * stride)] for step in range(total)]


def ratios(norms: Tensor) -> list[float]:
    """gamma of each step, the mean over tokens of ``|r_t| / |r_(t-1)|`` (MagCache's average magnitude ratio); first 1.

    Tokens whose residual was zero (padding, closed gates) say nothing and are left out; NaN if no other is left.

    Args:
        norms: L2 norm of every token's residual at every step, shape ``[steps, ...]``.
    """
    rows = norms.flatten(1).float()
    before, now = rows[:-1], rows[1:]
    change = torch.where(before > 0, now / before, torch.nan)
    return [1.0, *change.nanmean(1).tolist()]
