"""Sites ``output`` and ``body``: where a value is taken from a forward pass, and how it is put back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..predictors import TokenLayout
from .anatomy import Anatomy, find_block_lists
from .batch import Batch, Batches
from .body import BodySite
from .cache import Cache, Moment
from .forecast import Forecast
from .gradients import without_gradients
from .outlook import prepare
from .outputs import flatten
from .recipe import Recipe

Run = Callable[[], Any]
#: a call, its batch, and the signal of each of its samples -> those that are computed; reads the host once
Judge = Callable[[Run, Batch, Sequence[Tensor]], list[int]]


class Site(ABC):
    """What is cached. One object serves all branches of a denoiser; each branch has a cache of its own."""

    #: whether the denoiser's own code runs at a predicted step
    runs = True
    #: kinds of unit that it caches; empty where it caches one value
    kinds: frozenset[str] = frozenset()
    #: whether its hooks may be traced into a compiled graph
    traced = True

    @abstractmethod
    def cache(self) -> Cache:
        """An empty cache for a new branch."""

    @abstractmethod
    def compute(self, run: Run, cache: Cache, moment: Moment) -> Any:
        """Run the denoiser in full and keep what a prediction will need."""

    @abstractmethod
    def predict(self, run: Run, cache: Cache, moment: Moment, kinds: frozenset[str]) -> Any:
        """The denoiser's return value with the site's values predicted, except those of ``kinds``."""

    def prepare(self, caches: Sequence[Cache]) -> None:  # noqa: B027 - most sites have nothing left to do
        """Called when the branches that were computed in a step are known: set their outlooks."""

    def hindrance(self, cache: Cache, step: int) -> str | None:
        """Why nothing can be predicted at a step although the schedule would, or None."""
        return None if cache.ready else "too few computed steps in this branch"

    def share(self, kinds: frozenset[str]) -> float:
        """Share of the blocks (or units) that run at a step that is not computed in full."""
        return 0.0

    def partial(self, kinds: frozenset[str]) -> bool:
        """Whether the step that was just predicted computed some of what is cached."""
        return bool(kinds)

    def learns(self, form: Any) -> bool:
        """Whether the coming call has to run as it is written, because the site must see it hook by hook.

        Asked before each call of a denoiser that is compiled around hooks of the site.

        Args:
            form: equal for calls whose arguments have the same shapes.
        """
        return not self.traced

    def install(self, model: nn.Module) -> None:  # noqa: B027 - most sites need none
        """Put on the hooks that the site needs besides the denoiser's own."""

    def uninstall(self, model: nn.Module) -> None:  # noqa: B027
        """Take them off."""


class Answer(NamedTuple):
    """What became of an asked step.

    Attributes:
        result: the denoiser's return value.
        part: share of the samples that were computed; 1 is the whole batch.
        cost: work besides what runs at every predicted step, in runs of the whole batch.
    """

    result: Any
    part: float
    cost: float


class Asking(Site):
    """A site that can measure the signal that a schedule waits for.

    Of a batch, the samples that the schedule wants are computed by themselves and the others predicted, if it is
    proved that this returns the same. The first step at which samples part is computed in full as well to show it: that
    is the cost of the proof, once a model and form of call.

    Attributes:
        batches: what is known of the denoiser's batches.
    """

    batches: Batches

    @abstractmethod
    def ask(self, run: Run, cache: Cache, moment: Moment, judge: Judge) -> Answer:
        """Measure the signal, let ``judge`` decide, and compute or predict."""


class ForecastSite(Site):
    """A site that caches whole tensors."""

    def prepare(self, caches: Sequence[Forecast]) -> None:
        due = [cache for cache in caches if cache.due is not None]
        if due:
            with without_gradients():
                prepare(due)


class OutputSite(ForecastSite):
    """The denoiser's return value: at a predicted step nothing of the denoiser runs."""

    runs = False

    def __init__(self, anatomy: Anatomy, recipe: Recipe) -> None:
        self.anatomy, self.recipe = anatomy, recipe

    def cache(self) -> Forecast:
        return Forecast(self.recipe)

    def compute(self, run: Run, cache: Forecast, moment: Moment) -> Any:
        result = run()
        with without_gradients():
            tensors, cache.template = flatten(result)
            if len(cache.layouts) != len(tensors):
                cache.layouts = [self._layout(t) for t in tensors]
            cache.record(tensors, moment)
        return result

    def predict(self, run: Run, cache: Forecast, moment: Moment, kinds: frozenset[str]) -> Any:
        with without_gradients():
            return cache.template.rebuild(cache.predict(moment))

    def _layout(self, output: Tensor) -> TokenLayout:
        widths = self.recipe.modalities
        if widths:
            width = output.shape[self.anatomy.layout(output).channel_dim]
            if sum(widths) != width:
                raise UnsupportedModelError(
                    f"modalities: {list(widths)} sum to {sum(widths)}, the output has {width} channels"
                )
        return self.anatomy.layout(output, widths)


class BodyOutput(ForecastSite):
    """The residual over all blocks: embeddings and head run at a predicted step, and no block."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.body = BodySite(find_block_lists(model), model)

    def cache(self) -> Forecast:
        return Forecast(self.recipe)

    def compute(self, run: Run, cache: Forecast, moment: Moment) -> Any:
        result, residuals = self.body.compute(run)
        self._store(cache, residuals, moment)
        return result

    def _store(self, cache: Forecast, residuals: list[Tensor] | None, moment: Moment) -> None:
        if residuals is None or cache.template is not self.body.plan:
            cache.drop()  # what is held belongs to another body, or this step showed none
        if residuals is not None:  # they have no gradients
            cache.template = self.body.plan
            if len(cache.layouts) != len(residuals):
                cache.layouts = [TokenLayout() for _ in residuals]  # hidden states have their features last
            cache.record(residuals, moment, given=True)

    def predict(self, run: Run, cache: Forecast, moment: Moment, kinds: frozenset[str]) -> Any:
        with without_gradients():
            residuals = cache.predict(moment)
        return self.body.replay(run, residuals)

    def learns(self, form: Any) -> bool:
        return super().learns(form) or self.body.plan is None

    def hindrance(self, cache: Cache, step: int) -> str | None:
        known = self.body.plan is not None and cache.template is self.body.plan
        return super().hindrance(cache, step) or (None if known else "the body was not captured")

    def install(self, model: nn.Module) -> None:
        self.body.install()

    def uninstall(self, model: nn.Module) -> None:
        self.body.uninstall()
