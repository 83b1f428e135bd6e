"""The cache of sites ``output`` and ``body``: whole tensors, predicted per token from the last computed ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import combine
from ..predictors import Fit, History, Horizon, Moments, TokenLayout, energy, measure, stack, weights
from .cache import Cache, Moment, report
from .recipe import Recipe

#: A prediction whose variance leaves [lowest / SLACK, highest * SLACK] of the computed steps is a collapse.
SLACK = 2.0


class Forecast(Cache):
    """History and predictions of one branch. Memory: ``depth`` values and a few scalars a token.

    The predicted value is a function of the stored ones alone, so everything that can go wrong with a coming run
    (drift, NaN, collapse) is evaluated on the device when a step is computed, and read once by the host: see
    :meth:`record` and :attr:`pending`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.layouts: list[TokenLayout] = []  # one for each cached tensor, set when the first one is seen
        self.template: Any = None
        self.forget()

    def forget(self) -> None:
        self.histories: list[History] = []
        self.steps: list[int] = []
        self.fit: list[Fit] | None = None
        self.pending = None
        self._spread: list[list[tuple[Tensor, Tensor]]] = []

    @property
    def ready(self) -> bool:
        return self.fit is not None

    def held(self) -> Iterator[Tensor]:
        """Stored values, the fit's per-token tensors, and two variances a sample and modality."""
        for history in self.histories:
            yield from history.values
        for fit in self.fit or []:
            yield from _held(fit)
        for pair in self._spread:
            yield from pair

    # -- computed steps --------------------------------------------------------------------------------------------

    def record(self, values: Sequence[Tensor], moment: Moment) -> None:
        """Store the values of a computed step, all on one device, and prepare the coming run."""
        before, old_step = self.fit, self.steps[0] if self.steps else moment.step
        measured = self._error(values, moment) if moment.error and not self.recipe.predictor.knows_error else None
        if not self.histories:
            self.histories = [History(self.recipe.predictor.depth) for _ in values]
        for history, value in zip(self.histories, values, strict=True):
            history.push(value, moment.time)
        self.steps = [moment.step, *self.steps][: self.recipe.predictor.depth]
        self.fit, self.pending = None, None
        if moment.ahead and len(self.steps) >= self.recipe.predictor.least:
            self._prepare(moment.ahead, measured, before, wanted=moment.error and moment.step - old_step > 1)

    def _prepare(self, ahead: Sequence[float], measured: Tensor | None, before: list[Fit] | None, wanted: bool) -> None:
        # One entry a history: its modalities are stacked as more samples.
        moments = [[self._moments(h, layout)] for h, layout in zip(self.histories, self.layouts, strict=True)]
        predictor = self.recipe.predictor
        if before is None:
            self.fit = [predictor.fit(group) for group in moments]
        else:
            known = [predictor.refit(group, old) for group, old in zip(moments, before, strict=True)]
            self.fit, errors = [fit for fit, _ in known], [error for _, error in known]
            if wanted and predictor.knows_error:
                measured = errors[0] if len(errors) == 1 else torch.stack(errors).amax()
        horizon = self._horizons(ahead)
        slopes = [
            [fit.slopes(i, horizon) for i in range(len(group))] for fit, group in zip(self.fit, moments, strict=True)
        ]
        self.pending = report(self._drift(moments, slopes, horizon), self._alarm(moments, slopes, len(ahead)), measured)

    def _moments(self, history: History, layout: TokenLayout) -> Moments:
        gaps = [float(a - b) for a, b in zip(self.steps, self.steps[1:], strict=False)]
        views = zip(*(layout.split(value) for value in history.values), strict=True)
        return stack([measure(view, history.gaps, gaps, layout) for view in views])

    def _horizons(self, ahead: Sequence[float]) -> Horizon:
        first = self.histories[0].values[0]
        shape = (-1, *[1] * first.dim())
        steps = torch.arange(1.0, len(ahead) + 1, device=first.device).reshape(shape)
        if self.recipe.axis == "index":
            return Horizon(steps, steps, self.recipe.limit)
        now = self.histories[0].times[0]
        times = torch.tensor([t - now for t in ahead], device=first.device).reshape(shape)
        return Horizon(steps, times, self.recipe.limit)

    def _drift(self, moments: list[list[Moments]], slopes: list[list[Any]], horizon: Horizon) -> Tensor:
        if self.recipe.drift is None:
            return horizon.steps.new_zeros(horizon.steps.shape[0])
        parts = [self.recipe.drift(*part, horizon) for part in zip(self.fit, moments, slopes, strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).amax(0)

    def _alarm(self, moments: list[list[Moments]], slopes: list[list[Any]], count: int) -> Tensor:
        """1 for each horizon whose prediction is not finite or leaves the variance seen at computed steps."""
        fine = torch.ones(count, dtype=torch.bool, device=self.histories[0].values[0].device)
        spread = []
        for group, rules in zip(moments, slopes, strict=True):
            for m, rule in zip(group, rules, strict=True):
                now = energy(m, ())
                low, high = self._envelope(len(spread), now)
                spread.append((low, high))
                coming = energy(m, rule).reshape(-1, now.numel())
                # Comparisons with NaN are false, so a NaN is an alarm.
                fine = fine & ((coming >= low / SLACK) & (coming <= high * SLACK) & coming.isfinite()).all(1)
        self._spread = spread
        return (~fine).float()

    def _envelope(self, index: int, now: Tensor) -> tuple[Tensor, Tensor]:
        if index >= len(self._spread):
            return now, now.clone()
        low, high = self._spread[index]
        return torch.fmin(low, now), torch.fmax(high, now)  # a NaN that has passed does not stay

    def _error(self, values: Sequence[Tensor], moment: Moment) -> Tensor | None:
        """Relative error (RMS over RMS) that the prediction for this step would have had; the worst sample."""
        if self.fit is None or moment.step - self.steps[0] < 2:
            return None
        worst = []
        for guess, truth in zip(self.predict(moment), values, strict=True):
            inner = tuple(range(1, truth.dim()))
            square = (guess.float() - truth.float()).square().mean(inner)
            worst.append((square / truth.float().square().mean(inner)).amax())
        return torch.stack(worst).amax().sqrt()

    # -- predicted steps -------------------------------------------------------------------------------------------

    def predict(self, moment: Moment) -> list[Tensor]:
        """The values for a step: one pass over the stored ones, no host synchronisation."""
        results = []
        for history, fit, layout in zip(self.histories, self.fit, self.layouts, strict=True):
            ahead = Horizon(float(moment.step - self.steps[0]), moment.time - history.times[0], self.recipe.limit)
            out = torch.empty_like(history.values[0])
            coefficients = weights(fit.slopes(0, ahead), history.gaps)
            views = zip(*(layout.split(value) for value in history.values), strict=True)
            for i, (stored, target) in enumerate(zip(views, layout.split(out), strict=True)):
                mine = [_rows(c, i * len(out), len(out)) for c in coefficients]
                combine(stored[: len(mine)], mine, out=target)
            results.append(out)
        return results


def _rows(coefficient: float | Tensor, start: int, count: int) -> float | Tensor:
    """The part of a coefficient that belongs to one modality."""
    return coefficient.narrow(0, start, count) if isinstance(coefficient, Tensor) else coefficient


def _held(fit: Fit) -> list[Tensor]:
    parts = [part for value in vars(fit).values() for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in parts if isinstance(part, Tensor)]
