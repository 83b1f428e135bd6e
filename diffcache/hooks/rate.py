"""Site ``output`` for schedules that hear the output's expected rate of change (EasyCache, arXiv 2507.02860).

The cached value is the difference of output and input; the signal is known from inputs alone, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..predictors import TokenLayout
from ..schedules import expected_change, transformation_rate
from .cache import Cache, Moment
from .forecast import Forecast
from .outputs import flatten
from .sites import Asking, Judge, OutputSite, Run


class RateCache(Forecast):
    """The difference of output and input, and what the rate is measured with.

    Memory besides the history: three inputs or outputs (last computed input and output, input of the previous step).
    """

    def forget(self) -> None:
        super().forget()
        self.rate: Tensor | None = None
        self.computed: tuple[Tensor, Tensor] | None = None
        self.previous: Tensor | None = None

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from (t for t in (*(self.computed or ()), self.previous, self.rate) if t is not None)


class RateSite(OutputSite, Asking):
    """Reuses output minus input while the expected change stays small."""

    def cache(self) -> RateCache:
        return RateCache(self.recipe)

    def compute(self, run: Run, cache: RateCache, moment: Moment) -> Any:
        result = run()
        with torch.no_grad():
            tensors, cache.template = flatten(result)
            sample = self._sample(run)
            if len(tensors) != 1 or tensors[0].shape != sample.shape:
                shapes = [tuple(t.shape) for t in tensors]
                raise UnsupportedModelError(
                    f"{self.recipe.name}: needs an output of the input's shape {tuple(sample.shape)}, got {shapes}"
                )
            self._keep(cache, sample, tensors[0], moment)
        return result

    def _keep(self, cache: RateCache, sample: Tensor, output: Tensor, moment: Moment) -> None:
        if cache.computed is not None:
            old_sample, old_output = cache.computed
            cache.rate = transformation_rate((sample, old_sample), (output, old_output))
        cache.layouts = cache.layouts or [TokenLayout(1)]
        cache.record([output - sample], moment)
        cache.previous = sample.clone()
        cache.computed = (cache.previous, output.detach().clone())

    def ask(self, run: Run, cache: RateCache, moment: Moment, judge: Judge) -> tuple[Any, bool]:
        with torch.no_grad():
            sample = self._sample(run)
            signal = expected_change(cache.rate, sample, cache.previous, cache.computed[1])
        if judge(signal):
            return self.compute(run, cache, moment), True
        result = self.predict(run, cache, moment, frozenset())
        cache.previous = sample.clone()
        return result, False

    def predict(self, run: Run, cache: RateCache, moment: Moment, kinds: frozenset[str]) -> Any:
        with torch.no_grad():
            (difference,) = cache.predict(moment)
            return cache.template.rebuild([difference + self._sample(run)])

    def hindrance(self, cache: Cache) -> str | None:
        return super().hindrance(cache) or (None if cache.rate is not None else "too few computed steps in this branch")

    def _sample(self, run: Run) -> Tensor:
        return self.anatomy.bind(run.args, run.keywords)[self.anatomy.sample]
