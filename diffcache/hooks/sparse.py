"""Site ``output`` under a learned table: full steps, steps at which some cells are computed, and idle ones (ours).

What a partial step computes joins the history of the forecast, token by token: the others are stored as they were
predicted, and under a linear forecast each token keeps the slope of the last two times that it was computed itself.
At a step of which nothing is computed the denoiser is not called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """A forecast that learns from partial steps. Memory: that of partial steps, and 4 bytes a token."""

    def forget(self) -> None:
        super().forget()
        self.when: Tensor | None = None  # each token was computed last; None: all in the newest stored step

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from () if self.when is None else (self.when,)

    def holdings(self) -> Iterator[Holding]:
        yield from Forecast.holdings(self)  # no corrections: what is computed is in the history
        yield from self.tokens.holdings()
        if self.histories and self.tokens.age is not None:
            yield Holding.scalars(len(self.tokens.age), self.histories[0].home.device)

    def record(self, values: Sequence[Tensor], moment: Moment, given: bool = False) -> None:
        if self.when is not None:
            self._straighten(self.predict(moment)[0], values[0], moment)
            self.when = None
        super().record(values, moment, given)

    def amend(self, guess: Tensor, value: Tensor, computed: Tensor, moment: Moment) -> None:
        """Store the output of a step that was computed in part.

        Args:
            guess: what was predicted for it.
            value: the same with the tokens that were computed.
            computed: which these are, ``[tokens]``.
            moment: the step.
        """
        (history,) = self.histories
        if self.when is None:
            self.when = torch.full(computed.shape, history.times[0], device=computed.device)
        self._straighten(guess, value, moment)
        history.push(value, moment.time)
        self.when.masked_fill_(computed, moment.time)
        self.steps = [moment.step, *self.steps][: self.recipe.predictor.depth]
        self.fits = [self.recipe.predictor.fit_at(history.gaps)]

    def merged(self, guess: Tensor, part: Tensor, computed: Tensor) -> Tensor:
        """The computed tokens among the predicted ones."""
        merged = guess.clone()
        into, where = self.grid.spread(computed, merged)
        into.copy_(torch.where(where, self.grid.spread(computed, part)[0], into))
        return merged

    def _straighten(self, guess: Tensor, value: Tensor, moment: Moment) -> None:
        """Move the newest stored value of each token onto the line between the last two that were computed.

        Of a token that was predicted meanwhile, the miss has grown since it was computed last. Taken for what it moved
        since the stored step, it would make slopes swing up.
        """
        (history,) = self.histories
        stored, gap = history.values[0], moment.time - history.times[0]
        view, share = self.grid.spread(1.0 - gap / (moment.time - self.when), stored)
        miss, _ = self.grid.spread(share, value - guess)
        view.add_(miss.mul_(share.to(miss.dtype)))


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
        return super().compute(run, cache, moment._replace(ahead=moment.ahead[: max(ahead, 1)]))

    def predict(self, run: Run, cache: SparseForecast, moment: Moment, kinds: frozenset[str]) -> Any:
        with torch.no_grad():
            (guess,) = cache.predict(moment)
            if self.tokens.idle(cache.tokens, moment):
                return cache.template.rebuild([guess])
            result, chosen = self.tokens.recompute(run, cache.tokens, moment)
            (part,) = tensors_in_order(result)
            computed = torch.zeros(len(cache.tokens.age), dtype=torch.bool, device=guess.device)
            computed.index_fill_(0, chosen, True)
            merged = cache.merged(guess, part, computed)
            cache.amend(guess, merged, computed, moment)
            cache.pending = FiniteOutlook(cache, merged, 0)
            return cache.template.rebuild([merged])


def sparse_site(model: nn.Module, anatomy: Anatomy, units: list[Unit], recipe: Recipe) -> OutputSite:
    """The site of a table; where its steps are full or idle, nothing inside the denoiser has to be held."""
    recipe.table.check_units([unit.name for unit in units])
    if recipe.table.partial:
        return SparseSite(model, anatomy, units, recipe)
    return OutputSite(anatomy, recipe)
