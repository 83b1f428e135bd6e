"""Sites ``block`` and ``module``: the denoiser runs at every step, with some of its parts' results predicted.

A *unit* is one block, or one attention or feed-forward module of a block. Its value is its result as it leaves the
module: of an attention or feed-forward before the block's gate, of a block the difference to its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..kernels import combine
from ..predictors import Horizon
from .attach import HOOK_NAME, attach, detach
from .cache import Cache, Coming, Moment, Outlook
from .modules import Unit
from .outputs import Template, flatten
from .recipe import Recipe
from .sites import Run, Site

_UNIT_NAME = f"{HOOK_NAME}_unit"
_FEEDER_NAME = f"{HOOK_NAME}_feeder"


class _Slot:
    """The last values of one unit, newest first, with their times. The tensors are the module's own, not copies.

    A tensor that somebody writes to after it left its module is noticed by its version and never used again.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.values: list[list[Tensor]] = []
        self.versions: list[list[int]] = []
        self.moments: list[Moment] = []
        self.template: Template | None = None

    def push(self, tensors: list[Tensor], template: Template, moment: Moment) -> None:
        kept = [_own(t) for t in tensors]
        self.values = [kept, *self.values][: self.depth]
        self.versions = [[t._version for t in kept], *self.versions][: self.depth]
        self.moments = [moment, *self.moments][: self.depth]
        self.template = template

    @property
    def intact(self) -> bool:
        return all(
            t._version == v
            for tensors, versions in zip(self.values, self.versions, strict=True)
            for t, v in zip(tensors, versions, strict=True)
        )


def _own(tensor: Tensor) -> Tensor:
    """The tensor itself if it owns its memory and counts its versions, else a copy."""
    tensor = tensor.detach()
    part = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if part or tensor.is_inference() else tensor


class UnitCache(Cache):
    """Values of all units of one branch. Memory: ``depth * sum over units of numel(value) * element_size`` bytes."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.forget()

    def forget(self) -> None:
        self.slots: dict[str, _Slot] = {}
        self.pending = None
        self._weights: dict[tuple[float, ...], list[float]] = {}

    @property
    def ready(self) -> bool:
        least = self.recipe.predictor.least
        return bool(self.slots) and all(len(slot.values) >= least for slot in self.slots.values())

    @property
    def intact(self) -> bool:
        """Whether nobody has written to a stored tensor."""
        return all(slot.intact for slot in self.slots.values())

    def held(self) -> Iterator[Tensor]:
        return (t for slot in self.slots.values() for tensors in slot.values for t in tensors)

    def put(self, name: str, tensors: list[Tensor], template: Template, moment: Moment) -> None:
        """Store what the unit ``name`` has just computed."""
        slot = self.slots.get(name)
        if slot is None:
            slot = self.slots[name] = _Slot(self.recipe.predictor.depth)
        slot.push(tensors, template, moment)

    def get(self, slot: _Slot, moment: Moment) -> list[Tensor]:
        """The unit's values for ``moment``; one stored value is handed out as it is."""
        weights = self._weights_for(slot.moments, moment)
        if len(weights) == 1:
            return slot.values[0]
        return [combine(stored, weights) for stored in zip(*slot.values[: len(weights)], strict=True)]

    def _weights_for(self, stored: Sequence[Moment], now: Moment) -> list[float]:
        key = (now.time, *(m.time for m in stored))
        if key not in self._weights:
            if len(self._weights) > 64:
                self._weights.clear()
            gaps = [a.time - b.time for a, b in pairwise(stored)]
            horizon = Horizon(float(now.step - stored[0].step), now.time - stored[0].time, self.recipe.limit)
            self._weights[key] = [float(w) for w in self.recipe.predictor.weights(gaps, horizon)]
        return self._weights[key]


@dataclass(frozen=True)
class _Pass:
    """A forward pass under way: where values go to, or come from."""

    cache: UnitCache
    moment: Moment
    computing: frozenset[str] | None  # kinds that compute; None means all

    def computes(self, unit: Unit) -> bool:
        slot = self.cache.slots.get(unit.name)
        return self.computing is None or unit.kind in self.computing or slot is None


class UnitSite(Site):
    """Hooks on units; which kinds of them are predicted at a step is the schedule's choice.

    Args:
        units: from :func:`diffcache.hooks.modules.find_units`.
        recipe: its predictor must be static: one set of coefficients serves all units.
    """

    def __init__(self, units: Sequence[Unit], recipe: Recipe) -> None:
        self.units, self.recipe = units, recipe
        self.kinds = frozenset(unit.kind for unit in units)
        self.now: _Pass | None = None

    def cache(self) -> UnitCache:
        return UnitCache(self.recipe)

    def compute(self, run: Run, cache: UnitCache, moment: Moment) -> Any:
        result = self._run(run, _Pass(cache, moment, None))
        cache.pending = _UnitOutlook(cache, result, len(moment.ahead)) if moment.ahead else None
        return result

    def predict(self, run: Run, cache: UnitCache, moment: Moment, kinds: frozenset[str]) -> Any:
        return self._run(run, _Pass(cache, moment, kinds))

    def _run(self, run: Run, now: _Pass) -> Any:
        before, self.now = self.now, now
        try:
            return run()
        finally:
            self.now = before

    def hindrance(self, cache: UnitCache) -> str | None:
        if not cache.intact:
            cache.forget()
            return "a stored result was written to by the model"
        return super().hindrance(cache)

    def share(self, kinds: frozenset[str]) -> float:
        return sum(unit.kind in kinds for unit in self.units) / len(self.units)

    def install(self, model: nn.Module) -> None:
        for unit in self.units:
            attach(unit.module, _UnitHook(self, unit), _UNIT_NAME)
            for feeder in unit.feeders:
                attach(feeder, _FeederHook(self, unit), _FEEDER_NAME)

    def uninstall(self, model: nn.Module) -> None:
        for unit in self.units:
            detach(unit.module, _UNIT_NAME)
            for feeder in unit.feeders:
                detach(feeder, _FEEDER_NAME)


class _UnitOutlook(Outlook):
    """Alarm for all ``count`` coming predictions if the result is not finite: then some unit's value is not, either."""

    def __init__(self, cache: UnitCache, result: Any, count: int) -> None:
        tensors, _ = flatten(result)
        self.numbers = torch.stack([~t.isfinite().all() for t in tensors]).any().float().reshape(1)
        self._cache, self._count = cache, count

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        return [(self._cache, Coming([0.0] * self._count, [bool(numbers[0])] * self._count))]


class _UnitHook(ModelHook):
    """Stores a unit's result, or gives the predicted one in its place."""

    def __init__(self, site: UnitSite, unit: Unit) -> None:
        super().__init__()
        self.site, self.unit = site, unit

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now = self.site.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if now.computes(self.unit):
            result = self.fn_ref.original_forward(*args, **kwargs)
            with torch.no_grad():
                tensors, template = flatten(result)
                now.cache.put(self.unit.name, self.unit.stored(tensors, args, kwargs), template, now.moment)
            return result
        slot = now.cache.slots[self.unit.name]
        with torch.no_grad():
            values = now.cache.get(slot, now.moment)
        return slot.template.rebuild(self.unit.restored(values, args, kwargs))


class _FeederHook(ModelHook):
    """A module whose result only the unit uses: at a predicted step a placeholder of its shape, with no memory."""

    def __init__(self, site: UnitSite, unit: Unit) -> None:
        super().__init__()
        self.site, self.unit = site, unit
        self._shape: tuple[list[Tensor], Template] | None = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now = self.site.now
        if now is None or now.computes(self.unit) or self._shape is None:
            result = self.fn_ref.original_forward(*args, **kwargs)
            if now is not None:
                tensors, template = flatten(result)
                self._shape = [t.new_zeros(()).expand(t.shape) for t in tensors], template
            return result
        tensors, template = self._shape
        return template.rebuild(tensors)
