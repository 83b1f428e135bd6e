"""Site ``body`` for schedules that hear what the first blocks show (FBCache, DBCache, TeaCache)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..schedules import relative_change
from .anatomy import Anatomy, find_block_lists
from .batch import Batch, Batches, Shown
from .cache import Cache, Moment
from .forecast import Forecast
from .gate import GatedBody
from .recipe import Recipe
from .rows import Rows
from .sites import Answer, Asking, BodyOutput, Judge, Run


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
        anatomy: its anatomy.
        recipe: its signal is ``first`` or ``modulated``.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, recipe: Recipe) -> None:
        self.recipe, self.batches = recipe, Batches(anatomy, outputs=False)
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

    def ask(self, run: Run, cache: GatedCache, moment: Moment, judge: Judge) -> Answer:
        batch, moved = self.batches.of(run), []

        def decide(heard: Tensor) -> list[Tensor] | None:
            with torch.no_grad():
                moved.extend(judge(batch, [_change(batch.leading(heard), batch.leading(cache.reference))]))
                return None if len(moved) == batch.size else cache.predict(moment)

        result, residuals, replayed = self.body.decide(run, decide)
        if not replayed:
            self._store(cache, residuals, moment)
            self._refer(cache)
            return Answer(result, 1.0, 1.0)
        answer = Answer(result, 0.0, 0.0)
        if moved:
            answer = self._compute_some(batch, batch.rows(moved), result, cache, moment)
        elif self.recipe.signal == "modulated":
            self._refer(cache)
        self.body.heard = None
        return answer

    def _compute_some(self, batch: Batch, rows: Rows, result: Any, cache: GatedCache, moment: Moment) -> Answer:
        """The samples that moved by themselves, in the place of what was predicted for them."""
        heard, cost = self.body.heard, len(rows) / rows.size
        if batch.parted:
            part, seen = self._show(batch.part(rows))
        else:
            (whole, all_seen), shown = batch.prove(rows, self._show)
            if shown is None:
                self._store(cache, all_seen[1:] or None, moment)
                cache.reference = all_seen[0]
                return Answer(whole, 1.0, 1.0 + cost)
            (part, seen), cost = shown, 1.0 + cost
        with torch.no_grad():
            if not cache.renew(rows, seen[1:], moment):
                cache.forget()  # what is held is not theirs, and what they have does not fit
            elif self.recipe.signal == "modulated":
                cache.reference = heard
            else:
                rows.put(cache.reference, rows.cut(heard))
            return Answer(rows.merge(result, part), len(rows) / rows.size, cost)

    def _show(self, run: Run) -> Shown:
        """Run a call in full; with what the gate heard, and the residuals if it shows them."""
        result, residuals, heard = self.body.look(run)
        return result, [heard, *(residuals or [])]

    def share(self, kinds: frozenset[str]) -> float:
        before = self.recipe.first if self.body.plan is None else self.body.plan.before
        return (before + self.recipe.last) / len(self.body.blocks)

    def hindrance(self, cache: Cache) -> str | None:
        return super().hindrance(cache) or (
            None if cache.reference is not None else "nothing to compare the signal with"
        )


def _change(now: Tensor, before: Tensor) -> Tensor:
    if before.shape != now.shape:
        return now.new_full((len(now),), float("nan"))  # means: compute
    return relative_change(now, before)
