"""The coming run of forecasts: everything that can go wrong with it is evaluated when a step is computed.

A predicted value is a function of the stored ones alone, so drift, NaN and collapse of every prediction that may
follow are known at the computed step; the host reads what it needs for that once. Branches that were computed alike
are measured together, as more samples.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import or_
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..predictors import Fit, Horizon, Moments, SampleTrend, Sums, energy, measure_all
from ..schedules.change import total
from ..schedules.drift import largest
from .cache import Cache, Coming, Outlook
from .finite import strays

if TYPE_CHECKING:
    from .forecast import Forecast


_NOTHING = torch.empty(0)


def prepare(caches: Sequence[Forecast]) -> None:
    """Fit caches that have recorded a step and are due, and set the outlook of each."""
    for group in (caches,) if len(caches) == 1 else _groups(caches):
        _kind(group[0])(group)


def prepare_alone(cache: Forecast) -> None:
    """The same for one cache, whose outlook may be used again once it is read."""
    prepare([cache])
    cache.spent = cache.pending if type(cache.pending) is ReuseOutlook else None


def _kind(cache: Forecast) -> type[ForecastOutlook]:
    predictor = cache.recipe.predictor
    if predictor.hosted:
        return HostedOutlook
    plain = predictor.static and predictor.depth == 1 and cache.recipe.drift is None and cache.missed is None
    return ReuseOutlook if plain else DeviceOutlook


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
        errors: squared relative errors of the last run, any number of them; empty where there was none.
        now: variance of the newest values, one a sample.
        coming: variance of the predictions, ``[n][samples]``.
        drift: one a prediction, or empty.
    """

    errors: Sequence[float]
    now: Sequence[float]
    coming: Sequence[Sequence[float]]
    drift: Sequence[float]


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
        self.fits: list[Fit] = []
        self._caches = tuple(caches)

    def settle(self) -> None:
        """The fits are known. Who has forgotten what was measured meanwhile does not want them."""
        for row, cache in enumerate(self._caches):
            if cache.expected is self:
                cache.adopt(self, row)


class MeasuredOutlook(ForecastOutlook):
    """For a predictor whose run depends on what is stored."""

    def __init__(self, caches: Sequence[Forecast]) -> None:
        super().__init__(caches)
        first = caches[0]
        self.before = first.joint.fits if first.joint is not None and first.joint.size == self.size else first.fits
        self._wants_error = first.wants_error
        parts = [self.look(i, caches) for i in range(len(first.histories))]
        self._sizes = [[part.numel() for part in group] for group in parts]
        flat = [part.flatten() for group in parts for part in group]
        self.numbers = flat[0] if len(flat) == 1 else torch.cat(flat)
        for cache in caches:
            cache.expect(self)

    @abstractmethod
    def look(self, index: int, caches: Sequence[Forecast]) -> list[Tensor]:
        """What the host has to read of the ``index``-th history."""

    @abstractmethod
    def see(self, index: int, parts: Sequence[Sequence[float]]) -> Seen:
        """:meth:`look` on the host."""

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        errors: list[float] = []
        drifts = [0.0] * len(self.ahead)
        alarms = [[False] * len(self.ahead) for _ in self._caches]
        suspects: list[list[list[bool]]] = [[] for _ in self._caches]
        variances: list[list[list[Sequence[float]]]] = [[] for _ in self._caches]
        for index, sizes in enumerate(self._sizes):
            parts = []
            for size in sizes:
                parts.append(numbers[:size])
                numbers = numbers[size:]
            seen = self.see(index, parts)
            errors += seen.errors
            drifts = list(map(largest, zip(drifts, seen.drift, strict=True))) if seen.drift else drifts
            count = len(seen.now) // self.size
            for row, cache in enumerate(self._caches):
                mine = slice(row * count, (row + 1) * count)
                variances[row].append([coming[mine] for coming in seen.coming])
                bad = cache.collapses(index, seen.now[mine], variances[row][-1])
                alarms[row] = list(map(or_, alarms[row], map(any, bad)))
                suspects[row].append(list(map(any, zip(*bad, strict=True))))
        self.settle()
        caches, self._caches, self.before = self._caches, (), None  # nobody asks again
        self.numbers = _NOTHING
        error = math.sqrt(largest(errors)) if errors and self._wants_error else math.nan
        found = zip(caches, alarms, suspects, variances, strict=True)
        return [(c, Coming(drifts, alarm, error, suspect, strays(alarm, v))) for c, alarm, suspect, v in found]


class HostedOutlook(MeasuredOutlook):
    """For a predictor that needs some sums over each sample: the host reads these, and all else follows there."""

    def __init__(self, caches: Sequence[Forecast]) -> None:
        self._sums: list[Sums] = []
        super().__init__(caches)
        now = caches[0].histories[0].times[0]
        index = self.recipe.axis == "index"
        self._times = [float(k) for k in range(1, len(self.ahead) + 1)] if index else [t - now for t in self.ahead]

    def look(self, index: int, caches: Sequence[Forecast]) -> list[Tensor]:
        first = caches[0]
        branches = [cache.histories[index].newest() for cache in caches]
        self._sums.append(Sums(branches, first.layouts[index], first.histories[index].gaps, _steps(first)))
        return self._sums[index].parts

    def see(self, index: int, parts: Sequence[Sequence[float]]) -> Seen:
        predictor = self.recipe.predictor
        assert isinstance(predictor, SampleTrend)
        known = self._sums[index].read(parts)
        fit, errors = predictor.learn(known, self.before[index] if self.before else None)
        self.fits.append(fit)
        slopes = [fit.along(time) for time in self._times]
        coming = [[s.energy(slope) for s, slope in zip(known.samples, row, strict=True)] for row in slopes]
        drift = [] if self.recipe.drift is None else self.recipe.drift(fit, known, slopes, None)
        return Seen(errors, [s.energy() for s in known.samples], coming, drift)


class ReuseOutlook(ForecastOutlook):
    """For a predictor that returns the newest value as it is: all that can go wrong is a number that is not finite."""

    def __init__(self, caches: Sequence[Forecast]) -> None:
        super().__init__(caches)
        first = caches[0]
        self.fits = [self.recipe.predictor.fit_at(history.gaps) for history in first.histories]
        self._numbers: Tensor | None = None
        for cache in caches:
            cache.expect(self)
        self.settle()

    def renew(self, cache: Forecast) -> None:
        """Another step was recorded in the only cache, whose fits are these. Runs at every computed step."""
        self.ahead, self._caches, self._numbers = cache.due.ahead, (cache,), None
        cache.pending, cache.due, cache.fitted = self, None, True

    @property
    def numbers(self) -> Tensor:
        """Sums that are finite if all numbers of a sample are; taken when somebody is about to read them."""
        if self._numbers is None:
            caches, fits = self._caches, range(len(self.fits))
            totals = [[total(view) for cache in caches for view in cache.newest(i)] for i in fits]
            self._sizes = [sum(map(Tensor.numel, parts)) for parts in totals]
            flat = list(chain.from_iterable(totals))
            self._numbers = flat[0] if len(flat) == 1 else torch.cat(flat)
        return self._numbers

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        caches, self._caches, self._numbers = self._caches, (), _NOTHING  # nobody asks twice
        nothing = [0.0] * len(self.ahead)
        if all(map(math.isfinite, numbers)):  # the usual case
            calm = Coming(nothing, [False] * len(self.ahead))
            return [(caches[0], calm)] if len(caches) == 1 else [(cache, calm) for cache in caches]
        suspects: list[list[list[bool]]] = [[] for _ in caches]
        for size in self._sizes:
            bad, numbers = [not math.isfinite(n) for n in numbers[:size]], numbers[size:]
            share = size // self.size
            for row, found in enumerate(suspects):
                found.append(bad[row * share : (row + 1) * share])
        alarms = [[any(map(any, found))] * len(self.ahead) for found in suspects]
        found = zip(caches, alarms, suspects, strict=True)
        return [(cache, Coming(nothing, alarm, suspects=suspect)) for cache, alarm, suspect in found]


class DeviceOutlook(MeasuredOutlook):
    """For a predictor with a coefficient of its own for each token: fit and run are worked out on the device."""

    def __init__(self, caches: Sequence[Forecast]) -> None:
        super().__init__(caches)
        self.settle()

    def look(self, index: int, caches: Sequence[Forecast]) -> list[Tensor]:
        first, predictor = caches[0], self.recipe.predictor
        branches = [cache.histories[index].newest() for cache in caches]
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

    def see(self, index: int, parts: Sequence[Sequence[float]]) -> Seen:
        errors, now, coming, drift = parts
        rows = [coming[i : i + len(now)] for i in range(0, len(coming), len(now))]
        return Seen(errors, now, rows if len(rows) > 1 else rows * len(self.ahead), drift)

    def _horizon(self, cache: Forecast, moments: Moments) -> Horizon:
        """All steps that may be predicted, on a leading axis."""
        limit, device = self.recipe.limit, moments.table.device
        shape = (-1, *[1] * (moments.table.dim() - 1))
        steps = torch.arange(1.0, len(self.ahead) + 1, device=device).view(shape)
        if self.recipe.axis == "index":
            return Horizon(steps, steps, limit, whole=True)
        now = cache.histories[0].times[0]
        return Horizon(steps, torch.tensor([t - now for t in self.ahead], device=device).view(shape), limit)


def _steps(cache: Forecast) -> list[float]:
    """Distances of the stored values, in sampler steps."""
    return [float(a - b) for a, b in pairwise(cache.steps)]
