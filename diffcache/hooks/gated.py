"""Site ``body`` for schedules that hear what the first blocks show (FBCache, DBCache, TeaCache)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..schedules import relative_change
from .anatomy import find_block_lists
from .cache import Cache, Moment
from .forecast import Forecast
from .gate import GatedBody
from .recipe import Recipe
from .sites import Asking, BodyOutput, Judge, Run


class GatedCache(Forecast):
    """A body's residuals, and the tensor that the next signal is measured against: ``numel * element_size`` more."""

    def forget(self) -> None:
        super().forget()
        self.reference: Tensor | None = None

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        if self.reference is not None:
            yield self.reference


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
        cache.reference, self.body.heard = self.body.heard, None

    def ask(self, run: Run, cache: GatedCache, moment: Moment, judge: Judge) -> tuple[Any, bool]:
        def decide(heard: Tensor) -> list[Tensor] | None:
            with torch.no_grad():
                return None if judge(_change(heard, cache.reference)) else cache.predict(moment)

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


def _change(now: Tensor, before: Tensor) -> Tensor:
    if before.shape != now.shape:
        return now.new_full((), float("nan"))  # means: compute
    return relative_change(now, before)
