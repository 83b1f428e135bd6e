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
from .finite import strays
from .forecast import Forecast
from .forms import Form, counterparts
from .outputs import flatten
from .sites import OutputSite, Run

#: squared relative change of an output below which it stands still: what rounding makes
STILL = 1e-12


class FittedCache(Forecast):
    """The planned outputs of one branch, and the sample at the newest.

    Steps that are computed besides the plan are not stored: the weights are those of the planned ones.

    Attributes:
        branch: its name, by which the plan knows it.
        still: for each output and sample of the batch whether it is the same at the last two planned steps: then
            nothing moves, and it is reused whatever the weights are.
    """

    def forget(self) -> None:
        super().forget()
        self.samples: list[History] = []
        self.still: list[list[bool]] = []
        self._masks: dict[int, Tensor] = {}

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
            self.pilot.watch(self.branch, moment.step, samples, values)
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
        self.forget_still()

    def _miss(self, values: Sequence[Tensor], moment: Moment) -> Tensor:
        """Squared relative error (RMS over RMS) of the prediction for this step; the worst sample."""
        worst = []
        for guess, truth in zip(self.predict(moment), values, strict=True):
            truth, inner = truth.float(), tuple(range(1, truth.dim()))
            worst.append(((guess.float() - truth).square().sum(inner) / truth.square().sum(inner)).amax())
        return torch.stack(worst).amax()

    # -- predicted steps -------------------------------------------------------------------------------------------

    def predict(self, moment: Moment) -> list[Tensor]:
        return [
            combine(rows, self._shares(i, moment.step, rows), out=self.histories[i].blank())
            for i, rows in enumerate(self.rows())
        ]

    def _shares(self, index: int, step: int, rows: Sequence[Tensor]) -> list[Any]:
        """The weights of a prediction: numbers, or where samples of the batch stand still one for each sample."""
        weights, still = self.coming(step, len(rows)), self.still[index] if self.still else []
        if not any(still):
            return weights
        if all(still):
            return reused(len(rows))
        mask = self._mask(index, rows[0])
        return [torch.where(mask, newest, weight) for newest, weight in zip(reused(len(rows)), weights, strict=True)]

    def forget_still(self) -> None:
        """It is not known again until the host reads."""
        self.still, self._masks = [], {}

    def _mask(self, index: int, like: Tensor) -> Tensor:
        """Bool ``[B, 1, ...]``, the samples that stand still; goes to the device once a computed step."""
        if index not in self._masks:
            flags = torch.tensor(self.still[index], device=like.device)
            self._masks[index] = flags.view(-1, *[1] * (like.dim() - 1))
        return self._masks[index]

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

    def changes(self, steps: Sequence[int]) -> list[float]:
        """Factors by which the variance of the newest output is known to change until these steps."""
        return [self.plan.change(self.branch, self.steps[0], step) for step in steps]


def reused(rows: int) -> list[float]:
    """Weights that take the newest output as it is."""
    return [1.0] + [0.0] * (rows - 1)


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
            parts.append((rows[:, 0] - rows[:, min(1, len(cache.steps) - 1)]).square().sum(1))
        self.numbers = torch.cat(parts)

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        cache, numbers = self._cache, list(numbers)
        error = numbers.pop(0) if self._has_error else nan
        cache.forget_still()
        ahead = range(self._moment.step + 1, self._moment.step + 1 + len(self._moment.ahead))
        alarms, suspects, variances = [False] * len(ahead), [], []
        for index, (rows, samples, size) in enumerate(self._counts):
            grams, sums = numbers[: samples * rows * rows], numbers[samples * rows * rows :][: samples * rows]
            numbers = numbers[samples * rows * (rows + 1) :]
            changes, numbers = numbers[:samples], numbers[samples:]
            tables = [
                (grams[i * rows * rows : (i + 1) * rows * rows], sums[i * rows : (i + 1) * rows])
                for i in range(samples)
            ]
            newest = reused(rows)
            cache.still.append([c <= STILL * g[0] for c, (g, _) in zip(changes, tables, strict=True)])
            now = [_variance(table, newest, size) for table in tables]
            used = [[newest if stands else cache.coming(j, rows) for stands in cache.still[index]] for j in ahead]
            coming = [[_variance(t, w, size) for t, w in zip(tables, row, strict=True)] for row in used]
            variances.append(coming)
            bad = cache.collapses(index, now, coming, cache.changes(ahead))
            alarms = [alarm or any(row) for alarm, row in zip(alarms, bad, strict=True)]
            suspects.append([any(column) for column in zip(*bad, strict=True)] if bad else [False] * samples)
        relative = sqrt(error) if error == error and error >= 0.0 else (inf if self._has_error else nan)
        known = relative if isfinite(relative) or self._has_error else nan
        return [(cache, Coming((), alarms, known, suspects, strays(alarms, variances)))]


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
        result = self.full(run, cache, moment)
        with torch.no_grad():
            tensors, cache.template = flatten(result)
            cache.keep(tensors, self._samples(run, tensors), moment)
        return result

    def full(self, run: Run, cache: FittedCache, moment: Moment) -> Any:
        """The denoiser's own result."""
        return run()

    def _samples(self, run: Run, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The noisy samples in the outputs' form; none where one of the outputs has none."""
        inputs = self.anatomy.bind(run.args, run.keywords)
        forms = [Form(t.shape, self.anatomy.layout(t).channel_dim) for t in outputs]
        found = counterparts(self.anatomy, inputs, forms)
        alike = all(x is not None and x.shape == t.shape for x, t in zip(found, outputs, strict=True))
        return [x for x in found if x is not None] if alike else []

    def prepare(self, caches: Sequence[Cache]) -> None:
        pass  # a plan is ready as soon as a step is computed

    def hindrance(self, cache: FittedCache, step: int) -> str | None:
        if not cache.ready:
            return super().hindrance(cache, step) if cache.steps else "too few computed steps in this branch"
        return None if cache.planned else "the stored outputs are not those of the plan"
