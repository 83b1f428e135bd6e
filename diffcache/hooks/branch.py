"""The state of one branch of one segment: history, fit, and what the coming run of predictions will look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import combine
from ..predictors import Fit, History, Horizon, Moments, TokenLayout, energy, measure, weights
from .conditioning import Conditioning
from .recipe import Recipe
from .stats import ABSENT, Fallback, SegmentStats, Stopwatch

#: A prediction whose variance leaves [lowest / SLACK, highest * SLACK] of the computed steps is a collapse.
SLACK = 2.0


class Branch:
    """History and predictions of one conditioning. Memory: ``depth`` outputs and a few scalars a token.

    The predicted value is a function of the stored ones alone, so everything that can go wrong with a coming run
    (drift, NaN, collapse) is evaluated on the device when a step is computed, and read once by the host: see
    :meth:`record` and :attr:`pending`.
    """

    def __init__(self, name: str, conditioning: Conditioning, recipe: Recipe) -> None:
        self.name, self.conditioning, self.recipe = name, conditioning, recipe
        self.layouts: list[TokenLayout] = []  # one for each cached tensor, set when the first one is seen
        self.decisions: list[str] = []
        self.fallbacks: list[Fallback] = []
        self.compute_watch, self.predict_watch = Stopwatch(), Stopwatch()
        self.peak_bytes = 0
        self.device = torch.device("cpu")
        self.signature: Any = None
        self.template: Any = None
        self.forget()

    def forget(self) -> None:
        """Drop everything that was cached; decisions and timings stay."""
        self.histories: list[History] = []
        self.steps: list[int] = []
        self.fit: list[Fit] | None = None
        self.pending: Tensor | None = None
        self._spread: list[list[tuple[Tensor, Tensor]]] = []

    @property
    def ready(self) -> bool:
        """Whether a prediction is possible."""
        return self.fit is not None

    @property
    def last_step(self) -> int:
        """Step of the last call, or -1."""
        return len(self.decisions) - 1

    def mark(self, step: int, letter: str) -> None:
        """Note the decision of ``step``; steps on which the branch was not called are filled in."""
        self.decisions += ABSENT * (step - len(self.decisions))
        self.decisions.append(letter)

    def fall_back(self, step: int, reason: str) -> None:
        """Count a step that was computed for ``reason`` although a prediction was due."""
        self.fallbacks.append(Fallback(step, reason))

    # -- computed steps --------------------------------------------------------------------------------------------

    def record(self, outputs: Sequence[Tensor], step: int, time: float, ahead: Sequence[float], error: bool) -> None:
        """Store a computed step and prepare the coming run.

        Args:
            outputs: the values to cache, all on :attr:`device`.
            step: index in the segment.
            time: the same on the recipe's axis.
            ahead: time of each of the steps that might be predicted next; empty if none can be.
            error: whether the schedule wants the error of the prediction for this step.
        """
        self.device = outputs[0].device
        measured = self._error(outputs, step, time) if error else None
        if not self.histories:
            self.histories = [History(self.recipe.predictor.depth) for _ in outputs]
        for history, output in zip(self.histories, outputs, strict=True):
            history.push(output, time)
        self.steps = [step, *self.steps][: self.recipe.predictor.depth]
        self.fit, self.pending = None, None
        if ahead and len(self.steps) >= self.recipe.predictor.least:
            self._prepare(ahead, measured)
        self.peak_bytes = max(self.peak_bytes, self.nbytes)

    def _prepare(self, ahead: Sequence[float], measured: Tensor | None) -> None:
        moments = [self._moments(h, layout) for h, layout in zip(self.histories, self.layouts, strict=True)]
        self.fit = [self.recipe.predictor.fit(group) for group in moments]
        horizon = self._horizons(ahead)
        slopes = [
            [fit.slopes(i, horizon) for i in range(len(group))] for fit, group in zip(self.fit, moments, strict=True)
        ]
        drift = self._drift(moments, slopes, horizon)
        alarm = self._alarm(moments, slopes, len(ahead))
        measured = drift.new_full((1,), math.nan) if measured is None else measured.reshape(1)
        self.pending = torch.cat([drift, alarm, measured])

    def _moments(self, history: History, layout: TokenLayout) -> list[Moments]:
        gaps = [float(a - b) for a, b in zip(self.steps, self.steps[1:], strict=False)]
        views = zip(*(layout.split(value) for value in history.values), strict=True)
        return [measure(view, history.gaps, gaps, layout) for view in views]

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
        fine = torch.ones(count, dtype=torch.bool, device=self.device)
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

    def _error(self, outputs: Sequence[Tensor], step: int, time: float) -> Tensor | None:
        """Relative error (RMS over RMS) that the prediction for this step would have had; the worst sample."""
        if self.fit is None or step - self.steps[0] < 2:
            return None
        worst = []
        for guess, truth in zip(self.predict(step, time), outputs, strict=True):
            inner = tuple(range(1, truth.dim()))
            square = (guess.float() - truth.float()).square().mean(inner)
            worst.append((square / truth.float().square().mean(inner)).amax())
        return torch.stack(worst).amax().sqrt()

    # -- predicted steps -------------------------------------------------------------------------------------------

    def predict(self, step: int, time: float) -> list[Tensor]:
        """The values for ``step``: one pass over the stored outputs, no host synchronisation."""
        results = []
        for history, fit, layout in zip(self.histories, self.fit, self.layouts, strict=True):
            horizon = Horizon(float(step - self.steps[0]), time - history.times[0], self.recipe.limit)
            out = torch.empty_like(history.values[0])
            views = zip(*(layout.split(value) for value in history.values), strict=True)
            for i, (stored, target) in enumerate(zip(views, layout.split(out), strict=True)):
                coefficients = weights(fit.slopes(i, horizon), history.gaps)
                combine(stored[: len(coefficients)], coefficients, out=target)
            results.append(out)
        return results

    # -- numbers ---------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes held: stored outputs, the fit's per-token tensors, and two variances a sample and modality."""
        held = sum(history.nbytes for history in self.histories)
        tensors = [t for fit in self.fit or [] for t in _held(fit)] + [t for pair in self._spread for t in pair]
        return held + sum(t.numel() * t.element_size() for t in tensors)

    def stats(self, expert: str, steps: int) -> SegmentStats:
        """Numbers of this branch over the first ``steps`` steps of its segment."""
        text = "".join(self.decisions).ljust(steps, ABSENT)
        computed, predicted, partial = text.count("F"), text.count("c"), text.count("p")
        calls = max(computed + predicted + partial, 1)
        return SegmentStats(
            expert=expert,
            branch=self.name,
            decisions=text,
            computed=computed,
            predicted=predicted,
            partial=partial,
            block_share=computed / calls,  # a predicted step of either site runs no block, for no token
            token_share=computed / calls,
            compute_seconds=self.compute_watch.seconds,
            predict_seconds=self.predict_watch.seconds,
            cached_bytes=self.peak_bytes,
            fallbacks=list(self.fallbacks),
        )


def _held(fit: Fit) -> list[Tensor]:
    parts = [part for value in vars(fit).values() for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in parts if isinstance(part, Tensor)]
