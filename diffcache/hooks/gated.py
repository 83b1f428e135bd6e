"""Site ``body`` for schedules that hear what the first blocks show (FBCache, DBCache, TeaCache)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..predictors.resting import Home, fetch, home_of
from ..schedules import relative_change
from .anatomy import find_block_lists
from .cache import Cache, Holding, Moment
from .forecast import Forecast
from .gate import GatedBody
from .recipe import Recipe
from .sites import Asking, BodyOutput, Judge, Run


class GatedCache(Forecast):
    """A body's residuals, and the tensor that the next signal is measured against: ``numel * element_size`` more."""

    def forget(self) -> None:
        super().forget()
        self.reference: Tensor | None = None
        self._home: Home | None = None

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        if self.reference is not None:
            yield self.reference

    def holdings(self) -> Iterator[Holding]:
        yield from super().holdings()
        if self.reference is not None:
            yield Holding(self.reference.numel(), self._home)

    def refer(self, heard: Tensor | None) -> None:
        """The next signal is measured against ``heard``."""
        moves = heard is not None and self.recipe.rest.moves(heard)
        self._home = None if heard is None else home_of(heard)
        self.reference = self.recipe.rest.keep(heard) if moves else heard

    def change(self, heard: Tensor) -> Tensor:
        """How far what is heard has moved; NaN, which means *compute*, if it is of another shape."""
        if self.reference.shape != heard.shape:
            return heard.new_full((), float("nan"))
        return relative_change(self.recipe.rest.rounded(heard), fetch(self.reference, self._home))


class GatedSite(BodyOutput, Asking):
    """The residual over the blocks behind a gate.

    Args:
        model: the denoiser.
        recipe: its signal is ``first`` or ``modulated``.
    """

    traced = False  # the host decides in the middle of the model

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        inside = recipe.signal == "modulated"
        self.body = GatedBody(find_block_lists(model), model, recipe.first, recipe.last, inside)

    def cache(self) -> GatedCache:
        return GatedCache(self.recipe)

    def compute(self, run: Run, cache: GatedCache, moment: Moment) -> Any:
        result = super().compute(run, cache, moment)
        self._refer(cache)
        return result

    def _refer(self, cache: GatedCache) -> None:
        cache.refer(self.body.heard)
        self.body.heard = None

    def ask(self, run: Run, cache: GatedCache, moment: Moment, judge: Judge) -> tuple[Any, bool]:
        def decide(heard: Tensor) -> list[Tensor] | None:
            with torch.no_grad():
                return None if judge(cache.change(heard)) else cache.predict(moment)

        result, residuals, replayed = self.body.decide(run, decide)
        if not replayed:
            self._store(cache, residuals, moment)
        if not replayed or self.recipe.signal == "modulated":
            self._refer(cache)
        return result, not replayed

    def share(self, kinds: frozenset[str]) -> float:
        before = self.recipe.first if self.body.plan is None else self.body.plan.before
        return (before + self.recipe.last) / len(self.body.blocks)

    def hindrance(self, cache: Cache) -> str | None:
        return super().hindrance(cache) or (
            None if cache.reference is not None else "nothing to compare the signal with"
        )
