"""The cache of sites ``output`` and ``body``: whole tensors, predicted per token from the last computed ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isnan, prod
from typing import Any

import torch
from torch import Tensor

from ..kernels import combine, extrapolate
from ..predictors import Fit, History, Horizon, TokenLayout, weights
from ..predictors.base import Slope
from .cache import Cache, Holding, Moment
from .outlook import ForecastOutlook, ReuseOutlook, prepare_alone
from .recipe import Recipe
from .rows import Rows

#: A prediction whose variance leaves [lowest / SLACK, highest * SLACK] of the computed steps is a collapse.
SLACK = 2.0


class Forecast(Cache):
    """History and predictions of one branch. Memory: ``depth`` values and a few scalars a token.

    A step is recorded at once, and fitted when the branches that were computed with it are known: see
    :func:`diffcache.hooks.outlook.prepare`.

    Attributes:
        histories: one for each cached tensor, and ``layouts`` where the tokens are in it.
        steps: sampler steps of the stored values, newest first.
        due: the recorded step, while it waits to be fitted.
        fits: one for each history, once fitted; of a step that is due, those of the computed step before.
        expected: the outlook whose fits are still to come.
        joint: the outlook that they came with, for a predictor that learns from run to run.
        spent: an outlook of this cache alone that can be used again.
        missed: squared relative error of the last run, a scalar, where the predictor itself cannot tell.
        wants_error: whether the schedule wants to know that.
        fitted: whether the newest step is.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.layouts: list[TokenLayout] = []  # set when the first value is seen
        self.template: Any = None
        self.forget()

    def forget(self) -> None:
        self.histories: list[History] = []
        self.steps: list[int] = []
        self.fits: list[Fit] | None = None
        self.due: Moment | None = None
        self.expected: ForecastOutlook | None = None
        self.joint: ForecastOutlook | None = None
        self.missed: Tensor | None = None
        self.spent: ReuseOutlook | None = None
        self.wants_error = False
        self.pending = None
        self.fitted = False
        self._envelope: list[list[tuple[float, float]]] = []

    @property
    def ready(self) -> bool:
        return self.fitted

    def held(self) -> Iterator[Tensor]:
        """Stored values, and the fit's per-token tensors."""
        for history in self.histories:
            yield from history.values
        for fit in self.fits or []:
            yield from (part for part in vars(fit).values() if isinstance(part, Tensor))

    def holdings(self) -> Iterator[Holding]:
        for history, layout in zip(self.histories, self.layouts, strict=True):
            value = history.values[0]
            yield Holding(value.numel(), history.home, history.depth)
            axes = layout.features(value)
            tokens = sum(view.numel() // prod(view.shape[axis] for axis in axes) for view in layout.split(value))
            scalars = self.recipe.predictor.scalars(tokens, len(value) * len(layout.modalities))
            yield Holding.scalars(scalars, history.home.device)

    # -- computed steps --------------------------------------------------------------------------------------------

    def record(self, values: Sequence[Tensor], moment: Moment, given: bool = False) -> None:
        """Store the values of a computed step, all on one device; ``given``: nobody else has these tensors."""
        self.wants_error = moment.error and bool(self.steps) and moment.step - self.steps[0] > 1
        own = self.wants_error and self.fitted and not self.recipe.predictor.knows_error
        self.missed = self._error(values, moment) if own else None
        if not self.histories:
            self.histories = [History(self.recipe.predictor.depth, self.recipe.rest) for _ in values]
        for history, value in zip(self.histories, values, strict=True):
            history.push(value, moment.time, given)
        self.steps = [moment.step, *self.steps][: self.recipe.predictor.depth]
        self._fit_anew(moment)

    def renew(self, rows: Rows, values: Sequence[Tensor], moment: Moment) -> bool:
        """Store the values of a step that was computed for some samples only, in the place of theirs.

        Their times are those of the others then, so this is for a predictor that reuses the newest value as it is.

        Args:
            rows: the samples.
            values: theirs, as :meth:`Rows.replace` takes them.
            moment: the step.

        Returns:
            Whether they have the shapes that are stored; else nothing was changed.
        """
        assert self.recipe.predictor.depth == 1
        fits = rows.replace([history.values[0] for history in self.histories], values)
        if fits:
            self._fit_anew(moment)
        return fits

    def _fit_anew(self, moment: Moment) -> None:
        self.fitted, self.pending, self.expected = False, None, None
        self.due = moment if moment.ahead and len(self.steps) >= self.recipe.predictor.least else None
        if self.due is None or self.recipe.signal is None:
            return
        if self.spent is not None and self.missed is None:
            self.spent.renew(self)
        else:
            prepare_alone(self)  # its outlook is read together with the next signal

    @property
    def likeness(self) -> tuple[Any, ...]:
        """Branches that agree in this can be fitted together."""
        shapes = [(h.values[0].shape, h.values[0].dtype, *h.home, *h.times) for h in self.histories]
        return (*self.steps, self.wants_error, self.missed is None, self.fits is None, id(self.joint), *shapes)

    def expect(self, outlook: ForecastOutlook) -> None:
        """The recorded step has been measured; its fit comes with the outlook, or when the host has read it."""
        self.pending = self.expected = outlook
        self.due, self.missed = None, None

    def adopt(self, outlook: ForecastOutlook, row: int) -> None:
        """Take the ``row``-th part of what was fitted for several branches."""
        if outlook.size == 1:
            self.fits = outlook.fits
        else:
            parts = zip(outlook.fits, self._samples(), strict=True)
            self.fits = [fit.rows(row * count, count) for fit, count in parts]
        self.joint = outlook if self.recipe.predictor.knows_error else None
        self.expected, self.fitted = None, True

    def _samples(self) -> list[int]:
        """Rows of this branch in a fit, for each history."""
        return [
            len(history.values[0]) * len(layout.modalities)
            for history, layout in zip(self.histories, self.layouts, strict=True)
        ]

    def collapses(
        self,
        index: int,
        now: Sequence[float],
        coming: Sequence[Sequence[float]],
        changes: Sequence[float] | None = None,
    ) -> list[list[bool]]:
        """For each prediction of a coming run, whether it is not finite or leaves the variance of the computed steps,
        sample by sample.

        Args:
            index: of the history.
            now: variance of the newest values, one a sample.
            coming: of the predictions, ``[n][samples]``.
            changes: for each prediction the factor by which the variance is known to change until then, or None: a
                variance that goes with it has not left.
        """
        known = self._envelope[index] if index < len(self._envelope) else [(v, v) for v in now]
        envelope = [_widened(pair, value) for pair, value in zip(known, now, strict=True)]
        self._envelope[index : index + 1] = [envelope]
        allowed = [envelope] * len(coming)
        if changes is not None:
            allowed = [[_widened(pair, value * c) for pair, value in zip(envelope, now, strict=True)] for c in changes]
        return [
            # Comparisons with NaN are false, so a NaN is an alarm.
            [not (low / SLACK <= v <= high * SLACK and v < inf) for v, (low, high) in zip(row, pairs, strict=True)]
            for row, pairs in zip(coming, allowed, strict=True)
        ]

    def _error(self, values: Sequence[Tensor], moment: Moment) -> Tensor:
        """Squared relative error (RMS over RMS) of the prediction for this step; the worst sample."""
        worst = []
        for guess, truth in zip(self.predict(moment), values, strict=True):
            inner = tuple(range(1, truth.dim()))
            square = (guess.float() - truth.float()).square().mean(inner)
            worst.append((square / truth.float().square().mean(inner)).amax())
        return torch.stack(worst).amax()

    def newest(self, index: int) -> list[Tensor]:
        """The newest value of the ``index``-th history, one view a modality."""
        return self.layouts[index].channels(self.histories[index].newest(1)[0])

    # -- predicted steps -------------------------------------------------------------------------------------------

    def predict(self, moment: Moment) -> list[Tensor]:
        """The values for a step: one pass over the stored ones, no host synchronisation."""
        horizon = Horizon(
            float(moment.step - self.steps[0]), moment.time - self.histories[0].times[0], self.recipe.limit
        )
        return [
            _predicted(history, layout, fit.slopes(horizon))
            for history, layout, fit in zip(self.histories, self.layouts, self.fits, strict=True)
        ]


def _widened(envelope: tuple[float, float], value: float) -> tuple[float, float]:
    """A NaN that has passed does not stay."""
    low, high = envelope
    return (value if value < low or isnan(low) else low), (value if value > high or isnan(high) else high)


def _predicted(history: History, layout: TokenLayout, slopes: tuple[Slope, ...]) -> Tensor:
    out = history.blank()
    if len(slopes) == 1 and not isinstance(slopes[0], Tensor):  # no token has a coefficient of its own
        each = slopes[0] if isinstance(slopes[0], list) else [slopes[0]]
        slope = _per_sample([s / history.gaps[0] for s in each], layout, out)
        return extrapolate(*history.newest(2), slope, out=out)
    coefficients = weights(slopes, history.gaps)
    views = zip(*map(layout.split, history.newest(len(coefficients))), strict=True)
    for i, (stored, target) in enumerate(zip(views, layout.split(out), strict=True)):
        combine(stored, [_rows(c, i, len(out)) for c in coefficients], out=target)
    return out


def _per_sample(slopes: Sequence[float], layout: TokenLayout, like: Tensor) -> float | Tensor:
    """One number a sample (modality by modality) as it multiplies a whole value."""
    if len(slopes) == 1:
        return slopes[0]
    batch, shape = len(like), [1] * like.dim()
    shape[0] = batch
    if len(slopes) > batch:
        widths = layout.widths(like)
        shape[layout.channel_dim] = sum(widths)
        slopes = [slopes[m * batch + row] for row in range(batch) for m, w in enumerate(widths) for _ in range(w)]
    # Not waited for: a prediction costs no synchronisation.
    return torch.tensor(slopes).to(like.device, non_blocking=True).view(shape)


def _rows(coefficient: float | Tensor, modality: int, count: int) -> float | Tensor:
    """The part of a coefficient that belongs to one modality."""
    if not isinstance(coefficient, Tensor) or len(coefficient) == count:
        return coefficient
    return coefficient.narrow(0, modality * count, count)
