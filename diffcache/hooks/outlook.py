"""The coming run of forecasts: everything that can go wrong with it is evaluated when a step is computed.

A predicted value is a function of the stored ones alone, so drift, NaN and collapse of every prediction that may
follow are known at the computed step; the host reads what it needs for that once. Branches that were computed alike
are measured together, as more samples.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..predictors import (
    Fit,
    Horizon,
    Moments,
    SampleTrend,
    Totals,
    energy,
    measure_all,
    sample_products,
    totals,
)
from .cache import Cache, Coming, Outlook

if TYPE_CHECKING:
    from .forecast import Forecast


def prepare(caches: Sequence[Forecast]) -> None:
    """Fit caches that have recorded a step and are due, and set the outlook of each."""
    for group in _groups(caches):
        kind = HostedOutlook if group[0].recipe.predictor.hosted else DeviceOutlook
        kind(group)


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
class Seen:
    """What the host knows of one history's coming run. A sample is a row of one modality of one branch.

    Attributes:
        errors: squared relative errors of the last run, any shape; empty where there was none.
        now: variance of the newest values, ``[samples]``.
        coming: variance of the predictions, ``[n, samples]``, or ``[1, samples]`` where all are alike.
        drift: ``[n]``, or empty.
    """

    errors: np.ndarray
    now: np.ndarray
    coming: np.ndarray
    drift: np.ndarray


class ForecastOutlook(Outlook):
    """The coming run of caches that were recorded alike, fitted together.

    Args:
        caches: not empty; each gets this as its outlook, and its rows of the fits.

    Attributes:
        fits: one for each history, with the rows of all caches.
        size: how many caches.
    """

    def __init__(self, caches: Sequence[Forecast]) -> None:
        first = caches[0]
        self.size, self.recipe, self.ahead = len(caches), first.recipe, first.due.ahead
        self.before = first.joint.fits if first.joint is not None and first.joint.size == self.size else first.fits
        self.fits: list[Fit] = []
        self._caches, self._wants_error = tuple(caches), first.wants_error
        parts = [self.look(i, caches) for i in range(len(first.histories))]
        self._sizes = [[part.numel() for part in group] for group in parts]
        self.numbers = torch.cat([part.flatten() for group in parts for part in group])
        for cache in caches:
            cache.expect(self)

    @abstractmethod
    def look(self, index: int, caches: Sequence[Forecast]) -> list[Tensor]:
        """What the host has to read of the ``index``-th history."""

    @abstractmethod
    def see(self, index: int, parts: Sequence[np.ndarray]) -> Seen:
        """:meth:`look` on the host."""

    def settle(self) -> None:
        """The fits are known."""
        for row, cache in enumerate(self._caches):
            cache.adopt(self, row)

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        rest, horizons = np.asarray(numbers), len(self.ahead)
        errors, drifts = np.zeros(0), np.zeros(horizons)
        alarms = np.zeros((self.size, horizons), dtype=bool)
        for index, sizes in enumerate(self._sizes):
            parts, rest = np.split(rest[: sum(sizes)], np.cumsum(sizes)[:-1]), rest[sum(sizes) :]
            seen = self.see(index, parts)
            errors = np.append(errors, seen.errors)
            drifts = np.maximum(drifts, seen.drift) if seen.drift.size else drifts  # a NaN stays
            count = seen.now.size // self.size
            for row, cache in enumerate(self._caches):
                mine = slice(row * count, (row + 1) * count)
                alarms[row] |= cache.collapses(index, seen.now[mine], seen.coming[:, mine])
        worst = float(np.sqrt(errors.max())) if errors.size and self._wants_error else math.nan
        self.settle()
        caches, self._caches, self.before = self._caches, (), None  # nobody asks again
        self.numbers = self.numbers.new_empty(0)
        return [(c, Coming(drifts.tolist(), alarm.tolist(), worst)) for c, alarm in zip(caches, alarms, strict=True)]


class HostedOutlook(ForecastOutlook):
    """For a predictor that needs some sums over each sample: the host reads these, and all else follows there."""

    def __init__(self, caches: Sequence[Forecast]) -> None:
        self._facts: list[Callable[[Sequence[np.ndarray]], Totals]] = []
        super().__init__(caches)
        now = caches[0].histories[0].times[0]
        index = self.recipe.axis == "index"
        times = range(1, len(self.ahead) + 1) if index else [time - now for time in self.ahead]
        self._times = np.array(times, dtype=float)[:, None]

    def look(self, index: int, caches: Sequence[Forecast]) -> list[Tensor]:
        first = caches[0]
        history, layout = first.histories[index], first.layouts[index]
        value = history.values[0]
        self._facts.append(
            partial(
                totals,
                branches=self.size,
                counts=[view[0].numel() for view in layout.split(value)],
                gaps=history.gaps,
                steps=_steps(first),
                eps=torch.finfo(value.dtype).eps,
            )
        )
        return sample_products([cache.histories[index].values for cache in caches], layout)

    def see(self, index: int, parts: Sequence[np.ndarray]) -> Seen:
        predictor = self.recipe.predictor
        assert isinstance(predictor, SampleTrend)
        known = self._facts[index](parts)
        fit, errors = predictor.learn(known, self.before[index] if self.before else None)
        self.fits.append(fit)
        with np.errstate(all="ignore"):  # what is not finite is an alarm
            slopes = fit.along(self._times)
            drift = _NOTHING if self.recipe.drift is None else self.recipe.drift(fit, known, (slopes,), None)
            return Seen(_NOTHING if errors is None else errors, known.energy(), known.energy(slopes), drift)


class DeviceOutlook(ForecastOutlook):
    """For a predictor with a coefficient of its own for each token: fit and run are worked out on the device."""

    def __init__(self, caches: Sequence[Forecast]) -> None:
        super().__init__(caches)
        self.settle()

    def look(self, index: int, caches: Sequence[Forecast]) -> list[Tensor]:
        first, predictor = caches[0], self.recipe.predictor
        branches = [cache.histories[index].values for cache in caches]
        moments = measure_all(branches, first.histories[index].gaps, _steps(first), first.layouts[index])
        before = self.before[index] if self.before else None
        fit, error = (predictor.fit(moments), None) if before is None else predictor.refit(moments, before)
        self.fits.append(fit)
        horizon = self._horizon(first, moments)
        slopes = fit.slopes(horizon)
        if error is None and first.missed is not None:
            error = torch.stack([cache.missed for cache in caches])
        # Coefficients that are the same for all tokens need the tokens' sums only.
        coming = energy(moments.total if predictor.static else moments, slopes)
        nothing = moments.table.new_empty(0)
        drift = nothing if self.recipe.drift is None else self.recipe.drift(fit, moments, slopes, horizon)
        return [nothing if error is None else error, energy(moments.total, ()), coming, drift]

    def see(self, index: int, parts: Sequence[np.ndarray]) -> Seen:
        errors, now, coming, drift = parts
        return Seen(errors, now, coming.reshape(-1, now.size), drift)

    def _horizon(self, cache: Forecast, moments: Moments) -> Horizon:
        """All steps that may be predicted, on a leading axis."""
        limit, device = self.recipe.limit, moments.table.device
        shape = (-1, *[1] * (moments.table.dim() - 1))
        steps = torch.arange(1.0, len(self.ahead) + 1, device=device).view(shape)
        if self.recipe.axis == "index":
            return Horizon(steps, steps, limit, whole=True)
        now = cache.histories[0].times[0]
        return Horizon(steps, torch.tensor([t - now for t in self.ahead], device=device).view(shape), limit)


_NOTHING = np.zeros(0)


def _steps(cache: Forecast) -> list[float]:
    """Distances of the stored values, in sampler steps."""
    return [float(a - b) for a, b in pairwise(cache.steps)]
