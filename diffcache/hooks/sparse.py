"""Site ``output`` under a learned table: full steps, steps at which some cells are computed, and idle ones (ours).

What a partial step computes joins the history of the forecast, token by token: the others are stored as they were
predicted, so that under a linear forecast each token keeps the slope of the last two times that it was computed itself.
At a step of which nothing is computed the denoiser is not called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .cache import Holding, Moment
from .finite import FiniteOutlook
from .forecast import Forecast
from .modules import Unit
from .outputs import tensors_in_order
from .partial import PartialForecast, PartialOutputSite
from .recipe import Recipe
from .sites import OutputSite, Run


class SparseForecast(PartialForecast):
    """A forecast that learns from partial steps."""

    def holdings(self) -> Iterator[Holding]:
        yield from Forecast.holdings(self)  # no corrections: what is computed is in the history
        yield from self.tokens.holdings()

    def amend(self, value: Tensor, moment: Moment) -> None:
        """Store the output of a step that was computed in part."""
        (history,) = self.histories
        history.push(value, moment.time)
        self.steps = [moment.step, *self.steps][: self.recipe.predictor.depth]
        self.fits = [self.recipe.predictor.fit_at(history.gaps)]


class SparseSite(PartialOutputSite):
    """The output, with what each unit computes at each step in ``recipe.table``; the predictor is a static one."""

    def cache(self) -> SparseForecast:
        cache = SparseForecast(self.recipe)
        cache.tokens.more_scores = {"turning": cache.turning}
        return cache

    def compute(self, run: Run, cache: SparseForecast, moment: Moment) -> Any:
        # Beyond the next step that computes anything the forecast will be another one.
        idle, ahead = self.recipe.table.idle, 0
        while ahead < len(moment.ahead) and moment.step + ahead + 1 in idle:
            ahead += 1
        return super().compute(run, cache, replace(moment, ahead=moment.ahead[: max(ahead, 1)]))

    def predict(self, run: Run, cache: SparseForecast, moment: Moment, kinds: frozenset[str]) -> Any:
        with torch.no_grad():
            (guess,) = cache.predict(moment)
            if self.tokens.idle(cache.tokens, moment):
                return cache.template.rebuild([guess])
            result, chosen = self.tokens.recompute(run, cache.tokens, moment)
            (part,) = tensors_in_order(result)
            merged = part if len(chosen) == len(cache.tokens.age) else self._merged(cache, guess, part, chosen)
            cache.amend(merged, moment)
            cache.pending = FiniteOutlook(cache, merged, 0)
            return cache.template.rebuild([merged])

    def _merged(self, cache: SparseForecast, guess: Tensor, part: Tensor, chosen: Tensor) -> Tensor:
        """The computed tokens among the predicted ones."""
        mask = torch.zeros(len(cache.tokens.age), dtype=torch.bool, device=guess.device).index_fill_(0, chosen, True)
        seen, where = cache.grid.spread(mask, part)
        into, _ = cache.grid.spread(mask, guess)
        into.copy_(torch.where(where, seen, into))
        return guess


def sparse_site(model: nn.Module, anatomy: Anatomy, units: list[Unit], recipe: Recipe) -> OutputSite:
    """The site of a table; where its steps are full or idle, nothing inside the denoiser has to be held."""
    recipe.table.check_units([unit.name for unit in units])
    if recipe.table.partial:
        return SparseSite(model, anatomy, units, recipe)
    return OutputSite(anatomy, recipe)
