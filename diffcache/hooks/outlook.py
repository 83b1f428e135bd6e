"""The coming run of forecasts: everything that can go wrong with it is evaluated when a step is computed.

A predicted value is a function of the stored ones alone, so drift, NaN and collapse of every prediction that may
follow are known at the computed step, on the device; the host reads them once. Branches that were computed alike are
measured together, as more samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..predictors import Fit, Horizon, Moments, energy, measure_all
from .cache import Cache, Coming, Outlook

if TYPE_CHECKING:
    from .forecast import Forecast


def prepare(caches: Sequence[Forecast]) -> None:
    """Fit caches that have recorded a step and are due, and set the outlook of each."""
    for group in _groups(caches):
        ForecastOutlook(group)


def _groups(caches: Sequence[Forecast]) -> Iterator[list[Forecast]]:
    """Those that can be fitted together."""
    alike: dict[object, list[Forecast]] = {}
    for cache in caches:
        alike.setdefault(cache.likeness, []).append(cache)
    for members in alike.values():
        first = members[0]
        parted = first.joint is not None and first.joint.size != len(members)
        yield from [[m] for m in members] if parted or not first.recipe.predictor.independent else [members]


@dataclass(frozen=True)
class _Look:
    """One history: its fit, and what the host is to know of it. A sample is a row of one modality of one branch.

    Attributes:
        errors: squared relative errors of the last run, any shape; None where there was none, or nobody asks.
        now: variance of the newest values, ``[samples]``.
        coming: variance of the predictions, ``[n, samples]``, or ``[samples]`` where all are alike.
        drift: ``[n]``, or None.
    """

    fit: Fit
    errors: Tensor | None
    now: Tensor
    coming: Tensor
    drift: Tensor | None

    @property
    def parts(self) -> list[Tensor | None]:
        return [self.errors, self.now, self.coming, self.drift]


class ForecastOutlook(Outlook):
    """The coming run of caches that were recorded alike, fitted together.

    Args:
        caches: not empty; each gets its rows of the fits, and this as its outlook.

    Attributes:
        fits: one for each history, with the rows of all caches.
        size: how many caches.
    """

    def __init__(self, caches: Sequence[Forecast]) -> None:
        first = caches[0]
        self.size, self._caches, self._horizons = len(caches), tuple(caches), len(first.due.ahead)
        before = first.joint.fits if first.joint is not None and first.joint.size == self.size else first.fits
        looks = [_look(caches, i, before[i] if before else None) for i in range(len(first.histories))]
        self.fits = [look.fit for look in looks]
        parts = [part for look in looks for part in look.parts]
        self._sizes = [0 if part is None else part.numel() for part in parts]
        self.numbers = torch.cat([part.flatten() for part in parts if part is not None])
        for row, cache in enumerate(caches):
            cache.adopt(self, row)

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        parts = np.split(np.asarray(numbers), np.cumsum(self._sizes)[:-1])
        errors, drifts = np.zeros(0), np.zeros(self._horizons)
        alarms = np.zeros((self.size, self._horizons), dtype=bool)
        for index, (error, now, coming, drift) in enumerate(zip(*[iter(parts)] * 4, strict=True)):
            errors = np.append(errors, error)
            drifts = np.maximum(drifts, drift) if drift.size else drifts  # a NaN stays
            rows = zip(np.split(now, self.size), np.split(coming.reshape(-1, now.size), self.size, axis=1), strict=True)
            for row, (cache, pair) in enumerate(zip(self._caches, rows, strict=True)):
                alarms[row] |= cache.collapses(index, *pair)
        worst = float(np.sqrt(errors.max())) if errors.size else math.nan
        caches, self._caches, self.numbers = self._caches, (), self.numbers.new_empty(0)  # free them
        return [(c, Coming(drifts.tolist(), alarm.tolist(), worst)) for c, alarm in zip(caches, alarms, strict=True)]


def _look(caches: Sequence[Forecast], index: int, before: Fit | None) -> _Look:
    first = caches[0]
    recipe, history = first.recipe, first.histories[index]
    steps = [float(a - b) for a, b in pairwise(first.steps)]
    branches = [cache.histories[index].values for cache in caches]
    moments = measure_all(branches, history.gaps, steps, first.layouts[index])
    fit, error = (recipe.predictor.fit(moments), None) if before is None else recipe.predictor.refit(moments, before)
    horizon = _horizon(first, moments)
    slopes = fit.slopes(horizon)
    # Coefficients that are the same for all tokens need the tokens' sums only.
    coming = energy(moments.total if recipe.predictor.static else moments, slopes)
    drift = None if recipe.drift is None else recipe.drift(fit, moments, slopes, horizon)
    if error is None and first.missed is not None:
        error = torch.stack([cache.missed for cache in caches])
    return _Look(fit, error if first.wants_error else None, energy(moments.total, ()), coming, drift)


def _horizon(cache: Forecast, moments: Moments) -> Horizon:
    """All steps that may be predicted, on a leading axis."""
    recipe, ahead, device = cache.recipe, cache.due.ahead, moments.table.device
    shape = (-1, *[1] * (moments.table.dim() - 1))
    steps = torch.arange(1.0, len(ahead) + 1, device=device).view(shape)
    if recipe.axis == "index":
        return Horizon(steps, steps, recipe.limit, whole=True)
    now = cache.histories[0].times[0]
    return Horizon(steps, torch.tensor([t - now for t in ahead], device=device).view(shape), recipe.limit)
