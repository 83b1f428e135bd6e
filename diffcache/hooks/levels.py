"""Site ``output`` under a plan with levels: predicted steps at which a share of the tokens is computed (ours).

At such a step the denoiser runs for some tokens (site ``token``). Their part of its output stands among the prediction
of the others. Nothing of it joins the history, for the weights of the plan are those of its computed steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..predictors import Plan
from ..schedules.sparsity import count_tokens
from .again import repeatable
from .anatomy import Anatomy
from .cache import Holding, Moment
from .fitted import FittedCache, FittedSite
from .gradients import without_gradients
from .grid import Grid
from .modules import find_units, unit_kinds
from .outputs import tensors_in_order
from .recipe import Recipe
from .sites import Run
from .token_cache import TokenCache
from .tokens import TokenSite


class LevelCache(FittedCache):
    """What a plan's predictions need, and what its levels need besides: see :class:`.token_cache.TokenCache`.

    The latter is held from a computed step with levels behind it until the next computed one.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.tokens = TokenCache(recipe)
        super().__init__(recipe)

    def forget(self) -> None:
        super().forget()
        self.tokens.forget()
        self.grid: Grid | None = None

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from self.tokens.held()

    def holdings(self) -> Iterator[Holding]:
        yield from super().holdings()
        yield from self.tokens.holdings()

    def slow_kernels(self) -> Counter[str]:
        return self.tokens.slow_kernels()

    def let_go(self) -> None:
        """No partial step follows."""
        self.note_peak()
        self.tokens.forget()


class LevelTokens(TokenSite):
    """Partial steps in which every unit computes the share of the tokens that the plan says.

    Args:
        model: the denoiser.
        recipe: with a plan and a selector.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__(model, find_units(model, "module", unit_kinds("module")), recipe)
        self._pilot = recipe.predictor.pilot
        self._lessons = {} if self._pilot.lessons is None else self._pilot.lessons

    def _counter(self, cache: TokenCache, moment: Moment) -> Callable[[str, int, str], int]:
        count = count_tokens(self._pilot.plan.level(moment.step), len(cache.age))
        return lambda name, layer, kind: count


class LevelSite(FittedSite):
    """The output, predicted with the weights of a plan, at some of the predicted steps computed for some tokens.

    Where a denoiser turns out to have no partial steps, these steps are computed in full, and counted.

    Args:
        model: the denoiser.
        anatomy: its anatomy.
        recipe: with a plan and a selector.

    Attributes:
        unfit: why there are no partial steps, or None.
    """

    runs = True
    traced = False

    def __init__(self, model: nn.Module, anatomy: Anatomy, recipe: Recipe) -> None:
        super().__init__(anatomy, recipe)
        self.tokens: LevelTokens | None = None
        self.unfit: str | None = None
        self._share = 0.0
        try:
            self.tokens = LevelTokens(model, recipe)
        except UnsupportedModelError as error:
            self.unfit = str(error)

    @property
    def plan(self) -> Plan | None:
        return self.recipe.predictor.pilot.plan

    def cache(self) -> LevelCache:
        return LevelCache(self.recipe)

    # -- computed steps --------------------------------------------------------------------------------------------

    def full(self, run: Run, cache: LevelCache, moment: Moment) -> Any:
        if self.unfit is not None or self.plan is None or not self.plan.holds(moment.step):
            cache.let_go()
            return run()
        again = repeatable(run)
        try:
            result = self.tokens.compute(run, cache.tokens, moment)
            cache.grid = self._grid(result, len(cache.tokens.age))
        except UnsupportedModelError as error:
            self.unfit = str(error)
            cache.let_go()
            return again()
        cache.tokens.pending = None  # the outlook of the prediction sees the same result
        return result

    def _grid(self, result: Any, tokens: int) -> Grid:
        outputs = tensors_in_order(result)
        if len(outputs) != 1:
            raise UnsupportedModelError(f"{self.anatomy.model_class} returns several tensors")
        return Grid.of(self.anatomy, outputs[0], tokens)

    # -- predicted steps -------------------------------------------------------------------------------------------

    def predict(self, run: Run, cache: LevelCache, moment: Moment, kinds: frozenset[str]) -> Any:
        self._share = 0.0
        if not self.plan.level(moment.step):
            return super().predict(run, cache, moment, kinds)
        with without_gradients():
            (guess,) = cache.predict(moment)
            result, chosen = self.tokens.recompute(run, cache.tokens, moment)
            self._share = self.tokens.share(kinds)
            (part,) = tensors_in_order(result)
            return cache.template.rebuild([_put(cache, chosen, part, guess)])

    def hindrance(self, cache: LevelCache, step: int) -> str | None:
        why = super().hindrance(cache, step)
        if why is not None or not self.plan.level(step):
            return why
        return self.tokens.hindrance(cache.tokens, step) if self.unfit is None else f"no partial steps: {self.unfit}"

    def share(self, kinds: frozenset[str]) -> float:
        return self._share

    def partial(self, kinds: frozenset[str]) -> bool:
        return self._share > 0.0

    def install(self, model: nn.Module) -> None:
        if self.tokens is not None:
            self.tokens.install(model)

    def uninstall(self, model: nn.Module) -> None:
        if self.tokens is not None:
            self.tokens.uninstall(model)


def _put(cache: LevelCache, chosen: Tensor, part: Tensor, guess: Tensor) -> Tensor:
    """The computed tokens among the predicted ones, in place.

    What is not finite stays predicted: that the prediction is finite has been seen, and no host read is needed.
    """
    mask = torch.zeros(len(cache.tokens.age), dtype=torch.bool, device=guess.device).index_fill_(0, chosen, True)
    into, where = cache.grid.spread(mask, guess)
    fresh, _ = cache.grid.spread(mask, part)
    into.copy_(torch.where(where & fresh.isfinite(), fresh, into))
    return guess


def fitted_site(model: nn.Module, anatomy: Anatomy, recipe: Recipe) -> FittedSite:
    """The site of a plan; without levels nothing inside the denoiser has to be held or hooked."""
    return LevelSite(model, anatomy, recipe) if recipe.predictor.pilot.levelled else FittedSite(anatomy, recipe)
