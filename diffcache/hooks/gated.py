"""Site ``body`` for schedules that hear what the first blocks show (FBCache, DBCache, TeaCache)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..predictors.resting import Home, fetch, home_of
from ..schedules import relative_change
from .anatomy import Anatomy, find_block_lists
from .batch import Batch, Batches, Shown
from .cache import Cache, Holding, Moment
from .forecast import Forecast
from .gate import GatedBody
from .gradients import without_gradients
from .recipe import Recipe
from .rows import Rows
from .sites import Answer, Asking, BodyOutput, Judge, Run


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
            yield Holding(self.reference.numel(), self._home or home_of(self.reference))

    def refer(self, heard: Tensor | None) -> None:
        """The next signal is measured against ``heard``."""
        rest, self.reference = self.recipe.rest, heard
        if heard is None or rest.plain:  # it rests as it is
            self._home = None
            return
        self._home = home_of(heard)
        if rest.moves(heard):
            self.reference = rest.keep(heard)

    def change(self, batch: Batch, heard: Tensor) -> Tensor:
        """How far what is heard has moved, sample by sample; NaN, which means *compute*, if it is of another shape."""
        now, before = heard, self.reference
        if self._home is not None:
            now, before = self.recipe.rest.rounded(heard), fetch(before, self._home)
        alike = before.shape == now.shape
        if now.shape[0] != batch.size:
            now = batch.leading(now)
            before = before.movedim(1, 0) if alike and batch.behind else before
        return relative_change(now, before) if alike else now.new_full((len(now),), float("nan"))

    def refer_some(self, rows: Rows, heard: Tensor) -> None:
        """The same for some samples."""
        rows.put(self.reference, rows.cut(heard).to(self.reference))


class GatedSite(BodyOutput, Asking):
    """The residual over the blocks behind a gate.

    Args:
        model: the denoiser.
        anatomy: its anatomy.
        recipe: its signal is ``first`` or ``modulated``.
    """

    traced = False  # the host decides in the middle of the model

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
        cache.refer(self.body.heard)
        self.body.heard = None

    def ask(self, run: Run, cache: GatedCache, moment: Moment, judge: Judge) -> Answer:
        (batch, again), moved = self.batches.of(run), []

        def decide(heard: Tensor) -> list[Tensor] | None:  # no tensor here has a gradient
            moved.extend(judge(again, batch, [cache.change(batch, heard)]))
            return None if len(moved) == batch.size else cache.predict(moment)

        result, residuals, replayed = self.body.decide(run, decide)
        if not replayed:
            self._store(cache, residuals, moment)
            cache.refer(self.body.heard)
            self.body.heard = None
            return Answer(result, 1.0, 1.0)
        answer = Answer(result, 0.0, 0.0)
        if moved:
            answer = self._compute_some(again, batch, batch.rows(moved), result, cache, moment)
        elif self.recipe.signal == "modulated":
            self._refer(cache)
        self.body.heard = None
        return answer

    def _compute_some(
        self, run: Run, batch: Batch, rows: Rows, result: Any, cache: GatedCache, moment: Moment
    ) -> Answer:
        """The samples that moved by themselves, in the place of what was predicted for them."""
        heard, cost = self.body.heard, len(rows) / rows.size
        if batch.parted:
            part, seen = self._show(batch.part(run, rows))
        else:
            (whole, all_seen), shown = batch.prove(run, rows, self._show)
            if shown is None:
                self._store(cache, all_seen[1:] or None, moment)
                cache.refer(all_seen[0])
                return Answer(whole, 1.0, 1.0 + cost)
            (part, seen), cost = shown, 1.0 + cost
        with without_gradients():
            if not cache.renew(rows, seen[1:], moment):
                cache.drop()  # what is held is not theirs, and what they have does not fit
            elif self.recipe.signal == "modulated":
                cache.refer(heard)
            else:
                cache.refer_some(rows, heard)
            return Answer(rows.merge(result, part), len(rows) / rows.size, cost)

    def _show(self, run: Run) -> Shown:
        """Run a call in full; with what the gate heard, and the residuals if it shows them."""
        result, residuals, heard = self.body.look(run)
        return result, [heard, *(residuals or [])]

    def share(self, kinds: frozenset[str]) -> float:
        before = self.recipe.first if self.body.plan is None else self.body.plan.before
        return (before + self.recipe.last) / len(self.body.blocks)

    def hindrance(self, cache: Cache, step: int) -> str | None:
        plan = self.body.plan
        if cache.fitted and cache.template is plan is not None and cache.reference is not None:  # the usual case
            return None
        return super().hindrance(cache, step) or (
            None if cache.reference is not None else "nothing to compare the signal with"
        )
