"""Sites ``block`` and ``module``: the denoiser runs at every step, with some of its parts' results predicted.

A *unit* is one block, or one attention or feed-forward module of a block. Its value is its result as it leaves the
module: of an attention or feed-forward before the block's gate, of a block the difference to its input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..kernels import combine
from ..predictors import Horizon
from .attach import HOOK_NAME, attach, detach
from .cache import Cache, Moment
from .finite import FiniteOutlook
from .modules import Unit
from .ports import FeederPort, Port, placeholder, traced
from .recipe import Recipe
from .sites import Run, Site
from .streams import Links, Passage, Visit, named_tensors, trace, version

_UNIT_NAME = f"{HOOK_NAME}_unit"
_FEEDER_NAME = f"{HOOK_NAME}_feeder"

#: a unit's name, and how often it had been called before in the pass
Call = tuple[str, int]


class _Slot:
    """The last values of one call of a unit, newest first, with their times.

    The tensors are the module's own, not copies. One that somebody writes to after it left its module is noticed by
    its version and never used again.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.values: list[list[Tensor]] = []
        self.versions: list[list[int]] = []
        self.moments: list[Moment] = []
        self.passage = Passage(None, (), ())

    def push(self, tensors: list[Tensor], passage: Passage, moment: Moment) -> None:
        kept = [_own(t) for t in tensors]
        self.values = [kept, *self.values][: self.depth]
        self.versions = [[t._version for t in kept], *self.versions][: self.depth]
        self.moments = [moment, *self.moments][: self.depth]
        self.passage = passage

    def amend(self, tensors: list[Tensor], passage: Passage) -> None:
        """Another reading of the newest results."""
        kept = [_own(t) for t in tensors]
        self.values[0], self.versions[0], self.passage = kept, [t._version for t in kept], passage

    @property
    def intact(self) -> bool:
        return all(
            t._version == v
            for tensors, versions in zip(self.values, self.versions, strict=True)
            for t, v in zip(tensors, versions, strict=True)
        )

    def fits(self, streams: Mapping[str, Tensor]) -> bool:
        """Whether the streams that the values are added to are there, in the values' shapes."""
        return all(
            source is None or (source in streams and streams[source].shape == shape)
            for source, shape in zip(self.passage.sources, self.passage.shapes, strict=True)
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
        self.slots: dict[Call, _Slot] = {}
        self.feeds: dict[Call, Passage] = {}  # what feeders return
        self.spoilt: str | None = None
        self.pending = None
        self._weights: dict[tuple[float, ...], list[float]] = {}

    @property
    def ready(self) -> bool:
        least = self.recipe.predictor.least
        return bool(self.slots) and all(len(slot.values) >= least for slot in self.slots.values())

    @property
    def fault(self) -> str | None:
        """Why what is held must not be used, or None."""
        intact = all(slot.intact for slot in self.slots.values())
        return self.spoilt or (None if intact else "a stored result was written to by the model")

    def held(self) -> Iterator[Tensor]:
        return (t for slot in self.slots.values() for tensors in slot.values for t in tensors)

    def put(self, call: Call, tensors: list[Tensor], passage: Passage, moment: Moment) -> _Slot:
        """Store what a call of a unit has just computed."""
        slot = self.slots.get(call)
        if slot is None:
            slot = self.slots[call] = _Slot(self.recipe.predictor.depth)
        slot.push(tensors, passage, moment)
        return slot

    def get(self, slot: _Slot, moment: Moment) -> list[Tensor]:
        """The unit's values for ``moment``; one stored value is handed out as it is."""
        weights = self._weights_for(slot.moments, moment)
        if len(weights) == 1:
            return slot.values[0]
        return [combine(stored, weights) for stored in zip(*slot.values[: len(weights)], strict=True)]

    def stored(self, slots: Sequence[_Slot], moment: Moment) -> tuple[list[list[list[Tensor]]], Tensor | None]:
        """The same before it is summed: of each slot the values that count, and their weights (None for one)."""
        weights = self._weights_for(slots[0].moments, moment)
        given = [slot.values[: len(weights)] for slot in slots]
        if len(weights) == 1:
            return given, None
        # Not waited for: a prediction costs no synchronisation.
        return given, torch.tensor(weights).to(given[0][0][0].device, non_blocking=True)

    def passages(self) -> dict[str, list[Passage]]:
        """What each call of each unit and feeder looks like, in order."""
        found: dict[str, list[Passage]] = {}
        for (name, _), slot in sorted(self.slots.items()):
            found.setdefault(name, []).append(slot.passage)
        for (name, _), passage in sorted(self.feeds.items()):
            found.setdefault(name, []).append(passage)
        return found

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
    calls: Counter[str] = field(default_factory=Counter)

    def call(self, name: str) -> Call:
        """The coming call of a module; some blocks run one module for both streams."""
        return name, self.calls[name]

    def computes(self, unit: Unit) -> bool:
        """Whether the unit's coming call is computed."""
        return self.computing is None or unit.kind in self.computing or self.call(unit.name) not in self.cache.slots


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
        self._links = Links()
        self._settled = False  # whether a pass has shown the links
        self._latest: tuple[_Slot, Visit] | None = None  # until then, the block called last
        self._hooks: list[_UnitHook] = []
        self._feeder_hooks: list[_FeederHook] = []
        # Of compiled calls: the form of the coming one, and by form what calls look like that were seen.
        self._form: Any = None
        self._seen: dict[Any, dict[str, list[Passage]]] = {}

    def learns(self, form: Any) -> bool:
        self._form = form
        return form not in self._seen

    def cache(self) -> UnitCache:
        return UnitCache(self.recipe)

    def compute(self, run: Run, cache: UnitCache, moment: Moment) -> Any:
        result = self._run(run, _Pass(cache, moment, None))
        if not self._settled:
            self._settle(cache)
        elif self._form is not None and self._form not in self._seen and cache.spoilt is None:
            self._seen[self._form] = cache.passages()
        if moment.ahead or self.recipe.predictor.depth > 1:  # older values count in later predictions, too
            cache.pending = FiniteOutlook(cache, result, len(moment.ahead))
        return result

    def before(self, unit: Unit, streams: dict[str, Tensor]) -> None:
        """A unit's call begins."""
        if unit.residual and not self._settled:
            self._links.arrive(unit.module, streams)
            self._amend()

    def passage(self, visit: Visit) -> Passage:
        """The passage of a unit's call, as far as it is known by now."""
        return self._links.told(visit.block, visit.passage) if visit.streams else visit.passage

    def after(self, visit: Visit, slot: _Slot) -> None:
        """A unit was called, and its results are stored."""
        if visit.streams and not self._settled:
            self._links.leave(visit)
            self._latest = slot, visit

    def _amend(self) -> None:
        """The next block shows what the results of the one before it continue."""
        if self._latest is not None:
            (slot, visit), self._latest = self._latest, None
            passage = self._links.told(visit.block, visit.passage)
            if passage != slot.passage:
                with torch.no_grad():
                    slot.amend(passage.added(visit.streams, visit.parts), passage)

    def _settle(self, cache: UnitCache) -> None:
        """After a first pass: what was stored by a guess that the links contradict is dropped."""
        self._amend()
        self._settled = True
        self._links.rest()
        modules = {unit.name: unit.module for unit in self.units}
        if any(self._links.told(modules[name], s.passage) != s.passage for (name, _), s in cache.slots.items()):
            cache.forget()

    def predict(self, run: Run, cache: UnitCache, moment: Moment, kinds: frozenset[str]) -> Any:
        result = self._run(run, _Pass(cache, moment, kinds))
        if kinds:
            cache.pending = FiniteOutlook(cache, result, 0)
        return result

    def _run(self, run: Run, now: _Pass) -> Any:
        before, self.now = self.now, now
        seen = self._seen.get(self._form)
        try:
            if seen is not None:
                self._open_ports(now, seen)
            result = run()
            if seen is not None:
                self._collect(now, seen)
            return result
        finally:
            self.now = before
            if seen is not None:
                self._close_ports()

    # -- inside compiled graphs ------------------------------------------------------------------------------------

    def _open_ports(self, now: _Pass, seen: Mapping[str, list[Passage]]) -> None:
        """What the coming pass takes from units in a graph, and gives them."""
        for hook in self._hooks:
            passages = seen.get(hook.unit.name, [])
            slots = [now.cache.slots.get((hook.unit.name, index)) for index in range(len(passages))]
            if now.computes(hook.unit) or None in slots:
                hook.port.take(passages)
            else:
                hook.port.give(passages, *now.cache.stored(slots, now.moment))
        for hook in self._feeder_hooks:
            if not now.computes(hook.unit) and hook.name in seen:
                like = now.cache.slots[hook.unit.name, 0].values[0][0]
                hook.port.rest(like, seen[hook.name])

    def _collect(self, now: _Pass, seen: Mapping[str, list[Passage]]) -> None:
        """Store what units in a graph have computed."""
        for hook in self._hooks:
            for index, tensors in enumerate(hook.port.taken):
                now.cache.put((hook.unit.name, index), tensors, seen[hook.unit.name][index], now.moment)

    def _close_ports(self) -> None:
        for hook in (*self._hooks, *self._feeder_hooks):
            hook.port.close()

    def hindrance(self, cache: UnitCache) -> str | None:
        fault = cache.fault
        if fault is not None:
            cache.forget()
            return fault
        return super().hindrance(cache)

    def share(self, kinds: frozenset[str]) -> float:
        return sum(unit.kind in kinds for unit in self.units) / len(self.units)

    def install(self, model: nn.Module) -> None:
        for unit in self.units:
            self._hooks.append(_UnitHook(self, unit))
            attach(unit.module, self._hooks[-1], _UNIT_NAME)
            for index, feeder in enumerate(unit.feeders):
                self._feeder_hooks.append(_FeederHook(self, unit, index))
                attach(feeder, self._feeder_hooks[-1], _FEEDER_NAME)

    def uninstall(self, model: nn.Module) -> None:
        for unit in self.units:
            detach(unit.module, _UNIT_NAME)
            for feeder in unit.feeders:
                detach(feeder, _FEEDER_NAME)
        self._hooks, self._feeder_hooks = [], []


class _UnitHook(ModelHook):
    """Stores a unit's result, or gives the predicted one in its place."""

    def __init__(self, site: UnitSite, unit: Unit) -> None:
        super().__init__()
        self.site, self.unit, self.port = site, unit, Port()

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if traced():
            return self.port.run(module, self.fn_ref.original_forward, args, kwargs, self.unit.residual)
        now = self.site.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        call, computes = now.call(self.unit.name), now.computes(self.unit)
        streams = named_tensors(module, args, kwargs) if self.unit.residual else {}
        if computes or not now.cache.slots[call].fits(streams):
            result = self._compute(now, call, streams, args, kwargs)
        else:
            result = self._predict(now, now.cache.slots[call], streams)
        now.calls[self.unit.name] += 1
        return result

    def _compute(self, now: _Pass, call: Call, streams: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        before = {name: version(stream) for name, stream in streams.items()}
        self.site.before(self.unit, streams)
        result = self.fn_ref.original_forward(*args, **kwargs)
        passage, tensors = trace(self.unit.module, streams, result)
        visit = Visit(self.unit.module, streams, tensors, passage)
        passage = self.site.passage(visit)
        if any(version(stream) != before[name] for name, stream in streams.items()):
            now.cache.spoilt = f"{type(self.unit.module).__name__} writes into its input"
        with torch.no_grad():
            slot = now.cache.put(call, passage.added(streams, tensors), passage, now.moment)
        self.site.after(visit, slot)
        return result

    def _predict(self, now: _Pass, slot: _Slot, streams: dict[str, Tensor]) -> Any:
        with torch.no_grad():
            values = now.cache.get(slot, now.moment)
            return slot.passage.template.rebuild(slot.passage.onto(streams, values))


class _FeederHook(ModelHook):
    """A module whose result only the unit uses: at a predicted step a placeholder of its shape, with no memory."""

    def __init__(self, site: UnitSite, unit: Unit, index: int) -> None:
        super().__init__()
        self.site, self.unit, self.port = site, unit, FeederPort()
        self.name = f"{unit.name} {index}"

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if traced():
            return self.port.run(self.fn_ref.original_forward, args, kwargs)
        now = self.site.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        call = self.name, now.calls[self.unit.name]
        known = now.cache.feeds.get(call)
        if known is not None and not now.computes(self.unit):
            value = now.cache.slots[now.call(self.unit.name)].values[0][0]
            return known.template.rebuild([placeholder(value, shape) for shape in known.shapes])
        result = self.fn_ref.original_forward(*args, **kwargs)
        now.cache.feeds[call], _ = trace(module, {}, result)
        return result
