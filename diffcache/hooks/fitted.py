"""Site ``output`` with weights from a plan: what is cached, and how a prediction is made and watched over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, nan, sqrt
from typing import Any

import torch
from torch import Tensor

from ..kernels import combine
from ..predictors import History
from ..predictors.fitted import DEPTH, Fitted, Plan
from .cache import Cache, Coming, Holding, Moment, Outlook
from .forecast import Forecast
from .forms import Form, counterparts
from .outputs import flatten
from .sites import OutputSite, Run


class FittedCache(Forecast):
    """The planned outputs of one branch, and the sample at the newest.

    Steps that are computed besides the plan are not stored: the weights are those of the planned ones.

    Attributes:
        branch: its name, by which the plan knows it.
    """

    def forget(self) -> None:
        super().forget()
        self.samples: list[History] = []
        self._error_now: Tensor | None = None

    @property
    def pilot(self) -> Any:
        predictor = self.recipe.predictor
        assert isinstance(predictor, Fitted)
        return predictor.pilot

    @property
    def plan(self) -> Plan | None:
        return self.pilot.plan

    @property
    def ready(self) -> bool:
        return bool(self.steps) and self.plan is not None and self.branch in self.plan.weights

    @property
    def planned(self) -> bool:
        """Whether the stored outputs are those that the plan's weights are for."""
        return tuple(self.steps) == self.plan.before(self.steps[0] + 1)

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        for history in self.samples:
            yield from history.values

    def holdings(self) -> Iterator[Holding]:
        for history in self.histories:
            yield Holding(history.values[0].numel(), history.home, DEPTH)
        for history in self.samples:
            yield Holding(history.values[0].numel(), history.home)

    # -- computed steps --------------------------------------------------------------------------------------------

    def keep(self, values: Sequence[Tensor], samples: Sequence[Tensor], moment: Moment) -> None:
        """A computed step.

        Args:
            values: the denoiser's outputs.
            samples: for each the noisy sample in its form; empty where one has none.
            moment: the step.
        """
        if self.pilot.watching:
            self.pilot.watch(self.branch, moment.step, samples[0] if samples else None, values)
        if self.plan is None:
            return
        error = self._miss(values, moment) if moment.error and self.ready and self.planned else None
        if self.plan.computes(moment.step):
            self._store(values, samples, moment)
        if moment.ahead and self.ready:
            self.pending = FittedOutlook(self, moment, error)

    def _store(self, values: Sequence[Tensor], samples: Sequence[Tensor], moment: Moment) -> None:
        if not self.histories:
            self.histories = [History(DEPTH, self.recipe.rest) for _ in values]
            self.samples = [History(1, self.recipe.rest) for _ in samples]
        for history, value in zip([*self.histories, *self.samples], [*values, *samples], strict=True):
            history.push(value, moment.time)
        self.steps = [moment.step, *self.steps][:DEPTH]

    def _miss(self, values: Sequence[Tensor], moment: Moment) -> Tensor:
        """Squared relative error (RMS over RMS) of the prediction for this step; the worst sample."""
        worst = []
        for guess, truth in zip(self.predict(moment), values, strict=True):
            truth, inner = truth.float(), tuple(range(1, truth.dim()))
            worst.append(((guess.float() - truth).square().sum(inner) / truth.square().sum(inner)).amax())
        return torch.stack(worst).amax()

    # -- predicted steps -------------------------------------------------------------------------------------------

    def predict(self, moment: Moment) -> list[Tensor]:
        weights = self.plan.weights[self.branch][moment.step]
        return [
            combine(rows, self._matching(weights, len(rows)), out=self.histories[i].blank())
            for i, rows in enumerate(self.rows())
        ]

    def rows(self) -> list[list[Tensor]]:
        """For each output what its prediction is a sum of: stored values, newest first, and the sample."""
        return [
            [*history.newest(), *(s.newest(1)[0] for s in self.samples[i : i + 1])]
            for i, history in enumerate(self.histories)
        ]

    def _matching(self, weights: Sequence[float], count: int) -> list[float]:
        """The weights of what is stored; those that are missing early in a trajectory are zero."""
        own = count - len(self.samples[:1])
        return [*weights[:own], *(weights[DEPTH:] if self.samples else ())]

    def coming(self, step: int, rows: int) -> list[float]:
        """The weights of a step ahead."""
        return self._matching(self.plan.weights[self.branch][step], rows)


class FittedOutlook(Outlook):
    """What can go wrong with a coming run, from the inner products of what is stored."""

    def __init__(self, cache: FittedCache, moment: Moment, error: Tensor | None) -> None:
        self._cache, self._moment, self._has_error = cache, moment, error is not None
        self._counts: list[tuple[int, int, int]] = []  # rows, samples, numbers of a sample
        parts = [] if error is None else [error.reshape(1)]
        for values in cache.rows():
            rows = torch.stack([value.float().flatten(1) for value in values], 1)
            self._counts.append((rows.shape[1], rows.shape[0], rows.shape[2]))
            parts += [torch.bmm(rows, rows.mT).flatten(), rows.sum(2).flatten()]
        self.numbers = torch.cat(parts)

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        cache, numbers = self._cache, list(numbers)
        error = numbers.pop(0) if self._has_error else nan
        ahead = range(self._moment.step + 1, self._moment.step + 1 + len(self._moment.ahead))
        alarms, suspects = [False] * len(ahead), []
        for index, (rows, samples, size) in enumerate(self._counts):
            grams, sums = numbers[: samples * rows * rows], numbers[samples * rows * rows :][: samples * rows]
            numbers = numbers[samples * rows * (rows + 1) :]
            tables = [
                (grams[i * rows * rows : (i + 1) * rows * rows], sums[i * rows : (i + 1) * rows])
                for i in range(samples)
            ]
            newest = [1.0] + [0.0] * (rows - 1)
            now = [_variance(table, newest, size) for table in tables]
            coming = [[_variance(table, cache.coming(j, rows), size) for table in tables] for j in ahead]
            bad = cache.collapses(index, now, coming)
            alarms = [alarm or any(row) for alarm, row in zip(alarms, bad, strict=True)]
            suspects.append([any(column) for column in zip(*bad, strict=True)] if bad else [False] * samples)
        relative = sqrt(error) if error == error and error >= 0.0 else (inf if self._has_error else nan)
        return [(cache, Coming((), alarms, relative if isfinite(relative) or self._has_error else nan, suspects))]


def _variance(table: tuple[Sequence[float], Sequence[float]], weights: Sequence[float], size: int) -> float:
    """Of the sum of rows with these weights."""
    gram, sums = table
    count = len(weights)
    square = sum(weights[i] * weights[j] * gram[i * count + j] for i in range(count) for j in range(count))
    return square / size - (sum(w * s for w, s in zip(weights, sums, strict=True)) / size) ** 2


class FittedSite(OutputSite):
    """The denoiser's return value, predicted with the weights of a plan."""

    def cache(self) -> FittedCache:
        return FittedCache(self.recipe)

    def compute(self, run: Run, cache: FittedCache, moment: Moment) -> Any:
        result = run()
        with torch.no_grad():
            tensors, cache.template = flatten(result)
            cache.keep(tensors, self._samples(run, tensors), moment)
        return result

    def _samples(self, run: Run, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The noisy samples in the outputs' form; none where one of the outputs has none."""
        inputs = self.anatomy.bind(run.args, run.keywords)
        forms = [Form(t.shape, self.anatomy.layout(t).channel_dim) for t in outputs]
        found = counterparts(self.anatomy, inputs, forms)
        alike = all(x is not None and x.shape == t.shape for x, t in zip(found, outputs, strict=True))
        return [x for x in found if x is not None] if alike else []

    def prepare(self, caches: Sequence[Cache]) -> None:
        pass  # a plan is ready as soon as a step is computed

    def hindrance(self, cache: FittedCache) -> str | None:
        if not cache.ready:
            return super().hindrance(cache) if cache.steps else "too few computed steps in this branch"
        return None if cache.planned else "the stored outputs are not those of the plan"
