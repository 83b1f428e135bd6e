"""Site ``output`` with partial steps: the tokens that are hard to predict are recomputed, the others predicted (ours).

At a step that is not computed in full, the denoiser runs for the chosen tokens through every block (site ``token``);
their part of its output is taken from there, that of all others from the forecast. What a recomputed token showed to be
wrong with its forecast is added to the forecasts that follow, until the next full step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .anatomy import Anatomy
from .cache import Holding, Moment
from .forecast import Forecast
from .grid import Grid
from .modules import Unit
from .outputs import tensors_in_order
from .recipe import Recipe
from .sites import OutputSite, Run
from .token_cache import TokenCache
from .tokens import TokenSite


class PartialForecast(Forecast):
    """A forecast, what its partial steps need, and what they corrected: one more output."""

    def __init__(self, recipe: Recipe) -> None:
        self.tokens = TokenCache(recipe)
        self.grid: Grid | None = None
        super().__init__(recipe)

    def forget(self) -> None:
        super().forget()
        self.tokens.forget()
        self.correction: Tensor | None = None

    @property
    def ready(self) -> bool:
        return super().ready and self.tokens.ready

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from self.tokens.held()
        yield from () if self.correction is None else (self.correction,)

    def holdings(self) -> Iterator[Holding]:
        yield from super().holdings()
        yield from self.tokens.holdings()
        yield from (Holding(h.values[0].numel(), h.home, rests=False) for h in self.histories)

    def slow_kernels(self) -> Counter[str]:
        return self.tokens.slow_kernels()

    def turning(self) -> Tensor:
        """How much each token's velocity turned between the last three outputs, ``||v1 - v2||``; ``[tokens]``."""
        new, mid, old = (value.float() for value in self.histories[0].values[:3])
        first, second = self.histories[0].gaps[:2]
        bend = (new - mid).div_(first).sub_((mid - old).div_(second))
        return self.grid.sums(bend.square_()).sqrt_()


class PartialOutputSite(OutputSite):
    """The output, token by token computed or predicted.

    Args:
        model: the denoiser.
        anatomy: its anatomy.
        units: its attention and feed-forward modules.
        recipe: with a predictor for the output, a selector, and the share of tokens that each unit computes.
    """

    runs = True
    traced = False

    def __init__(self, model: nn.Module, anatomy: Anatomy, units: list[Unit], recipe: Recipe) -> None:
        super().__init__(anatomy, recipe)
        self.tokens = TokenSite(model, units, recipe)

    def cache(self) -> PartialForecast:
        cache = PartialForecast(self.recipe)
        cache.tokens.more_scores = {"turning": cache.turning}
        return cache

    def compute(self, run: Run, cache: PartialForecast, moment: Moment) -> Any:
        result = super().compute(lambda: self.tokens.compute(run, cache.tokens, moment), cache, moment)
        cache.tokens.pending, cache.correction = None, None  # the forecast's outlook sees the same result
        if len(cache.histories) != 1:
            raise UnsupportedModelError(f"{self.recipe.name}: {self.anatomy.model_class} returns several tensors")
        cache.grid = Grid.of(self.anatomy, cache.histories[0].values[0], len(cache.tokens.age))
        return result

    def predict(self, run: Run, cache: PartialForecast, moment: Moment, kinds: frozenset[str]) -> Any:
        with torch.no_grad():
            (guess,) = cache.predict(moment)
            if cache.correction is not None:
                guess = guess.add_(cache.correction)
            if self.tokens.idle(cache.tokens, moment):
                return cache.template.rebuild([guess])
            result, chosen = self.tokens.recompute(run, cache.tokens, moment)
            (part,) = tensors_in_order(result)
            weight = (len(chosen) / len(cache.tokens.age)) ** self.recipe.blend
            part = part if weight == 1.0 else torch.lerp(guess, part, weight)
            return cache.template.rebuild([_merged(cache, guess, part, chosen)])

    def hindrance(self, cache: PartialForecast, step: int) -> str | None:
        return super().hindrance(cache, step) or self.tokens.hindrance(cache.tokens, step)

    def share(self, kinds: frozenset[str]) -> float:
        return self.tokens.share(kinds)

    def partial(self, kinds: frozenset[str]) -> bool:
        return self.tokens.partial(kinds)

    def install(self, model: nn.Module) -> None:
        self.tokens.install(model)

    def uninstall(self, model: nn.Module) -> None:
        self.tokens.uninstall(model)


def _merged(cache: PartialForecast, guess: Tensor, part: Tensor, chosen: Tensor) -> Tensor:
    """The computed tokens among the predicted ones; what was wrong with their prediction is noted."""
    mask = torch.zeros(len(cache.tokens.age), dtype=torch.bool, device=guess.device).index_fill_(0, chosen, True)
    seen, where = cache.grid.spread(mask, part)
    into, _ = cache.grid.spread(mask, guess)
    miss = torch.where(where, seen - into, 0.0)
    if cache.correction is None:
        cache.correction = torch.zeros_like(guess)
    cache.grid.spread(mask, cache.correction)[0].add_(miss)
    into.copy_(torch.where(where, seen, into))
    return guess
